"""Tables of the decisions: lists, decision files, decisions given, cases, actions, inputs.

Moments are ISO 8601 texts in UTC, structures JSON texts. Histories are append-only: the database
itself refuses to change or delete their rows. They name lists, files, cases and people of the
lender, never a customer beyond a keyed hash, and no free text about one.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from serving.database import append_only

DRAFT, CHALLENGER, CHAMPION, RETIRED = "draft", "challenger", "champion", "retired"
metadata = sa.MetaData()


def _text(name: str, **more: Any) -> sa.Column[str]:
    return sa.Column(name, sa.Text, **({"nullable": False} | more))


def _whole(name: str, **more: Any) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, **({"nullable": False} | more))


def _seq() -> sa.Column[int]:
    return sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True)


# What a tenant's lists and files have come to: a number that grows with every change.
versions = sa.Table(
    "decision_versions", metadata, _text("tenant", primary_key=True),
    _text("subject", primary_key=True), _whole("version"),
)  # fmt: skip

list_entries = sa.Table(
    "list_entries", metadata,
    _text("tenant", primary_key=True), _text("channel", primary_key=True),
    _text("list", primary_key=True), _text("kind", primary_key=True),
    _text("hash", primary_key=True), _text("reason"), _text("source"),
    _text("expires_at", nullable=True), _text("added_at"), _text("added_by"),
)  # fmt: skip
list_history = sa.Table(
    "list_history", metadata, _seq(), _text("at"), _text("who"), _text("action"), _text("tenant"),
    _text("channel"), _text("list"), _text("kind"), _text("hash"), _text("reason"),
    _text("source"), _text("expires_at", nullable=True),
)  # fmt: skip
sa.Index("list_history_key", list_history.c.tenant, list_history.c.hash)

files = sa.Table(
    "decision_files", metadata,
    _text("tenant", primary_key=True), _text("channel", primary_key=True),
    _whole("number", primary_key=True), _text("digest"), _text("content"), _text("stage"),
    _text("at"), _text("maker"), _text("approved_at", nullable=True),
    _text("approved_by", nullable=True),
    sa.UniqueConstraint("tenant", "channel", "digest"),
)  # fmt: skip
for _stage in (CHALLENGER, CHAMPION):
    sa.Index(
        f"one_decision_{_stage}", files.c.tenant, files.c.channel, unique=True,
        sqlite_where=files.c.stage == _stage, postgresql_where=files.c.stage == _stage,
    )  # fmt: skip
file_history = sa.Table(
    "decision_file_history", metadata, _seq(), _text("at"), _text("who"), _text("action"),
    _text("tenant"), _text("channel"), _whole("number"), _text("before"), _text("after"),
    _text("why"),
)  # fmt: skip

# The decision log as rows. One line of a node's log is one row.
decisions = sa.Table(
    "decisions", metadata,
    _text("tenant", primary_key=True), _text("node", primary_key=True),
    _whole("seq", primary_key=True), _text("request_id"), _text("time"), _text("key_id"),
    _text("route"), _text("channel"), _text("release"), _text("package"), _text("digest"),
    _text("entity"), _text("as_of"), sa.Column("score", sa.Float, nullable=True),
    sa.Column("points", sa.Float, nullable=True), _text("band"), _text("outcome"),
    _text("rules"), _text("detail"), _text("once"),
)  # fmt: skip
sa.Index("decisions_once", decisions.c.tenant, decisions.c.once)
sa.Index("decisions_request", decisions.c.tenant, decisions.c.request_id)
sa.Index("decisions_time", decisions.c.tenant, decisions.c.channel, decisions.c.time)
sa.Index("decisions_entity", decisions.c.tenant, decisions.c.entity)
offsets = sa.Table(
    "decision_offsets", metadata, _text("node", primary_key=True), _whole("offset"),
)  # fmt: skip

cases = sa.Table(
    "decision_cases", metadata,
    _text("tenant", primary_key=True), _text("id", primary_key=True), _text("request_id"),
    _text("channel"), _text("entity"), _text("opened_at"), _text("expires_at"), _text("state"),
    _text("claimed_by"), _text("outcome"), _text("decided_by"), _text("decided_at"),
    _text("note"), _text("confirmed_by"), _text("second_look"), sa.Column("score", sa.Float),
    _text("rules"), _text("version"),
)  # fmt: skip
sa.Index("decision_cases_state", cases.c.tenant, cases.c.state, cases.c.opened_at)
sa.Index("decision_cases_entity", cases.c.tenant, cases.c.entity)
case_history = sa.Table(
    "decision_case_history", metadata, _seq(), _text("at"), _text("who"), _text("action"),
    _text("tenant"), _text("case"), _text("before"), _text("after"), _text("outcome"),
)  # fmt: skip

outbox = sa.Table(
    "decision_outbox", metadata,
    _text("tenant", primary_key=True), _text("decision", primary_key=True),
    _text("action", primary_key=True), _text("channel"), _text("url"), _text("secret"),
    _text("body"), _text("state"), _whole("tries"), _text("created_at"), _text("next_at"),
    _text("sent_at"), _text("error"),
)  # fmt: skip
sa.Index("decision_outbox_due", outbox.c.state, outbox.c.next_at)

inputs = sa.Table(
    "decision_inputs", metadata,
    _text("tenant", primary_key=True), _text("request_id", primary_key=True),
    _text("entity"), _text("at"), sa.Column("blob", sa.LargeBinary, nullable=False),
)  # fmt: skip
sa.Index("decision_inputs_entity", inputs.c.tenant, inputs.c.entity)
sa.Index("decision_inputs_at", inputs.c.at)


def bump(connection: sa.Connection, tenant: str, subject: str) -> None:
    """Tell every worker that a tenant's lists or files changed."""
    mine = (versions.c.tenant == tenant) & (versions.c.subject == subject)
    changed = connection.execute(
        versions.update().where(mine).values(version=versions.c.version + 1)
    )
    if not changed.rowcount:
        connection.execute(versions.insert().values(tenant=tenant, subject=subject, version=1))


append_only(list_history, file_history, case_history)
