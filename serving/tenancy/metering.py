"""What each tenant used: a projection of the decision log, and of finished deliveries.

A decision is billed because its line stands in the log; what failed never got there. A reader
writes what it counted and how far it has read in one transaction, so whatever dies between any two
steps, every line is counted exactly once. Several processes may count the same log: the one that is
late sees the other's offset and goes on from there; a log that comes back under another node's
name counts nothing twice. Lines that share `once` are one request with
an idempotency key that was made twice after a crash: they are billed once. Test entities of a
sandbox key are never billed.

Kinds: score (a request about one customer), row (one of a batch), sample (back-tracked) and label
(adapted to) of a delivery, counted once for each job that is done. Days are UTC.
"""

from __future__ import annotations

import fcntl
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from serving.audit import follow
from serving.database import Database, now
from serving.durable import fault_point
from serving.registry_tables import jobs
from serving.tenancy.tables import (
    decisions_billed,
    jobs_counted,
    logs_read,
    metadata,
    usage,
)

if TYPE_CHECKING:
    from serving.workspace import Workspace

SCORE, ROW, SAMPLE, LABEL = "score", "row", "sample", "label"
KINDS = (SCORE, ROW, SAMPLE, LABEL)
SINGLE = ("/v1/score", "/v1/query")
SANDBOX = "sandbox"
FEW = 500
Follow = Callable[[str | Path, int], tuple[list[dict[str, Any]], int]]


@dataclass(frozen=True)
class Usage:
    """Units of one kind of a channel on a UTC day."""

    channel: str
    day: str
    kind: str
    units: int


class Meter:
    """Counts the decision log of one node.

    Args:
        log: the decision log.
        node: name of the node; logs of different nodes count beside each other.
    """

    def __init__(
        self, database: Database, log: str | Path, node: str = "node", follow: Follow = follow
    ) -> None:
        database.make(metadata)
        self.database, self.log, self.node = database, Path(log), node
        self._follow = follow

    def advance(self, wait: bool = True) -> int:
        """Count what was decided since the last time; how many lines that was.

        Args:
            wait: for another process of this node that counts just now, or leave it to that one,
                and leave the few lines that come meanwhile to the next call.
        """
        lock = self.log.with_name(self.log.name + ".metering")
        lock.parent.mkdir(parents=True, exist_ok=True)
        with open(lock, "a", encoding="utf-8") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                return 0
            return self._advance(chase=wait)

    def _advance(self, chase: bool = True) -> int:
        total = 0
        while True:
            with self.database.reading() as connection:
                begin = self._offset(connection) or 0
            records, end = self._follow(self.log, begin)
            fault_point("metering.read")
            if end == begin:
                return total
            total += self._count(records, begin, end)
            if not chase and len(records) < FEW:
                return total  # a transaction for every single line would cost more than its score

    def _count(self, records: list[dict[str, Any]], begin: int, end: int) -> int:
        """Write a stretch of the log down; how many lines of it were new."""
        with self.database.transaction() as connection:
            offset = self._offset(connection)
            if (offset or 0) != begin:
                return 0  # another process was quicker
            fault_point("metering.begun")
            rows = _unknown(connection, [_row(self.node, record) for record in records])
            _bill_once(connection, rows)
            if rows:
                connection.execute(decisions_billed.insert(), rows)
            fault_point("metering.rows")
            added: Counter[tuple[str, str, str, str]] = Counter()
            for row in rows:
                added[row["tenant"], row["channel"], row["time"][:10], row["kind"]] += row["billed"]
            _add(connection, added)
            fault_point("metering.usage")
            if offset is None:
                connection.execute(logs_read.insert().values(node=self.node, offset=end))
            else:
                mine = logs_read.c.node == self.node
                connection.execute(logs_read.update().where(mine).values(offset=end))
            fault_point("metering.offset")
        fault_point("metering.committed")
        return len(rows)

    def _offset(self, connection: sa.Connection) -> int | None:
        query = sa.select(logs_read.c.offset).where(logs_read.c.node == self.node)
        return connection.execute(query).scalar()


def count_jobs(database: Database, workspace: Workspace, registry: Database) -> int:
    """Count the samples and labels of deliveries that are done, once for each job.

    Args:
        database: where usage is kept; `registry`: where the jobs are.
    Returns:
        how many jobs were counted.
    """
    database.make(metadata)
    with database.reading() as connection:
        query = sa.select(jobs_counted.c.tenant, jobs_counted.c.job)
        known = {tuple(row) for row in connection.execute(query)}
    with registry.reading() as connection:
        columns = (jobs.c.tenant, jobs.c.id, jobs.c.channel, jobs.c.ended_at)
        done = connection.execute(sa.select(*columns).where(jobs.c.state == "done")).all()
    counted = 0
    for job in done:
        if (job.tenant, job.id) in known:
            continue
        facts = json.loads(
            (workspace.runs / job.id / "validated" / "samples.json").read_text(encoding="utf-8")
        )
        labels = 0 if facts["bads"] is None else facts["n"]
        day = str(job.ended_at)[:10]
        added = Counter(
            {
                (job.tenant, job.channel, day, SAMPLE): int(facts["n"]),
                (job.tenant, job.channel, day, LABEL): int(labels),
            }
        )
        with database.transaction() as connection:
            if database.insert_missing(
                connection, jobs_counted, tenant=job.tenant, job=job.id, at=now()
            ):
                fault_point("metering.job")
                _add(connection, added)
                counted += 1
    return counted


