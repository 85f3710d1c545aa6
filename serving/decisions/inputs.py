"""Bodies of requests, sealed, so that a decision can be replayed; kept for some days, erasable.

A thread of its own seals and writes them in groups: the answer does not wait, and where the
database cannot take them the decision stands and only its replay is lost (`dropped`).
"""

from __future__ import annotations

import datetime as dt
import logging
import queue
import threading
from typing import Protocol

import sqlalchemy as sa

from serving.database import Database, now
from serving.decisions.tables import inputs, metadata

PURPOSE = "decisions.input"
WAITING, GROUP = 10_000, 200
log = logging.getLogger("riskfm.decisions")
_Kept = tuple[str, str, str, str, bytes]


def purpose(request_id: str) -> str:
    """What a body is sealed for: this request alone."""
    return f"{PURPOSE}:{request_id}"


class Sealer(Protocol):
    """What seals values of a tenant for one purpose."""

    def seal(self, tenant: str, purpose: str, data: bytes) -> bytes:
        """The sealed value."""

    def open(self, tenant: str, purpose: str, blob: bytes) -> bytes:
        """The data of a sealed value."""


class Inputs:
    """Keeps request bodies.

    Args:
        days: how long; `purge` erases older ones.
    """

    def __init__(self, database: Database, vault: Sealer, days: int = 30) -> None:
        self._database, self._vault, self._days = database, vault, days
        database.make(metadata)
        self._queue: queue.Queue[_Kept | None] = queue.Queue(WAITING)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self.dropped = 0

    def keep(self, tenant: str, request_id: str, entity_hash: str, body: bytes) -> bool:
        """Hand a body over; whether there was room."""
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="inputs", daemon=True)
                    self._thread.start()
        try:
            self._queue.put_nowait((tenant, request_id, entity_hash, now(), body))
        except queue.Full:
            self.dropped += 1
            return False
        return True

    def close(self) -> None:
        """Write what waits and stop."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join()

    def body(self, tenant: str, request_id: str) -> bytes | None:
        """The body of a request; None where it was not kept, or is erased.

        Raises:
            ArtifactError: it was changed in the database.
        """
        mine = (inputs.c.tenant == tenant) & (inputs.c.request_id == request_id)
        with self._database.reading() as connection:
            blob = connection.execute(sa.select(inputs.c.blob).where(mine)).scalar()
        if blob is None:
            return None
        return self._vault.open(tenant, purpose(request_id), bytes(blob))

    def purge(self) -> int:
        """Erase what is older than `days`; how many."""
        oldest = dt.datetime.now(dt.UTC) - dt.timedelta(days=self._days)
        old = inputs.c.at < oldest.isoformat(timespec="microseconds")
        with self._database.transaction() as connection:
            return int(connection.execute(inputs.delete().where(old)).rowcount)

    def erase(self, tenant: str, entity_hash: str, entity_id: str) -> int:
        """Erase everything kept of a customer; how many requests."""
        self.flush()
        mine = (inputs.c.tenant == tenant) & (inputs.c.entity == entity_hash)
        with self._database.transaction() as connection:
            return int(connection.execute(inputs.delete().where(mine)).rowcount)

    def flush(self) -> None:
        """Wait until what was handed over is written."""
        if self._thread is not None:
            self._queue.join()

    def _run(self) -> None:
        ended = False
        while not ended:
            group = [self._queue.get()]
            while len(group) < GROUP and not self._queue.empty():
                group.append(self._queue.get())
            work = [one for one in group if one is not None]
            ended = len(work) < len(group)
            try:
                if work:
                    self._write(work)
            except Exception as exc:
                self.dropped += len(work)
                log.error("%d inputs were not kept: %s", len(work), type(exc).__name__)
            for _ in group:
                self._queue.task_done()

    def _write(self, group: list[_Kept]) -> None:
        rows = {
            (tenant, request_id): {
                "tenant": tenant, "request_id": request_id, "entity": entity, "at": at,
                "blob": self._vault.seal(tenant, purpose(request_id), body),
            }
            for tenant, request_id, entity, at, body in group
        }  # fmt: skip
        with self._database.transaction() as connection:
            # A request id given again: the last body stands, as the last decision does.
            for tenant, request_id in rows:
                connection.execute(
                    inputs.delete().where(
                        inputs.c.tenant == tenant, inputs.c.request_id == request_id
                    )
                )
            connection.execute(inputs.insert(), list(rows.values()))
