"""API keys of tenants: made, listed, rotated and revoked in the hosting database.

A key reads `rfm_<id>_<secret>`: the id finds the record, 256 random bits are the secret, and only
its argon2id hash is stored. Times are ISO 8601, UTC. `serving.tenancy.key_ring` verifies keys.
"""

from __future__ import annotations

import datetime as dt
import json
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import argon2
import msgspec
import sqlalchemy as sa

from foundation import strict
from foundation.errors import ConfigError, listing, nearest
from serving.database import Database, now
from serving.releases import person as folded
from serving.tenancy import tables
from serving.tenancy.principal import DEFAULT_TENANT, SCOPES
from serving.tenancy.tables import changed, open_tables
from serving.tenancy.tenants import read_tenant

EVERYDAY = ("score", "events", "read")
GRACE_SECONDS = 24 * 3600.0
# OWASP's argon2id minimum; the secret carries 256 bits, so more would only slow us down.
HASHER = argon2.PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)


class KeyRecord(strict.Strict):
    """One key as stored: everything except the secret.

    Attributes:
        expires: refused from this moment on; None: never.
        sandbox: answers about test entities only, never billed.
        person: whose personal key it is; empty for a machine's.
        rotated_from: id of the key it replaces.
    """

    id: str
    tenant: str
    name: str
    scopes: tuple[str, ...]
    hash: str
    created: str
    expires: str | None = None
    revoked: str | None = None
    sandbox: bool = False
    person: str = ""
    rotated_from: str | None = None

    def state(self, at: str | None = None) -> str:
        """active, revoked or expired, at a moment or now."""
        if self.revoked is not None:
            return "revoked"
        expired = self.expires is not None and moment(self.expires) <= moment(at or now())
        return "expired" if expired else "active"


def create_key(
    database: Database,
    name: str,
    scopes: Iterable[str] = EVERYDAY,
    *,
    tenant: str = DEFAULT_TENANT,
    sandbox: bool = False,
    person: str = "",
    expires: str | None = None,
) -> str:
    """Make a key and store its hash.

    Args:
        person: makes it that person's own: what it may decide follows from their roles too.
        expires: ISO 8601 moment; without a zone it is UTC.
    Returns:
        The key in clear; it is shown this once and cannot be recovered.
    Raises:
        ConfigError: an unknown scope, an empty name, or an end that is past.
        UserError: no such tenant.
    """
    scopes = check_scopes(scopes)
    if not scopes or not name.strip():
        raise ConfigError("a key needs a name and at least one scope")
    if expires is not None:
        expires = moment(expires).isoformat()
        if moment(expires) <= dt.datetime.now(dt.UTC):
            raise ConfigError(f"the key would have expired already, at {expires}")
    person = folded(person) if person else ""
    open_tables(database)
    record, text = _fresh(name.strip(), tenant, scopes, sandbox, person, expires, None)
    with database.transaction() as connection:
        read_tenant(connection, tenant)
        _insert(connection, record)
    return text


def revoke_key(database: Database, key_id: str, tenant: str | None = None) -> KeyRecord:
    """Revoke a key for good; revoking twice changes nothing.

    Args:
        tenant: look among its keys only; None: whoever's.
    Raises:
        ConfigError: no key has this id.
    """
    open_tables(database)
    with database.transaction() as connection:
        record = _read(connection, key_id, tenant)
        if record.revoked is None:
            _set(connection, key_id, revoked=now())
        return _read(connection, key_id, tenant)


def rotate_key(
    database: Database,
    key_id: str,
    grace_seconds: float = GRACE_SECONDS,
    tenant: str | None = None,
) -> tuple[str, KeyRecord]:
    """Make the successor of a key; the old one works for the grace period beside it.

    Returns:
        the new key in clear, shown this once, and the old record with its end.
    Raises:
        ConfigError: no such key, it is revoked or expired, or a negative grace period.
    """
    if grace_seconds < 0:
        raise ConfigError("the grace period cannot be negative")
    open_tables(database)
    with database.transaction() as connection:
        old = _read(connection, key_id, tenant)
        if old.state() != "active":
            raise ConfigError(f"key '{key_id}' is {old.state()}; make a new one instead")
        record, text = _fresh(
            old.name, old.tenant, old.scopes, old.sandbox, old.person, old.expires, old.id
        )
        end = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=grace_seconds)
        if old.expires is not None:
            end = min(end, moment(old.expires))
        _insert(connection, record)
        _set(connection, key_id, expires=end.isoformat())
        return text, _read(connection, key_id, tenant)


