"""Judging a package on labelled samples of later windows, as it would have scored them then."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import numpy as np

from finetune.bootstrap import bootstrap_intervals
from finetune.features import Progress
from finetune.file_scoring import check_same_schema, population_of
from finetune.metrics import brier, ece, psi
from finetune.package import Package
from finetune.report import EvaluationFacts, ReportContent, SampleFacts, write_report
from finetune.samples import Samples, read_samples
from foundation.store import EventStore


def run_backtest(
    package_path: Path,
    store_path: Path,
    samples_path: Path,
    output: Path,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write `metrics.json`, `report.html` and `report.json`: overall and by month of as_of.

    Returns:
        the content of `metrics.json`.
    Raises:
        SampleError: samples without both labels.
    """
    package = Package.load(package_path, threads=2)
    store = EventStore.open(store_path)
    check_same_schema(store, package.schema, f"package {package.id}")
    samples = read_samples(samples_path, package.schema, need_labels=True)
    population = population_of(store, package.schema, samples)
    rows = package.score_population(population, progress=progress)
    score = np.array([r.score for r in rows])
    development = np.array(package.manifest["score_quantiles"])
    record = {"package": package.id, **_figures(samples.y, score, development)}
    record["months"] = _months(samples, score, development)
    record["notes"] = [*samples.notes, *_notes(package, samples)]
    thin = np.array(["thin_file" in r.flags for r in rows])
    output.mkdir(parents=True, exist_ok=True)
    content = _report(package, samples, score, development, thin, record["notes"])
    write_report(content, output / "report.html", output / "report.json")
    partial = output / ".metrics.json.part"
    partial.write_text(json.dumps(record, indent=1, allow_nan=False), encoding="utf-8")
    partial.replace(output / "metrics.json")
    return record


def _figures(y: np.ndarray, score: np.ndarray, development: np.ndarray) -> dict[str, Any]:
    """Figures of one window; AUC and KS are None where a class is missing."""
    out: dict[str, Any] = {
        "n": len(y), "bads": int(y.sum()), "bad_rate": float(y.mean()),
        "mean_score": float(score.mean()), "psi": psi(development, score), "auc": None, "ks": None,
    }  # fmt: skip
    if 0 < y.sum() < len(y):
        for name, interval in bootstrap_intervals(y, score, ("auc", "ks"), draws=500).items():
            out[name] = interval.value
            out[f"{name}_low"], out[f"{name}_high"] = interval.low, interval.high
        out |= {"brier": brier(y, score), "ece": ece(y, score)}
    return out


def _months(samples: Samples, score: np.ndarray, development: np.ndarray) -> list[dict[str, Any]]:
    month = samples.frame["as_of"].dt.strftime("%Y-%m").to_numpy()
    return [
        {"month": str(m), **_figures(samples.y[month == m], score[month == m], development)}
        for m in np.unique(month)
    ]


def _notes(package: Package, samples: Samples) -> list[str]:
    last = package.manifest["label"]["as_of_last"]
    first = samples.frame["as_of"].min()
    if isinstance(first, dt.datetime) and first.isoformat() <= last.rstrip("Z"):
        return [f"samples begin on {first.date()}, the model learnt from samples up to "
                f"{last[:10]}: not out of time throughout"]  # fmt: skip
    return []


def _report(
    package: Package,
    samples: Samples,
    score: np.ndarray,
    development: np.ndarray,
    thin: np.ndarray,
    notes: list[str],
) -> ReportContent:
    manifest = package.manifest
    y, as_of_us = samples.y, samples.as_of_us
    last = manifest["label"]["as_of_last"]
    out_of_time = samples.frame["as_of"].dt.strftime("%Y-%m-%dT%H:%M:%S").min() > last
    return ReportContent(
        title=f"{manifest['channel']}: back-test",
        channel=manifest["channel"],
        package_id=package.id,
        created_at=dt.datetime.now(dt.UTC),
        recipe=manifest["recipe"],
        why=manifest["why"],
        sample=SampleFacts(
            y=y, as_of_us=as_of_us, thin=thin if package.schema.sources else None
        ),
        evaluation=EvaluationFacts(
            name="back-test samples", kind="test", y=y, as_of_us=as_of_us, score=score,
            out_of_time=bool(out_of_time), reference_score=development,
        ),
        limits=notes,
        lineage={
            "package digest": manifest["digest"],
            "store version at development": str(manifest["store_version"]),
            "backbone known until": str(manifest["backbone_until"]),
        },
    )  # fmt: skip
