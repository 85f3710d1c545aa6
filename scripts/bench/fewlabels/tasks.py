"""The cells of a run: which there are, which are missing, and their making in worker processes.

Processes, not threads, and one thread each: OpenMP teams of small fits spend their time waiting
for one another.
"""

from __future__ import annotations

import multiprocessing
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from foundation.allocator import keep_freed_memory
from scripts.bench.fewlabels.cells import (
    ALL,
    Cell,
    CellKey,
    digest_of,
    load_cell,
    rows_digest,
    save_cell,
)
from scripts.bench.fewlabels.opponents import FORECAST, PLAIN
from scripts.bench.fewlabels.plain_features import (
    PlainFeatures,
    forecast_features,
    plain_features,
)
from scripts.bench.fewlabels.sets import BenchSet, open_set
from scripts.bench.fewlabels.versions import opponent_version

OURS = ("ladder", "ladder_slow", "zero")
SEQUENCE = ("pragmatiq", "pragmatiq_tuned", "coles_lgb")
SLOW_N, SLOW_DRAWS = 300, 5


@dataclass(frozen=True)
class RunSettings:
    """What a run measures.

    Attributes:
        data: folder of the prepared sets. work: cache, stores and backbones.
        sizes: label counts, besides none and all. rule: how labels are drawn.
        learners: the only opponents to run; empty for all.
        pretrain: configuration of the backbones. repeats: of the ladder's folds.
        slow: also prompt and lora, on the first draws at 300 labels.
        ceilings: also opponents taught with every label.
        sequence_python: of the environment where other sequence models are installed.
        sequence_seconds: how long they pretrain; None for as long as our backbone did.
        sequence_cells: Parquet of an earlier run, whose sequence models are shown beside.
    """

    data: Path
    work: Path
    sets: tuple[str, ...]
    sizes: tuple[int, ...]
    draws: int
    track: str = "H"
    rule: str = "stratified"
    learners: tuple[str, ...] = ()
    workers: int = 2
    pretrain: Path = Path("configs/pretrain/nano.yaml")
    repeats: int = 3
    slow: bool = False
    ceilings: bool = True
    seed: int = 0
    sequence_python: Path | None = None
    sequence_seconds: float | None = None
    sequence_cells: Path | None = None


@dataclass(frozen=True)
class Task:
    """Cells of one draw, made one after another in one process."""

    set: str
    n: int
    draw: int
    learners: tuple[str, ...]


