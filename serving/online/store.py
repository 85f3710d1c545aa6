"""Histories of customers, event by event as they are posted: kept sealed, read in one look.

What is stored is seen by every worker at once: a read asks the database for the customer's version,
one indexed row over a connection that stays open, and decodes only blocks that changed since this
worker read them. Posts that wait for the database at the same time enter it in one transaction.

A version is the moment of the last change. It grows, and never comes back after an erasure.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa

from foundation.schema import Schema
from serving.database import Database
from serving.messages import ApiError
from serving.online.cache import ByteCache
from serving.online.erasing import erase
from serving.online.events import Events, joined
from serving.online.sealing import Hasher, Sealer, unseal
from serving.online.tables import blocks, entities, metadata
from serving.online.writing import Post, Posted, write

# Posts of one transaction: others want to write as well.
_GROUP = 500


class StoredHistory:
    """What is stored of a customer, decoded.

    Attributes:
        version: of the history, microseconds since the epoch.
        dropped: events that left because there were more than are kept.
        parts: number of the block -> source, version, events.
    """

    def __init__(
        self, version: int, dropped: int, parts: dict[int, tuple[str, int, Events]]
    ) -> None:
        self.version = version
        self.dropped = dropped
        self.parts = parts
        self._read: tuple[Schema | None, dict[str, Events], bool] = (None, {}, False)

    @property
    def nbytes(self) -> int:
        """Memory, about: the blocks, and once more what the last schema read of them."""
        return 512 + 2 * sum(events.nbytes for _, _, events in self.parts.values())

    @property
    def events(self) -> int:
        """Number of events."""
        return sum(len(events) for _, _, events in self.parts.values())

    def of(self, schema: Schema) -> tuple[dict[str, Events], bool]:
        """Events by source as a schema reads them, in the order in which they were stored.

        Returns:
            the events, and whether fields were left out because they hold another kind of values.
        """
        last, found, differ = self._read
        if last is schema:
            return found, differ
        by_source: dict[str, list[Events]] = {}
        differ = False
        for seq in sorted(self.parts):
            source, _, events = self.parts[seq]
            if source in schema.sources:
                part, left = events.of(schema.sources[source].fields)
                by_source.setdefault(source, []).append(part)
                differ |= left
        found = {source: joined(parts) for source, parts in by_source.items()}
        self._read = (schema, found, differ)
        return found, differ

    def until(self, version: int) -> StoredHistory:
        """The history as it was at a version; what left or was erased since stays away."""
        parts = {}
        for seq, (source, changed, events) in self.parts.items():
            rows = np.flatnonzero(events.added <= version)
            if len(rows):
                parts[seq] = source, changed, events.take(rows)
        return StoredHistory(version, self.dropped, parts)


@dataclass(frozen=True)
class SourceSummary:
    """Events stored of a source; times in microseconds since the epoch, UTC."""

    events: int
    first_event_us: int
    last_event_us: int
    last_known_us: int


@dataclass(frozen=True)
class Summary:
    """What is stored of a customer, without its events; see `StoredHistory`."""

    version: int
    dropped: int
    sources: dict[str, SourceSummary]

    @property
    def events(self) -> int:
        """Number of events."""
        return sum(source.events for source in self.sources.values())


class OnlineStore:
    """The stored histories; safe to share between threads and processes.

    Args:
        max_events: events kept of a customer; at times a block more.
        cache_bytes: memory for decoded histories in this process.
        clock: microseconds since the epoch, UTC.
    """

    def __init__(
        self,
        database: Database,
        vault: Sealer,
        hasher: Hasher,
        max_events: int = 10_000,
        cache_bytes: int = 64 << 20,
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self.database = database
        self._vault, self._hasher = vault, hasher
        self._max_events, self._clock = max_events, clock
        self._cache: ByteCache[StoredHistory] = ByteCache(cache_bytes)
        self._standing = _Standing(database)
        self._waiting: list[tuple[Post, Future[Posted]]] = []
        self._lock, self._writing = threading.Lock(), threading.Lock()
        database.make(metadata)

    def close(self) -> None:
        """Close the connections kept for reading."""
        self._standing.close()

    # writing

    def append(self, posts: Sequence[Post]) -> list[Posted | ApiError]:
        """Add posts; what is returned is on the disk.

        Returns:
            per post what became of it, or why it was refused as a whole.
        """
        jobs: list[tuple[Post, Future[Posted]]] = [(post, Future()) for post in posts]
        with self._lock:
            self._waiting += jobs
        with self._writing:
            # Whoever writes first writes for all who waited meanwhile.
            if not all(future.done() for _, future in jobs):
                with self._lock:
                    group, self._waiting = self._waiting, []
                for begin in range(0, len(group), _GROUP):
                    self._write(group[begin : begin + _GROUP])
        return [_outcome(future) for _, future in jobs]

    def _write(self, group: list[tuple[Post, Future[Posted]]]) -> None:
        try:
            with self.database.transaction() as connection:
                found = write(
                    connection, [post for post, _ in group], self._vault, self._hasher,
                    self._max_events, self._clock(),
                )  # fmt: skip
        except BaseException as exc:
            if len(group) > 1 and isinstance(exc, Exception):
                # One of them is at fault; the others need not fail with it.
                for job in group:
                    self._write([job])
                return
            for _, future in group:
                future.set_exception(exc)
            return
        for (_, future), outcome in zip(group, found, strict=True):
            if isinstance(outcome, ApiError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    def erase(self, tenant: str, entity: str) -> int:
        """Erase everything stored of a customer; how many events it was.

        Other workers forget what they decoded at their next look (`Forgetting`).
        """
        count = erase(self.database, tenant, entity)
        self.forget(tenant, entity)
        return count

    def forget(self, tenant: str, entity: str) -> None:
        """Drop what is decoded of a customer."""
        self._cache.drop((tenant, entity))

    def forget_all(self) -> None:
        """Drop everything decoded."""
        self._cache.drop_where(lambda key: True)

    @property
    def decoded(self) -> int:
        """Number of customers whose history is decoded in memory."""
        return len(self._cache)

    # reading

    def read(self, tenant: str, entity: str) -> StoredHistory | None:
        """What is stored of a customer now; None for nothing.

        Only blocks are decoded that changed since this worker read them last.

        Args:
            entity: keyed hash of the customer.
        Raises:
            ArtifactError: changed in the database.
        """
        key = tenant, entity
        old = self._cache.get(key)
        rows = self._rows(tenant, entity, -1 if old is None else old.version)
        if old is not None and not _holds(old, rows):
            # What is held is no part of what is stored: erased and begun anew, with a clock set
            # back in between.
            old, rows = None, self._rows(tenant, entity, -1)
        if not rows:
            self._cache.drop(key)
            return None
        version, dropped = rows[0][:2]
        if old is not None and old.version == version:
            return old
        parts = {}
        for _, _, seq, source, changed, blob in rows:
            if blob is not None:
                events = unseal(self._vault, tenant, entity, seq, bytes(blob))
                parts[seq] = source, changed, events
            elif old is not None and seq is not None:
                parts[seq] = old.parts[seq]
        found = StoredHistory(version, dropped, parts)
        self._cache.put(key, found)
        return found

    def at_hand(self, tenant: str, entity: str) -> int | None:
        """Bytes decoded of a customer where `read` has to wait for nothing; None otherwise."""
        held = self._cache.get((tenant, entity)) if self.database.near else None
        return None if held is None else held.nbytes

    def _rows(self, tenant: str, entity: str, since: int) -> Sequence[Any]:
        """A customer's blocks, in one look: with their contents where they changed later."""
        mine = {"tenant": tenant, "entity": entity, "since": since}
        return self._standing.rows(_HISTORY, mine)

    def summary(self, tenant: str, entity: str) -> Summary | None:
        """What is stored of a customer, without opening it; None for nothing."""
        mine = {"tenant": tenant, "entity": entity}
        with self.database.reading() as connection:
            row = connection.execute(_ABOUT, mine).first()
            sources = connection.execute(_SOURCES, mine).all()
        if row is None:
            return None
        by_source = {s[0]: SourceSummary(*(int(value) for value in s[1:])) for s in sources}
        return Summary(row.version, row.dropped, by_source)


