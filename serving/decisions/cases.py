"""The review queue: what was decided to be reviewed, until a person decides or it expires.

    open -> claimed -> decided
              claimed -> second look -> decided, or open again
    open or claimed -> expired

A case is made in the transaction that takes the decision out of the decision log. Who claimed it
decides it. Where the decision file asks for a second look at such an outcome, a different person
confirms it or sends it back. Every step is one row of an append-only history, which names people
and outcomes; notes may speak of the customer, stand only in the case and are erased with it.
"""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from foundation.errors import UserError, listing, nearest
from serving.database import Database, now
from serving.decisions.decision_file import DecisionFile, Review
from serving.decisions.tables import case_history, cases, metadata
from serving.releases import person

OPEN, CLAIMED, SECOND, DECIDED, EXPIRED = "open", "claimed", "second_look", "decided", "expired"
STATES = (OPEN, CLAIMED, SECOND, DECIDED, EXPIRED)
VERDICTS = ("approve", "refuse")
MAX_NOTE = 4000


class CaseConflict(UserError):
    """The case is not where this step starts, or this person may not take it."""


@dataclass(frozen=True)
class Case:
    """A decision that waits for a person.

    Attributes:
        id: of the decision, NODE.SEQ of its line in the decision log.
        entity: keyed hash of the customer; empty after an erasure.
        outcome: of the reviewer, approve or refuse; empty before.
        confirmed_by: who took the second look.
        second_look: outcomes that need one.
    """

    id: str
    request_id: str
    channel: str
    entity: str
    opened_at: str
    expires_at: str
    state: str
    claimed_by: str
    outcome: str
    decided_by: str
    decided_at: str
    note: str
    confirmed_by: str
    second_look: tuple[str, ...]
    score: float | None
    rules: tuple[str, ...]
    version: str


def case_of(decision: str, record: dict[str, Any], file: DecisionFile | None) -> dict[str, Any]:
    """The case of a decision, as `open_cases` takes it.

    Args:
        decision: its id, unique for the tenant.
        record: its line of the decision log, of outcome review.
        file: the decision file that decided; None: the bands did.
    """
    review = Review() if file is None else file.review
    opened = dt.datetime.fromisoformat(record["time"]).astimezone(dt.UTC)
    expires = opened + dt.timedelta(hours=review.hours)
    return {
        "tenant": record["tenant"], "id": decision, "request_id": record.get("request_id", ""),
        "channel": record.get("channel", ""), "entity": record.get("entity", ""),
        "opened_at": opened.isoformat(timespec="microseconds"),
        "expires_at": expires.isoformat(timespec="microseconds"), "state": OPEN, "claimed_by": "",
        "outcome": "", "decided_by": "", "decided_at": "", "note": "", "confirmed_by": "",
        "second_look": json.dumps(review.second_look), "score": record.get("score"),
        "rules": json.dumps(record.get("rules", [])),
        "version": (record.get("decision") or {}).get("version", ""),
    }  # fmt: skip


def open_cases(connection: sa.Connection, rows: list[dict[str, Any]]) -> None:
    """Open cases, together: a statement for each would cost more than its score."""
    if rows:
        connection.execute(cases.insert(), rows)
        steps = [_step(r["tenant"], r["id"], "riskfm", "opened", "", OPEN, "") for r in rows]
        connection.execute(case_history.insert(), steps)


