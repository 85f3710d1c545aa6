"""Numbers of the evaluation part of a report: curves, bins, intervals, comparison, stability.

Shapes: S samples with known labels, sorted or not; C points of a curve; every result is plain data
that goes into JSON as it is. Scores are probabilities of bad, so approving means the low end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from finetune import metrics
from finetune.bootstrap import (
    Measure,
    bootstrap_draws,
    bootstrap_intervals,
    delong,
    interval_ends,
    resamples,
)
from finetune.fairness import group_numbers
from finetune.rates import wilson
from finetune.report_content import EvaluationFacts, ReportContent
from finetune.swap_set import CELLS, Curve, Ranking, swap_cells, swap_record
from foundation.errors import SampleError

CURVE_POINTS = 240
LEAST_CLASS = 10  # fewer bads or goods in a month say nothing about its KS
APPROVALS = (0.5, 0.6, 0.7, 0.8, 0.9)
GAIN_DRAWS = 200
TAILS = (0.025, 0.975)
MEASURES: dict[Measure, Callable[..., float]] = {
    "ks": metrics.ks,
    "auc": metrics.auc,
    "gini": metrics.gini,
    "log_loss": metrics.log_loss,
    "brier": metrics.brier,
}
Draws = dict[str, np.ndarray]
HEADLINE = 0.7  # approval rate of the baseline at which the gain gets an interval


def basis(name: str, y: np.ndarray, as_of_us: np.ndarray | None = None) -> dict[str, Any]:
    """What numbers were computed on: n, bads, bad rate with interval, as_of range.

    Args:
        y: [S] 1 bad, 0 good, NaN unknown; unknown rows count in `n_unknown` only.
        as_of_us: [S] microseconds UTC, or None where a sample has no single moment.
    """
    known = ~np.isnan(y)
    n, bad = int(known.sum()), int(np.nansum(y))
    out: dict[str, Any] = {"name": name, "n": n, "n_bad": bad, "n_unknown": int((~known).sum())}
    low, high = wilson(np.array([bad]), np.array([n])) if n else (None, None)
    out["bad_rate"] = bad / n if n else None
    out["bad_rate_low"] = float(low[0]) if low is not None else None
    out["bad_rate_high"] = float(high[0]) if high is not None else None
    out["start"] = out["end"] = None
    if as_of_us is not None and len(as_of_us):
        out["start"], out["end"] = _date(as_of_us.min()), _date(as_of_us.max())
    return out


def month_of(as_of_us: np.ndarray) -> np.ndarray:
    """[S] calendar month in UTC as `YYYY-MM`."""
    return as_of_us.astype("datetime64[us]").astype("datetime64[M]").astype(str)


def _date(moment_us: int) -> str:
    return str(np.datetime64(int(moment_us), "us").astype("datetime64[D]"))


def by_month(y: np.ndarray, as_of_us: np.ndarray) -> list[dict[str, Any]]:
    """Count, bads and bad rate with interval for each month of as_of."""
    months = month_of(as_of_us)
    out = []
    for month in np.unique(months):
        part = basis(str(month), y[months == month])
        out.append(
            {"month": str(month), "n": int((months == month).sum()), "n_known": part["n"]}
            | {k: part[k] for k in ("n_bad", "bad_rate", "bad_rate_low", "bad_rate_high")}
        )
    return out


def evaluation_numbers(content: ReportContent) -> dict[str, Any] | None:
    """Everything the report says about the sample the model is judged on.

    Returns:
        None without an evaluation; `metrics` and curves are None where only one class is present.
    Raises:
        SampleError: arrays of unequal length, labels other than 0, 1, NaN, scores outside [0, 1].
    """
    facts = content.evaluation
    if facts is None:
        return None
    check_arrays(
        facts.name, facts.y, as_of_us=facts.as_of_us, score=facts.score, baseline=facts.baseline
    )
    known = ~np.isnan(facts.y)
    y, score = facts.y[known], facts.score[known]
    weight = np.ones(len(y)) if facts.weight is None else facts.weight[known]
    baseline = None if facts.baseline is None else facts.baseline[known]
    out: dict[str, Any] = {
        "basis": basis(facts.name, facts.y, facts.as_of_us),
        "kind": facts.kind,
        "out_of_time": facts.out_of_time,
        "baseline_name": facts.baseline_name if baseline is not None else None,
        "weighted": _weighted(y, weight),
        "distribution": _distribution(y, score, weight),
        "stability": _stability(facts, content),
        "metrics": None,
        "roc": None,
        "ks_curve": None,
        "calibration": None,
        "deciles": None,
        "comparison": None,
        "groups": group_numbers(
            y, score, weight, {k: np.asarray(v)[known] for k, v in facts.groups.items()},
            facts.approve_below, content.resamples, content.seed,
        ),
    }  # fmt: skip
    if len(np.unique(y)) < 2:
        return out
    draws = _draws(y, score, weight, content)
    out["metrics"] = _metrics(y, score, weight, draws)
    out["roc"] = {"chosen": _roc(y, score, weight)}
    out["ks_curve"] = _ks_curve(y, score, weight)
    out["calibration"] = _calibration(y, score, weight)
    out["deciles"] = _deciles(y, score, weight)
    if baseline is not None and content.recipe != facts.baseline_name:
        out["roc"]["baseline"] = _roc(y, baseline, weight)
        out["comparison"] = {"baseline": facts.baseline_name} | _comparison(
            y, score, baseline, weight, draws, content
        )
    return out


def _weighted(y: np.ndarray, weight: np.ndarray) -> dict[str, Any] | None:
    """What weights do to the sample: their range, the weighted bad rate; None for equal ones."""
    if not len(y) or weight.min() == weight.max():
        return None
    return {
        "least": float(weight.min()),
        "most": float(weight.max()),
        "bad_rate": float(np.average(y, weights=weight)),
        "worth": float(weight.sum() ** 2 / (weight**2).sum()),
    }


def check_arrays(
    name: str, y: np.ndarray, as_of_us: np.ndarray | None = None, **scores: np.ndarray | None
) -> None:
    """Refuse what cannot be reported on.

    Raises:
        SampleError: lengths differ, labels are not 0, 1 or NaN, or scores leave [0, 1].
    """
    for key, values in {"as_of": as_of_us, **scores}.items():
        if values is not None and len(values) != len(y):
            raise SampleError(f"report on '{name}': {len(y)} labels but {len(values)} of '{key}'")
    if not np.isin(y[~np.isnan(y)], (0, 1)).all():
        raise SampleError(f"report on '{name}': labels must be 0, 1 or missing")
    for key, values in scores.items():
        if values is not None and not ((values >= 0) & (values <= 1)).all():
            raise SampleError(f"report on '{name}': '{key}' must lie in [0, 1]")


def _draws(y: np.ndarray, score: np.ndarray, weight: np.ndarray, content: ReportContent) -> Draws:
    return bootstrap_draws(
        y, score, tuple(MEASURES), weight, draws=content.resamples, seed=content.seed
    )


def auc_interval(y: np.ndarray, score: np.ndarray) -> dict[str, float]:
    """AUC with DeLong's 95 % interval, against a constant; empty below two of a class."""
    if min(y.sum(), len(y) - y.sum()) < 2:
        return {}
    found = delong(y, score, np.zeros(len(y)))
    return {
        "auc": metrics.auc(y, score),
        "auc_low": max(0.0, 0.5 + found.low),
        "auc_high": min(1.0, 0.5 + found.high),
    }


