"""An index beside the store's files: the rows of some entities without reading those of others.

    DIR/index/SOURCE/FILE/0.npy, 1.npy ...   times and fields, packed (foundation.packing)
    DIR/index/SOURCE/FILE/ids.npy, keys.npy  entities in the order of the file, keys sorted
    DIR/index/SOURCE/FILE/runs.npy           where each entity's rows begin, how many there are
    DIR/index/SOURCE/FILE/columns.json       what the columns are called; written last

Parquet must be unpacked whole to find the rows of some entities, because those of the others stand
between them. Here columns lie open and are mapped into memory, and only pages with rows that are
asked for are touched. That pays for whoever back-tracks samples of a part of the customers again
and again; it takes disk space, so it is made on demand and kept up to date from then on: imports,
compaction and erasure end with `keep_up`.

What is asked for comes from the index or from Parquet, with the same rows in the same order. Files
of the store are never changed, only replaced under new names, so an index cannot be of another
content; that of a file that is gone goes with it.

Shapes: P entities asked for, E entities found, N events.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from foundation import lakehouse
from foundation.errors import InternalError
from foundation.history import first_not_before, known_order
from foundation.packing import packed, packed_bound, unpacked
from foundation.segments import range_rows
from foundation.whole_files import write_whole

if TYPE_CHECKING:
    from foundation.store import EventStore

INDEX = "index"
COLUMNS, FORMAT = "columns.json", 2
TIMES = ("known_at", "event_time")
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class IndexSummary:
    """What `refresh` did: files indexed now, indexes of files that are gone, bytes held."""

    made: int
    dropped: int
    size: int

    def line(self) -> str:
        """One line for people."""
        return (
            f"{self.made:,} files indexed, {self.dropped:,} old indexes deleted; "
            f"the index holds {self.size / 1e6:,.0f} MB"
        )


@dataclass(frozen=True)
class Wanted:
    """Entities asked for: [P] strings, unique."""

    entity_ids: pl.Series

    @cached_property
    def keys(self) -> np.ndarray:
        """[P] uint64."""
        return lakehouse.keys_of(self.entity_ids)

    @cached_property
    def names(self) -> np.ndarray:
        """[P] bytes."""
        return _bytes(self.entity_ids)


@dataclass(frozen=True)
class EntityRows:
    """Events of some entities of one source, in timeline order.

    Attributes:
        entity: [E] int64 place in `Wanted.entity_ids` of those found, each once.
        counts: [E] int64 events of each, one entity after another; held: [E] int64 how many of it
            there are in all.
        known_us, event_us: [N] int64.
        fields: [N] the columns asked for.
    """

    entity: np.ndarray
    counts: np.ndarray
    held: np.ndarray
    known_us: np.ndarray
    event_us: np.ndarray
    fields: pl.DataFrame


@dataclass(frozen=True)
class EventIndex:
    """The index of a store.

    Attributes:
        directory: of the store.
    """

    directory: Path

    def rows(
        self,
        source: str,
        buckets: Sequence[Sequence[str]],
        wanted: Wanted,
        before_us: np.ndarray,
        fields: Sequence[str],
    ) -> EntityRows | None:
        """Events of some entities before a moment; None where a file is not indexed.

        Args:
            buckets: the files of each; an entity lies in one bucket.
            before_us: [P] int64: of each entity the events with known_at before.
        """
        parts = []
        for files in buckets:
            found = self._open(source, files)
            if found is None:
                return None
            parts.append(_merged([file.rows(wanted, before_us, fields) for file in found]))
        return parts[0] if len(parts) == 1 else _chained(parts)

    def count(self, source: str, files: Sequence[str], entity_ids: pl.Series) -> np.ndarray | None:
        """[P] int64 events of entities in the files of a bucket; None as for `rows`."""
        found = self._open(source, files)
        if found is None:
            return None
        wanted, out = Wanted(entity_ids), np.zeros(len(entity_ids), dtype=np.int64)
        for file in found:
            entity, run = file.find(wanted)
            out[entity] += file.runs[1, run]
        return out

    def _open(self, source: str, files: Sequence[str]) -> list[_IndexedFile] | None:
        """The files of a bucket in the order of their import; None where one is not indexed."""
        found = []
        for file in files:
            folder = _folder(self.directory, source, file)
            listed = _listed(folder)
            if listed is None:
                return None
            found.append(_IndexedFile(folder, listed))
        return sorted(found, key=lambda file: file.first_row)


class _IndexedFile:
    """One file's index, opened."""

    def __init__(self, folder: Path, listed: dict[str, Any]) -> None:
        self._folder = folder
        self.first_row: int = listed["first_row"]
        self.runs: np.ndarray = np.load(folder / "runs.npy")
        self._columns = {c["name"]: c for c in listed["columns"]}

    def find(self, wanted: Wanted) -> tuple[np.ndarray, np.ndarray]:
        """Who of the wanted is here, in the order of the file.

        Returns:
            entity: [E] int64 places in `wanted`; run: [E] int64 their runs, ascending.
        """
        keys, run = np.load(self._folder / "keys.npy")
        low = keys.searchsorted(wanted.keys)
        entity = np.flatnonzero(keys.take(low, mode="clip") == wanted.keys)
        low = low[entity]
        if (keys[1:] == keys[:-1]).any():
            # Several entities share a key, which hardly ever happens: look at each of them.
            high = keys.searchsorted(keys[low], "right")
            entity = np.repeat(entity, high - low)
            low = range_rows(low, high)
        run = run[low].astype(np.int64)
        # The names decide.
        names = np.load(self._folder / "ids.npy", mmap_mode="r")
        same = np.flatnonzero(names[run] == wanted.names[entity])
        order = same[np.argsort(run[same], kind="stable")]
        return entity[order], run[order]

    def rows(self, wanted: Wanted, before_us: np.ndarray, fields: Sequence[str]) -> EntityRows:
        """See `EventIndex.rows`."""
        entity, run = self.find(wanted)
        start, held = self.runs[:, run]
        known = self._columns[TIMES[0]]
        bound = packed_bound(known, before_us[entity])
        stop = first_not_before(self._values(known), start, start + held, bound)
        place = range_rows(start, stop)
        known_us, event_us = (self._picked(self._columns[name], place) for name in TIMES)
        columns = [self._column(self._columns[name], place) for name in fields]
        frame = pl.DataFrame(height=len(place)).with_columns(columns)
        return EntityRows(entity, stop - start, held, known_us, event_us, frame)

    def _column(self, entry: dict[str, Any], place: np.ndarray) -> pl.Series:
        """Some rows of a column that `_write_column` wrote."""
        name, values = entry["name"], self._picked(entry, place)
        if entry["kind"] == "words":
            words = pl.read_ipc(self._folder / f"{entry['number']}.words.arrow")["word"]
            return words.gather(values).alias(name)
        column = pl.Series(name, values)
        if entry["kind"] == "time":
            column = column.cast(pl.Datetime("us"))
        if entry["nulls"]:
            column = column.set(pl.Series(self._values(entry, ".null").take(place)), None)
        return column

    def _picked(self, entry: dict[str, Any], place: np.ndarray) -> np.ndarray:
        """Some values of a column."""
        return unpacked(entry, self._values(entry).take(place))

    def _values(self, entry: dict[str, Any], what: str = "") -> np.ndarray:
        """A whole column as it was packed, mapped: what is not touched is not read."""
        path = self._folder / f"{entry['number']}{what}.npy"
        # A plain view: whatever is picked from it is an array of its own, not a file.
        return np.asarray(np.load(path, mmap_mode="r"))


