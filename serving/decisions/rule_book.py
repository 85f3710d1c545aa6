"""Decision files of a tenant's channels: versions by content, stages, approvals, history.

    draft -> challenger -> champion -> retired, and by a rollback from retired to champion again

A challenger is evaluated and recorded beside the champion, without effect. Rules, as for packages:
at most one champion and one challenger a channel; who handed a file in may not approve it; only
what a different person once approved can be champion; every change is one row of an append-only
history; the same request twice changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from foundation.errors import UserError, listing, nearest
from serving.database import Database, now
from serving.decisions.decision_file import DecisionFile, stored
from serving.decisions.rules import check_file
from serving.decisions.tables import (
    CHALLENGER,
    CHAMPION,
    DRAFT,
    RETIRED,
    bump,
    file_history,
    files,
    metadata,
)
from serving.releases import name, person

SUBJECT = "files"


@dataclass(frozen=True)
class FileVersion:
    """A decision file at a stage of a channel.

    Attributes:
        number: 1, 2, ... in the channel; `id` is tenant/channel/number.
        digest: of its content, 64 hex digits.
        maker: who handed it in and may not approve it.
        approved_by: the different person who did; None without one.
    """

    tenant: str
    channel: str
    number: int
    digest: str
    stage: str
    at: str
    maker: str
    approved_at: str | None
    approved_by: str | None

    @property
    def id(self) -> str:
        """tenant/channel/number."""
        return f"{self.tenant}/{self.channel}/{self.number}"


class RuleBook:
    """Versions of decision files in the database."""

    def __init__(self, database: Database) -> None:
        self.database = database
        database.make(metadata)

    def add(self, tenant: str, channel: str, file: DecisionFile, by: str) -> FileVersion:
        """Take a file in as draft, once it passed its checks; the same content is one version.

        Raises:
            ConfigError: it does not compile or fails its test cases.
        """
        tenant, channel, by = name("tenant", tenant), name("channel", channel), person(by)
        check_file(file)
        with self.database.transaction() as connection:
            mine = _channel(tenant, channel)
            found = connection.execute(
                sa.select(files.c.number).where(mine, files.c.digest == file.digest)
            ).scalar()
            if found is None:
                last = connection.execute(sa.select(sa.func.max(files.c.number)).where(mine))
                found = (last.scalar() or 0) + 1
                connection.execute(files.insert().values(
                    tenant=tenant, channel=channel, number=found, digest=file.digest,
                    content=file.content(), stage=DRAFT, at=now(), maker=by,
                ))  # fmt: skip
                _note(connection, by, "added", tenant, channel, found, "", DRAFT, "")
            return _one(connection, tenant, channel, found)

    def challenge(
        self, tenant: str, channel: str, number: int, by: str, note: str = ""
    ) -> FileVersion:
        """Evaluate a draft in shadow; the challenger before it becomes a draft again.

        Raises:
            UserError: no such version, or it is or was champion, or it was rejected.
        """
        by = person(by)
        with self.database.transaction() as connection:
            found = _one(connection, tenant, channel, number)
            if found.stage == CHALLENGER:
                return found
            if found.stage != DRAFT:
                raise UserError(f"{found.id} is {found.stage}; only a draft becomes challenger")
            for other in _at_stage(connection, tenant, channel, CHALLENGER):
                _move(connection, other, DRAFT, by, "set aside", f"for {found.id}")
            _move(connection, found, CHALLENGER, by, "challenger", note)
            return _one(connection, tenant, channel, number)

    def approve(
        self, tenant: str, channel: str, number: int, by: str, note: str = ""
    ) -> FileVersion:
        """Make the challenger the champion; the champion before it retires.

        Raises:
            UserError: no such version, its maker approves, or it is no challenger.
        """
        by = person(by)
        with self.database.transaction() as connection:
            found = _one(connection, tenant, channel, number)
            if by == found.maker:
                raise UserError(
                    f"{by} handed in {found.id} and may not approve it; a different person must"
                )
            if found.stage == CHAMPION:
                return found
            if found.stage != CHALLENGER:
                hint = "; bring it back with riskfm rules rollback" if found.approved_at else ""
                raise UserError(f"{found.id} is {found.stage}; only a challenger is approved{hint}")
            check_file(_content(connection, found))
            connection.execute(
                files.update().where(_is(found)).values(approved_at=now(), approved_by=by)
            )
            _crown(connection, found, by, "approved", note)
            return _one(connection, tenant, channel, number)

    def retire(
        self, tenant: str, channel: str, number: int, by: str, note: str = ""
    ) -> FileVersion:
        """Retire a draft, a challenger or the champion; without a champion bands decide.

        Raises:
            UserError: no such version, or the champion's own maker retires it.
        """
        by = person(by)
        with self.database.transaction() as connection:
            found = _one(connection, tenant, channel, number)
            if found.stage == CHAMPION and by == found.maker:
                raise UserError(f"{by} handed in {found.id}; a different person must retire it")
            if found.stage != RETIRED:
                _move(connection, found, RETIRED, by, "retired", note)
            return _one(connection, tenant, channel, number)

    def rollback(
        self, tenant: str, channel: str, number: int | None, by: str, note: str = ""
    ) -> FileVersion:
        """Make an earlier champion the champion again.

        Args:
            number: None for the champion before the last approval; after a rollback None changes
                nothing: naming none twice goes back once.
        Raises:
            UserError: no such version, or it never was champion.
        """
        by = person(by)
        with self.database.transaction() as connection:
            target = _earlier(connection, tenant, channel) if number is None else number
            found = _one(connection, tenant, channel, target)
            if not found.approved_at:
                raise UserError(
                    f"{found.id} never was champion; riskfm rules approve decides on it"
                )
            if found.stage != CHAMPION:
                _crown(connection, found, by, "rolled back", note)
            return _one(connection, tenant, channel, target)

    # reading

    def version(self, tenant: str, channel: str, number: int) -> FileVersion:
        """One version.

        Raises:
            UserError: no such version.
        """
        with self.database.reading() as connection:
            return _one(connection, tenant, channel, number)

    def versions(self, tenant: str, channel: str | None = None) -> list[FileVersion]:
        """Versions of a tenant, oldest first."""
        query = _query().where(files.c.tenant == tenant)
        if channel is not None:
            query = query.where(files.c.channel == channel)
        with self.database.reading() as connection:
            rows = connection.execute(query.order_by(files.c.channel, files.c.number))
            return [_version(row) for row in rows]

    def file(self, tenant: str, channel: str, digest: str) -> DecisionFile | None:
        """The file with a digest; None where the channel never had it."""
        with self.database.reading() as connection:
            return content_of(connection, tenant, channel, digest)

    def staged(self, connection: sa.Connection, tenant: str) -> list[tuple[FileVersion, str]]:
        """Champions and challengers of a tenant with their content."""
        rows = connection.execute(
            sa.select(files).where(
                files.c.tenant == tenant, files.c.stage.in_((CHAMPION, CHALLENGER))
            )
        )
        return [(_version(row), str(row.content)) for row in rows]

    def history(self, tenant: str, channel: str) -> list[dict[str, Any]]:
        """Every change of a channel's files, oldest first."""
        mine = (file_history.c.tenant == tenant) & (file_history.c.channel == channel)
        with self.database.reading() as connection:
            rows = connection.execute(
                sa.select(file_history).where(mine).order_by(file_history.c.seq)
            )
            return [dict(row) for row in rows.mappings()]


