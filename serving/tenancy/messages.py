"""What crosses the wire about a tenant: who asks, what was used, what was decided."""

from __future__ import annotations

import msgspec


class UsageRow(msgspec.Struct, frozen=True):
    """Units of one kind of a channel on a UTC day; kinds: score, row, sample, label."""

    channel: str
    day: str
    kind: str
    units: int


class UsageAnswer(msgspec.Struct, frozen=True):
    """What the tenant used; failures are not among it."""

    tenant: str
    since: str
    until: str
    rows: list[UsageRow]
    total: dict[str, int]


class AuditRow(msgspec.Struct, frozen=True):
    """A decision; `node`, `seq` and `hash` find its line in the decision log."""

    time: str
    node: str
    seq: int
    hash: str
    request_id: str
    key_id: str
    route: str
    channel: str
    release: str
    package: str
    score: float | None
    band: str
    outcome: str
    units: int
    billed: int


class AuditPage(msgspec.Struct, frozen=True):
    """Decisions, oldest first; `next` is the cursor of the following page, if there is one."""

    decisions: list[AuditRow]
    next: str | None


class SpentQuota(msgspec.Struct, frozen=True):
    """Scores counted and allowed in the running UTC day and month; None: no quota."""

    day_used: int
    day: int | None
    month_used: int
    month: int | None


class Me(msgspec.Struct, frozen=True):
    """Whom the API key speaks for, what it may do and how much is left."""

    tenant: str
    key_id: str
    name: str
    person: str
    scopes: list[str]
    sandbox: bool
    rate: dict[str, int]
    quota: SpentQuota
    channels: dict[str, SpentQuota]
