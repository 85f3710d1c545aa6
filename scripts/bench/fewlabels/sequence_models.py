"""Opponents that pretrain on events: pragmatiq, and CoLES of pytorch-lifestream.

Both run in processes of another Python (`--sequence-python`), so that the benchmark depends on
neither. They read the same events as our backbone and pretrain as long as it did; their embeddings
of all samples are kept, and what is fitted on labels are cells like every opponent's. A library
that cannot be run is named in the results with its error.

Shapes: S samples, d width of an embedding, n labels.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from finetune.crossval import assign_folds
from finetune.metrics import auc
from finetune.table import Column, FeatureTable
from foundation import history
from scripts.bench.fewlabels import sequence_data
from scripts.bench.fewlabels.cells import (
    ALL,
    Cell,
    CellKey,
    code_digest,
    digest_of,
    rows_digest,
    source_digest,
)
from scripts.bench.fewlabels.opponents import Learner, Score, lightgbm, ridge_logistic
from scripts.bench.fewlabels.sequence_data import write_sequences
from scripts.bench.fewlabels.sets import BenchSet
from scripts.bench.fewlabels.tasks import RunSettings, drawn, features_of
from scripts.bench.fewlabels.versions import opponent_version

RUNNERS = {"pragmatiq": "pragmatiq_runner.py", "coles": "coles_runner.py"}
MODEL_OF = {"pragmatiq": "pragmatiq", "pragmatiq_tuned": "pragmatiq", "coles_lgb": "coles"}
NO_PYTHON = "not run: no environment given (--sequence-python)"
NO_BACKBONE = (
    "not run: no backbone of ours whose time it could take; make one with --part ours or give "
    "--sequence-seconds"
)
# Beyond the pretraining: reading, pace, embedding; a fine-tuning.
SLACK_SECONDS = 3 * 3600
_QUIET = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "CUDA_VISIBLE_DEVICES": ""}


class SequenceError(Exception):
    """A library that could not be run; the text is one line."""


def applies(bench: BenchSet) -> bool:
    """Whether a set has events to pretrain on."""
    return bool(bench.schema.sources)


def pretraining_seconds(settings: RunSettings, bench: BenchSet) -> float | None:
    """The time a library may pretrain: given, or what our backbone of the set took."""
    if settings.sequence_seconds is not None:
        return settings.sequence_seconds
    from scripts.bench.fewlabels.ours import backbone_folder

    record = backbone_folder(settings, bench) / "run.json"
    if not record.is_file():
        return None
    return float(json.loads(record.read_text(encoding="utf-8"))["seconds"])


def prepare_sequences(settings: RunSettings, bench: BenchSet) -> None:
    """Pretrain what is wanted and missing; a failure is written down, never raised."""
    if not applies(bench):
        return
    for model in dict.fromkeys(MODEL_OF[learner] for learner in wanted(settings)):
        folder = model_folder(settings, bench, model)
        if folder is None or is_made(folder) or settings.sequence_python is None:
            continue
        began = time.monotonic()
        try:
            _pretrain(settings, bench, model, folder)
        except SequenceError as exc:
            _note(folder, str(exc))
            print(f"{bench.name}: {model} cannot be run: {exc}", flush=True)
            continue
        _failure(folder).unlink(missing_ok=True)
        facts = (folder / "facts.json").read_text(encoding="utf-8")
        print(f"{bench.name}: {model} in {time.monotonic() - began:.0f} s; {facts}", flush=True)


def wanted(settings: RunSettings) -> tuple[str, ...]:
    """The learners of a run."""
    return tuple(n for n in MODEL_OF if not settings.learners or n in settings.learners)


def ready(settings: RunSettings, bench: BenchSet) -> tuple[str, ...]:
    """Learners whose pretrained model lies there."""
    out = []
    for learner in wanted(settings) if applies(bench) else ():
        folder = model_folder(settings, bench, MODEL_OF[learner])
        if folder is not None and is_made(folder):
            out.append(learner)
    return tuple(out)


def not_run(settings: RunSettings, bench: BenchSet) -> dict[str, str]:
    """Learner -> why there is nothing of it, one line."""
    out = {}
    for learner in wanted(settings) if applies(bench) else ():
        folder = model_folder(settings, bench, MODEL_OF[learner])
        if folder is None:
            out[learner] = NO_BACKBONE if settings.sequence_python else NO_PYTHON
        elif not is_made(folder):
            failure = _failure(folder)
            out[learner] = failure.read_text("utf-8") if failure.is_file() else NO_PYTHON
        elif learner == "pragmatiq_tuned" and _failure(folder, learner).is_file():
            out[learner] = _failure(folder, learner).read_text("utf-8")
    return out


def model_folder(settings: RunSettings, bench: BenchSet, model: str) -> Path | None:
    """Where a pretrained model and its embeddings lie; None where its time is not known yet."""
    seconds = pretraining_seconds(settings, bench)
    if seconds is None:
        return None
    reading = bench.reading(settings.track)
    name = digest_of(
        bench.digest,
        reading.until_us,
        hashlib.sha256("\n".join(reading.excluded).encode()).hexdigest(),
        round(seconds),
        settings.seed,
        _runner_version(model),
        code_digest((sequence_data, history.cut, history.latest_profile)),
    )
    return bench.folder / f"{model}-{bench.track(settings.track)}-{name[:8]}"


def is_made(folder: Path) -> bool:
    """Whether the embeddings are there."""
    return (folder / "embeddings.npy").is_file()


@cache
def _runner_version(model: str) -> str:
    return source_digest([_runner(model).read_text(encoding="utf-8")])


def _runner(model: str) -> Path:
    return Path(__file__).with_name(RUNNERS[model])


def _failure(folder: Path, learner: str = "") -> Path:
    return folder.with_name(f"{folder.name}{learner and '.' + learner}.failed")


def _note(folder: Path, text: str, learner: str = "") -> None:
    _failure(folder, learner).write_text(text, encoding="utf-8")


def _pretrain(settings: RunSettings, bench: BenchSet, model: str, folder: Path) -> None:
    making = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(making, ignore_errors=True)
    (making / "events").mkdir(parents=True)
    write_sequences(bench, settings.track, making / "events")
    seconds = pretraining_seconds(settings, bench)
    assert seconds is not None and settings.sequence_python is not None
    arguments = ["embed", making / "events", making, seconds, settings.seed]
    run_runner(settings.sequence_python, _runner(model), arguments, seconds + SLACK_SECONDS)
    found = np.load(making / "embeddings.npy", mmap_mode="r")
    if found.ndim != 2 or len(found) != len(bench.samples):
        raise SequenceError(f"embeddings of shape {found.shape} for {len(bench.samples)} samples")
    os.replace(making, folder)


def run_runner(python: Path, script: Path, arguments: list[Any], timeout: float) -> None:
    """Run a script in another environment.

    Raises:
        SequenceError: it could not be started, took too long or failed; its last line.
    """
    command = [str(python), "-I", str(script.resolve()), *(str(a) for a in arguments)]
    with tempfile.TemporaryDirectory() as scratch:
        try:
            done = subprocess.run(
                command,
                cwd=scratch,
                env=os.environ | _QUIET,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
            )
        except OSError as exc:
            raise SequenceError(f"cannot start {python.name}: {exc.strerror}") from exc
        except subprocess.TimeoutExpired as exc:
            raise SequenceError(f"stopped after {timeout:.0f} s") from exc
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        last = lines[-1] if lines else "without a word"
        raise SequenceError(f"exit code {done.returncode}: {last[:300]}")


_TABLES: dict[Path, tuple[FeatureTable, str]] = {}


def embeddings(folder: Path) -> tuple[FeatureTable, str]:
    """[S, d] embeddings as a feature table, NaN without events, and their digest."""
    if folder not in _TABLES:
        values = np.load(folder / "embeddings.npy").astype(np.float32)
        columns = tuple(Column(f"embedding {i}", "embedding") for i in range(values.shape[1]))
        digest = hashlib.sha256(values.tobytes()).hexdigest()[:16]
        _TABLES[folder] = FeatureTable(columns, values), digest
    return _TABLES[folder]


def sequence_key(settings: RunSettings, bench: BenchSet, n: int, k: int, learner: str) -> CellKey:
    """Key of a cell."""
    folder = model_folder(settings, bench, MODEL_OF[learner])
    assert folder is not None
    plain = features_of(bench.name, settings.data, settings.work, settings.seed)
    digest = digest_of(
        bench.digest,
        embeddings(folder)[1],
        "" if learner == "pragmatiq_tuned" else plain.digest,
        rows_digest(drawn(bench, n, k, settings.rule)),
        rows_digest(bench.split(k).test),
        _learner_version(learner),
    )
    return CellKey(bench.name, n, k, f"{learner}.{bench.track(settings.track)}", digest)


@cache
def _learner_version(learner: str) -> str:
    if learner == "pragmatiq_tuned":
        return _runner_version("pragmatiq")
    if learner == "pragmatiq":
        code = (probe, _classifier, _auc_of, _joined, _of_embedding, _of_profile)
        return digest_of(code_digest(code), opponent_version("lr"))
    return digest_of(
        code_digest((boosted, _joined, _of_embedding, _of_profile)), opponent_version("lgb")
    )


def sequence_cell(
    settings: RunSettings, bench: BenchSet, n: int, k: int, learner: str
) -> Cell | None:
    """Fit on a draw and score the test; None where the library failed, which is written down."""
    folder = model_folder(settings, bench, MODEL_OF[learner])
    assert folder is not None
    rows, split = drawn(bench, n, k, settings.rule), bench.split(k)
    both = bench.time_split and n != ALL
    began, cpu = time.monotonic(), time.process_time()
    if learner == "pragmatiq_tuned":
        asked = np.concatenate([split.test, split.pool]) if both else split.test
        try:
            score, detail = _tune(settings, bench, folder, rows, asked, settings.seed + k)
        except SequenceError as exc:
            _note(folder, str(exc), learner)
            return None
        _failure(folder, learner).unlink(missing_ok=True)
        test, pool = score[: len(split.test)], score[len(split.test) :]
        seconds = time.monotonic() - began
    else:
        table, _ = embeddings(folder)
        plain = features_of(bench.name, settings.data, settings.work, settings.seed)

        def wide(part: np.ndarray) -> FeatureTable:
            return _joined(table.take(part), plain.table(part))

        fit = LEARNERS[learner]
        predict, detail = fit(wide(rows), bench.y[rows], settings.seed + k)
        test = predict(wide(split.test))
        pool = predict(wide(split.pool)) if both else np.zeros(0)
        seconds = time.process_time() - cpu
    in_time = {learner: pool} if both else {}
    return Cell({learner: test}, in_time, seconds, detail)


def _tune(
    settings: RunSettings,
    bench: BenchSet,
    folder: Path,
    rows: np.ndarray,
    asked: np.ndarray,
    seed: int,
) -> tuple[np.ndarray, dict[str, Any]]:
    """[len(asked)] log-odds of a fine-tuned model; the mean where there are no events."""
    if settings.sequence_python is None:
        raise SequenceError(NO_PYTHON)
    with _job(rows, bench.y[rows], asked) as job:
        arguments = ["tune", folder / "events", folder, job, seed]
        run_runner(settings.sequence_python, _runner("pragmatiq"), arguments, SLACK_SECONDS)
        score = np.load(job.with_suffix(".out.npy"))
        detail = json.loads(job.with_suffix(".json").read_text(encoding="utf-8"))
    if len(score) != len(asked) or np.isnan(score).all():
        raise SequenceError(f"{len(score)} scores for {len(asked)} rows")
    return np.where(np.isnan(score), np.nanmean(score), score), detail


@contextmanager
def _job(rows: np.ndarray, y: np.ndarray, asked: np.ndarray) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "job.npz"
        np.savez(path, rows=rows, y=y.astype(np.int8), score=asked)
        yield path


def probe(table: FeatureTable, y: np.ndarray, seed: int) -> tuple[Score, dict[str, Any]]:
    """The best by cross-validated AUC: pragmatiq's probes, our ridge, ridge with the profile.

    Its probes are scikit-learn's histogram boosting and logistic regression as they come; ridge is
    the tuned opponent `lr`. Where pretraining saw no profile, only the last one knows it.
    """
    alone = _of_embedding(table)
    candidates: dict[str, tuple[Learner, tuple[str, ...]]] = {
        "gbdt": (_classifier("gbdt"), alone),
        "logistic": (_classifier("logistic"), alone),
        "ridge": (ridge_logistic, alone),
        "ridge, profile": (ridge_logistic, (*alone, *_of_profile(table))),
    }
    if len(_of_profile(table)) == 0:
        del candidates["ridge, profile"]
    folds = assign_folds(y, np.arange(len(y)), 4, 3, seed)
    found = {
        name: _auc_of(fit, _only(table, columns), y, folds, seed)
        for name, (fit, columns) in candidates.items()
    }
    best = max(found, key=lambda name: found[name])
    fit, columns = candidates[best]
    score, _ = fit(_only(table, columns), y, seed)
    detail = {"probe": best, "inner_auc": found}
    return lambda held: score(_only(held, columns)), detail


def boosted(table: FeatureTable, y: np.ndarray, seed: int) -> tuple[Score, dict[str, Any]]:
    """Tuned LightGBM; the embedding with the profile or with all columns, by inner log-loss."""
    some = (*_of_embedding(table), *_of_profile(table))
    found = []
    for name, columns in (("profile", some), ("all columns", tuple(c.name for c in table.columns))):
        score, detail = lightgbm(_only(table, columns), y, seed)
        found.append((detail["inner_log_loss"], name, columns, score, detail))
    _, name, columns, score, detail = min(found, key=lambda f: f[0])
    return lambda held: score(_only(held, columns)), detail | {"with": name}


LEARNERS: dict[str, Learner] = {"pragmatiq": probe, "coles_lgb": boosted}


def _classifier(kind: str) -> Learner:
    """A probe of pragmatiq's training/probe.py with its settings."""

    def fit(table: FeatureTable, y: np.ndarray, seed: int) -> tuple[Score, dict[str, Any]]:
        from sklearn.ensemble import HistGradientBoostingClassifier
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        if kind == "gbdt":
            model = HistGradientBoostingClassifier(random_state=seed)
        else:
            model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        centre = np.nan_to_num(np.nanmean(table.values, axis=0))

        def filled(held: FeatureTable) -> np.ndarray:
            return np.where(np.isnan(held.values), centre, held.values).astype(np.float64)

        model.fit(filled(table), y)
        return lambda held: model.predict_proba(filled(held))[:, 1], {}

    return fit