def _metrics(
    y: np.ndarray, score: np.ndarray, weight: np.ndarray, draws: Draws
) -> list[dict[str, Any]]:
    """Measures with their intervals; the calibration error has none (it is biased upward)."""
    rows: list[dict[str, Any]] = []
    for name, value in MEASURES.items():
        found = value(y, score, weight)
        low, high = interval_ends(draws[name], found, name)
        rows.append({"name": name, "value": found, "low": low, "high": high})
    error = metrics.ece(y, score, weight, bins=len(_calibration(y, score, weight)))
    return [*rows, {"name": "ece", "value": error, "low": None, "high": None}]


def _roc(y: np.ndarray, score: np.ndarray, weight: np.ndarray) -> dict[str, list[float]]:
    fpr, tpr, _ = metrics.roc_curve(y, score, weight)
    keep = _thin(len(fpr))
    return {"fpr": fpr[keep].tolist(), "tpr": tpr[keep].tolist()}


def _ks_curve(y: np.ndarray, score: np.ndarray, weight: np.ndarray) -> dict[str, Any]:
    """Cumulated shares of bads and goods over customers ordered from the riskiest down."""
    good, bad, threshold = metrics.roc_curve(y, score, weight)
    rate = float(np.average(y, weights=weight))
    share = rate * bad + (1 - rate) * good
    top = int(np.argmax(np.abs(bad - good)))
    keep = np.union1d(_thin(len(share)), [top])
    return {
        "share": share[keep].tolist(),
        "bad": bad[keep].tolist(),
        "good": good[keep].tolist(),
        "ks": metrics.ks(y, score, weight),
        "at_share": float(share[top]),
        "at_bad": float(bad[top]),
        "at_good": float(good[top]),
        "at_score": float(np.clip(threshold[top], 0, 1)),
    }


