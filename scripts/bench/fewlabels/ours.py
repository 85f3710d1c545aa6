"""Our side: a backbone for each set and track, and the ladder with its choice on every draw.

Backbones are pretrained once under the working folder, before the earliest evaluated as_of and
without the test's entities. Features of all samples are built once; boosted forecasts of entities
that were learnt from are cross-fitted.

Shapes: S samples, F columns.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from finetune import (
    blend,
    bootstrap,
    calibration,
    channels,
    choice,
    crossval,
    finetuned,
    fusion,
    gbdt,
    heads,
    ladder,
    linear,
    query,
    recipes,
    ridge,
    scorecard,
    transfer,
    venn_abers,
)
from finetune import table as tables
from finetune.building import make_builder
from finetune.features import state_readout
from finetune.file_scoring import population_of
from finetune.ladder import run_ladder
from finetune.modelling import AdaptSettings, ladder_recipes
from finetune.query import QueryRecipe
from finetune.samples import Samples, check_samples
from finetune.table import Column, FeatureTable
from foundation import (
    aggregates,
    attention,
    backbone,
    batching,
    boosted,
    calendar_features,
    carried,
    columns,
    decisions,
    encoded,
    event_encoder,
    fit_columns,
    groundwork,
    history,
    layouts,
    objectives,
    outcomes,
    panels,
    passes,
    pretrain_config,
    pretraining,
    range_statistics,
    residual,
    segments,
    shards,
    slots,
    statistics,
    targets,
    tokenizer,
    training,
    vocabulary,
    windows,
)
from foundation.checkpoint import Backbone, load_backbone
from foundation.pretrain_config import load_pretrain_config
from foundation.pretraining import pretrain
from foundation.run_record import PARTIAL
from scripts.bench.fewlabels.cells import (
    Cell,
    CellKey,
    code_digest,
    digest_of,
    rows_digest,
)
from scripts.bench.fewlabels.sets import BenchSet
from scripts.bench.fewlabels.tasks import RunSettings, drawn

_FAST = (
    blend, bootstrap, calibration, channels, choice, crossval, fusion, gbdt, heads, ladder, linear,
    query, recipes, ridge, scorecard, tables, transfer, venn_abers,
)  # fmt: skip
_PRETRAINING = (
    aggregates, attention, backbone, batching, boosted, calendar_features, carried, columns,
    decisions, encoded, event_encoder, fit_columns, groundwork, history, layouts, objectives,
    outcomes, panels, passes, pretrain_config, pretraining, range_statistics, residual, segments,
    shards, slots, statistics, targets, tokenizer, training, vocabulary, windows,
)  # fmt: skip
SLOW = ("prompt", "lora")


def backbone_folder(settings: RunSettings, bench: BenchSet) -> Path:
    """Where the backbone of a set, track and configuration lies."""
    text = settings.pretrain.read_bytes()
    reading = bench.reading(settings.track)
    code = _pretraining_version()
    name = digest_of(
        bench.digest,
        hashlib.sha256(text).hexdigest(),
        reading.until_us,
        hashlib.sha256("\n".join(reading.excluded).encode()).hexdigest(),
        code,
    )
    return bench.folder / f"backbone-{bench.track(settings.track)}-{name[:8]}"


@cache
def _pretraining_version() -> str:
    """Version of what pretraining runs through."""
    return code_digest(_PRETRAINING)


def is_prepared(settings: RunSettings, bench: BenchSet) -> bool:
    """Whether the backbone is there and its features are made."""
    folder = backbone_folder(settings, bench)
    return folder.with_name(f"{folder.name}-features").is_dir()


def prepare_ours(settings: RunSettings, bench: BenchSet) -> None:
    """Pretrain and build the features, unless that was done before."""
    folder = backbone_folder(settings, bench)
    if not (folder / "run.json").is_file():
        reading = bench.reading(settings.track)
        bench.store()
        began = time.monotonic()
        shutil.rmtree(folder, ignore_errors=True)
        config = load_pretrain_config(settings.pretrain)
        run = pretrain(
            config,
            bench.folder / "store",
            folder,
            until=_moment(reading.until_us),
            exclude_entities=reading.excludes,
            resume=folder.with_name(f"{folder.name}{PARTIAL}").is_dir(),
        )
        spent = time.monotonic() - began
        print(f"{bench.name}: pretrained in {spent:.0f} s; {run.summary()}", flush=True)
    our_features(settings, bench)


def _moment(us: int) -> dt.datetime:
    return dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=us)


def our_features(settings: RunSettings, bench: BenchSet) -> tuple[FeatureTable, str]:
    """Features of all samples and their digest, from the disk where they were made before."""
    folder = backbone_folder(settings, bench)
    files = folder.with_name(f"{folder.name}-features")
    return _features(bench, folder, files)


_READ: dict[Path, tuple[FeatureTable, str]] = {}


def _features(bench: BenchSet, folder: Path, files: Path) -> tuple[FeatureTable, str]:
    if files not in _READ:
        if not files.is_dir():
            _write_features(_build(bench, load_backbone(folder), False), files)
        _READ[files] = _read_features(files)
    return _READ[files]


def _build(bench: BenchSet, pretrained: Backbone, histories: bool) -> FeatureTable:
    samples = _samples(bench)
    with tempfile.TemporaryDirectory() as scratch:
        builder, _ = make_builder(pretrained, samples, Path(scratch))
        population = population_of(bench.store(), pretrained.schema, samples)
        run = _forecasts(bench, pretrained) if builder.boosted_targets else None
        return builder.table(population, boosted=run, keep_histories=histories)


def _samples(bench: BenchSet) -> Samples:
    return check_samples(bench.samples, bench.schema, True, keep_duplicates=True)


def _forecasts(bench: BenchSet, pretrained: Backbone) -> Any:
    """Cross-fitted for pool rows, the mean of all folds for test rows."""
    ids = bench.samples["entity_id"]
    test = np.zeros(len(ids), bool)
    test[bench.tests] = True

    def run(aggregates: np.ndarray) -> np.ndarray:
        crossed = pretrained.forecasters.predict(aggregates, ids, cross_fitted=True)
        plain = pretrained.forecasters.predict(aggregates)
        return np.where(test[:, None], plain, crossed)

    return run


def _write_features(table: FeatureTable, files: Path) -> None:
    making = files.with_name(f"{files.name}.part{os.getpid()}")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    np.save(making / "values.npy", table.values)
    columns = [asdict(c) for c in table.columns]
    (making / "columns.json").write_text(json.dumps(columns), encoding="utf-8")
    os.replace(making, files)


def _read_features(files: Path) -> tuple[FeatureTable, str]:
    listed = json.loads((files / "columns.json").read_text(encoding="utf-8"))
    columns = tuple(Column(**{**c, "levels": tuple(c["levels"])}) for c in listed)
    values = np.load(files / "values.npy")
    digest = hashlib.sha256("\n".join(c.name for c in columns).encode() + values.tobytes())
    return FeatureTable(columns, values), digest.hexdigest()[:16]


@cache
def _version(slow: bool) -> str:
    modules = (*_FAST, finetuned) if slow else _FAST
    return code_digest(modules)


def our_key(settings: RunSettings, bench: BenchSet, n: int, k: int, learner: str) -> CellKey:
    """Key of a cell of ours."""
    _, features = our_features(settings, bench)
    digest = digest_of(
        bench.digest,
        features,
        rows_digest(bench.split(k).test),
        *(
            (code_digest((query, zero_scores)),)
            if learner == "zero"
            else (
                rows_digest(drawn(bench, n, k, settings.rule)),
                settings.repeats,
                _version(learner == "ladder_slow"),
            )
        ),
    )
    return CellKey(bench.name, n, k, f"{learner}.{bench.track(settings.track)}", digest)


def our_cell(settings: RunSettings, bench: BenchSet, n: int, k: int, learner: str) -> Cell:
    """Run the ladder on a draw and score the test with every recipe and with `auto`."""
    began = time.process_time()
    split = bench.split(k)
    if learner == "zero":
        table, _ = our_features(settings, bench)
        pretrained = _backbone(backbone_folder(settings, bench))
        scores = zero_scores(table.take(split.test), state_readout(pretrained.model))
        return Cell(scores, {}, time.process_time() - began, {})
    slow = learner == "ladder_slow"
    rows = drawn(bench, n, k, settings.rule)
    pretrained = _backbone(backbone_folder(settings, bench))
    if slow:
        table = _with_histories(bench, pretrained)
    else:
        table, _ = our_features(settings, bench)
    chosen = [r for r in ladder_recipes(AdaptSettings(), pretrained) if slow or r.name not in SLOW]
    samples = _samples(bench).take(rows)
    found = run_ladder(
        table.take(rows),
        samples.y,
        samples.weight,
        samples.groups,
        chosen,
        seed=settings.seed + k,
        repeats=settings.repeats,
    )
    auto = found.choose()
    held = table.take(split.test)
    pool = table.take(split.pool) if bench.time_split else None
    taught = table.take(rows)
    scores: dict[str, np.ndarray] = {}
    in_time: dict[str, np.ndarray] = {}
    for name in found.ok():
        fitted = found.fit(name, taught, settings.seed + k)
        scores[name] = fitted.logit(held)
        if pool is not None:
            in_time[name] = fitted.logit(pool)
    scores["auto"] = scores[auto.name]
    if pool is not None:
        in_time["auto"] = in_time[auto.name]
    detail = {
        "chosen": auto.name,
        "reason": auto.reason,
        "seconds": {r.name: r.seconds for r in found.results},
        "cv_log_loss": {name: r.log_loss.value for name, r in found.ok().items() if r.log_loss},
        "skipped": {r.name: r.reason for r in found.results if r.status != "ok"},
    }
    return Cell(scores, in_time, time.process_time() - began, detail)


@cache
def _backbone(folder: Path) -> Backbone:
    return load_backbone(folder)


_HISTORIES: dict[str, FeatureTable] = {}


def _with_histories(bench: BenchSet, pretrained: Backbone) -> FeatureTable:
    """All features with token histories; kept for one set at a time."""
    if bench.name not in _HISTORIES:
        _HISTORIES.clear()
        _HISTORIES[bench.name] = _build(bench, pretrained, True)
    return _HISTORIES[bench.name]


def zero_scores(table: FeatureTable, readout: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Scores without any label: the recipe `query`, the mean log-odds of either kind of forecasts.

    Args:
        readout: of `state_readout`; the last score is that mean as the state alone says it.
    """
    forecasts = table.block("forecast")
    if not forecasts.columns:
        return {}
    out = {"zero.query": QueryRecipe().unlabelled(table).logit(table)}
    for name in ("boosted", "network"):
        picked = [
            i
            for i, c in enumerate(forecasts.columns)
            if c.name.startswith("network.") == (name == "network")
        ]
        if picked:
            p = np.clip(forecasts.values[:, picked].astype(np.float64), 1e-4, 1 - 1e-4)
            out[f"zero.{name}"] = np.log(p / (1 - p)).mean(axis=1)
    if readout:
        state = table.matrix(list(readout)).astype(np.float64)
        out["zero.state"] = state @ np.array(list(readout.values()))
    return out