def _auc_of(
    fit: Learner, table: FeatureTable, y: np.ndarray, folds: np.ndarray, seed: int
) -> float:
    """Mean over repeats and folds [R, n] of the AUC on what was held out."""
    found = []
    for repeat, fold in itertools.product(folds, np.unique(folds)):
        train, test = np.flatnonzero(repeat != fold), np.flatnonzero(repeat == fold)
        if len(np.unique(y[train])) == 2 and len(np.unique(y[test])) == 2:
            score, _ = fit(table.take(train), y[train], seed)
            found.append(auc(y[test], score(table.take(test))))
    return float(np.mean(found)) if found else 0.5


def _joined(left: FeatureTable, right: FeatureTable) -> FeatureTable:
    return FeatureTable((*left.columns, *right.columns), np.hstack([left.values, right.values]))


def _of_embedding(table: FeatureTable) -> tuple[str, ...]:
    return tuple(c.name for c in table.columns if c.block == "embedding")


def _of_profile(table: FeatureTable) -> tuple[str, ...]:
    """Columns that are neither an embedding nor an aggregate of events."""
    return tuple(c.name for c in table.columns if c.block not in ("embedding", "aggregate"))


def _only(table: FeatureTable, names: tuple[str, ...]) -> FeatureTable:
    at = [table.index(name) for name in names]
    return FeatureTable(tuple(table.columns[i] for i in at), table.values[:, at])
