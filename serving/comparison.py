"""A challenger and the champion on the same rows: paired difference of KS, and PSI of the scores.

Shapes: S rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from finetune.bootstrap import bootstrap_difference
from finetune.features import Progress
from finetune.file_scoring import check_same_schema, population_of
from finetune.metrics import psi
from finetune.package import Package
from finetune.samples import Samples, read_samples
from foundation.errors import ArtifactError
from foundation.store import EventStore

DRAWS = 1000
DEVELOPMENT = "development.parquet"


@dataclass(frozen=True)
class Rows:
    """Rows both models are judged on.

    Attributes:
        score: [S] of the challenger, on the test file or out of fold.
        on: where they come from, for people.
        psi: of the scores against development; None out of fold.
    """

    samples: Samples
    score: np.ndarray
    on: str
    psi: float | None


def development_frame(samples: Samples, score: np.ndarray) -> pl.DataFrame:
    """Out-of-fold scores of the labelled samples, row by row: `row`, `label`, `score`."""
    return pl.DataFrame(
        {"row": samples.frame["row"], "label": samples.frame["label"], "score": score}
    )


def challenger_rows(
    adapted: Path, store: EventStore, samples: Path, test: Path | None, progress: Progress
) -> Rows | None:
    """Score the test file with the challenger, or read its out-of-fold scores.

    Returns:
        None where there are neither a test file nor labels.
    Raises:
        ArtifactError: out-of-fold scores and samples do not belong together.
    """
    package = Package.load(adapted / "package", threads=2)
    check_same_schema(store, package.schema, f"package {package.id}")
    if test is not None:
        read = read_samples(test, package.schema, need_labels=True)
        score = package_scores(package, store, read, progress)
        development = np.array(package.manifest["score_quantiles"])
        return Rows(read, score, "the test file", psi(development, score))
    frame = pl.read_parquet(adapted / DEVELOPMENT)
    if frame["label"].null_count():
        return None
    read = read_samples(samples, package.schema, need_labels=True)
    if frame["row"].to_list() != read.frame["row"].to_list():
        raise ArtifactError(f"{adapted / DEVELOPMENT}: was made from other samples")
    # Forward splits never test the earliest rows.
    tested = np.flatnonzero(np.isfinite(frame["score"].to_numpy()))
    on = "the samples, out of fold; the champion may have learnt from some of them"
    return Rows(read.take(tested), frame["score"].to_numpy()[tested], on, None)


def against_incumbent(
    rows: Rows, incumbent: Path, release: str, store: EventStore, progress: Progress
) -> dict[str, Any]:
    """KS of the challenger minus KS of the champion, paired, with its 95 % interval.

    Raises:
        ArtifactError: the champion's package is damaged or reads another schema.
        SampleError: rows of one class.
    """
    package = Package.load(incumbent, threads=2)
    check_same_schema(store, package.schema, f"champion {release}")
    other = package_scores(package, store, rows.samples, progress)
    y, weight = rows.samples.y, rows.samples.weight
    found = bootstrap_difference(y, rows.score, other, "ks", weight, draws=DRAWS, seed=0)
    return {
        "release": release, "package": package.id, "n": len(y), "on": rows.on,
        "difference": found.difference, "low": found.low, "high": found.high,
        "p_value": found.p_value,
    }  # fmt: skip


def package_scores(
    package: Package, store: EventStore, samples: Samples, progress: Progress
) -> np.ndarray:
    """[S] probability of label 1, point in time."""
    population = population_of(store, package.schema, samples)
    return np.array([r.score for r in package.score_population(population, progress=progress)])
