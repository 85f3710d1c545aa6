"""Progress for people: a bar on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Reporter:
    """Prints steps and bars to standard error; results go to standard output."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = Console(file=sys.stderr, quiet=quiet, highlight=False, soft_wrap=True)
        self.started = time.perf_counter()

    def say(self, text: str) -> None:
        """One plain line with the seconds since the start."""
        elapsed = time.perf_counter() - self.started
        self.console.print(f"[{elapsed:6.1f} s] {text}", markup=False)

    @contextmanager
    def bar(self, title: str) -> Iterator[_Bar]:
        """A bar fed by calling it with (done, total)."""
        if self.quiet or not self.console.is_terminal:
            yield _Bar(None, title, self)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            yield _Bar(progress, title, self)


class LoggedReporter(Reporter):
    """Says it to the log instead, for a worker whose output a machine reads."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self._log = logging.getLogger("riskfm.worker")

    def say(self, text: str) -> None:
        """One event."""
        self._log.info("%s", text)


class _Bar:
    """Callable (done, total); without a terminal it prints a line every ten seconds."""

    def __init__(self, progress: Progress | None, title: str, reporter: Reporter) -> None:
        self.progress, self.title, self.reporter = progress, title, reporter
        self.task = progress.add_task(title, total=None) if progress else None
        self.printed = time.perf_counter()

    def __call__(self, done: int, total: int, note: str = "") -> None:
        label = f"{self.title} {note}".strip()
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, completed=done, total=total, description=label)
        elif time.perf_counter() - self.printed > 10:
            self.printed = time.perf_counter()
            self.reporter.say(f"{label}: {done} of {total}")
