"""Releases as the registry's tables hold them: what one is, how it is read, how a change is noted.

Functions take the connection of a running transaction.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from foundation.errors import UserError, nearest
from serving import registry_tables as tables
from serving.database import now

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Release:
    """A package at a stage of a channel.

    Attributes:
        id: tenant/channel/number.
        package: digest of the package, 64 hex digits; `package_name` is its readable id.
        job: the delivery that made it.
        incumbent: release it was compared with; None where there was no champion.
        approved_at, approved_by: of the approval by a different person; None without one.
    """

    id: str
    tenant: str
    channel: str
    number: int
    package: str
    package_name: str
    job: str
    stage: str
    at: str
    incumbent: str | None
    approved_at: str | None
    approved_by: str | None


def as_release(row: Any) -> Release:
    """A row of `release_query` as a release."""
    return Release(**{f: getattr(row, f) for f in Release.__dataclass_fields__})


def release_query() -> sa.Select[Any]:
    """Releases with the readable id of their package."""
    columns = list(tables.releases.c)
    return sa.select(*columns, tables.packages.c.name.label("package_name")).join(
        tables.packages, tables.packages.c.digest == tables.releases.c.package
    )


def read_release(connection: sa.Connection, release: str) -> Release:
    """One release.

    Raises:
        UserError: no such release, with the nearest name.
    """
    row = connection.execute(release_query().where(tables.releases.c.id == release)).first()
    if row is None:
        known = list(connection.execute(sa.select(tables.releases.c.id)).scalars())
        raise UserError(
            f"no release '{release}'{nearest(release, known)}; releases are called "
            "TENANT/CHANNEL/NUMBER, riskfm releases lists them"
        )
    return as_release(row)


def read_makers(connection: sa.Connection, job: str) -> set[str]:
    """Who handed in the samples of a job."""
    table = tables.makers
    return set(connection.execute(sa.select(table.c.person).where(table.c.job == job)).scalars())


def record(
    connection: sa.Connection,
    by: str,
    action: str,
    tenant: str,
    channel: str,
    release: str = "",
    before: str = "",
    after: str = "",
    why: str = "",
) -> None:
    """Append a row to the history."""
    connection.execute(
        tables.history.insert().values(
            at=now(), who=person(by), action=action, tenant=tenant, channel=channel,
            release=release, before=before, after=after, why=why,
        )
    )  # fmt: skip


def person(text: str) -> str:
    """A person's name as it is compared: `Anna ` and `anna` are one person.

    Raises:
        UserError: empty.
    """
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    if not folded:
        raise UserError("say who you are with --by NAME")
    return folded


def name(kind: str, text: str) -> str:
    """A tenant's or channel's name, checked.

    Raises:
        UserError: anything but letters, digits and `_.-`, up to 64 of them.
    """
    if not _NAME.fullmatch(text):
        raise UserError(f"{kind} '{text}': use up to 64 letters, digits and _ . - ")
    return text
