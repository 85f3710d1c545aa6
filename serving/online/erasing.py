"""Erasure of what is stored of a customer; needs neither the vault nor what answers requests.

Workers hold decoded histories in memory. An erasure leaves a mark in the database, the customer's
keyed hash and the moment, by which each of them drops what it holds within a second or so; the mark
goes with the first erasure a day later.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import sqlalchemy as sa

from serving.database import Database
from serving.online.tables import blocks, entities, erasures, event_ids, metadata
from serving.safety.erasure import Eraser, ErasureCount

KEEP_US = 86_400_000_000


def erase(database: Database, tenant: str, entity: str) -> int:
    """Erase the stored history of a customer; how many events it was.

    Args:
        entity: keyed hash of the customer.
    """
    with database.transaction() as connection:
        count = _count(connection, tenant, entity)
        for table in (blocks, event_ids, entities):
            mine = (table.c.tenant == tenant) & (table.c.entity == entity)
            connection.execute(table.delete().where(mine))
        _mark(connection, tenant, entity, time.time_ns() // 1000)
    return count


class Forgetting:
    """Drops from the memory of a process what was erased anywhere; see `look`.

    Args:
        forget: drops a customer: tenant, keyed hash.
        forget_all: drops everything, where marks went before they were seen.
    """

    def __init__(
        self,
        database: Database,
        forget: Callable[[str, str], None],
        forget_all: Callable[[], None],
    ) -> None:
        database.make(metadata)
        self._database, self._forget, self._forget_all = database, forget, forget_all
        self._lock = threading.Lock()
        self._late: list[tuple[str, str]] = []
        with database.reading() as connection:
            self._seen = _last(connection)

    def look(self) -> None:
        """Drop what was erased since the last look; to be called every second.

        What was read before an erasure may come into memory after it, so each is dropped twice.
        """
        with self._lock:
            query = sa.select(erasures).where(erasures.c.number > self._seen)
            with self._database.reading() as connection:
                rows = connection.execute(query.order_by(erasures.c.number)).all()
            fresh = [(row.tenant, row.entity) for row in rows]
            if rows and rows[0].number > self._seen + 1:
                self._forget_all()
            for tenant, entity in (*self._late, *fresh):
                self._forget(tenant, entity)
            self._late = fresh
            self._seen = rows[-1].number if rows else self._seen


def _mark(connection: sa.Connection, tenant: str, entity: str, at_us: int) -> None:
    number = _last(connection) + 1
    connection.execute(erasures.delete().where(erasures.c.at < at_us - KEEP_US))
    row = {"number": number, "tenant": tenant, "entity": entity, "at": at_us}
    connection.execute(erasures.insert().values(row))


def _last(connection: sa.Connection) -> int:
    query = sa.select(sa.func.coalesce(sa.func.max(erasures.c.number), 0))
    return int(connection.execute(query).scalar_one())


def eraser(database: Database) -> Eraser:
    """`erase` for a run over every store; counts events."""
    database.make(metadata)

    def run(
        tenant: str, entity_hash: str, entity_id: str, *, dry_run: bool = False
    ) -> ErasureCount:
        if not dry_run:
            return ErasureCount(erase(database, tenant, entity_hash))
        with database.reading() as connection:
            return ErasureCount(_count(connection, tenant, entity_hash))

    return run


def _count(connection: sa.Connection, tenant: str, entity: str) -> int:
    mine = (blocks.c.tenant == tenant) & (blocks.c.entity == entity)
    query = sa.select(sa.func.coalesce(sa.func.sum(blocks.c.events), 0)).where(mine)
    return int(connection.execute(query).scalar_one())
