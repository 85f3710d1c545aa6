"""Every recipe's figures on a test file, and the record of an adaptation (`metrics.json`).

Shapes: S test samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.bootstrap import bootstrap_difference, bootstrap_intervals
from finetune.calibration import apply_calibration
from finetune.metrics import Comparison, Interval, brier, ece, log_loss
from finetune.modelling import Model
from finetune.samples import Samples
from finetune.table import FeatureTable

DRAWS = 500


@dataclass
class TestResult:
    """What the test file said.

    Attributes:
        y: [S]; scores: recipe -> [S] calibrated probabilities.
        intervals: recipe -> auc, ks with 95 % bootstrap intervals.
        against_gbdt: paired KS and AUC differences of the chosen recipe to gbdt.
    """

    __test__ = False  # not a test class, whatever its name

    samples: Samples
    table: FeatureTable
    y: np.ndarray
    scores: dict[str, np.ndarray]
    intervals: dict[str, dict[str, Interval]]
    against_gbdt: dict[str, Comparison]


def evaluate(model: Model, test: Samples, table: FeatureTable) -> TestResult:
    """Score the test rows with every fitted recipe."""
    y, weight = test.y, test.weight
    scores, intervals = {}, {}
    for name, fitted in model.others.items():
        scores[name] = apply_calibration(model.calibrations[name], fitted.logit(table))
        intervals[name] = bootstrap_intervals(
            y, scores[name], ("auc", "ks"), weight, draws=DRAWS, seed=0
        )
    against = {}
    if "gbdt" in scores and model.chosen != "gbdt":
        for measure in ("auc", "ks"):
            against[measure] = bootstrap_difference(
                y, scores[model.chosen], scores["gbdt"], measure, weight, draws=DRAWS, seed=0
            )
    return TestResult(test, table, y, scores, intervals, against)


def metrics_record(
    model: Model, samples: Samples, test: TestResult | None, notes: list[str]
) -> dict[str, Any]:
    """The content of `metrics.json`; figures are of the test file where there is one."""
    y = test.y if test is not None else (samples.y if samples.label is not None else None)
    record: dict[str, Any] = {
        "measured_on": "test" if test is not None else "out-of-fold",
        "n": len(y) if y is not None else len(samples),
        "bad_rate": float(np.mean(y)) if y is not None else None,
        "labels": {
            "n": len(samples),
            "bads": int(samples.y.sum()) if samples.label is not None else None,
        },
        "chosen": model.chosen,
        "why": model.why,
        "recipes": {},
        "notes": list(notes),
    }
    if model.ladder is None:
        record["recipes"][model.chosen] = _figures(model.chosen, model, test) | {"status": "ok"}
        return record
    for result in model.ladder.results:
        row: dict[str, Any] = {"status": result.status, "reason": result.reason}
        for measure in ("log_loss", "auc", "ks"):
            interval = getattr(result, measure)
            if interval is not None:
                row[f"cv_{measure}"] = interval.value
                row[f"cv_{measure}_low"], row[f"cv_{measure}_high"] = interval.low, interval.high
        if result.status == "ok":
            row |= _figures(result.name, model, test)
            if test is None and result.auc is not None and result.ks is not None:
                row |= {"auc": result.auc.value, "ks": result.ks.value}
        row["seconds"] = round(result.seconds, 2)
        record["recipes"][result.name] = row
    if test is not None:
        record["against_gbdt"] = {
            m: {"difference": c.difference, "low": c.low, "high": c.high, "p_value": c.p_value}
            for m, c in test.against_gbdt.items()
        }
    return record


def _figures(name: str, model: Model, test: TestResult | None) -> dict[str, Any]:
    """AUC, KS, log-loss, Brier and ECE of a recipe on the test file."""
    if test is None:
        return {}
    score = test.scores[name]
    out: dict[str, Any] = {}
    for measure, interval in test.intervals[name].items():
        out[measure] = interval.value
        out[f"{measure}_low"], out[f"{measure}_high"] = interval.low, interval.high
    weight = test.samples.weight
    return out | {
        "log_loss": log_loss(test.y, score, weight),
        "brier": brier(test.y, score, weight),
        "ece": ece(test.y, score, weight),
    }


def ladder_lines(metrics: dict[str, Any]) -> list[str]:
    """The table of recipes for a terminal: cross-validated, and on the test file."""
    on = "test file" if metrics["measured_on"] == "test" else "out-of-fold rows"
    rate = metrics["bad_rate"]
    about = f"{on}: n = {metrics['n']:,}"
    if rate is not None:
        about += f", bad rate {100 * rate:.1f} %"
    lines = [about, f"{'recipe':<11}{'cv log-loss':>12}{'AUC':>8}{'95 %':>16}{'KS':>8}{'95 %':>16}"]
    for name, row in metrics["recipes"].items():
        if row["status"] != "ok":
            lines.append(f"{name:<11}  skipped: {row['reason']}")
            continue
        mark = " *" if name == metrics["chosen"] else ""
        lines.append(
            f"{name:<11}{_number(row.get('cv_log_loss'), 12, 4)}{_pair(row, 'auc')}"
            f"{_pair(row, 'ks')}{mark}"
        )
    lines.append(f"* {metrics['chosen']}: {metrics['why']}")
    return lines


def _pair(row: dict[str, Any], measure: str) -> str:
    prefix = measure if f"{measure}_low" in row else f"cv_{measure}"
    low, high = row.get(f"{prefix}_low"), row.get(f"{prefix}_high")
    span = f"{low:.3f} to {high:.3f}" if low is not None else ""
    return f"{_number(row.get(measure), 8, 3)}{span:>16}"


def _number(value: float | None, width: int, digits: int) -> str:
    return f"{value:>{width}.{digits}f}" if value is not None else " " * width
