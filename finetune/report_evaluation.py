"""Numbers of the evaluation part of a report: curves, bins, intervals, comparison, stability.

Shapes: S samples with known labels, sorted or not; C points of a curve; every result is plain data
that goes into JSON as it is. Scores are probabilities of bad, so approving means the low end.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from finetune import metrics
from finetune.report_content import EvaluationFacts, ReportContent
from foundation.errors import SampleError

CURVE_POINTS = 240
LEAST_CLASS = 10  # fewer bads or goods in a month say nothing about its KS
APPROVALS = (0.5, 0.6, 0.7, 0.8, 0.9)


def wilson(bad: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % score interval of a rate (Wilson 1927); n >= 1."""
    z = 1.959963984540054
    rate = bad / n
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1)


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
    has_time = as_of_us is not None and len(as_of_us) > 0
    out["start"] = _date(as_of_us.min()) if has_time else None
    out["end"] = _date(as_of_us.max()) if has_time else None
    return out


def month_of(as_of_us: np.ndarray) -> np.ndarray:
    """[S] calendar month in UTC as `YYYY-MM`."""
    return as_of_us.astype("datetime64[us]").astype("datetime64[M]").astype(str)


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
    check_arrays(facts.name, facts.y, as_of_us=facts.as_of_us, score=facts.score,
                 baseline=facts.baseline)
    known = ~np.isnan(facts.y)
    y, score, as_of_us = facts.y[known], facts.score[known], facts.as_of_us[known]
    baseline = None if facts.baseline is None else facts.baseline[known]
    out: dict[str, Any] = {
        "basis": basis(facts.name, facts.y, facts.as_of_us),
        "kind": facts.kind,
        "out_of_time": facts.out_of_time,
        "baseline_name": facts.baseline_name if baseline is not None else None,
        "distribution": _distribution(y, score),
        "stability": _stability(facts, content),
        "metrics": None, "roc": None, "ks_curve": None, "calibration": None, "deciles": None,
        "comparison": None,
    }
    if len(np.unique(y)) < 2:
        return out
    out["metrics"] = _metrics(y, score, content)
    out["roc"] = {"chosen": _roc(y, score)}
    out["ks_curve"] = _ks_curve(y, score)
    out["calibration"] = _bins(y, score, max(2, min(10, int(y.sum()) // 5)))
    out["deciles"] = _deciles(y, score)
    if baseline is not None and content.recipe != facts.baseline_name:
        out["roc"]["baseline"] = _roc(y, baseline)
        out["comparison"] = _comparison(y, score, baseline, facts.baseline_name, content)
    return out


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


def _roc(y: np.ndarray, score: np.ndarray) -> dict[str, list[float]]:
    fpr, tpr, _ = metrics.roc_curve(y, score)
    keep = _thin(len(fpr))
    return {"fpr": fpr[keep].tolist(), "tpr": tpr[keep].tolist()}


def _ks_curve(y: np.ndarray, score: np.ndarray) -> dict[str, Any]:
    """Cumulated shares of bads and goods over customers ordered from the riskiest down."""
    fpr, tpr, threshold = metrics.roc_curve(y, score)
    rate = y.mean()
    share = rate * tpr + (1 - rate) * fpr
    top = int(np.argmax(tpr - fpr))
    keep = np.union1d(_thin(len(fpr)), [top])
    return {
        "share": share[keep].tolist(), "bad": tpr[keep].tolist(), "good": fpr[keep].tolist(),
        "ks": float(tpr[top] - fpr[top]), "at_share": float(share[top]),
        "at_bad": float(tpr[top]), "at_good": float(fpr[top]),
        "at_score": float(np.clip(threshold[top], 0, 1)),
    }


def _thin(n: int) -> np.ndarray:
    return np.unique(np.linspace(0, n - 1, min(n, CURVE_POINTS)).round().astype(int))


def _bins(y: np.ndarray, score: np.ndarray, count: int) -> list[dict[str, Any]]:
    """Rows ordered by score in `count` bins of equal size: mean score against realised rate."""
    out = []
    for rows in np.array_split(np.argsort(score, kind="stable"), min(count, len(y))):
        low, high = wilson(y[rows].sum(keepdims=True), np.array([len(rows)]))
        out.append({
            "n": len(rows), "n_bad": int(y[rows].sum()),
            "score_low": float(score[rows].min()), "score_high": float(score[rows].max()),
            "mean_score": float(score[rows].mean()), "bad_rate": float(y[rows].mean()),
            "bad_rate_low": float(low[0]), "bad_rate_high": float(high[0]),
        })
    return out


def _deciles(y: np.ndarray, score: np.ndarray) -> list[dict[str, Any]]:
    """Tenths (fifths below 100 rows) from the riskiest down, with lift and captured bads."""
    rows = _bins(y, score, 10 if len(y) >= 100 else 5)[::-1]
    rate, total = y.mean(), y.sum()
    captured = seen = 0
    for number, row in enumerate(rows, start=1):
        captured, seen = captured + row["n_bad"], seen + row["n"]
        row |= {
            "tenth": number, "lift": row["bad_rate"] / rate, "captured": captured / total,
            "cumulative_lift": captured / seen / rate, "share": seen / len(y),
        }
    return rows


def _distribution(y: np.ndarray, score: np.ndarray) -> dict[str, Any]:
    """Share of bads and of goods in equal steps of the score."""
    if not len(y):
        return {"edges": [], "bad": [], "good": []}
    count = int(np.clip(np.sqrt(len(y)), 6, 30))
    top = float(max(np.quantile(score, 0.999), 1e-6))
    edges = np.linspace(0, top, count + 1)
    clipped = np.minimum(score, top)
    shares = {
        name: np.histogram(clipped[y == label], edges)[0] / max(1, int((y == label).sum()))
        for name, label in (("bad", 1), ("good", 0))
    }
    return {"edges": edges.tolist()} | {k: v.tolist() for k, v in shares.items()}


def approval_curve(y: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Approval rate and bad rate among the approved at every threshold, from the best score up.

    Equal scores are approved together.

    Returns:
        approval [C] ascending to 1, bad rate [C].
    """
    order = np.argsort(score, kind="stable")
    last = np.append(np.diff(score[order]) > 0, True)
    approved = np.arange(1, len(y) + 1)[last]
    return approved / len(y), np.cumsum(y[order])[last] / approved


def approval_at(y: np.ndarray, score: np.ndarray, bad_rate: float) -> float:
    """Largest share of customers that can be approved with at most `bad_rate` among them."""
    approval, rate = approval_curve(y, score)
    fits = np.flatnonzero(rate <= bad_rate + 1e-12)
    return float(approval[fits[-1]]) if len(fits) else 0.0


def _bad_rate_at(y: np.ndarray, score: np.ndarray, approval: float) -> float:
    """Bad rate among the best `approval` of customers; bads are shared evenly among equal scores."""
    shares, rate = approval_curve(y, score)
    bads = np.interp(approval, np.append(0.0, shares), np.append(0.0, rate * shares))
    return float(bads / approval)


def _stability(facts: EvaluationFacts, content: ReportContent) -> dict[str, Any] | None:
    """Month by month: count, bad rate, KS with interval, PSI of the score; None for one month."""
    months = month_of(facts.as_of_us)
    names = np.unique(months)
    if len(names) < 2:
        return None
    given = facts.reference_score is not None
    reference = facts.reference_score if given else facts.score[months == names[0]]
    rows = by_month(facts.y, facts.as_of_us)
    for row in rows:
        here = months == row["month"]
        same = not given and row["month"] == names[0]
        row["psi"] = None if same else float(metrics.psi(reference, facts.score[here]))
        known = here & ~np.isnan(facts.y)
        y, score = facts.y[known], facts.score[known]
        row["ks"] = row["ks_low"] = row["ks_high"] = None
        if min(y.sum(), len(y) - y.sum()) >= LEAST_CLASS:
            row |= dict(zip(("ks", "ks_low", "ks_high"), _interval("ks", y, score, content),
                            strict=True))
    return {"reference": "development sample" if given else str(names[0]), "months": rows}
