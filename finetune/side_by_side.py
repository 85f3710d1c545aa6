"""Independent fits on several cores: a thread each, one core inside each, results in order.

Numpy, boosting and torch let go of the interpreter lock while they compute. Fits of a few hundred
rows are too small to be split inside: one fit on two cores took longer than on one, two fits on a
core each nearly half as long. With one core inside, sums come in the same order on every machine.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from threadpoolctl import threadpool_limits

MOST = 8
T = TypeVar("T")
_here = threading.local()


class Stopped(Exception):
    """A fit was left because nobody waits for it any more; never seen outside `side_by_side`."""


def usable_cores() -> int:
    """Fits to run at a time: the cores of this process, or OMP_NUM_THREADS where it is less."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores, MOST, int(asked) if asked.isdigit() else cores))


@contextmanager
def one_core_each() -> Iterator[None]:
    """Matrix products of numpy, scipy and torch stay on the core of their thread."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 1
    with threadpool_limits(limits=1, user_api="blas"):
        _alone()
        try:
            yield
        finally:
            if torch:
                torch.set_num_threads(before)


def side_by_side(tasks: Sequence[Callable[[], T]], workers: int) -> Generator[T, None, None]:
    """Results in the order of the tasks, whatever the number of workers.

    An error of a task is raised in its turn. Close the iterator (`contextlib.closing`): whoever
    leaves early, by an error or Ctrl-C, waits for running tasks until they end or next ask
    `stop_if_asked`; the others never begin.
    """
    if min(workers, len(tasks)) < 2:
        for task in tasks:
            yield task()
        return
    left = threading.Event()

    def run(task: Callable[[], T]) -> T:
        _here.left = left
        stop_if_asked()
        return task()

    pool = ThreadPoolExecutor(workers, thread_name_prefix="fit", initializer=_alone)
    try:
        for future in [pool.submit(run, task) for task in tasks]:
            yield future.result()
    finally:
        left.set()
        pool.shutdown(cancel_futures=True)


def stop_if_asked() -> None:
    """Called by long fits between steps: ends them where nobody waits for the result.

    Raises:
        Stopped: to be let through.
    """
    left = getattr(_here, "left", None)
    if left is not None and left.is_set():
        raise Stopped


def _alone() -> None:
    torch = sys.modules.get("torch")
    if torch:
        torch.set_num_threads(1)
