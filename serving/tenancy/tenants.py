"""Tenants: who may use the service, how fast and how much."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
import sqlalchemy as sa
from msgspec import Meta

from foundation import strict
from foundation.errors import ConfigError, UserError, listing, nearest
from serving.database import Database, now
from serving.releases import name as checked_name
from serving.tenancy import tables
from serving.tenancy.tables import ACTIVE, SUSPENDED, changed, open_tables

Count = Annotated[int, Meta(ge=0, le=10**15)]
Rate = Annotated[float, Meta(gt=0, le=1e9)]


class Quota(strict.Strict):
    """Scores in a UTC day and a UTC month; None: as many as one likes."""

    day: Count | None = None
    month: Count | None = None


class TenantLimits(strict.Strict):
    """How fast and how much; a rate of None is no limit.

    Attributes:
        rate: requests per second of the whole tenant, for a long time; `burst`: at once.
        key_rate, key_burst: the same for each of its keys.
        quota: scores of all channels together; `channels`: of single ones.
    """

    rate: Rate | None = None
    burst: Annotated[int, Meta(ge=1, le=10**9)] = 100
    key_rate: Rate | None = None
    key_burst: Annotated[int, Meta(ge=1, le=10**9)] = 100
    quota: Quota = Quota()
    channels: dict[str, Quota] = {}


NO_LIMITS = TenantLimits()


@dataclass(frozen=True)
class Tenant:
    """A lender.

    Attributes:
        created: ISO 8601, UTC.
        state: active, or suspended: its keys are refused with 403.
    """

    name: str
    created: str
    state: str = ACTIVE
    limits: TenantLimits = NO_LIMITS
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def suspended(self) -> bool:
        """Whether its keys are refused."""
        return self.state == SUSPENDED


def add_tenant(
    database: Database,
    name: str,
    limits: TenantLimits = NO_LIMITS,
    settings: Mapping[str, Any] | None = None,
) -> tuple[Tenant, bool]:
    """Add a tenant; one that is there stays as it is.

    Returns:
        the tenant, and whether it is new.
    Raises:
        UserError: a name that paths and ids cannot carry.
    """
    open_tables(database)
    name = checked_name("tenant", name)
    with database.transaction() as connection:
        new = database.insert_missing(
            connection, tables.tenants, tenant=name, created=now(), state=ACTIVE,
            limits=_limits_text(limits), settings=json.dumps(dict(settings or {}), sort_keys=True),
        )  # fmt: skip
        if new:
            changed(connection)
        return read_tenant(connection, name), new


def list_tenants(database: Database) -> tuple[Tenant, ...]:
    """Every tenant by name."""
    open_tables(database)
    with database.reading() as connection:
        return read_tenants(connection)


def suspend_tenant(database: Database, name: str) -> Tenant:
    """Refuse every key of a tenant from now on (services notice within a second)."""
    return _change(database, name, state=SUSPENDED)


def resume_tenant(database: Database, name: str) -> Tenant:
    """Let a suspended tenant in again."""
    return _change(database, name, state=ACTIVE)


def limit_tenant(database: Database, name: str, limits: TenantLimits) -> Tenant:
    """Replace a tenant's limits and quotas."""
    return _change(database, name, limits=_limits_text(limits))


def read_tenant(connection: sa.Connection, name: str) -> Tenant:
    """One tenant.

    Raises:
        UserError: there is none, with the nearest name.
    """
    query = sa.select(tables.tenants).where(tables.tenants.c.tenant == name)
    row = connection.execute(query).first()
    if row is None:
        known = list(connection.execute(sa.select(tables.tenants.c.tenant)).scalars())
        raise UserError(
            f"no tenant '{name}'{nearest(name, known)}; tenants: {listing(sorted(known))}; "
            "riskfm tenant add makes one"
        )
    return _tenant(row)


def read_tenants(connection: sa.Connection) -> tuple[Tenant, ...]:
    """Every tenant by name, within a transaction."""
    query = sa.select(tables.tenants).order_by(tables.tenants.c.tenant)
    return tuple(_tenant(row) for row in connection.execute(query))


def _change(database: Database, name: str, **values: str) -> Tenant:
    open_tables(database)
    with database.transaction() as connection:
        read_tenant(connection, name)
        mine = tables.tenants.c.tenant == name
        connection.execute(tables.tenants.update().where(mine).values(**values))
        changed(connection)
        return read_tenant(connection, name)


def _tenant(row: Any) -> Tenant:
    where = f"limits of tenant {row.tenant}"
    limits = strict.convert(TenantLimits, json.loads(row.limits), where, ConfigError)
    return Tenant(row.tenant, row.created, row.state, limits, json.loads(row.settings))


def _limits_text(limits: TenantLimits) -> str:
    # Limits built in code are checked like those that are read.
    plain = strict.plain(limits)
    try:
        msgspec.convert(plain, TenantLimits)
    except msgspec.ValidationError as exc:
        raise ConfigError(f"limits: {exc}") from None
    return json.dumps(plain, sort_keys=True)
