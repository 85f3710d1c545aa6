"""What opponents read: every aggregate and profile column of the product, and boosted forecasts.

Columns are chosen on the strict track's events before the earliest evaluated as_of, of entities
outside the test; forecasters are fitted on the events of each track and cross-fitted by entity.

Shapes: S samples, F columns, T forecasts.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from finetune.table import Column, FeatureTable
from foundation import (
    aggregates,
    boosted,
    columns,
    history,
    layouts,
    panels,
    segments,
    slots,
    statistics,
    targets,
)
from foundation.aggregates import AggregateSpec
from foundation.boosted import BoostSettings, fit_forecasters
from foundation.history import ProfileHistory, Timeline, cut
from foundation.selection import chosen_entities
from scripts.bench.fewlabels.cells import code_digest
from scripts.bench.fewlabels.sets import BenchSet, Reading

MODULES = (
    aggregates, columns, history, layouts, panels, segments, slots, statistics, Reading,
    BenchSet.reading,
)  # fmt: skip


@dataclass(frozen=True)
class PlainFeatures:
    """Features of all samples of a set.

    Attributes:
        columns: the F columns. values: [S, F] float32.
        digest: of names and values.
    """

    columns: tuple[Column, ...]
    values: np.ndarray
    digest: str

    def table(self, rows: np.ndarray) -> FeatureTable:
        """The columns of some samples."""
        return FeatureTable(self.columns, np.asarray(self.values[rows], np.float32))


def plain_features(bench: BenchSet, seed: int = 0) -> PlainFeatures:
    """Aggregates and profile columns, from the disk where they were made before."""
    folder = bench.folder / f"plain-{code_digest(MODULES)[:8]}-{seed}"
    if not folder.is_dir():
        with _making(folder) as making:
            spec = _spec(bench, "S", seed)
            np.save(making / "values.npy", _values(bench, spec))
            listed = [
                {
                    "name": c.name,
                    "block": c.block,
                    "kind": "code" if c.kind == "code" else "number",
                    "levels": list(c.levels),
                }
                for c in spec.columns
            ]
            (making / "columns.json").write_text(json.dumps(listed), encoding="utf-8")
    listed = json.loads((folder / "columns.json").read_text(encoding="utf-8"))
    columns = tuple(Column(**{**c, "levels": tuple(c["levels"])}) for c in listed)
    values = np.load(folder / "values.npy", mmap_mode="r")
    digest = hashlib.sha256("\n".join(c.name for c in columns).encode() + values.tobytes())
    return PlainFeatures(columns, values, digest.hexdigest()[:16])


def forecast_features(bench: BenchSet, track: str, seed: int = 0) -> PlainFeatures:
    """Boosted forecasts of a track as probabilities: cross-fitted outside the test."""
    code = code_digest((*MODULES, boosted, targets))[:8]
    folder = bench.folder / f"forecasts-{track}-{code}-{seed}"
    if not folder.is_dir():
        with _making(folder) as making:
            names, values = _forecasts(bench, track, seed)
            np.save(making / "values.npy", values)
            (making / "columns.json").write_text(json.dumps(names), encoding="utf-8")
    names = json.loads((folder / "columns.json").read_text(encoding="utf-8"))
    values = np.load(folder / "values.npy")
    digest = hashlib.sha256("\n".join(names).encode() + values.tobytes())
    columns = tuple(Column(name, "forecast") for name in names)
    return PlainFeatures(columns, values, digest.hexdigest()[:16])


@contextmanager
def _making(folder: Path) -> Iterator[Path]:
    """A folder that appears under its name when it is complete."""
    making = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    yield making
    os.replace(making, folder)


def _seen(bench: BenchSet, track: str) -> tuple[Timeline, ProfileHistory | None, int]:
    """What may be learnt from on a track, and until when."""
    reading, store = bench.reading(track), bench.store()
    members = chosen_entities(store, None, reading.excludes)
    profile = None
    if bench.schema.profile_fields:
        profile = store.profile_history(entities=members, until_us=reading.until_us)
    timeline = store.timeline(entities=members, until_us=reading.until_us)
    return timeline, profile, reading.until_us


def _spec(bench: BenchSet, track: str, seed: int) -> AggregateSpec:
    timeline, profile, until_us = _seen(bench, track)
    return AggregateSpec.fit(bench.schema, timeline, profile, until_us=until_us, seed=seed)


def _values(bench: BenchSet, spec: AggregateSpec) -> np.ndarray:
    """[S, F] float32 of all samples, each before its own as_of."""
    store, ids = bench.store(), bench.samples["entity_id"]
    timeline = store.timeline(entities=ids.unique())
    profile = None
    if bench.schema.profile_fields:
        profile = store.profile_history(entities=ids.unique())
    return spec.compute(timeline, cut(timeline, ids, bench.as_of_us), profile, ids)


def _forecasts(bench: BenchSet, track: str, seed: int) -> tuple[list[str], np.ndarray]:
    """Names and [S, T] float32 probabilities."""
    timeline, profile, until_us = _seen(bench, track)
    spec = AggregateSpec.fit(bench.schema, timeline, profile, until_us=until_us, seed=seed)
    found = fit_forecasters(
        bench.schema, timeline, profile, spec, until_us, seed, BoostSettings(threads=1)
    )
    ids, x = bench.samples["entity_id"], _values(bench, spec)
    inside = np.ones(len(ids), bool)
    inside[bench.tests] = False
    out = found.predict(x)
    out[inside] = found.predict(x[inside], ids.filter(pl.Series(inside)), cross_fitted=True)
    return list(found.names), out
