"""The scoring threads: few, fair between tenants, bounded, and late work is not begun."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from serving.messages import ApiError
from serving.models.pool import ScoringPool


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What blocked work waits for; opened at the end."""
    made = threading.Event()
    yield made
    made.set()


async def occupied(pool: ScoringPool, tenant: str, gate: threading.Event) -> asyncio.Task[bool]:
    """Work that a thread has begun and that ends when the gate opens."""
    begun = threading.Event()

    def hold() -> bool:
        begun.set()
        return gate.wait(60)

    running = asyncio.ensure_future(pool.run(tenant, hold))
    assert await asyncio.to_thread(begun.wait, 60)
    return running


async def refusal(work: Any) -> int:
    """Status of the refusal of an awaitable."""
    with pytest.raises(ApiError) as caught:
        await work
    assert caught.value.headers["Retry-After"] == "1"
    return caught.value.status


def test_results_and_errors_come_back() -> None:
    pool = ScoringPool(2)

    async def both() -> list[int]:
        with pytest.raises(KeyError, match="x"):
            await pool.run("a", {}.__getitem__, "x")
        return await asyncio.gather(*(pool.run("a", abs, -n) for n in range(50)))

    assert asyncio.run(both()) == list(range(50))
    pool.close()
    assert pool.idle and pool.held("a") == 0
    assert asyncio.run(refusal(pool.run("a", abs, 1))) == 503


def test_a_flood_of_one_tenant_does_not_starve_another(gate: threading.Event) -> None:
    pool = ScoringPool(1, queue=40)
    order: list[str] = []

    async def crowd() -> None:
        works: list[Any] = [await occupied(pool, "flood", gate)]
        works += [
            asyncio.ensure_future(pool.run("flood", order.append, "flood")) for _ in range(39)
        ]
        await asyncio.sleep(0)
        assert await refusal(pool.run("flood", order.append, "flood")) == 429
        works += [asyncio.ensure_future(pool.run("b", order.append, "b")) for _ in range(3)]
        works.append(asyncio.ensure_future(pool.run("c", order.append, "c")))
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*works)

    asyncio.run(crowd())
    assert order[:7] == ["flood", "b", "c", "flood", "b", "flood", "b"]
    assert order.count("flood") == 39
    pool.close()


def test_late_work_is_dropped_without_being_done(gate: threading.Event) -> None:
    pool = ScoringPool(1, queue=2, timeout=0.5)
    done: list[int] = []

    async def late() -> None:
        running = await occupied(pool, "a", gate)
        begin = time.monotonic()
        assert await refusal(pool.run("a", done.append, 1)) == 503
        assert 0.4 < time.monotonic() - begin < 10
        assert await refusal(running) == 503
        # What was not begun gave its place up; what runs still holds one.
        assert pool.held("a") == 1
        second = asyncio.ensure_future(pool.run("a", done.append, 2))
        await asyncio.sleep(0.01)
        assert await refusal(pool.run("a", done.append, 3)) == 429
        gate.set()
        await second

    asyncio.run(late())
    pool.close()
    assert done == [2] and pool.idle


def test_a_caller_that_goes_away_gives_its_place_up(gate: threading.Event) -> None:
    pool = ScoringPool(1, queue=3)
    done: list[int] = []

    async def leave() -> None:
        running = await occupied(pool, "a", gate)
        gone = [asyncio.ensure_future(pool.run("a", done.append, n)) for n in (1, 2)]
        await asyncio.sleep(0.01)
        gone[0].cancel()
        gone[1].cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        assert pool.held("a") == 1
        last = asyncio.ensure_future(pool.run("a", done.append, 4))
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(running, last)

    asyncio.run(leave())
    pool.close()
    assert done == [4]


def test_a_stop_finishes_what_runs_and_refuses_what_waits() -> None:
    pool = ScoringPool(1)
    done: list[str] = []
    begun = threading.Event()

    def slow() -> str:
        begun.set()
        time.sleep(0.3)
        done.append("slow")
        return "slow"

    async def stop() -> None:
        running = asyncio.ensure_future(pool.run("a", slow))
        await asyncio.to_thread(begun.wait, 60)
        waiting = asyncio.ensure_future(refusal(pool.run("b", done.append, "never")))
        await asyncio.sleep(0.01)
        await asyncio.to_thread(pool.close)
        assert await running == "slow" and await waiting == 503

    asyncio.run(stop())
    assert done == ["slow"] and pool.idle


def test_a_worker_has_as_many_scoring_threads_as_it_is_set_to() -> None:
    pool = ScoringPool(3)
    # Passed only when three calls run at the same time.
    together = threading.Barrier(3, timeout=60)

    async def at_once() -> list[int]:
        return await asyncio.gather(*(pool.run(f"t{n}", together.wait) for n in range(3)))

    assert sorted(asyncio.run(at_once())) == [0, 1, 2]
    pool.close()
