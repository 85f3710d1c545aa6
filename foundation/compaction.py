"""Compaction: the many small files of daily imports merged, a bucket of a table into one.

    DIR/rewrites/000001.json   which version of every table holds the rows now

Rows, their numbers and their order stay; only files change. A rewrite exists once its record does,
by one rename; what an interrupted one wrote is never read and is undone by the next writer. Every
earlier version of the store is read from the merged files too, so that old ones can be deleted
after the days that a running reader may take.
"""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundation import lakehouse
from foundation.errors import UserError
from foundation.event_index import keep_up
from foundation.store import EventStore, Progress
from foundation.whole_files import locked, write_whole

REWRITES = "rewrites"
KEEP_DAYS = 7
TARGET_BYTES = 1 << 32


@dataclass(frozen=True)
class CompactionSummary:
    """What a compaction did.

    Attributes:
        before, after: files of all tables at the store's version.
        deleted: files that were older than the days kept.
    """

    before: int
    after: int
    deleted: int

    def line(self) -> str:
        """One line for people."""
        if self.before == self.after:
            return f"{self.before:,} files: nothing to merge"
        return (
            f"{self.before:,} files merged into {self.after:,}, {self.deleted:,} old ones deleted"
        )


def compact(
    directory: str | Path,
    keep_days: int = KEEP_DAYS,
    progress: Progress | None = None,
    now: dt.datetime | None = None,
) -> CompactionSummary:
    """Merge the files of every bucket; again changes nothing.

    Args:
        keep_days: files that are no longer read stay this long, for readers that are running.
        progress: called with (tables done, tables in all, what).
        now: written into the record; nothing depends on it.
    Raises:
        DataError: there is no store. UserError: less than a day is to be kept.
    """
    if keep_days < 1:
        raise UserError("--keep-days: readers that are running need their files; keep at least 1")
    directory = EventStore.open(directory).directory
    with locked(directory):
        store = EventStore.open(directory)
        names, tables, changed = store.table_names(), {}, False
        before = _count(store)
        for done, name in enumerate(names):
            if progress:
                progress(done, len(names), name.lstrip("_"))
            pinned, rows = store.pin(name)
            version = lakehouse.merge(directory / "tables" / name, pinned, TARGET_BYTES)
            changed |= version != pinned
            tables[name] = {"version": version, "rows": rows}
        if changed:
            _commit(store, tables, now or dt.datetime.now(dt.UTC))
        deleted = sum(
            lakehouse.forget(directory / "tables" / name, tables[name]["version"], keep_days)
            for name in names
        )
        keep_up(EventStore.open(directory))
        if progress:
            progress(len(names), len(names), "done")
        return CompactionSummary(before, _count(EventStore.open(directory)), deleted)


def _commit(store: EventStore, tables: dict[str, Any], now: dt.datetime) -> None:
    folder = store.directory / REWRITES
    folder.mkdir(exist_ok=True)
    number = 1 + max((int(p.stem) for p in folder.glob("*.json")), default=0)
    record = {
        "number": number,
        "version": store.version,
        "made_at": now.astimezone(dt.UTC).isoformat(),
        "why": "compaction",
        "tables": tables,
    }
    write_whole(folder / f"{number:06d}.json", json.dumps(record, indent=1))


def _count(store: EventStore) -> int:
    return sum(len(store.files(name)) for name in store.table_names())
