"""Tables of tenancy: tenants, keys, people, idempotent answers, quota counts, usage.

Every table leads its primary key or an index with the tenant. `versions` holds a number for each
subject that grows with every change: a service that remembers rows compares it instead of reading
them again.
"""

from __future__ import annotations

import sqlalchemy as sa

from serving.database import Database, now
from serving.tenancy.principal import DEFAULT_TENANT

ACTIVE, SUSPENDED = "active", "suspended"
DIRECTORY = "directory"
metadata = sa.MetaData()
# Apart, because people may be declared where the registry is.
people_metadata = sa.MetaData()


def _text(name: str, **more: bool) -> sa.Column[str]:
    return sa.Column(name, sa.Text, **({"nullable": False} | more))  # type: ignore[arg-type]


def _count(name: str, **more: bool) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, **({"nullable": False} | more))  # type: ignore[arg-type]


versions = sa.Table(
    "tenancy_versions", metadata, _text("subject", primary_key=True), _count("number")
)
tenants = sa.Table(
    "tenants", metadata,
    _text("tenant", primary_key=True), _text("created"), _text("state"), _text("limits"),
    _text("settings"),
)  # fmt: skip
keys = sa.Table(
    "api_keys", metadata,
    _text("id", primary_key=True),
    sa.Column("tenant", sa.Text, sa.ForeignKey("tenants.tenant"), nullable=False, index=True),
    _text("name"), _text("hash"), _text("scopes"), _text("created"),
    _text("expires", nullable=True), _text("revoked", nullable=True),
    sa.Column("sandbox", sa.Boolean, nullable=False), _text("person"),
    _text("rotated_from", nullable=True),
)  # fmt: skip
idempotency = sa.Table(
    "idempotency", metadata,
    _text("tenant", primary_key=True), _text("route", primary_key=True),
    _text("key", primary_key=True), _text("digest"), _text("once"), _text("holder"),
    sa.Column("leased_until", sa.Float, nullable=False),
    sa.Column("status", sa.Integer, nullable=True),
    sa.Column("answer", sa.LargeBinary, nullable=True),
    sa.Column("expires", sa.Float, nullable=False, index=True),
)  # fmt: skip
quota_counts = sa.Table(
    "quota_counts", metadata,
    _text("tenant", primary_key=True), _text("channel", primary_key=True),
    _text("period", primary_key=True), _count("used"),
)  # fmt: skip
usage = sa.Table(
    "usage", metadata,
    _text("tenant", primary_key=True), _text("channel", primary_key=True),
    _text("day", primary_key=True), _text("kind", primary_key=True), _count("units"),
)  # fmt: skip
logs_read = sa.Table("usage_logs_read", metadata, _text("node", primary_key=True), _count("offset"))
decisions_billed = sa.Table(
    "audited_decisions", metadata,
    _text("tenant", primary_key=True), _text("node", primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    _text("time"), _text("key_id"), _text("request_id"), _text("route"), _text("channel"),
    _text("release"), _text("package"), _text("outcome"), _text("band"),
    sa.Column("score", sa.Float, nullable=True), _text("kind"), _count("units"),
    _count("billed"), _text("once"), _text("hash"),
    # A line counts once, whatever the node that reads it is called.
    sa.UniqueConstraint("tenant", "hash"),
    sa.Index("audited_in_time", "tenant", "time", "node", "seq"),
    sa.Index("audited_once", "tenant", "once"),
)  # fmt: skip
jobs_counted = sa.Table(
    "usage_jobs_counted", metadata,
    _text("tenant", primary_key=True), _text("job", primary_key=True), _text("at"),
)  # fmt: skip
people = sa.Table(
    "people", people_metadata,
    _text("tenant", primary_key=True), _text("channel", primary_key=True),
    _text("person", primary_key=True), _text("role", primary_key=True), _text("at"), _text("who"),
)  # fmt: skip


def open_tables(database: Database) -> None:
    """Make the tables where they are missing; the default tenant is always there."""
    database.make(metadata)
    with database.transaction() as connection:
        database.insert_missing(connection, versions, subject=DIRECTORY, number=0)
        database.insert_missing(
            connection, tenants, tenant=DEFAULT_TENANT, created=now(), state=ACTIVE, limits="{}",
            settings="{}",
        )  # fmt: skip


def changed(connection: sa.Connection) -> None:
    """Note, within a change of tenants or keys, that what services remember is old."""
    connection.execute(
        versions.update()
        .where(versions.c.subject == DIRECTORY)
        .values(number=versions.c.number + 1)
    )


def directory_version(connection: sa.Connection) -> int:
    """Number of changes of tenants and keys so far."""
    query = sa.select(versions.c.number).where(versions.c.subject == DIRECTORY)
    return int(connection.execute(query).scalar_one())