def content_of(
    connection: sa.Connection, tenant: str, channel: str, digest: str
) -> DecisionFile | None:
    """The file with a digest; None where the channel never had it."""
    text = connection.execute(
        sa.select(files.c.content).where(_channel(tenant, channel), files.c.digest == digest)
    ).scalar()
    return None if text is None else stored(text)


def _channel(tenant: str, channel: str) -> sa.ColumnElement[bool]:
    return (files.c.tenant == tenant) & (files.c.channel == channel)


def _is(found: FileVersion) -> sa.ColumnElement[bool]:
    return _channel(found.tenant, found.channel) & (files.c.number == found.number)


def _query() -> sa.Select[Any]:
    return sa.select(*(files.c[n] for n in FileVersion.__dataclass_fields__))


def _version(row: Any) -> FileVersion:
    return FileVersion(**{n: getattr(row, n) for n in FileVersion.__dataclass_fields__})


def _one(connection: sa.Connection, tenant: str, channel: str, number: int) -> FileVersion:
    rows = connection.execute(_query().where(_channel(tenant, channel))).all()
    found = {int(row.number): row for row in rows}
    if number not in found:
        known = connection.execute(
            sa.select(files.c.channel).where(files.c.tenant == tenant).distinct()
        )
        channels = [str(c) for c in known.scalars()]
        hint = "" if channel in channels else nearest(channel, channels)
        there = listing(map(str, sorted(found))) or "none yet, add one with riskfm rules add"
        raise UserError(f"no decision file {number} in channel {channel}{hint}; there are: {there}")
    return _version(found[number])


def _content(connection: sa.Connection, found: FileVersion) -> DecisionFile:
    text = connection.execute(sa.select(files.c.content).where(_is(found))).scalar_one()
    return stored(text)


def _at_stage(
    connection: sa.Connection, tenant: str, channel: str, stage: str
) -> list[FileVersion]:
    query = _query().where(_channel(tenant, channel), files.c.stage == stage)
    return [_version(row) for row in connection.execute(query)]


def _crown(connection: sa.Connection, found: FileVersion, by: str, action: str, why: str) -> None:
    for other in _at_stage(connection, found.tenant, found.channel, CHAMPION):
        _move(connection, other, RETIRED, by, "retired", f"for {found.id}")
    _move(connection, found, CHAMPION, by, action, why)


def _move(
    connection: sa.Connection, found: FileVersion, stage: str, by: str, action: str, why: str
) -> None:
    connection.execute(files.update().where(_is(found)).values(stage=stage))
    _note(
        connection, by, action, found.tenant, found.channel, found.number, found.stage, stage, why
    )
    bump(connection, found.tenant, SUBJECT)


def _note(
    connection: sa.Connection, by: str, action: str, tenant: str, channel: str, number: int,
    before: str, after: str, why: str,
) -> None:  # fmt: skip
    connection.execute(file_history.insert().values(
        at=now(), who=by, action=action, tenant=tenant, channel=channel, number=number,
        before=before, after=after, why=why,
    ))  # fmt: skip


def _earlier(connection: sa.Connection, tenant: str, channel: str) -> int:
    """The champion before the last approval."""
    mine = (file_history.c.tenant == tenant) & (file_history.c.channel == channel)
    crowned = connection.execute(
        sa.select(file_history.c.number, file_history.c.action)
        .where(mine, file_history.c.after == CHAMPION)
        .order_by(file_history.c.seq)
    ).all()
    if crowned and crowned[-1].action == "rolled back":
        return int(crowned[-1].number)
    if len(crowned) < 2:
        raise UserError(f"channel {channel} has no earlier champion to go back to")
    return int(crowned[-2].number)
