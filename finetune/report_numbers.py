"""One document of numbers out of `ReportContent`: what the JSON holds and the page shows.

Shapes: S samples. Parts that were not measured are None or empty; nothing is filled in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from finetune import report_limits
from finetune.report_content import ReportContent, VariableFacts
from finetune.report_evaluation import (
    auc_interval,
    basis,
    by_month,
    check_arrays,
    evaluation_numbers,
    wilson,
)
from foundation.errors import SampleError

FORMAT = 1
BANDS = ("approved", "middle", "refused")


def report_numbers(content: ReportContent) -> dict[str, Any]:
    """Compute the document.

    Raises:
        SampleError: see `finetune.report.write_report`.
    """
    if content.created_at.tzinfo is None:
        raise SampleError("report: created_at needs a time zone, for example UTC")
    out: dict[str, Any] = {
        "format": FORMAT,
        "title": content.title,
        "channel": content.channel,
        "package_id": content.package_id,
        "created_at": content.created_at.isoformat(timespec="seconds"),
        "recipe": content.recipe,
        "why": content.why,
        "label_meaning": content.label_meaning,
        "windows": [
            {"name": w.name, "start": w.start, "end": w.end, "note": w.note}
            for w in content.windows
        ],
        "intervals": {
            "level": 0.95,
            "method": "bootstrap over customers",
            "resamples": content.resamples,
            "seed": content.seed,
            "rates": "Wilson score interval",
        },
        "sample": _sample(content),
        "ladder": _ladder(content),
        "evaluation": evaluation_numbers(content),
        "forecasts": _forecasts(content),
        "variables": {
            "note": content.variables_note,
            "rows": variable_rows(content.variables),
            "findings": content.variable_findings and dict(content.variable_findings),
        },
        "reasons": _reasons(content),
        "examples": _examples(content),
        "label_power": None if content.label_power is None else dict(content.label_power),
        "reject_inference": (
            None if content.reject_inference is None else dict(content.reject_inference)
        ),
        "lineage": {str(k): str(v) for k, v in content.lineage.items()},
    }
    out["limits"] = {
        "derived": report_limits.derived(out),
        "stated": [str(s) for s in content.limits],
    }
    return out


def _sample(content: ReportContent) -> dict[str, Any]:
    facts = content.sample
    check_arrays("sample", facts.y, as_of_us=facts.as_of_us)
    known = ~np.isnan(facts.y)
    thin = None
    if facts.thin is not None:
        thin = {"n": int(facts.thin.sum()), "share": _ratio(facts.thin.sum(), len(facts.y))}
    return {
        "basis": basis("development sample", facts.y, facts.as_of_us),
        "months": by_month(facts.y, facts.as_of_us),
        "channels": _channels(facts.y, facts.channel),
        "thin": thin,
        "thin_bad_rate": _mean(facts.y[known & facts.thin]) if facts.thin is not None else None,
        "dropped": [{"reason": str(k), "n": int(v)} for k, v in facts.dropped.items() if v],
        "ignored_columns": [str(c) for c in facts.ignored_columns],
        "approved_only": facts.approved_only,
    }


def _channels(y: np.ndarray, channel: Any) -> list[dict[str, Any]]:
    if channel is None:
        return []
    names = np.asarray(channel, dtype=str)
    if len(names) != len(y):
        raise SampleError(f"report on 'sample': {len(y)} labels but {len(names)} channels")
    parts = [basis(str(name), y[names == name]) for name in np.unique(names)]
    keys = ("n", "n_bad", "bad_rate", "bad_rate_low", "bad_rate_high")
    rows = [{"channel": p["name"]} | {k: p[k] for k in keys} for p in parts]
    return sorted(rows, key=lambda row: -row["n"])


def _ladder(content: ReportContent) -> dict[str, Any]:
    names = (
        "name",
        "status",
        "reason",
        "cv_log_loss",
        "gap",
        "gap_se",
        "auc",
        "auc_low",
        "auc_high",
        "ks",
        "ks_low",
        "ks_high",
        "test_auc",
        "test_auc_low",
        "test_auc_high",
        "test_ks",
        "test_ks_low",
        "test_ks_high",
    )
    rows = []
    for row in content.ladder:
        values = {name: _plain(getattr(row, name)) for name in names}
        rows.append(values | {"chosen": row.name == content.recipe})
    has_test = any(row["test_auc"] is not None for row in rows)
    facts = content.evaluation
    test = basis(facts.name, facts.y, facts.as_of_us) if has_test and facts is not None else None
    return {"basis": content.ladder_basis, "test_basis": test, "rows": rows}


def _forecasts(content: ReportContent) -> dict[str, Any]:
    y = content.forecast_y
    rows = []
    for facts in content.forecasts:
        there = np.isfinite(facts.values)
        check_arrays(
            facts.name,
            np.full(len(there), np.nan) if y is None else y,
            forecast=np.where(there, facts.values, 0),
            realised=None if facts.realised is None else np.nan_to_num(facts.realised),
        )
        row: dict[str, Any] = {
            "name": facts.name,
            "title": facts.title,
            "n": int(there.sum()),
            "mean": _mean(facts.values[there]),
            "auc": None,
            "auc_low": None,
            "auc_high": None,
            "n_realised": 0,
            "realised": None,
            "realised_low": None,
            "realised_high": None,
            "mean_on_realised": None,
        }
        if y is not None:
            known = there & ~np.isnan(y)
            row |= auc_interval(y[known], facts.values[known])
        if facts.realised is not None and (known := there & ~np.isnan(facts.realised)).any():
            true, n = facts.realised[known].sum(), int(known.sum())
            low, high = wilson(np.array([true]), np.array([n]))
            row |= {
                "n_realised": n,
                "realised": float(true / n),
                "realised_low": float(low[0]),
                "realised_high": float(high[0]),
                "mean_on_realised": _mean(facts.values[known]),
            }
        rows.append(row)
    rows.sort(key=lambda row: -(row["auc"] or 0))
    given = basis(content.forecast_basis, y) if y is not None else None
    return {"basis": given, "name": content.forecast_basis, "rows": rows}


def variable_rows(variables: Sequence[VariableFacts]) -> list[dict[str, Any]]:
    """Variables as JSON holds and pages show them."""
    return [
        {name: value if name == "alike" else _plain(value) for name, value in asdict(v).items()}
        for v in variables
    ]


def _reasons(content: ReportContent) -> dict[str, Any]:
    total = sum(group.importance for group in content.reasons) or 1.0
    rows = [
        {
            "title": group.title,
            "importance": float(group.importance),
            "share": float(group.importance / total),
        }
        for group in sorted(content.reasons, key=lambda group: -group.importance)
    ]
    return {"note": content.reasons_note, "rows": rows}


def _examples(content: ReportContent) -> list[dict[str, Any]]:
    out = []
    for facts in content.examples:
        if facts.band not in BANDS:
            raise SampleError(f"report example: band '{facts.band}' is none of {', '.join(BANDS)}")
        out.append(
            {
                "band": facts.band,
                "label": facts.label,
                "as_of": facts.as_of,
                "score": float(facts.score),
                "points": _plain(facts.points),
                "reasons": [
                    {"title": r.title, "value": r.value, "effect": float(r.effect)}
                    for r in facts.reasons
                ],
            }
        )
    return out


def _plain(value: Any) -> Any:
    """A numpy or Python scalar as JSON knows it; NaN and infinity become None."""
    if value is None or isinstance(value, str | bool):
        return value
    number = float(value)
    return number if np.isfinite(number) else None


def _mean(values: np.ndarray) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _ratio(part: float, whole: int) -> float | None:
    return float(part / whole) if whole else None
