"""How old a stored history may be, and what happens where it is older: per channel.

A channel without a row of its own has the service's defaults. Bounds are answered from memory; a
change holds in every worker within a second.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

from serving.database import Database, now
from serving.online.tables import bounds, metadata

Fallback = Literal["score", "without", "refuse"]
_REMEMBERED = 1.0


@dataclass(frozen=True)
class Bound:
    """What a channel asks of stored histories.

    Attributes:
        max_age_seconds: from when the newest event was known to as_of; None: any age will do.
        fallback: where it is older, or nothing is stored: `score` with a flag, score `without` the
            stored events and with a flag, or `refuse` with 409.
    """

    max_age_seconds: float | None = None
    fallback: Fallback = "score"


class Bounds:
    """The bounds of every tenant's channels; safe to share between threads.

    Args:
        default: for channels without one of their own.
    """

    def __init__(self, database: Database, default: Bound | None = None) -> None:
        self._database, self.default = database, default or Bound()
        database.make(metadata)
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], Bound] = {}
        self._until = 0.0

    def of(self, tenant: str, channel: str) -> Bound:
        """What holds for a channel, as it was a second ago at the earliest."""
        if time.monotonic() > self._until:
            with self._lock:
                if time.monotonic() > self._until:
                    self._known = self._read()
                    self._until = time.monotonic() + _REMEMBERED
        return self._known.get((tenant, channel), self.default)

    def set(self, tenant: str, channel: str, bound: Bound, by: str) -> None:
        """Bound a channel.

        Args:
            by: whose key or which person, for the record.
        """
        key = (bounds.c.tenant == tenant) & (bounds.c.channel == channel)
        with self._database.transaction() as connection:
            connection.execute(bounds.delete().where(key))
            connection.execute(
                bounds.insert().values(
                    tenant=tenant, channel=channel, max_age_seconds=bound.max_age_seconds,
                    fallback=bound.fallback, changed_at=now(), changed_by=by,
                )
            )  # fmt: skip
        self._until = 0.0

    def _read(self) -> dict[tuple[str, str], Bound]:
        c = bounds.c
        query = sa.select(c.tenant, c.channel, c.max_age_seconds, c.fallback)
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        return {(r[0], r[1]): Bound(r[2], r[3]) for r in rows}
