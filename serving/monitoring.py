"""Numbers of a day: has the world moved, does the score still hold, did the forecasts come true.

Everything follows from scored rows, a label book and frozen bins. Figures of labels leave out the
customers and moments the package learned from.

Shapes: S rows, T forecast targets, F inputs.
"""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import chi2

from finetune.backtest_rows import FrozenBins
from finetune.bootstrap import bootstrap_difference, bootstrap_intervals
from finetune.metrics import bin_shares, psi_of_shares
from finetune.rates import wilson
from foundation.history import DAY_US, entity_index
from foundation.schema import Schema
from foundation.store import EventStore
from foundation.targets import outcome_targets, target_names
from serving.label_book import KEY, microseconds
from serving.scored_rows import FORECAST, Scored

DRAWS = 500
NETWORK = f"{FORECAST}network."
CHANCE = 0.05
SHOWN_SLOTS = 5


def drift(
    scored: Scored, reference: dict[str, Any], first: dt.date, last: dt.date
) -> dict[str, Any]:
    """Score, inputs, unknown values and thin files of the samples decided in a window.

    Args:
        scored: of one package; reference: of the same.
        first, last: days of decision, both included.
    """
    window = pl.col("date").is_between(pl.lit(str(first)), pl.lit(str(last)))
    rows = scored.rows.filter(window)
    n = len(rows)
    out: dict[str, Any] = {"first": str(first), "last": str(last), "n": n, "score": None}
    out |= {"inputs": [], "unknown": None, "thin": None, "mean_score": None}
    if not n:
        return out
    score = rows["score"].to_numpy()
    frozen = FrozenBins.from_dict(reference["score"])
    shares = bin_shares(score, frozen.edges)
    out["mean_score"] = float(score.mean())
    out["score"] = {
        "psi": psi_of_shares(frozen.shares, shares),
        "chance": _chance(frozen.shares, n, frozen.n, 1),
        "development": frozen.shares[:-1].tolist(),
        "now": shares[:-1].tolist(),
        "edges": frozen.edges.tolist(),
    }
    out["inputs"] = _inputs(scored.inputs.filter(window), reference)
    if reference["thin"] is not None:
        out["thin"] = {
            "share": float(rows["thin"].to_numpy().mean()), "development": reference["thin"]
        }  # fmt: skip
    out["unknown"] = _unknown(scored.tokens.filter(window), reference["tokens"])
    return out


def _inputs(counts: pl.DataFrame, reference: dict[str, Any]) -> list[dict[str, Any]]:
    """PSI of every watched input, the most moved first."""
    summed = counts.group_by("column", "bin").agg(pl.col("n").sum())
    by_column = {name: part for (name,), part in summed.group_by(["column"])}
    out = []
    for spec in reference["inputs"]:
        expected = np.array(spec["shares"])
        part = by_column.get(spec["name"])
        if part is None:
            continue
        count = np.bincount(
            part["bin"].to_numpy(), weights=part["n"].to_numpy(), minlength=len(expected)
        )
        n = int(count.sum())
        actual = count / n
        grown = int(np.argmax(actual - expected))
        out.append(
            {
                "name": spec["name"], "title": spec["title"], "block": spec["block"], "n": n,
                "psi": psi_of_shares(expected, actual),
                "chance": _chance(expected, n, reference["n"], len(reference["inputs"])),
                "missing": float(actual[-1]), "missing_development": float(expected[-1]),
                "grown": _bin_words(spec, grown),
                "grown_from": float(expected[grown]), "grown_to": float(actual[grown]),
            }
        )  # fmt: skip
    return sorted(out, key=lambda row: (-row["psi"], row["name"]))


def _bin_words(spec: dict[str, Any], at: int) -> str:
    """Which bin, in words."""
    edges = spec["edges"]
    if at == len(edges) + 1:
        return "missing"
    if spec["levels"]:
        return spec["levels"][at - 1] if at else "a value not seen before"
    if not edges:
        return "any value"
    if at == 0:
        return f"below {edges[0]:.6g}"
    if at == len(edges):
        return f"{edges[-1]:.6g} or more"
    return f"{edges[at - 1]:.6g} to {edges[at]:.6g}"