def indexed(directory: Path) -> bool:
    """Whether a store is kept indexed."""
    return (directory / INDEX).is_dir()


def refresh(store: EventStore, progress: Progress | None = None) -> IndexSummary:
    """Index every file the store reads, forget those that are gone; for who holds its lock.

    Safe to interrupt and to repeat: a file is indexed once its columns are listed.
    """
    names = store.schema.source_names
    made = dropped = 0
    for done, name in enumerate(names):
        if progress:
            progress(done, len(names), name)
        folder = store.directory / INDEX / name
        folder.mkdir(parents=True, exist_ok=True)
        dropped += _drop_stale(folder, store.directory / "tables" / name)
        for file in store.files(name)["file"].to_list():
            made += _index_file(_folder(store.directory, name, file), file)
    if progress:
        progress(len(names), len(names), "done")
    held = [p for p in (store.directory / INDEX).rglob("*") if p.is_file()]
    return IndexSummary(made, dropped, sum(p.stat().st_size for p in held))


def keep_up(store: EventStore) -> None:
    """`refresh` where the store is kept indexed."""
    if indexed(store.directory):
        refresh(store)


def _merged(parts: list[EntityRows]) -> EntityRows:
    """The files of one bucket, the later imported ones behind, as one."""
    if len(parts) == 1:
        return parts[0]
    whole = _chained(parts)
    entity, code = np.unique(whole.entity, return_inverse=True)
    owner = np.repeat(code, whole.counts)
    held = np.bincount(code, weights=whole.held, minlength=len(entity)).astype(np.int64)
    known, event, fields = whole.known_us, whole.event_us, whole.fields
    order = known_order(owner, known, event)
    if order is not None:
        known, event, fields = known[order], event[order], fields[order]
    return EntityRows(entity, np.bincount(owner, minlength=len(entity)), held, known, event, fields)


