"""Tables of the registry, in SQLite or PostgreSQL through SQLAlchemy core.

Moments are ISO 8601 texts in UTC, structures are JSON texts. `history` and `approvals` are
append-only: the database itself refuses to change or delete their rows. A partial unique index
keeps a second champion of a channel out, whatever the program does.
"""

from __future__ import annotations

import sqlalchemy as sa

from serving.database import append_only

SHADOW, CHALLENGER, CHAMPION, RETIRED = "shadow", "challenger", "champion", "retired"
metadata = sa.MetaData()


def _text(name: str, **more: bool) -> sa.Column[str]:
    return sa.Column(name, sa.Text, **({"nullable": False} | more))  # type: ignore[arg-type]


channels = sa.Table(
    "channels", metadata,
    _text("tenant", primary_key=True), _text("channel", primary_key=True), _text("config"),
    _text("at"), _text("who"),
)  # fmt: skip
packages = sa.Table(
    "packages", metadata,
    _text("digest", primary_key=True), _text("name"), _text("at"), _text("summary"),
)  # fmt: skip
releases = sa.Table(
    "releases", metadata,
    _text("id", primary_key=True), _text("tenant"), _text("channel"),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("package", sa.Text, sa.ForeignKey("packages.digest"), nullable=False),
    _text("job"), _text("stage"), _text("at"), _text("incumbent", nullable=True),
    _text("approved_at", nullable=True), _text("approved_by", nullable=True),
    sa.UniqueConstraint("tenant", "channel", "number"),
    sa.UniqueConstraint("tenant", "channel", "package"),
    sa.ForeignKeyConstraint(["tenant", "channel"], ["channels.tenant", "channels.channel"]),
)  # fmt: skip
sa.Index(
    "one_champion", releases.c.tenant, releases.c.channel, unique=True,
    sqlite_where=releases.c.stage == CHAMPION, postgresql_where=releases.c.stage == CHAMPION,
)  # fmt: skip
# A challenger that some customers get (share: percent of them), releases that score in shadow
# (share of the requests; NULL: what the service is set to).
trials = sa.Table(
    "trials", metadata,
    _text("tenant", primary_key=True), _text("channel", primary_key=True),
    sa.Column("release", sa.Text, sa.ForeignKey("releases.id"), primary_key=True),
    _text("kind", primary_key=True), sa.Column("share", sa.Float), _text("at"), _text("who"),
)  # fmt: skip
sa.Index(
    "one_rollout", trials.c.tenant, trials.c.channel, unique=True,
    sqlite_where=trials.c.kind == "rollout", postgresql_where=trials.c.kind == "rollout",
)  # fmt: skip
makers = sa.Table(
    "makers", metadata, _text("job", primary_key=True), _text("person", primary_key=True),
    _text("at"),
)  # fmt: skip
approvals = sa.Table(
    "approvals", metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True), _text("at"), _text("who"),
    _text("release"), _text("decision"), _text("note"),
)  # fmt: skip
history = sa.Table(
    "history", metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True), _text("at"), _text("who"),
    _text("action"), _text("tenant"), _text("channel"), _text("release"), _text("before"),
    _text("after"), _text("why"),
)  # fmt: skip
jobs = sa.Table(
    "jobs", metadata,
    _text("id", primary_key=True), _text("tenant"), _text("channel"), _text("request"),
    _text("who"), _text("created_at"), _text("state"),
    sa.Column("attempt", sa.Integer, nullable=False), _text("step"),
    sa.Column("done", sa.Integer, nullable=False), sa.Column("total", sa.Integer, nullable=False),
    _text("note"), _text("began_at", nullable=True), _text("ended_at", nullable=True),
    _text("updated_at"), _text("error"), sa.Column("exit_code", sa.Integer, nullable=False),
    _text("release"), _text("facts"),
)  # fmt: skip
job_log = sa.Table(
    "job_log", metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("job", sa.Text, sa.ForeignKey("jobs.id"), nullable=False, index=True),
    _text("at"), _text("text"),
)  # fmt: skip

append_only(approvals, history)
