"""Limits that workers share in Valkey are those of one worker."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from foundation.errors import ConfigError
from serving.messages import ApiError
from serving.tenancy.shared_limits import SharedRateLimits
from serving.tenancy.tenants import NO_LIMITS, TenantLimits
from tests.serving.tenancy.small_hosting import caller

RULES = TenantLimits(rate=0.01, burst=20, key_rate=0.01, key_burst=15)


def passes(limits: SharedRateLimits, key: str) -> bool:
    try:
        limits.admit(caller(key=key))
    except ApiError as exc:
        assert exc.status == 429 and 1 <= int(exc.headers["Retry-After"]) <= 500
        return False
    return True


def test_workers_take_from_one_bucket(valkey_url: str) -> None:
    workers = [SharedRateLimits(valkey_url, lambda _: RULES, 4, 5.0) for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        first = list(pool.map(lambda n: passes(workers[n % 4], "a"), range(40)))
        rest = list(pool.map(lambda n: passes(workers[n % 4], "b"), range(40)))
    assert (sum(first), sum(rest)) == (15, 5)
    assert workers[0].remaining(caller(key="b"))["RateLimit-Remaining"] == "0"
    assert workers[0].admit(caller("other"))["RateLimit-Remaining"] == "14"
    for worker in workers:
        worker.close()


def test_without_the_server_each_worker_keeps_its_share(tmp_path, caplog) -> None:
    away = SharedRateLimits(f"unix://{tmp_path}/nobody.sock", lambda _: RULES, 5)
    assert sum(passes(away, "a") for _ in range(9)) == 3
    assert sum("each worker" in r.message for r in caplog.records) == 1
    free = SharedRateLimits(f"unix://{tmp_path}/nobody.sock", lambda _: NO_LIMITS)
    assert free.admit(caller()) == {}
    with pytest.raises(ConfigError, match="valkey://"):
        SharedRateLimits("http://x", lambda _: RULES)