def _chained(parts: list[EntityRows]) -> EntityRows:
    """One part after another."""
    names = [f.name for f in dataclasses.fields(EntityRows) if f.name != "fields"]
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return EntityRows(**arrays, fields=pl.concat([part.fields for part in parts]))


def _bytes(texts: pl.Series) -> np.ndarray:
    """[n] fixed-width UTF-8; an id ends in no zero byte that another lacks with the same key."""
    return np.array([text.encode() for text in texts.to_list()], dtype=np.bytes_)


def _listed(folder: Path) -> dict[str, Any] | None:
    """What stands in an index; None without one, or for one that another version wrote."""
    try:
        found: dict[str, Any] = json.loads((folder / COLUMNS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return found if found["format"] == FORMAT else None


def _index_file(folder: Path, file: str) -> int:
    """Index one file unless it is; 1 where it was not."""
    if _listed(folder) is not None:
        return 0
    folder.mkdir(exist_ok=True)
    rows = lakehouse.naive(pl.read_parquet(file, hive_partitioning=False, glob=False))
    run = rows["entity_id"].rle().struct.unnest()
    ids, count = run["value"], run["len"].to_numpy().astype(np.int64)
    times = [rows[name].to_physical().to_numpy() for name in TIMES]
    entity = np.repeat(np.arange(len(ids)), count)
    if ids.n_unique() < len(ids) or known_order(entity, *times) is not None:
        raise InternalError(f"{file}: not in the order of a store")
    keys = lakehouse.keys_of(ids)
    order = np.argsort(keys, kind="stable")
    for name, array in (
        ("ids", _bytes(ids)),
        ("keys", np.stack([keys[order], order.astype(np.uint64)])),
        ("runs", np.stack([np.cumsum(count) - count, count])),
    ):
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    columns = rows.drop("entity_id", lakehouse.ROW).get_columns()
    listed = {
        "format": FORMAT,
        "first_row": rows[lakehouse.ROW].min(),
        "columns": [_write_column(folder, n, column) for n, column in enumerate(columns)],
    }
    for path in folder.iterdir():
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
    write_whole(folder / COLUMNS, json.dumps(listed))
    return 1


def _write_column(folder: Path, number: int, column: pl.Series) -> dict[str, Any]:
    """Write a column; returns what is needed to read it."""
    entry = {"name": column.name, "number": number, "kind": "plain", "nulls": False}
    if column.dtype == pl.String:
        # The place of a missing value is behind the last word, where nothing stands.
        words = column.drop_nulls().unique().sort().alias("word")
        code = column.cast(pl.Enum(words)).to_physical().cast(pl.UInt32).fill_null(len(words))
        words.extend_constant(None, 1).to_frame().write_ipc(folder / f"{number}.words.arrow")
        np.save(folder / f"{number}.npy", code.to_numpy(), allow_pickle=False)
        return entry | {"kind": "words"}
    if column.dtype == pl.Datetime:
        entry["kind"] = "time"
        column = column.to_physical()
    if column.null_count():
        entry["nulls"] = True
        missing = column.is_null()
        np.save(folder / f"{number}.null.npy", missing.to_numpy(), allow_pickle=False)
        column = column.fill_null(False if column.dtype == pl.Boolean else 0)
    values, how = packed(column.to_numpy())
    np.save(folder / f"{number}.npy", values, allow_pickle=False)
    return entry | how


def _drop_stale(folder: Path, table: Path) -> int:
    """Delete the indexes of files that a table no longer has; returns how many."""
    there = {_name(path) for path in table.glob("*/*.parquet")}
    gone = [path for path in folder.iterdir() if path.name not in there]
    for path in gone:
        # What is half-deleted must not look whole.
        (path / COLUMNS).unlink(missing_ok=True)
        shutil.rmtree(path)
    return len(gone)


def _folder(directory: Path, source: str, file: str) -> Path:
    return directory / INDEX / source / _name(Path(file))


def _name(file: Path) -> str:
    """Bucket and file: `entity_bucket=3.part-00000-...`."""
    return f"{file.parent.name}.{file.stem}"