def _of_customer(table: sa.Table, *columns: sa.ColumnElement[Any]) -> sa.Select[Any]:
    """Columns of a customer's rows."""
    mine = [table.c[name] == sa.bindparam(name) for name in ("tenant", "entity")]
    return sa.select(*columns).where(*mine)


def _holds(old: StoredHistory, rows: Sequence[Any]) -> bool:
    """Whether an earlier reading holds every block that came without its contents."""
    left = [
        (seq, changed) for _, _, seq, _, changed, blob in rows if blob is None and seq is not None
    ]
    return all(seq in old.parts and old.parts[seq][1] == changed for seq, changed in left)


_ABOUT = _of_customer(entities, entities.c.version, entities.c.dropped)
_SOURCES = (
    _of_customer(
        blocks, blocks.c.source, sa.func.sum(blocks.c.events),
        sa.func.min(blocks.c.first_event_us), sa.func.max(blocks.c.last_event_us),
        sa.func.max(blocks.c.last_known_us),
    )
    .group_by(blocks.c.source)
    .order_by(blocks.c.source)
)  # fmt: skip
_HISTORY = _of_customer(
    entities, entities.c.version, entities.c.dropped, blocks.c.seq, blocks.c.source,
    blocks.c.version, sa.case((blocks.c.version > sa.bindparam("since"), blocks.c.blob)),
).select_from(
    entities.outerjoin(
        blocks, (blocks.c.tenant == entities.c.tenant) & (blocks.c.entity == entities.c.entity)
    )
)  # fmt: skip


class _Standing:
    """A connection for each thread that reads, opened once; opened again where it broke."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._mine = threading.local()
        self._all: list[sa.Connection] = []
        self._lock = threading.Lock()

    def rows(self, query: sa.Select[Any], given: dict[str, Any]) -> Sequence[Any]:
        """What a query finds, of what is committed now."""
        held = getattr(self._mine, "connection", None)
        if held is not None:
            try:
                return _all(held, query, given)
            except sa.exc.SQLAlchemyError:
                self._close(held)
        fresh = self._mine.connection = self._database.standing()
        with self._lock:
            self._all.append(fresh)
        return _all(fresh, query, given)

    def _close(self, connection: sa.Connection) -> None:
        with self._lock, suppress(ValueError):
            self._all.remove(connection)
        with suppress(sa.exc.SQLAlchemyError):
            connection.close()

    def close(self) -> None:
        for connection in list(self._all):
            self._close(connection)
        self._mine = threading.local()


def _all(connection: sa.Connection, query: sa.Select[Any], given: dict[str, Any]) -> Sequence[Any]:
    with connection.begin():
        return connection.execute(query, given).all()


def _outcome(future: Future[Posted]) -> Posted | ApiError:
    try:
        return future.result()
    except ApiError as exc:
        return exc
