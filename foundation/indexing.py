"""Making and removing the index of a store (`foundation.event_index`)."""

from __future__ import annotations

import shutil
from pathlib import Path

from foundation.event_index import INDEX, IndexSummary, Progress, indexed, refresh
from foundation.store import EventStore
from foundation.whole_files import locked


def make_index(directory: str | Path, progress: Progress | None = None) -> IndexSummary:
    """Index a store, or bring its index up to date; imports keep it so from then on.

    Args:
        progress: called with (sources done, sources in all, which).
    Raises:
        DataError: there is no store.
    """
    directory = EventStore.open(directory).directory
    with locked(directory):
        return refresh(EventStore.open(directory), progress)


def drop_index(directory: str | Path) -> bool:
    """Remove the index of a store; False where there is none.

    Raises:
        DataError: there is no store.
    """
    directory = EventStore.open(directory).directory
    with locked(directory):
        there = indexed(directory)
        shutil.rmtree(directory / INDEX, ignore_errors=True)
    return there
