"""Erasure of what is stored of a customer; needs neither the vault nor what answers requests."""

from __future__ import annotations

import sqlalchemy as sa

from serving.database import Database
from serving.online.tables import blocks, entities, event_ids, metadata
from serving.safety.erasure import Eraser, ErasureCount


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
    return count


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
