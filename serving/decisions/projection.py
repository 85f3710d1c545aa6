"""The decision log as rows: decisions given, with their cases and actions.

The log is the truth; what stands here is made from it. The rows of a piece of the log, its cases,
its actions and the place where the next piece starts are written in one transaction: every decision
is there exactly once, whoever dies when. Several processes may do this side by side. A request that
was decided twice under one idempotency key (lines with the same `once`) has one case and one set of
actions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from foundation.errors import UserError
from serving.database import Database
from serving.decisions.actions import actions_of
from serving.decisions.cases import case_of, open_cases
from serving.decisions.decision_file import DecisionFile
from serving.decisions.rule_book import content_of
from serving.decisions.rules import DEFAULT
from serving.decisions.tables import decisions, metadata, offsets, outbox

Follow = Callable[..., tuple[list[dict[str, Any]], int]]
TENANT = "default"
PIECE = 500
_NODE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TEXTS = (
    "request_id", "time", "key_id", "route", "channel", "release", "package", "digest", "entity",
    "as_of", "band", "outcome", "once",
)  # fmt: skip


@dataclass(frozen=True)
class Given:
    """A decision that was given, from its line of the log.

    Attributes:
        id: NODE.SEQ.
        time: ISO 8601 UTC; as_of: the moment it speaks of.
        entity: keyed hash of the customer; empty after an erasure.
        rules: ids of the rules that hit.
        detail: version, reasons, actions, lists, limit, price, shadow of the decision.
    """

    id: str
    request_id: str
    time: str
    key_id: str
    route: str
    channel: str
    release: str
    package: str
    digest: str
    entity: str
    as_of: str
    score: float | None
    points: float | None
    band: str
    outcome: str
    rules: tuple[str, ...]
    detail: dict[str, Any]


class Projection:
    """Takes a node's decision log into the database.

    Args:
        node: name of the log's node, letters, digits, _ and -.
        follow: (path, offset, limit) -> lines after the offset, and the offset after them.
    """

    def __init__(self, database: Database, node: str, path: str | Path, follow: Follow) -> None:
        if not _NODE.fullmatch(node):
            raise UserError(f"node '{node[:80]}': use up to 64 letters, digits, _ and -")
        self.database, self._node, self._path = database, node, path
        self._follow = follow
        self._files: dict[tuple[str, str, str], DecisionFile | None] = {}
        database.make(metadata)

    def step(self) -> int:
        """Take in the next piece; how many decisions."""
        return self._piece() or 0

    def _piece(self) -> int | None:
        """How many decisions the next piece had; None where there was none."""
        with self.database.reading() as connection:
            start = self._offset(connection)
        records, end = self._follow(self._path, start or 0, PIECE)
        if end == (start or 0):
            return None
        with self.database.transaction() as connection:
            if self._offset(connection) != start:
                return 0  # somebody else was faster; what it left follows
            self._take(connection, [{"tenant": TENANT} | record for record in records])
            row = {"node": self._node, "offset": end}
            if start is None:
                connection.execute(offsets.insert().values(**row))
            else:
                mine = offsets.c.node == self._node
                connection.execute(offsets.update().where(mine).values(**row))
        return len(records)

    def run(self) -> int:
        """Take in everything there is; how many decisions."""
        total = 0
        while (done := self._piece()) is not None:
            total += done
        return total

    def keep_up(self) -> None:
        """Take in what waits; a few lines that come meanwhile are left for the next time.

        Running after every single line would cost a transaction for each decision.
        """
        while self.step() > PIECE // 2:
            pass

    def _offset(self, connection: sa.Connection) -> int | None:
        found = connection.execute(
            sa.select(offsets.c.offset).where(offsets.c.node == self._node)
        ).scalar()
        return None if found is None else int(found)

    def _take(self, connection: sa.Connection, records: list[dict[str, Any]]) -> None:
        """Write decisions down, then what follows from each."""
        due, rows, seen = [], [], _made_before(connection, records)
        for record in records:
            once = record["tenant"], record.get("once")
            if once not in seen:
                due.append(record)
            if once[1]:
                seen.add(once)
            rows.append({
                "tenant": record["tenant"], "node": self._node, "seq": int(record["seq"]),
                **{name: str(record.get(name) or "") for name in _TEXTS},
                "score": record.get("score"), "points": record.get("points"),
                "rules": json.dumps(record.get("rules", [])),
                "detail": json.dumps(record.get("decision") or {}),
            })  # fmt: skip
        if rows:
            connection.execute(decisions.insert(), rows)
        self._follow_up(connection, due)

    def _follow_up(self, connection: sa.Connection, records: list[dict[str, Any]]) -> None:
        """Open the cases of decisions and enqueue their actions, where they have any."""
        cases, actions = [], []
        for record in records:
            detail = record.get("decision") or {}
            review = record.get("outcome") == "review"
            if record.get("sandbox") or not (review or "actions" in detail):
                continue
            decision = f"{self._node}.{record['seq']}"
            file = self._file(connection, record, detail)
            if review:
                cases.append(case_of(decision, record, file))
            actions += actions_of(decision, record, file)
        open_cases(connection, cases)
        if actions:
            connection.execute(outbox.insert(), actions)

    def _file(
        self, connection: sa.Connection, record: dict[str, Any], detail: dict[str, Any]
    ) -> DecisionFile | None:
        version = str(detail.get("version", DEFAULT))
        if version == DEFAULT:
            return None
        key = (str(record["tenant"]), str(record.get("channel", "")), version)
        if key not in self._files:
            if len(self._files) >= 1000:
                self._files.clear()
            self._files[key] = content_of(connection, *key)
        return self._files[key]


def _made_before(
    connection: sa.Connection, records: list[dict[str, Any]]
) -> set[tuple[str, str | None]]:
    """Tenant and `once` of those that stand in the database already: a worker died between such a
    decision's line and its answer, and it was made again."""
    wanted: dict[str, set[str]] = {}
    for record in records:
        if record.get("once"):
            wanted.setdefault(record["tenant"], set()).add(str(record["once"]))
    c, found = decisions.c, set()
    for tenant, marks in wanted.items():
        mine = (c.tenant == tenant) & c.once.in_(sorted(marks))
        found |= {(tenant, mark) for (mark,) in connection.execute(sa.select(c.once).where(mine))}
    return found