def _thin(n: int) -> np.ndarray:
    return np.unique(np.linspace(0, n - 1, min(n, CURVE_POINTS)).round().astype(int))


def _calibration(y: np.ndarray, score: np.ndarray, weight: np.ndarray) -> list[dict[str, Any]]:
    """Mean score against realised rate; as many bands as hold five bads each, 2 to 10."""
    count = int(np.clip(y.sum() // 5, 2, 10))
    curve = metrics.calibration_curve(y, score, weight, bins=count)
    low, high = wilson(curve["observed"] * curve["count"], curve["count"])
    return [
        {
            "n": int(n),
            "mean_score": float(p),
            "bad_rate": float(o),
            "bad_rate_low": float(a),
            "bad_rate_high": float(b),
        }
        for n, p, o, a, b in zip(
            curve["count"], curve["predicted"], curve["observed"], low, high, strict=True
        )
    ]


def _deciles(y: np.ndarray, score: np.ndarray, weight: np.ndarray) -> list[dict[str, Any]]:
    """Tenths (fifths below 100 rows) from the riskiest down, with lift and captured bads."""
    out = []
    for row in metrics.lift_table(y, score, weight, bins=10 if len(y) >= 100 else 5):
        low, high = wilson(np.array([row["bad_rate"] * row["rows"]]), np.array([row["rows"]]))
        out.append(
            {
                "tenth": int(row["band"]),
                "n": int(row["rows"]),
                "n_bad": round(row["bads"]),
                "score_low": row["score_min"],
                "score_high": row["score_max"],
                "bad_rate": row["bad_rate"],
                "bad_rate_low": float(low[0]),
                "bad_rate_high": float(high[0]),
                "lift": row["lift"],
                "captured": row["captured"],
            }
        )
    return out


def _distribution(y: np.ndarray, score: np.ndarray, weight: np.ndarray) -> dict[str, Any]:
    """Share of bads and of goods in equal steps of the score."""
    if not len(y):
        return {"edges": [], "bad": [], "good": []}
    count = int(np.clip(np.sqrt(len(y)), 6, 30))
    top = float(max(np.quantile(score, 0.999), 1e-6))
    edges = np.linspace(0, top, count + 1)
    clipped = np.minimum(score, top)
    shares = {
        name: np.histogram(clipped[y == label], edges, weights=weight[y == label])[0]
        / max(float(weight[y == label].sum()), metrics.EPS)
        for name, label in (("bad", 1), ("good", 0))
    }
    return {"edges": edges.tolist()} | {k: v.tolist() for k, v in shares.items()}


def bad_rate_at(
    y: np.ndarray, score: np.ndarray, approval: np.ndarray, weight: np.ndarray | None = None
) -> np.ndarray:
    """[A] bad rates among the best `approval` ([A]) of customers; ties share bads evenly."""
    curve = metrics.ks_curve(y, score, weight)
    mass = np.ones(len(y)) if weight is None else weight
    bads = np.interp(approval, np.append(0.0, curve["population"]), np.append(0.0, curve["bad"]))
    return bads * (mass @ y) / mass.sum() / approval


def _comparison(
    y: np.ndarray,
    score: np.ndarray,
    baseline: np.ndarray,
    weight: np.ndarray,
    ours: Draws,
    content: ReportContent,
) -> dict[str, Any]:
    """Chosen against baseline on the same rows: paired differences and what approval gains.

    The draws of both scores come from one seed, so that they hold the same rows.
    """
    theirs = _draws(y, baseline, weight, content)
    rows = []
    for measure in ("auc", "ks", "log_loss"):
        low, high = np.quantile(ours[measure] - theirs[measure], TAILS)
        first = MEASURES[measure](y, score, weight)
        second = MEASURES[measure](y, baseline, weight)
        rows.append(
            {
                "name": measure,
                "chosen": first,
                "baseline": second,
                "difference": first - second,
                "low": float(low),
                "high": float(high),
            }
        )
    shares = np.array(APPROVALS)
    allowed = bad_rate_at(y, baseline, shares, weight)
    reached = bad_rate_at(y, score, shares, weight)
    approval = [
        {
            "approval": float(a),
            "baseline_bad_rate": float(b),
            "chosen_bad_rate": float(o),
            "baseline_approval": metrics.approval_rate_at_bad_rate(y, baseline, b, weight),
            "chosen_approval": metrics.approval_rate_at_bad_rate(y, score, b, weight),
        }
        for a, b, o in zip(shares, allowed, reached, strict=True)
    ]
    grid = np.linspace(0.05, 1, 77)
    return {
        "metrics": rows,
        "approval": approval,
        **_decisions(y, score, baseline, weight, content),
        "curve": {
            "approval": grid.tolist(),
            "chosen": bad_rate_at(y, score, grid, weight).tolist(),
            "baseline": bad_rate_at(y, baseline, grid, weight).tolist(),
        },
    }


def _decisions(
    y: np.ndarray,
    score: np.ndarray,
    baseline: np.ndarray,
    weight: np.ndarray,
    content: ReportContent,
) -> dict[str, Any]:
    """What changes for applicants where the baseline approves `HEADLINE` of them.

    Returns:
        `approval_gain`: share approved at the bad rate the baseline has there, with interval;
        `swap`: who is swapped in and out at the same approval rate, with intervals.
    """
    ours, theirs = Ranking.of(score), Ranking.of(baseline)

    def measure(weights: np.ndarray) -> Draws:
        a, b = Curve.of(ours, y, weights), Curve.of(theirs, y, weights)
        share = np.full(len(weights), HEADLINE)
        allowed = b.bad_rate_at(share)
        found = {
            "allowed": allowed,
            "chosen": a.approval_at(allowed),
            "baseline": b.approval_at(allowed),
        }
        cells = swap_cells(
            y, weights, a.fractions(share)[:, ours.group], b.fractions(share)[:, theirs.group]
        )
        for name, (mass, bads) in cells.items():
            found |= {f"{name}.n": mass, f"{name}.bads": bads}
        return found

    draws = min(content.resamples, GAIN_DRAWS)
    real = measure(weight[None])
    parts = [measure(counts * weight) for counts in resamples(y, draws, content.seed)]
    drawn = {k: np.concatenate([p[k] for p in parts]) for k in real}
    low, high = np.quantile(drawn["chosen"] - drawn["baseline"], TAILS)
    first, second = float(real["chosen"][0]), float(real["baseline"][0])
    cells = [{n: (d[f"{n}.n"], d[f"{n}.bads"]) for n in CELLS} for d in (real, drawn)]
    return {
        "approval_gain": {
            "bad_rate": float(real["allowed"][0]),
            "chosen": first,
            "baseline": second,
            "difference": first - second,
            "low": float(low),
            "high": float(high),
            "resamples": draws,
        },
        "swap": {"approval": HEADLINE} | swap_record(*cells),
    }


def _stability(facts: EvaluationFacts, content: ReportContent) -> dict[str, Any] | None:
    """Month by month: count, bad rate, KS with interval, PSI of the score; None for one month."""
    months = month_of(facts.as_of_us)
    names = np.unique(months)
    if len(names) < 2:
        return None
    given = facts.reference_score is not None
    first = facts.score[months == names[0]]
    reference = first if facts.reference_score is None else facts.reference_score
    rows = by_month(facts.y, facts.as_of_us)
    for row in rows:
        here = months == row["month"]
        same = not given and row["month"] == names[0]
        row["psi"] = None if same else metrics.psi(reference, facts.score[here])
        known = here & ~np.isnan(facts.y)
        y, score = facts.y[known], facts.score[known]
        weight = None if facts.weight is None else facts.weight[known]
        row["ks"] = row["ks_low"] = row["ks_high"] = None
        if min(y.sum(), len(y) - y.sum()) >= LEAST_CLASS:
            found = bootstrap_intervals(
                y, score, ("ks",), weight, draws=content.resamples, seed=content.seed
            )["ks"]
            row |= {"ks": found.value, "ks_low": found.low, "ks_high": found.high}
    return {"reference": "development sample" if given else str(names[0]), "months": rows}