@dataclass
class Pace:
    """Time left, from the mean seconds of what was done of the same kind."""

    workers: int
    began: float = field(default_factory=time.monotonic)
    spent: dict[tuple[str, bool, str], list[float]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def note(self, task: Task, seconds: dict[str, float]) -> None:
        """Remember how long each learner took."""
        for learner, took in seconds.items():
            self.spent[task.set, task.n == ALL, learner].append(took)

    def left(self, tasks: Sequence[Task]) -> float:
        """Seconds until the tasks are done."""
        every = [s for found in self.spent.values() for s in found]
        usual = float(np.mean(every)) if every else 0.0
        total = 0.0
        for task in tasks:
            for learner in task.learners:
                found = self.spent.get((task.set, task.n == ALL, learner))
                total += float(np.mean(found)) if found else usual
        return total / self.workers


@cache
def set_of(name: str, data: Path, work: Path) -> BenchSet:
    """A set, opened once in a process."""
    return open_set(name, data, work)


@cache
def features_of(name: str, data: Path, work: Path, seed: int) -> PlainFeatures:
    """Its plain features, read once in a process."""
    return plain_features(set_of(name, data, work), seed)


@cache
def forecasts_of(name: str, data: Path, work: Path, track: str, seed: int) -> PlainFeatures:
    """Its boosted forecasts, read once in a process."""
    bench = set_of(name, data, work)
    return forecast_features(bench, bench.track(track), seed)


def opponent_features(settings: RunSettings, bench: BenchSet, learner: str) -> PlainFeatures:
    """What an opponent reads."""
    if learner in FORECAST:
        return forecasts_of(bench.name, settings.data, settings.work, settings.track, settings.seed)
    return features_of(bench.name, settings.data, settings.work, settings.seed)


def drawn(bench: BenchSet, n: int, k: int, rule: str) -> np.ndarray:
    """Rows that teach: n of draw k, or the whole pool."""
    return bench.split(k).pool if n == ALL else bench.draw(n, k, rule)


def draws_of(bench: BenchSet, n: int, settings: RunSettings) -> Iterator[int]:
    """Draws of a label count: one where all labels teach, unless the split is drawn as well."""
    if n == ALL:
        yield from range(min(settings.draws, len(bench.splits)))
        return
    for k in range(settings.draws):
        if bench.possible(n, k, settings.rule):
            yield k


def opponents_of(bench: BenchSet, settings: RunSettings) -> tuple[str, ...]:
    """Opponents that a set can have."""
    names = [*PLAIN, *(FORECAST if bench.schema.outcomes and bench.schema.sources else ())]
    return tuple(n for n in names if not settings.learners or n in settings.learners)


def opponent_key(settings: RunSettings, bench: BenchSet, n: int, k: int, learner: str) -> CellKey:
    """Key of an opponent's cell."""
    track = bench.track(settings.track) if learner in FORECAST else ""
    digest = digest_of(
        bench.digest,
        opponent_features(settings, bench, learner).digest,
        rows_digest(drawn(bench, n, k, settings.rule)),
        rows_digest(bench.split(k).test),
        opponent_version(learner),
    )
    name = f"{learner}.{track}" if track else learner
    return CellKey(bench.name, n, k, name, digest)


def cell_key(settings: RunSettings, bench: BenchSet, n: int, k: int, learner: str) -> CellKey:
    """Key of any cell."""
    if learner in OURS:
        from scripts.bench.fewlabels.ours import our_key

        return our_key(settings, bench, n, k, learner)
    if learner in SEQUENCE:
        from scripts.bench.fewlabels.sequence_models import sequence_key

        return sequence_key(settings, bench, n, k, learner)
    return opponent_key(settings, bench, n, k, learner)


def plan(settings: RunSettings, part: str) -> list[Task]:
    """Every task of a part whose cells are not all there, cheap and much wanted ones first.

    Args:
        part: `opponents`, `ours` or `sequence`.
    """
    out = []
    for name in settings.sets:
        bench = set_of(name, settings.data, settings.work)
        for n, k, learners in _cells(settings, bench, part):
            missing = tuple(
                each
                for each in learners
                if not cell_key(settings, bench, n, k, each).path(settings.work).is_file()
            )
            if missing:
                out.append(Task(name, n, k, missing))
    order = {n: i for i, n in enumerate((300, 100, ALL))}
    return sorted(out, key=lambda t: (order.get(t.n, 9), t.draw // 5, t.set))


def _cells(
    settings: RunSettings, bench: BenchSet, part: str
) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    sizes = bench.sizes(settings.sizes)
    if part == "opponents":
        for n in [*sizes, *([ALL] if settings.ceilings else [])]:
            for k in draws_of(bench, n, settings):
                yield n, k, opponents_of(bench, settings)
        return
    if part == "sequence":
        from scripts.bench.fewlabels.sequence_models import ready

        made = ready(settings, bench)
        quick = tuple(each for each in made if each != "pragmatiq_tuned")
        for n in [*sizes, *([ALL] if settings.ceilings else [])] if made else ():
            for k in draws_of(bench, n, settings):
                yield n, k, made if n == SLOW_N and k < SLOW_DRAWS else quick
        return
    if bench.schema.sources and bench.schema.outcomes:
        yield ALL, 0, ("zero",)
    for n in sizes:
        for k in draws_of(bench, n, settings):
            slow = settings.slow and n == SLOW_N and k < SLOW_DRAWS and bench.schema.sources
            yield n, k, ("ladder", "ladder_slow") if slow else ("ladder",)


def run_task(settings: RunSettings, task: Task) -> dict[str, float]:
    """Make the cells of a task; returns the seconds each took."""
    bench = set_of(task.set, settings.data, settings.work)
    took: dict[str, float] = {}
    for learner in task.learners:
        key = cell_key(settings, bench, task.n, task.draw, learner)
        if key.path(settings.work).is_file():
            continue
        began = time.monotonic()
        if learner in OURS:
            from scripts.bench.fewlabels.ours import our_cell

            cell = our_cell(settings, bench, task.n, task.draw, learner)
        elif learner in SEQUENCE:
            from scripts.bench.fewlabels.sequence_models import sequence_cell

            found = sequence_cell(settings, bench, task.n, task.draw, learner)
            if found is None:
                continue
            cell = found
        else:
            cell = opponent_cell(settings, bench, task.n, task.draw, learner)
        save_cell(key.path(settings.work), cell)
        took[learner] = time.monotonic() - began
    return took


def opponent_cell(settings: RunSettings, bench: BenchSet, n: int, k: int, learner: str) -> Cell:
    """Fit an opponent on a draw and score the test."""
    features = opponent_features(settings, bench, learner)
    rows, split = drawn(bench, n, k, settings.rule), bench.split(k)
    began = time.process_time()
    fit = (PLAIN | FORECAST)[learner]
    score, detail = fit(features.table(rows), bench.y[rows], settings.seed + k)
    scores = {learner: score(features.table(split.test))}
    pool = {}
    if bench.time_split and n != ALL:
        pool = {learner: score(features.table(split.pool))}
    return Cell(scores, pool, time.process_time() - began, detail)


def run_tasks(settings: RunSettings, tasks: list[Task]) -> None:
    """Make all missing cells; a line of progress with the time left every few seconds."""
    pace = Pace(settings.workers)
    waiting, done, said = list(tasks), 0, 0.0
    if settings.workers == 1:
        while waiting:
            task = waiting.pop(0)
            pace.note(task, run_task(settings, task))
            done += 1
            said = _say(pace, waiting, done, len(tasks), said)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        settings.workers, mp_context=context, initializer=keep_freed_memory
    ) as pool:
        running: dict[Future[dict[str, float]], Task] = {}
        while waiting or running:
            while waiting and len(running) < settings.workers:
                task = waiting.pop(0)
                running[pool.submit(run_task, settings, task)] = task
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                pace.note(running.pop(future), future.result())
                done += 1
            said = _say(pace, [*waiting, *running.values()], done, len(tasks), said)


def _say(pace: Pace, waiting: Sequence[Task], done: int, total: int, said: float) -> float:
    now = time.monotonic()
    if now - said < 10 and waiting:
        return said
    left = pace.left(waiting)
    print(
        f"{done}/{total} draws, {(now - pace.began) / 60:.1f} min, about {left / 60:.1f} min left",
        flush=True,
    )
    return now


def found_cells(settings: RunSettings, part: str) -> dict[tuple[str, int, int, str], Cell]:
    """The cells of a part that are there: (set, n, draw, learner) -> cell."""
    out = {}
    for name in settings.sets:
        bench = set_of(name, settings.data, settings.work)
        if part == "ours":
            from scripts.bench.fewlabels.ours import is_prepared

            if not is_prepared(settings, bench):
                continue
        for n, k, learners in _cells(settings, bench, part):
            for learner in learners:
                path = cell_key(settings, bench, n, k, learner).path(settings.work)
                if path.is_file():
                    out[name, n, k, learner] = load_cell(path)
    return out