def _chance(expected: np.ndarray, n: int, development: int, many: int) -> float:
    """What PSI reaches 1 in 20 times where nothing moved, over `many` inputs together.

    For equal distributions it is (1/n + 1/development) times a chi-squared of bins - 1
    (Yurdakul and Naranjo 2020, Journal of Risk Model Validation 14(4)).
    """
    freedom = max(int((expected > 0).sum()) - 1, 1)
    return float((1 / n + 1 / max(development, 1)) * chi2.ppf(1 - CHANCE / max(many, 1), freedom))


def _unknown(tokens: pl.DataFrame, before: dict[str, list[int]]) -> dict[str, Any] | None:
    """Share of category values the tokenizer does not know, and the fields they stand in."""
    slots = tokens.group_by("slot").agg(pl.col("unknown").sum(), pl.col("total").sum())
    total = int(slots["total"].sum())
    if not total:
        return None
    old_unknown, old_total = (sum(v[i] for v in before.values()) for i in (0, 1))
    rows = []
    for row in slots.sort("slot").to_dicts():
        was = before.get(row["slot"], [0, 0])
        share, old = row["unknown"] / row["total"], was[0] / max(was[1], 1)
        if row["unknown"]:
            rows.append({"slot": row["slot"], "share": share, "development": old})
    rows.sort(key=lambda r: (r["development"] - r["share"], r["slot"]))
    return {
        "share": int(slots["unknown"].sum()) / total,
        "development": old_unknown / max(old_total, 1),
        "slots": rows[:SHOWN_SLOTS],
    }


def labelled(
    rows: pl.DataFrame, labels: pl.DataFrame, learned: pl.DataFrame, since: dt.datetime
) -> pl.DataFrame:
    """Scored rows whose label became known at or after `since` and that nothing learned from."""
    matured = labels.filter(pl.col("label_known_at") >= since)
    fresh = matured.join(learned, on=["entity_id", "as_of"], how="anti")
    return rows.join(fresh.select(*KEY, "label", "weight"), on=KEY, nulls_equal=True).sort(KEY)


def realised(frame: pl.DataFrame, manifest: dict[str, Any], left_out: int) -> dict[str, Any]:
    """How a package ranked and levelled the rows whose label is known by now.

    Args:
        frame: of `labelled`. left_out: matured rows the package learned from.
    """
    n, bads = len(frame), int(frame["label"].sum() or 0)
    out: dict[str, Any] = {"n": n, "bads": bads, "learned": left_out, "ks": None, "auc": None}
    out |= {"observed": None, "expected": None, "development": development_ks(manifest)}
    out["drop"] = None
    if not n:
        return out
    y, score, weight = _arrays(frame)
    low, high = (float(v[0]) for v in wilson(np.array([bads]), np.array([n])))
    out["observed"] = {"value": float(np.average(y, weights=weight)), "low": low, "high": high}
    out["expected"] = float(np.average(score, weights=weight))
    if 0 < bads < n:
        found = bootstrap_intervals(y, score, ("auc", "ks"), weight, draws=DRAWS, seed=0)
        for name, interval in found.items():
            out[name] = {"value": interval.value, "low": interval.low, "high": interval.high}
        out["drop"] = _drop(out["development"], out["ks"])
    return out


def development_ks(manifest: dict[str, Any]) -> dict[str, Any] | None:
    """KS out of fold at development with its interval; of the test file where there is no other."""
    metrics = manifest.get("metrics", {})
    row = metrics.get("recipes", {}).get(manifest["recipe"], {})
    for prefix in ("cv_ks", "ks"):
        if row.get(prefix) is not None and row.get(f"{prefix}_low") is not None:
            return {
                "value": row[prefix], "low": row[f"{prefix}_low"], "high": row[f"{prefix}_high"]
            }  # fmt: skip
    return None


