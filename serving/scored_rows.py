"""What a package says of decisions, counted so that days add up: scores, input bins, tokens.

Bins are those of the samples the package was developed on and never move. Counts by day of
decision are kept instead of values, so that a window of days is a sum.

Shapes: S rows, F inputs, B bins of an input (its edges plus one, and a last one for missing).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from finetune.backtest_rows import FrozenBins
from finetune.features import Population, Progress
from finetune.file_scoring import population_of
from finetune.metrics import bin_shares, frozen_bins
from finetune.package import Package
from finetune.samples import Samples
from finetune.table import Column, FeatureTable
from foundation.history import Cut, cut, flatten
from foundation.store import EventStore
from serving.label_book import KEY, as_samples

FORECAST = "forecast."
TABLES = ("rows", "inputs", "tokens")
_UNKNOWN_CODE = 1  # local code of a category's unknown value, see foundation.vocabulary


@dataclass(frozen=True)
class Scored:
    """Rows of one package.

    Attributes:
        rows: key, `date` of decision, `score`, `thin`, one `forecast.NAME` column each.
        inputs: `date`, `column`, `bin`, `n`.
        tokens: `date`, `slot`, `unknown`, `total`.
    """

    rows: pl.DataFrame
    inputs: pl.DataFrame
    tokens: pl.DataFrame

    def frames(self) -> dict[str, pl.DataFrame]:
        """The tables by name."""
        return {name: getattr(self, name) for name in TABLES}


def make_reference(package: Package, population: Population) -> dict[str, Any]:
    """Frozen bins and shares of the samples a package was developed on, as plain data."""
    table = package.features(population)
    inputs = []
    for at in watched(package, table.columns):
        column, values = table.columns[at], table.values[:, at].astype(np.float64)
        edges = _edges(column, values)
        shares = bin_shares(values, edges)
        inputs.append(
            {"name": column.name, "title": column.title or column.name, "block": column.block,
             "edges": edges.tolist(), "shares": shares.tolist(), "levels": list(column.levels)}
        )  # fmt: skip
    dates = np.zeros(len(population), np.int64)
    tokens = token_counts(package, population, dates, ["all"])
    labels = package.manifest["label"]
    score = FrozenBins.of(np.array(package.manifest["score_quantiles"]), n=int(labels["rows"]))
    return {
        "package": package.id,
        "n": len(population),
        "score": score.to_dict(),
        "inputs": inputs,
        "thin": None if table.thin is None else float(table.thin.mean()),
        "tokens": {
            row["slot"]: [row["unknown"], row["total"]] for row in tokens.to_dicts()
        },
    }  # fmt: skip


def score_rows(
    package: Package,
    store: EventStore,
    rows: pl.DataFrame,
    until_us: int,
    reference: dict[str, Any],
    progress: Progress | None = None,
) -> Scored:
    """Score decisions as the service would have, on what was known before `until_us`.

    Args:
        rows: [S] rows of a label book.
        reference: of `make_reference`, for the bins.
    """
    if not len(rows):
        return _nothing()
    samples = as_samples(rows)
    population = population_of(store, package.schema, samples, until_us)
    table = package.features(population, progress)
    score = package.probability(package.logit(table))
    thin = np.zeros(len(rows), bool) if table.thin is None else table.thin
    forecasts = {
        f"{FORECAST}{c.name}": pl.Series(table.values[:, i], dtype=pl.Float32)
        for i, c in enumerate(table.columns)
        if c.block == "forecast"
    }
    dates = rows["as_of"].dt.strftime("%Y-%m-%d")
    names = dates.unique().sort().to_list()
    code = dates.cast(pl.Enum(names)).to_physical().cast(pl.Int64).to_numpy()
    frame = rows.select(KEY).with_columns(
        dates.alias("date"), pl.Series("score", score, pl.Float64), pl.Series("thin", thin),
        **forecasts,
    )  # fmt: skip
    return Scored(
        frame,
        input_counts(package, table, code, names, reference),
        token_counts(package, population, code, names),
    )


def watched(package: Package, columns: tuple[Column, ...]) -> list[int]:
    """Places of the inputs that are watched: named ones a head reads, and every forecast."""
    return [
        i
        for i, c in enumerate(columns)
        if c.block != "embedding" and (c.name in package.used or c.block == "forecast")
    ]


def input_counts(
    package: Package,
    table: FeatureTable,
    code: np.ndarray,
    dates: list[str],
    reference: dict[str, Any],
) -> pl.DataFrame:
    """How many rows fell into each bin of each input, by date.

    Args:
        code: [S] place of each row's date in `dates`.
    """
    place = {c.name: i for i, c in enumerate(table.columns)}
    parts = []
    for spec in reference["inputs"]:
        edges = np.array(spec["edges"], np.float64)
        values = table.values[:, place[spec["name"]]].astype(np.float64)
        bins = len(edges) + 2
        at = np.searchsorted(edges, values, side="right")
        at = np.where(np.isnan(values), bins - 1, at)
        count = np.bincount(code * bins + at, minlength=len(dates) * bins)
        used = np.flatnonzero(count)
        parts.append(
            pl.DataFrame(
                {
                    "date": pl.Series(dates, dtype=pl.String).gather(used // bins),
                    "column": pl.repeat(spec["name"], len(used), dtype=pl.String, eager=True),
                    "bin": used % bins,
                    "n": count[used],
                },
                schema=_nothing().inputs.schema,
            )
        )
    return pl.concat([_nothing().inputs, *parts])


def token_counts(
    package: Package, population: Population, code: np.ndarray, dates: list[str]
) -> pl.DataFrame:
    """Category values read and those the tokenizer does not know, by date and slot.

    Counted over what the model reads of a row: its latest events, profile and context.
    """
    builder = package.builder
    tokenizer, timeline = builder.tokenizer, population.timeline
    slots = [s for s in tokenizer.slots if s.kind == "category"]
    if not slots:
        return _nothing().tokens
    events = tokenizer.encode_events(timeline)
    histories = cut(timeline, population.entity_ids, population.as_of_us)
    queries = tokenizer.encode_query(
        histories, timeline, population.profile, population.context, population.entity_ids
    )
    first = np.maximum(histories.start, histories.stop - builder.max_events)
    latest = Cut(histories.entity, first, histories.stop, histories.as_of_us)
    ids = [s.ids() for s in slots]
    parts = []
    for at, date in enumerate(dates):
        mine = np.flatnonzero(code == at)
        read, _ = flatten(latest.part(mine))
        codes = np.concatenate([events.code[read].ravel(), queries.code[mine].ravel()])
        count = np.bincount(codes, minlength=tokenizer.size)
        parts.append(
            pl.DataFrame(
                {
                    "date": [date] * len(slots),
                    "slot": [s.key for s in slots],
                    "unknown": [int(count[i[_UNKNOWN_CODE]]) for i in ids],
                    "total": [int(count[i[_UNKNOWN_CODE:]].sum()) for i in ids],
                },
                schema=_nothing().tokens.schema,
            )
        )
    return pl.concat(parts).filter(pl.col("total") > 0)


def learned_keys(samples: list[Samples]) -> pl.DataFrame:
    """Customers and moments a package learned from or was chosen on."""
    keys = [s.frame.select("entity_id", "as_of") for s in samples]
    return pl.concat(keys).unique().sort("entity_id", "as_of")


def _edges(column: Column, values: np.ndarray) -> np.ndarray:
    """Inner edges: between the levels of a code, deciles of a number."""
    if column.kind == "code":
        return np.arange(len(column.levels)) - 0.5
    return frozen_bins(values) if np.isfinite(values).any() else np.zeros(0)


def _nothing() -> Scored:
    key: dict[str, Any] = {
        "entity_id": pl.String, "as_of": pl.Datetime("us"), "channel": pl.String,
        "date": pl.String, "score": pl.Float64, "thin": pl.Boolean,
    }  # fmt: skip
    counts = {"date": pl.String, "column": pl.String, "bin": pl.Int64, "n": pl.Int64}
    tokens = {"date": pl.String, "slot": pl.String, "unknown": pl.Int64, "total": pl.Int64}
    return Scored(
        pl.DataFrame(schema=key), pl.DataFrame(schema=counts), pl.DataFrame(schema=tokens)
    )
