"""How fast and how much: rate limits of keys and tenants, quotas of scores.

Rates are token buckets: `burst` requests at once, `rate` per second after that; a request takes a
token of its key's bucket and of its tenant's, or none of either. They live in the process; of
several workers each gets its share of rate and burst, unless they share buckets through Valkey
(`serving.tenancy.shared_limits`).

Quotas count scores per UTC day and month in the database. A worker adds what it counted and reads
what the others did every second (`sync`), never while it answers: one worker keeps a quota to the
score, several may pass it by what the others answered within that second. A worker that is killed
forgets at most that second; the bill is made from the decision log and forgets nothing.
"""

from __future__ import annotations

import datetime as dt
import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa

from serving.database import Database
from serving.messages import ApiError
from serving.tenancy.principal import Principal
from serving.tenancy.tables import metadata, quota_counts
from serving.tenancy.tenants import Quota, TenantLimits

ALL = ""  # the quota of all channels together
_BUCKETS = 65_536
Cell = tuple[str, str, str]  # tenant, channel, period such as 2027-01-31 or 2027-01


@dataclass
class _Bucket:
    tokens: float
    at: float

    def fill(self, rate: float, burst: float, moment: float) -> float:
        """Tokens at a moment; a clock that goes back adds none."""
        gained = max(0.0, moment - self.at) * rate
        self.tokens, self.at = min(burst, self.tokens + gained), max(self.at, moment)
        return self.tokens