def _drop(before: dict[str, Any] | None, now: dict[str, Any]) -> dict[str, Any] | None:
    """KS at development minus realised: samples of their own, so intervals add in squares."""
    if before is None:
        return None
    drop = before["value"] - now["value"]
    below = math.hypot(before["value"] - before["low"], now["high"] - now["value"])
    above = math.hypot(before["high"] - before["value"], now["value"] - now["low"])
    return {"value": drop, "low": drop - below, "high": drop + above}


def against(champion: pl.DataFrame, challenger: pl.DataFrame) -> dict[str, Any] | None:
    """KS and AUC of the challenger minus the champion's on rows neither learned from, paired."""
    both = champion.join(
        challenger.select(*KEY, pl.col("score").alias("_other")), on=KEY, nulls_equal=True
    ).sort(KEY)
    n, bads = len(both), int(both["label"].sum() or 0)
    if not 0 < bads < n:
        return None
    y, score, weight = _arrays(both)
    other = both["_other"].to_numpy()
    out: dict[str, Any] = {"n": n, "bads": bads}
    for measure in ("ks", "auc"):
        gap = bootstrap_difference(y, other, score, measure, weight, draws=DRAWS, seed=0)
        out[measure] = {"difference": gap.difference, "low": gap.low, "high": gap.high}
    return out


def forecasts_came(
    rows: pl.DataFrame,
    store: EventStore,
    schema: Schema,
    end: dt.datetime,
    days: int,
    since: dt.datetime | None,
) -> list[dict[str, Any]]:
    """What was forecast for scored rows against what happened, target by target.

    A row counts for a target once its whole horizon is over, and for `days` days from then on.

    Args:
        end: nothing known at or after it is read.
        since: the forecasters have seen what happened before it; earlier rows are left out.
    """
    outcomes = schema.parsed_outcomes()
    named = [c for c in rows.columns if c.startswith(FORECAST) and not c.startswith(NETWORK)]
    named = named or [c for c in rows.columns if c.startswith(FORECAST)]
    if since is not None:
        rows = rows.filter(pl.col("as_of") >= since)
    if not outcomes or not named or not len(rows):
        return []
    end_us = microseconds(end)
    timeline = store.timeline(entities=rows["entity_id"].unique(), until_us=end_us)
    entity = entity_index(timeline.entity_ids, rows["entity_id"])
    cut_us = rows["as_of"].to_physical().cast(pl.Int64).to_numpy()
    came = outcome_targets(timeline, outcomes, entity, cut_us, end_us, exposed=True)
    titles = {t: o.title(h) for o in outcomes for t, h in zip(o.targets, o.horizons, strict=True)}
    horizon = {t: h for o in outcomes for t, h in zip(o.targets, o.horizons, strict=True)}
    places = {name: i for i, name in enumerate(target_names(outcomes))}
    out = []
    for column in named:
        target = column.removeprefix(FORECAST).removeprefix("network.")
        over = cut_us + horizon[target] * DAY_US
        truth = came[:, places[target]]
        said = rows[column].cast(pl.Float64).to_numpy()
        ripe = (over <= end_us) & (over > end_us - days * DAY_US)
        ripe &= np.isfinite(truth) & np.isfinite(said)
        n, hits = int(ripe.sum()), int(truth[ripe].sum())
        if not n:
            continue
        low, high = (float(v[0]) for v in wilson(np.array([hits]), np.array([n])))
        out.append(
            {"name": target, "title": titles[target], "n": n, "forecast": float(said[ripe].mean()),
             "happened": hits / n, "low": low, "high": high}
        )  # fmt: skip
    return out


def _arrays(frame: pl.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[S] label, score and weight."""
    return (
        frame["label"].cast(pl.Float64).to_numpy(),
        frame["score"].to_numpy(),
        frame["weight"].to_numpy(),
    )
