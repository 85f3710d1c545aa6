"""The rows on which models are compared: labels, moments, and every model's score beside them.

All numbers of a back-test come from these rows and the frozen bins, so that whoever holds
`rows.parquet` and `backtest.json` can compute each of them again.

Shapes: S rows. Times are naive UTC microseconds; higher scores are riskier.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from finetune.costs import CostMatrix, exposure_of
from finetune.metrics import bin_shares, frozen_bins
from finetune.samples import Samples, check_samples
from foundation.errors import SampleError
from foundation.schema import Schema
from foundation.tables import parse_numbers, read_table

INCUMBENT_COLUMN = "incumbent_score"
INCUMBENT = "incumbent"
BASELINES = ("gbdt", "scorecard")
OPPONENTS = (INCUMBENT, INCUMBENT_COLUMN, *BASELINES)
SCORE = "score."


@dataclass(frozen=True)
class FrozenBins:
    """Deciles of the scores a model was developed on, and what share stood in each.

    Attributes:
        edges: inner edges; shares: one per bin and a last one for missing scores.
        n: development rows behind them.
    """

    edges: np.ndarray
    shares: np.ndarray
    n: int

    @classmethod
    def of(cls, score: np.ndarray, n: int | None = None) -> FrozenBins:
        """Freeze the deciles of development scores (or of their quantiles, of `n` rows)."""
        score = np.asarray(score, np.float64)
        score = score[np.isfinite(score)]
        edges = frozen_bins(score)
        return cls(edges, bin_shares(score, edges), len(score) if n is None else n)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"edges": self.edges.tolist(), "shares": self.shares.tolist(), "n": self.n}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FrozenBins:
        """The inverse of `to_dict`."""
        return cls(np.array(data["edges"]), np.array(data["shares"]), int(data["n"]))


@dataclass(frozen=True)
class ModelFacts:
    """One of the models compared.

    Attributes:
        name: its column in the rows is `score.NAME`.
        title: what it is, in words.
        probability: the score is meant as a probability of bad, so calibration can be judged.
    """

    name: str
    title: str
    probability: bool


@dataclass
class ScoredRows:
    """What a back-test is computed from.

    Attributes:
        frame: row, entity_id, as_of, month, label, weight, channel, exposure, origin, seen and
            `score.NAME` per model; null where a model has no score for a row.
        models: the subject first, then its opponents, the most important one first.
        frozen: origin (`development` for one fixed package) -> bins of the subject's scores.
    """

    frame: pl.DataFrame
    models: list[ModelFacts]
    frozen: dict[str, FrozenBins]
    notes: list[str] = field(default_factory=list)

    @property
    def subject(self) -> ModelFacts:
        """The model that is judged."""
        return self.models[0]

    def write(self, path: Path) -> None:
        """Write the rows as Parquet, whole or not at all."""
        partial = path.with_name(f".{path.name}.part")
        self.frame.write_parquet(partial)
        partial.replace(path)


@dataclass(frozen=True)
class Given:
    """A labelled sample file for a back-test, with what stands beside the schema's columns.

    Attributes:
        incumbent: [S] column `incumbent_score`, NaN where empty; None without the column.
        exposure: [S] amount at stake; None without a cost matrix.
    """

    samples: Samples
    incumbent: np.ndarray | None
    exposure: np.ndarray | None

    def take(self, rows: np.ndarray) -> Given:
        """Some of the rows."""
        return Given(
            self.samples.take(rows),
            None if self.incumbent is None else self.incumbent[rows],
            None if self.exposure is None else self.exposure[rows],
        )


def read_given(path: str | Path, schema: Schema, costs: CostMatrix | None) -> Given:
    """Read labelled samples with an incumbent's score and an exposure where there are such.

    Raises:
        DataError, SampleError: see `finetune.samples.read_samples`; an incumbent's score or an
            exposure that is no number.
    """
    table = read_table(path, "samples")
    declared = {*schema.context, *(spec.column for spec in schema.context.values())}
    extra = [INCUMBENT_COLUMN] if INCUMBENT_COLUMN in table.columns else []
    amount = None if costs is None else costs.exposure
    if amount is not None and amount in table.columns and amount not in declared:
        extra.append(amount)
    samples = check_samples(table.drop(extra), schema, True, where=str(path))
    original = table[samples.frame["row"].to_numpy() - 1]
    incumbent = None
    if INCUMBENT_COLUMN in original.columns:
        given = original[INCUMBENT_COLUMN]
        number = parse_numbers(given)
        text = given.cast(pl.String).str.strip_chars()
        odd = number.is_null() & text.is_not_null() & ~text.is_in(["", "NaN", "nan"])
        if odd.any():
            at = int(odd.arg_max() or 0)
            raise SampleError(
                f"{path}, row {samples.frame['row'][at]}, column '{INCUMBENT_COLUMN}': "
                f"'{given[at]}' is no number; write the incumbent's score, higher for riskier"
            )
        incumbent = number.cast(pl.Float64).fill_null(float("nan")).to_numpy()
        if np.isnan(incumbent).all():
            incumbent = None
    exposure = None if costs is None else exposure_of(costs, original, path)
    return Given(samples, incumbent, exposure)


def rows_frame(
    given: Given,
    scores: dict[str, np.ndarray],
    origin: np.ndarray | None = None,
    seen: np.ndarray | None = None,
) -> pl.DataFrame:
    """The frame of `ScoredRows`.

    Args:
        scores: model -> [S], NaN where it has none.
        origin: [S] names of the origins that judged the rows; None for one fixed package.
        seen: [S] bool, the customer stands among those learnt from; None where unknown.
    """
    frame = given.samples.frame
    none = [None] * len(frame)
    out = frame.select(
        "row", "entity_id", "as_of", pl.col("as_of").dt.strftime("%Y-%m").alias("month"),
        "label", "weight", "channel",
    ).with_columns(
        pl.Series("exposure", none if given.exposure is None else given.exposure, pl.Float64),
        pl.Series("origin", none if origin is None else origin, pl.String),
        pl.Series("seen", none if seen is None else seen, pl.Boolean),
    )  # fmt: skip
    return out.with_columns(
        pl.Series(f"{SCORE}{name}", values, pl.Float64).fill_nan(None)
        for name, values in scores.items()
    )


def column_facts(score: np.ndarray) -> ModelFacts:
    """What the column `incumbent_score` is taken for."""
    finite = score[np.isfinite(score)]
    inside = bool(((finite >= 0) & (finite <= 1)).all())
    kind = "read as a probability of bad" if inside else "a scale of its own, only its order counts"
    title = f"column {INCUMBENT_COLUMN}, higher taken as riskier, {kind}"
    return ModelFacts(INCUMBENT_COLUMN, title, inside)