def list_keys(database: Database, tenant: str | None = None) -> tuple[KeyRecord, ...]:
    """Every key of a tenant, or of all, revoked and expired ones included; oldest first."""
    open_tables(database)
    with database.reading() as connection:
        return read_keys(connection, tenant)


def import_keys(database: Database, path: str | Path, tenant: str = DEFAULT_TENANT) -> int:
    """Take over the keys of a JSON key file; those taken over before stay as they are.

    Returns:
        how many are new.
    Raises:
        ConfigError: the file is missing or damaged; UserError: no such tenant.
    """
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))["keys"]
        given = [
            KeyRecord(
                id=r["id"], tenant=tenant, name=r["name"], scopes=check_scopes(r["scopes"]),
                hash=r["hash"], created=r["created_at"], revoked=r.get("revoked_at"),
            )
            for r in rows
        ]  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ConfigError(f"{path}: not a readable key file ({type(exc).__name__})") from None
    open_tables(database)
    with database.transaction() as connection:
        read_tenant(connection, tenant)
        known = {record.id for record in read_keys(connection)}
        fresh = [record for record in given if record.id not in known]
        for record in fresh:
            _insert(connection, record)
    return len(fresh)


def read_keys(connection: sa.Connection, tenant: str | None = None) -> tuple[KeyRecord, ...]:
    """Keys of a tenant or of all, within a transaction."""
    query = sa.select(tables.keys).order_by(tables.keys.c.created, tables.keys.c.id)
    if tenant is not None:
        query = query.where(tables.keys.c.tenant == tenant)
    return tuple(_record(row) for row in connection.execute(query))


def check_scopes(scopes: Iterable[str]) -> tuple[str, ...]:
    """Scopes without repetition.

    Raises:
        ConfigError: an unknown one, with the nearest.
    """
    scopes = tuple(dict.fromkeys(scopes))
    for scope in scopes:
        if scope not in SCOPES:
            raise ConfigError(
                f"unknown scope '{scope}'{nearest(scope, SCOPES)}; scopes: {listing(SCOPES)}"
            )
    return scopes


def moment(text: str) -> dt.datetime:
    """An ISO 8601 text as a moment in UTC; without a zone it is UTC.

    Raises:
        ConfigError: anything else.
    """
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"'{text}' is no ISO 8601 moment such as 2027-01-31T00:00:00Z") from None
    return found.replace(tzinfo=found.tzinfo or dt.UTC).astimezone(dt.UTC)


def _fresh(
    name: str,
    tenant: str,
    scopes: tuple[str, ...],
    sandbox: bool,
    person: str,
    expires: str | None,
    rotated_from: str | None,
) -> tuple[KeyRecord, str]:
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    record = KeyRecord(
        id=key_id, tenant=tenant, name=name, scopes=scopes, hash=HASHER.hash(secret),
        created=now(), expires=expires, sandbox=sandbox, person=person, rotated_from=rotated_from,
    )  # fmt: skip
    return record, f"rfm_{key_id}_{secret}"


def _insert(connection: sa.Connection, record: KeyRecord) -> None:
    values = msgspec.structs.asdict(record) | {"scopes": json.dumps(record.scopes)}
    connection.execute(tables.keys.insert().values(**values))
    changed(connection)


def _set(connection: sa.Connection, key_id: str, **values: Any) -> None:
    connection.execute(tables.keys.update().where(tables.keys.c.id == key_id).values(**values))
    changed(connection)


def _read(connection: sa.Connection, key_id: str, tenant: str | None) -> KeyRecord:
    every = {record.id: record for record in read_keys(connection, tenant)}
    if key_id not in every:
        raise ConfigError(f"no key '{key_id}'{nearest(key_id, every)}; riskfm key list shows them")
    return every[key_id]


def _record(row: Any) -> KeyRecord:
    values = dict(row._mapping)
    return KeyRecord(**values | {"scopes": tuple(json.loads(values["scopes"]))})