def find(database: Database, tenant: str, request_id: str) -> Given:
    """The last decision given on a request.

    Raises:
        UserError: the tenant has none under this id.
    """
    mine = (decisions.c.tenant == tenant) & (decisions.c.request_id == request_id)
    with database.reading() as connection:
        row = connection.execute(
            sa.select(decisions).where(mine).order_by(decisions.c.time.desc()).limit(1)
        ).first()
    if row is None or not request_id:
        raise UserError("no decision has this request id; a new one appears within a second")
    return _given(row)


def between(
    database: Database, tenant: str, channel: str, since: str, until: str
) -> list[dict[str, Any]]:
    """Time, outcome, rules and detail of a channel's decisions, since <= time < until."""
    c = decisions.c
    query = sa.select(c.time, c.outcome, c.rules, c.detail).where(
        c.tenant == tenant, c.channel == channel, c.time >= since, c.time < until
    )
    with database.reading() as connection:
        return [dict(row) for row in connection.execute(query.order_by(c.time)).mappings()]


def erase(database: Database, tenant: str, entity_hash: str) -> int:
    """Forget whom decisions were about; how many. What was decided stays."""
    mine = (decisions.c.tenant == tenant) & (decisions.c.entity == entity_hash)
    with database.transaction() as connection:
        return int(connection.execute(decisions.update().where(mine).values(entity="")).rowcount)


def _given(row: Any) -> Given:
    values = {
        name: getattr(row, name)
        for name in Given.__dataclass_fields__
        if name not in ("id", "rules", "detail")
    }
    return Given(
        id=f"{row.node}.{row.seq}", rules=tuple(json.loads(row.rules)),
        detail=json.loads(row.detail), **values,
    )  # fmt: skip
