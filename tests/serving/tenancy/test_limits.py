"""Rates and quotas: never more than allowed, never less, and an honest Retry-After."""

from __future__ import annotations

import datetime as dt
import time
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from serving.database import Database
from serving.messages import ApiError
from serving.tenancy.limits import Quotas, RateLimits
from serving.tenancy.tenants import NO_LIMITS, Quota, TenantLimits
from tests.serving.tenancy.small_hosting import Clock, caller, open_hosting

DAY = 86_400.0
NOON = dt.datetime(2027, 1, 30, 12, tzinfo=dt.UTC).timestamp()


def refused(call) -> ApiError | None:
    try:
        call()
    except ApiError as exc:
        return exc
    return None


@given(
    rate=st.floats(0.05, 50),
    burst=st.integers(1, 20),
    gaps=st.lists(st.floats(0, 3), min_size=1, max_size=60),
)
def test_no_window_sees_more_than_burst_and_rate(
    rate: float, burst: int, gaps: list[float]
) -> None:
    clock = Clock()
    limits = RateLimits(lambda _: TenantLimits(rate=rate, burst=burst), clock=clock)
    passed: list[float] = []
    for gap in gaps:
        clock.now += gap
        error = refused(lambda: limits.admit(caller()))
        if error is None:
            passed.append(clock.now)
        else:
            # Refused means that the bucket really is empty, and the wait is enough and not idle.
            wait = int(error.headers["Retry-After"])
            assert error.status == 429 and wait >= 1
            later = Clock(clock.now + wait)
            trial = RateLimits(lambda _: TenantLimits(rate=rate, burst=burst), clock=later)
            trial._buckets = {k: type(b)(b.tokens, b.at) for k, b in limits._buckets.items()}
            assert refused(lambda trial=trial: trial.admit(caller())) is None
            assert wait == 1 or wait - 1 < 1 / rate
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            span = passed[last] - passed[first]
            assert last - first + 1 <= burst + rate * span + 1e-3


def test_a_key_and_its_tenant_take_from_both_or_from_neither() -> None:
    clock = Clock()
    rules = TenantLimits(rate=1, burst=3, key_rate=1, key_burst=2)
    limits = RateLimits(lambda _: rules, clock=clock)
    a, b = caller(key="a"), caller(key="b")
    assert limits.admit(a)["RateLimit-Remaining"] == "1"
    limits.admit(a)
    assert refused(lambda: limits.admit(a)) is not None
    # The refused request took nothing from the tenant: its third token is still there.
    limits.admit(b)
    error = refused(lambda: limits.admit(b))
    assert error is not None and error.headers["Retry-After"] == "1"
    assert error.headers["RateLimit-Remaining"] == "0"
    assert refused(lambda: limits.admit(caller("other"))) is None
    clock.now -= 10  # a clock that goes back gives nothing away
    assert refused(lambda: limits.admit(a)) is not None


def test_workers_share_what_there_is() -> None:
    rules = TenantLimits(rate=10, burst=8)
    clock = Clock()
    workers = [RateLimits(lambda _: rules, 4, clock) for _ in range(4)]
    passed = sum(refused(lambda w=w: w.admit(caller())) is None for w in workers for _ in range(9))
    assert passed == 8
    assert RateLimits(lambda _: NO_LIMITS).admit(caller()) == {}


def test_a_look_takes_nothing() -> None:
    limits = RateLimits(lambda _: TenantLimits(rate=1, burst=5), clock=Clock())
    assert [limits.remaining(caller())["RateLimit-Remaining"] for _ in range(9)] == ["5"] * 9
    assert limits.admit(caller()) == {
        "RateLimit-Limit": "5", "RateLimit-Remaining": "4", "RateLimit-Reset": "1",
    }  # fmt: skip


def test_the_hot_path_is_short(tmp_path: Path) -> None:
    rules = TenantLimits(
        rate=1e6, burst=10**6, key_rate=1e6, key_burst=10**6, quota=Quota(day=10**9, month=10**9)
    )
    rates, who = RateLimits(lambda _: rules), caller()
    quotas = Quotas(open_hosting(tmp_path / "q.db"), lambda _: rules)
    best = min(_once(rates, quotas, who) for _ in range(7))
    # Both together take about 13 microseconds; slower processors get room.
    assert best < 40e-6


def _once(rates: RateLimits, quotas: Quotas, who) -> float:
    begin = time.thread_time()
    for _ in range(500):
        rates.admit(who)
        quotas.spend(who.tenant, "cards")
    return (time.thread_time() - begin) / 500


@given(
    day=st.integers(0, 30),
    month=st.integers(0, 60),
    steps=st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 8), st.floats(0, 0.7 * DAY)), max_size=40
    ),
)
def test_quotas_hold_to_the_score(tmp_path_factory, day: int, month: int, steps) -> None:
    database = open_hosting(tmp_path_factory.mktemp("q") / "q.db")
    clock = Clock(NOON)
    rules = TenantLimits(quota=Quota(day=day, month=month))
    quotas = Quotas(database, lambda _: rules, clock)
    used: dict[str, int] = {}
    for action, units, gap in steps:
        clock.now += gap
        today = dt.datetime.fromtimestamp(clock.now, dt.UTC).date().isoformat()
        if action == 0:
            quotas.sync()
            continue
        if action == 1:
            quotas = Quotas(database, lambda _: rules, clock) if quotas.sync() is None else quotas
        free = min(day - used.get(today, 0), month - used.get(today[:7], 0))
        error = refused(lambda q=quotas, n=units: q.spend("acme", "cards", n))
        assert (error is None) == (units <= free)
        if error is None:
            for period in (today, today[:7]):
                used[period] = used.get(period, 0) + units
        elif error.status == 429:
            later = Clock(clock.now + int(error.headers["Retry-After"]))
            after = dt.datetime.fromtimestamp(later.now, dt.UTC)
            assert after.hour == 0 and after.minute == 0 and after.second <= 1
        else:
            assert error.status == 422 and units > min(day, month)
    today = dt.datetime.fromtimestamp(clock.now, dt.UTC).date().isoformat()
    assert quotas.used("acme") == (used.get(today, 0), used.get(today[:7], 0))


def test_channels_have_quotas_of_their_own(database: Database) -> None:
    clock = Clock(NOON)
    rules = TenantLimits(quota=Quota(day=10), channels={"cards": Quota(day=2, month=3)})
    one, two = (Quotas(database, lambda _: rules, clock) for _ in range(2))
    assert one.spend("acme", "cards", 2) == {
        "RateLimit-Day-Remaining": "0", "RateLimit-Month-Remaining": "1",
    }  # fmt: skip
    error = refused(lambda: one.spend("acme", "cards"))
    assert error is not None and error.headers["Retry-After"] == str(int(DAY / 2))
    assert "channel 'cards'" in str(error)
    assert one.spend("acme", "loans") == {"RateLimit-Day-Remaining": "7"}
    one.spend("other", "cards", 2)  # another tenant's counts are its own
    one.refund("acme", "cards")
    one.sync(), two.sync()
    assert two.used("acme") == (2, 2) and two.used("acme", "cards") == (1, 1)
    two.spend("acme", "cards")
    clock.now += DAY  # a new day of the same month
    assert two.spend("acme", "cards")["RateLimit-Month-Remaining"] == "0"
    error = refused(lambda: two.spend("acme", "cards"))
    assert error is not None and "month's end" in str(error)
    assert error.headers["Retry-After"] == str(int(DAY / 2))
    two.sync(), one.sync()
    assert one.used("acme", "cards") == (1, 3) and one.used("acme") == (1, 4)