def read_usage(
    database: Database, tenant: str, begin: str, until: str, channel: str | None = None
) -> list[Usage]:
    """A tenant's usage by channel, day and kind.

    Args:
        begin, until: UTC days such as 2027-01-31; `until` is not part of it.
    """
    query = sa.select(usage.c.channel, usage.c.day, usage.c.kind, usage.c.units).where(
        usage.c.tenant == tenant, usage.c.day >= begin, usage.c.day < until
    )
    if channel is not None:
        query = query.where(usage.c.channel == channel)
    query = query.order_by(usage.c.channel, usage.c.day, usage.c.kind)
    with database.reading() as connection:
        return [Usage(*row) for row in connection.execute(query)]


def read_decisions(
    database: Database,
    tenant: str,
    begin: str = "",
    until: str = "",
    after: tuple[str, str, int] | None = None,
    limit: int = 100,
) -> list[dict[str, Any]]:
    """A tenant's decisions, oldest first: everything but who and what was given.

    Args:
        begin, until: moments as the log writes them, `until` not part of it; empty: open.
        after: time, node and seq of the last one seen.
    """
    table = decisions_billed
    query = sa.select(table).where(table.c.tenant == tenant)
    if begin:
        query = query.where(table.c.time >= begin)
    if until:
        query = query.where(table.c.time < until)
    if after is not None:
        place = sa.tuple_(table.c.time, table.c.node, table.c.seq)
        query = query.where(place > sa.tuple_(*(sa.literal(value) for value in after)))
    query = query.order_by(table.c.time, table.c.node, table.c.seq).limit(limit)
    with database.reading() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


def _row(node: str, record: dict[str, Any]) -> dict[str, Any]:
    tests = SANDBOX in record.get("flags", ())
    units = int(record.get("units", 1))
    score = record.get("score")
    texts = ("key_id", "request_id", "route", "channel", "release", "package", "outcome", "band")
    return {
        **{name: str(record.get(name, "")) for name in texts},
        "tenant": record["tenant"],
        "node": node,
        "seq": int(record["seq"]),
        "time": record["time"],
        "score": None if score is None else float(score),
        "kind": SCORE if record.get("route") in SINGLE else ROW,
        "units": units,
        "billed": 0 if tests else units,
        "once": str(record.get("once", "")),
        "hash": str(record["hash"]),
    }


def _unknown(connection: sa.Connection, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without those whose lines were counted under another name of the node."""
    seen = _found(connection, rows, "hash")
    return [row for row in rows if (row["tenant"], row["hash"]) not in seen]


def _bill_once(connection: sa.Connection, rows: list[dict[str, Any]]) -> None:
    """Take what is billed off lines whose request was counted before."""
    marked = [row for row in rows if row["once"]]
    seen = _found(connection, marked, "once")
    for row in marked:
        key = (row["tenant"], row["once"])
        if key in seen:
            row["billed"] = 0
        seen.add(key)


def _found(
    connection: sa.Connection, rows: list[dict[str, Any]], name: str
) -> set[tuple[str, str]]:
    """Tenant and value of a column, as far as the database has those of some rows."""
    column, tenant = decisions_billed.c[name], decisions_billed.c.tenant
    wanted: dict[str, set[str]] = {}
    for row in rows:
        wanted.setdefault(row["tenant"], set()).add(row[name])
    seen: set[tuple[str, str]] = set()
    for owner, values in wanted.items():
        every = sorted(values)
        for start in range(0, len(every), 500):
            chunk = column.in_(every[start : start + 500])
            query = sa.select(column).where(tenant == owner, chunk)
            seen |= {(owner, str(value)) for value in connection.execute(query).scalars()}
    return seen


def _add(connection: sa.Connection, added: Counter[tuple[str, str, str, str]]) -> None:
    for (tenant, channel, day, kind), units in added.items():
        if not units:
            continue
        key = {"tenant": tenant, "channel": channel, "day": day, "kind": kind}
        mine = [usage.c[name] == value for name, value in key.items()]
        found = connection.execute(usage.update().where(*mine).values(units=usage.c.units + units))
        if found.rowcount == 0:
            connection.execute(usage.insert().values(**key, units=units))