class RateLimits:
    """Token buckets of this process.

    Args:
        limits: a tenant's limits, from memory.
        workers: processes that share the limits; each gets its part.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        limits: Callable[[str], TenantLimits],
        workers: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits, self._workers, self._clock = limits, workers, clock
        self._buckets: dict[tuple[str, str], _Bucket] = {}
        self._lock = threading.Lock()

    def admit(self, principal: Principal) -> dict[str, str]:
        """Take a request's token.

        Returns:
            headers that say what is left in the scarcer bucket; none where nothing is limited.
        Raises:
            ApiError: 429, with Retry-After in whole seconds.
        """
        return self._look(principal, 1.0)

    def remaining(self, principal: Principal) -> dict[str, str]:
        """The same headers without taking anything."""
        return self._look(principal, 0.0)

    def _look(self, principal: Principal, take: float) -> dict[str, str]:
        rules = bucket_rules(self._limits(principal.tenant), principal, self._workers)
        if not rules:
            return {}
        moment = self._clock()
        with self._lock:
            if len(self._buckets) > _BUCKETS:
                self._buckets.clear()
            found = []
            for name, rate, burst in rules:
                bucket = self._buckets.get(name)
                if bucket is None:
                    bucket = self._buckets[name] = _Bucket(burst, moment)
                found.append((bucket, bucket.fill(rate, burst, moment), rate, burst))
            wait = max((take - tokens) / rate for _, tokens, rate, _ in found)
            if wait <= 0:
                for bucket, _, _, _ in found:
                    bucket.tokens -= take
        levels = [(tokens - take, rate, burst) for _, tokens, rate, burst in found]
        return headers_or_refusal(wait, levels)


def bucket_rules(
    limits: TenantLimits, principal: Principal, workers: int = 1
) -> list[tuple[tuple[str, str], float, float]]:
    """Name, rate per second and burst of each bucket a request takes from."""
    rules = []
    if limits.key_rate is not None:
        name = (principal.tenant, principal.key_id)
        rules.append((name, limits.key_rate / workers, max(1.0, limits.key_burst / workers)))
    if limits.rate is not None:
        name = (principal.tenant, "")
        rules.append((name, limits.rate / workers, max(1.0, limits.burst / workers)))
    return rules


def headers_or_refusal(wait: float, levels: list[tuple[float, float, float]]) -> dict[str, str]:
    """What is left, or the refusal.

    Args:
        wait: seconds until every bucket has the token; 0 or less: it was taken.
        levels: tokens left, rate and burst of each bucket.
    Raises:
        ApiError: 429.
    """
    left, rate, burst = min(levels, key=lambda level: level[0] / level[2])
    headers = {
        "RateLimit-Limit": str(int(burst)),
        "RateLimit-Remaining": str(max(0, int(left))),
        "RateLimit-Reset": str(math.ceil(max(0.0, burst - max(left, 0.0)) / rate)),
    }
    if wait > 0:
        seconds = max(1, math.ceil(wait))
        headers |= {"RateLimit-Remaining": "0", "Retry-After": str(seconds)}
        raise ApiError(429, f"too many requests; try again in {seconds} s", "", headers, "rate")
    return headers


class Quotas:
    """Counts of scores against the quotas of tenants and channels.

    Args:
        limits: a tenant's limits, from memory.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        database: Database,
        limits: Callable[[str], TenantLimits],
        clock: Callable[[], float] = time.time,
    ) -> None:
        database.make(metadata)
        self.database, self._limits, self._clock = database, limits, clock
        self._known: dict[Cell, int] = {}  # in the database, at the last look
        self._added: dict[Cell, int] = defaultdict(int)  # here since
        self._lock = threading.Lock()
        self._syncing = threading.Lock()
        self._day, self._ends = "", 0.0
        self.sync()

    def spend(self, tenant: str, channel: str, units: int = 1) -> dict[str, str]:
        """Count scores that are about to be made.

        Returns:
            headers that say how many are left today and this month.
        Raises:
            ApiError: 429 where the quota is used up, with the seconds to its reset; 422 where the
                request alone is more than the quota.
        """
        limits = self._limits(tenant)
        with self._lock:
            cells = self._cells(tenant, channel)
            quotas = (*_of(limits.quota), *_of(limits.channels.get(channel, _FREE)))
            left: dict[str, int] = {}
            for cell, quota, span in zip(cells, quotas, ("Day", "Month") * 2, strict=True):
                if quota is None:
                    continue
                rest = quota - self._known.get(cell, 0) - self._added.get(cell, 0)
                if rest < units:
                    self._refuse(cell, quota, units, span)
                left[span] = min(rest - units, left.get(span, rest))
            for cell in cells:
                self._added[cell] += units
        return {f"RateLimit-{span}-Remaining": str(rest) for span, rest in left.items()}

    def refund(self, tenant: str, channel: str, units: int = 1) -> None:
        """Take back what was counted for scores that failed."""
        with self._lock:
            for cell in self._cells(tenant, channel):
                self._added[cell] -= units

    def used(self, tenant: str, channel: str = ALL) -> tuple[int, int]:
        """Scores counted today and this month."""
        with self._lock:
            cells = self._cells(tenant, channel)[2 if channel else 0 :][:2]
            day, month = (self._known.get(c, 0) + self._added.get(c, 0) for c in cells)
        return day, month

    def sync(self) -> None:
        """Add what was counted here to the database, and read what all have counted."""
        with self._syncing:
            with self._lock:
                self._cells("", "")
                day, pending = self._day, {c: n for c, n in self._added.items() if n}
            periods = {day, day[:7]} | {period for _, _, period in pending}
            if pending:
                with self.database.transaction() as connection:
                    for cell, units in pending.items():
                        _add(connection, cell, units)
                    known = _read(connection, periods)
            else:
                with self.database.reading() as connection:
                    known = _read(connection, periods)
            with self._lock:
                for cell, units in pending.items():
                    self._added[cell] -= units
                self._added = defaultdict(int, {c: n for c, n in self._added.items() if n})
                self._known = known

    def _cells(self, tenant: str, channel: str) -> tuple[Cell, Cell, Cell, Cell]:
        """Where a score counts: all channels and this one, by day and by month."""
        moment = self._clock()
        if moment >= self._ends or moment < self._ends - 86_400:
            start = dt.datetime.fromtimestamp(moment, dt.UTC).date()
            self._day = start.isoformat()
            midnight = dt.datetime.combine(start, dt.time(), dt.UTC)
            self._ends = midnight.timestamp() + 86_400
        day, month = self._day, self._day[:7]
        return (
            (tenant, ALL, day), (tenant, ALL, month), (tenant, channel, day),
            (tenant, channel, month),
        )  # fmt: skip

    def _refuse(self, cell: Cell, quota: int, units: int, span: str) -> None:
        whose = f"the channel '{cell[1]}'" if cell[1] else f"the tenant '{cell[0]}'"
        per = f"{quota} scores a {span.lower()}"
        if units > quota:
            raise ApiError(422, f"the request asks for {units} scores; {whose} may make {per}")
        ends = self._ends
        if span == "Month":
            first = dt.date.fromisoformat(self._day).replace(day=1)
            after = (first + dt.timedelta(days=32)).replace(day=1)
            ends = dt.datetime.combine(after, dt.time(), dt.UTC).timestamp()
        seconds = max(1, math.ceil(ends - self._clock()))
        message = f"the quota of {whose} is used up: {per}; it resets at UTC midnight"
        message += " of the month's end" if span == "Month" else ""
        headers = {"Retry-After": str(seconds), f"RateLimit-{span}-Remaining": "0"}
        raise ApiError(429, message, "", headers, "quota")


_FREE = Quota()


def _of(quota: Quota) -> tuple[int | None, int | None]:
    return quota.day, quota.month


def _add(connection: sa.Connection, cell: Cell, units: int) -> None:
    table = quota_counts
    tenant, channel, period = cell
    mine = (table.c.tenant == tenant) & (table.c.channel == channel) & (table.c.period == period)
    found = connection.execute(table.update().where(mine).values(used=table.c.used + units))
    if found.rowcount == 0:
        row = {"tenant": tenant, "channel": channel, "period": period, "used": units}
        connection.execute(table.insert().values(row))


def _read(connection: sa.Connection, periods: set[str]) -> dict[Cell, int]:
    table = quota_counts
    query = sa.select(table).where(table.c.period.in_(sorted(periods)))
    return {(r.tenant, r.channel, r.period): int(r.used) for r in connection.execute(query)}
