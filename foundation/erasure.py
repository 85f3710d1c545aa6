"""Erasure of one entity from an event store: its rows leave every version there ever was.

    DIR/rewrites/000002.json   "why": "erasure", rows removed of each table; never whom

The bucket of the entity is written anew in every table, without it. Earlier versions of the store
are read from the same files, so they lose the entity too, and only it: samples of other customers
are rebuilt exactly as they were. Old files and the entries of the Delta logs are deleted, so that
nothing is left to restore. That changes history on purpose, and is meant to be done while nobody
reads: a reader that began before it fails for want of its files.

Safe to repeat: one that died half-way is ended by the next. Numbers other rows carry about the
entity stay: how many others shared an identifier counts it still.
"""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundation import lakehouse
from foundation.compaction import REWRITES
from foundation.event_index import keep_up
from foundation.store import EventStore
from foundation.whole_files import locked, write_whole


@dataclass(frozen=True)
class Erased:
    """What an erasure removed, or would remove: table to rows."""

    rows: dict[str, int]

    @property
    def total(self) -> int:
        """Rows of all tables."""
        return sum(self.rows.values())


def count_entity(directory: str | Path, entity_id: str) -> Erased:
    """Rows an erasure would remove.

    Raises:
        DataError: there is no store.
    """
    store = EventStore.open(directory)
    return Erased({name: _count(store, name, entity_id) for name in store.table_names()})


def erase_entity(directory: str | Path, entity_id: str, now: dt.datetime | None = None) -> Erased:
    """Remove an entity from a store for good; where it is not, what was left behind still goes.

    Args:
        now: written into the record; nothing depends on it.
    Raises:
        DataError: there is no store.
    """
    directory = EventStore.open(directory).directory
    with locked(directory):
        store = EventStore.open(directory)
        removed = {name: _count(store, name, entity_id) for name in store.table_names()}
        paths = {name: directory / "tables" / name for name in removed}
        tables: dict[str, Any] = {}
        for name, path in paths.items():
            pinned, rows = store.pin(name)
            version = lakehouse.without_entity(path, pinned, entity_id)
            tables[name] = {"version": version, "rows": rows}
        folder = directory / REWRITES
        folder.mkdir(exist_ok=True)
        number = 1 + max((int(p.stem) for p in folder.glob("*.json")), default=0)
        record = {
            "number": number,
            "version": store.version,
            "made_at": (now or dt.datetime.now(dt.UTC)).astimezone(dt.UTC).isoformat(),
            "why": "erasure",
            "removed": removed,
            "tables": tables,
        }
        file = folder / f"{number:06d}.json"
        write_whole(file, json.dumps(record, indent=1))
        # Readers are on the new files now: nothing else is needed any more.
        for name, path in paths.items():
            tables[name]["version"] = lakehouse.forget_files(path)
        write_whole(file, json.dumps(record, indent=1))
        for path in paths.values():
            lakehouse.forget_log(path)
        keep_up(EventStore.open(directory))
    return Erased(removed)


def _count(store: EventStore, name: str, entity_id: str) -> int:
    path = store.directory / "tables" / name
    return lakehouse.count_entity(path, store.pin(name)[0], entity_id)