class CaseBook:
    """Cases in the database."""

    def __init__(self, database: Database) -> None:
        self.database = database
        database.make(metadata)

    def cases(
        self,
        tenant: str,
        state: str | None = None,
        channel: str | None = None,
        claimed_by: str | None = None,
        after: str = "",
        limit: int = 100,
    ) -> tuple[list[Case], str]:
        """A page of cases, oldest first.

        Args:
            after: what the last page gave as its end.
        Returns:
            the cases, and where the next page starts; empty at the end.
        Raises:
            UserError: no such state, or a page that no list of cases gave.
        """
        if state is not None and state not in STATES:
            raise UserError(
                f"no state '{state[:40]}'{nearest(state, STATES)}; states: {listing(STATES)}"
            )
        self.expire(tenant)
        query = sa.select(cases).where(cases.c.tenant == tenant)
        for column, value in (
            (cases.c.state, state), (cases.c.channel, channel),
            (cases.c.claimed_by, None if claimed_by is None else person(claimed_by)),
        ):  # fmt: skip
            if value is not None:
                query = query.where(column == value)
        if after:
            moment, bar, last = after.partition("|")
            if not bar:
                raise UserError("this page does not exist; start without one")
            later = cases.c.opened_at > moment
            query = query.where(later | ((cases.c.opened_at == moment) & (cases.c.id > last)))
        query = query.order_by(cases.c.opened_at, cases.c.id).limit(limit + 1)
        with self.database.reading() as connection:
            found = [_case(row) for row in connection.execute(query)]
        more = len(found) > limit
        found = found[:limit]
        return found, f"{found[-1].opened_at}|{found[-1].id}" if more else ""

    def case(self, tenant: str, case: str) -> Case:
        """One case.

        Raises:
            UserError: the tenant has no such case.
        """
        self.expire(tenant)
        with self.database.reading() as connection:
            return _one(connection, tenant, case)

    def claim(self, tenant: str, case: str, by: str) -> Case:
        """Take a case on, or a second look at one; who has it already keeps it.

        Raises:
            CaseConflict: somebody else has it, it is closed, or the second look is one's own.
        """
        by = person(by)
        self.expire(tenant)
        with self.database.transaction() as connection:
            found = _one(connection, tenant, case)
            if found.state == SECOND:
                _require_other(found, by)
                return found
            if found.state == CLAIMED and found.claimed_by == by:
                return found
            if found.state != OPEN:
                whose = f" by {found.claimed_by}" if found.state == CLAIMED else ""
                raise CaseConflict(f"the case is {_word(found.state)}{whose}; it cannot be claimed")
            _change(connection, tenant, found, by, "claimed", state=CLAIMED, claimed_by=by)
            return _one(connection, tenant, case)

    def decide(self, tenant: str, case: str, outcome: str, by: str, note: str = "") -> Case:
        """Decide a case one has claimed, or confirm or send back somebody else's decision.

        In a second look the same outcome confirms, the other sends the case back to the queue.

        Raises:
            UserError: no such outcome, or an overlong note.
            CaseConflict: it is not claimed by this person, or closed, or one's own second look.
        """
        by = person(by)
        if outcome not in VERDICTS:
            raise UserError(
                f"no outcome '{outcome[:40]}'{nearest(outcome, VERDICTS)}; a reviewer decides "
                f"{listing(VERDICTS)}"
            )
        if len(note) > MAX_NOTE:
            raise UserError(f"a note has at most {MAX_NOTE} characters")
        self.expire(tenant)
        with self.database.transaction() as connection:
            found = _one(connection, tenant, case)
            moment = now()
            if found.state == SECOND:
                _require_other(found, by)
                text = "\n".join(t for t in (found.note, note) if t)
                if outcome == found.outcome:
                    _change(
                        connection, tenant, found, by, "confirmed", outcome, state=DECIDED,
                        confirmed_by=by, decided_at=moment, note=text,
                    )  # fmt: skip
                else:
                    _change(
                        connection, tenant, found, by, "sent back", outcome, state=OPEN,
                        claimed_by="", outcome="", decided_by="", decided_at="", note=text,
                    )  # fmt: skip
            elif found.state == CLAIMED and found.claimed_by == by:
                second = outcome in found.second_look
                _change(
                    connection, tenant, found, by, "decided", outcome,
                    state=SECOND if second else DECIDED, outcome=outcome, decided_by=by,
                    decided_at=moment,
                    note="\n".join(t for t in (found.note, note) if t),
                )  # fmt: skip
            elif found.state == CLAIMED:
                raise CaseConflict(f"the case is claimed by {found.claimed_by}")
            else:
                hint = "; claim it first" if found.state == OPEN else ""
                raise CaseConflict(f"the case is {_word(found.state)}{hint}")
            return _one(connection, tenant, case)

    def expire(self, tenant: str | None = None) -> int:
        """Close open and claimed cases whose time is over, without an outcome; how many."""
        late = (cases.c.expires_at <= now()) & cases.c.state.in_((OPEN, CLAIMED))
        if tenant is not None:
            late = late & (cases.c.tenant == tenant)
        with self.database.reading() as connection:
            if connection.execute(sa.select(cases.c.id).where(late).limit(1)).first() is None:
                return 0
        with self.database.transaction() as connection:
            rows = connection.execute(sa.select(cases).where(late)).all()
            for row in rows:
                _change(connection, row.tenant, _case(row), "riskfm", "expired", state=EXPIRED)
        return len(rows)

    def history(self, tenant: str, case: str) -> list[dict[str, Any]]:
        """Every step of a case, oldest first."""
        mine = (case_history.c.tenant == tenant) & (case_history.c.case == case)
        with self.database.reading() as connection:
            rows = connection.execute(
                sa.select(case_history).where(mine).order_by(case_history.c.seq)
            )
            return [dict(row) for row in rows.mappings()]

    def erase(self, tenant: str, entity_hash: str, entity_id: str) -> int:
        """Forget whom cases were about, and their notes; how many. What was decided stays."""
        mine = (cases.c.tenant == tenant) & (cases.c.entity == entity_hash)
        with self.database.transaction() as connection:
            done = connection.execute(cases.update().where(mine).values(entity="", note=""))
            return int(done.rowcount)


def _case(row: Any) -> Case:
    values = {name: getattr(row, name) for name in Case.__dataclass_fields__}
    for name in ("rules", "second_look"):
        values[name] = tuple(json.loads(values[name]))
    return Case(**values)


def _one(connection: sa.Connection, tenant: str, case: str) -> Case:
    mine = (cases.c.tenant == tenant) & (cases.c.id == case)
    row = connection.execute(sa.select(cases).where(mine)).first()
    if row is None:
        raise UserError("no such case; the list of cases names them")
    return _case(row)


def _require_other(found: Case, by: str) -> None:
    if by == found.decided_by:
        raise CaseConflict(f"{by} decided this case; a different person must take the second look")


def _change(
    connection: sa.Connection, tenant: str, found: Case, by: str, action: str,
    verdict: str = "", /, **values: Any,
) -> None:  # fmt: skip
    mine = (cases.c.tenant == tenant) & (cases.c.id == found.id)
    connection.execute(cases.update().where(mine).values(**values))
    step = _step(tenant, found.id, by, action, found.state, values["state"], verdict)
    connection.execute(case_history.insert().values(**step))


def _step(
    tenant: str, case: str, by: str, action: str, before: str, after: str, outcome: str
) -> dict[str, str]:
    """A row of a case's history."""
    return {
        "at": now(), "who": by, "action": action, "tenant": tenant, "case": case,
        "before": before, "after": after, "outcome": outcome,
    }  # fmt: skip


def _word(state: str) -> str:
    return "waiting for a second look" if state == SECOND else state
