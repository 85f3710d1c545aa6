"""Short scores on the event loop: fair, bounded, and the loop comes to everything else."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.messages import Envelope
from serving.models.loaded import Loaded, Model
from serving.models.pace import Pace
from serving.models.pool import ScoringPool
from serving.models.shelves import Shelves
from serving.requests import RequestReader
from tests.serving.fake_package import Package, request_of, write_package
from tests.serving.harness import Service
from tests.serving.models.test_pool import refusal


def here() -> str:
    """Name of the calling thread."""
    return threading.current_thread().name


def test_short_calls_run_on_the_loop_and_others_on_threads() -> None:
    pool, never = ScoringPool(1, short=0.005), ScoringPool(1)

    async def where() -> list[str]:
        seconds = (0.001, 0.005, 0.006, float("inf"))
        found = [await pool.run("a", here, seconds=s) for s in seconds]
        return [*found, await pool.run("a", here), await never.run("a", here, seconds=0.001)]

    assert asyncio.run(where()) == [here()] * 2 + ["score-0"] * 4
    pool.close()
    never.close()
    assert pool.idle and asyncio.run(refusal(pool.run("a", here, seconds=0.0))) == 503


def test_a_short_call_that_fails_gives_its_place_up() -> None:
    pool = ScoringPool(1, queue=1, short=1.0)

    async def fail() -> None:
        for _ in range(3):
            with pytest.raises(KeyError, match="x"):
                await pool.run("a", {}.__getitem__, "x", seconds=0.0)

    asyncio.run(fail())
    assert pool.idle
    pool.close()


def test_short_calls_take_turns_by_tenant_and_are_bounded() -> None:
    pool = ScoringPool(1, queue=4, short=1.0)
    order: list[str] = []

    def start(tenant: str, count: int) -> list[asyncio.Future[Any]]:
        runs = (pool.run(tenant, order.append, tenant, seconds=0.0) for _ in range(count))
        return [asyncio.ensure_future(run) for run in runs]

    async def crowd() -> list[Any]:
        # All of them arrive at once: one is made, four of a tenant may wait.
        return await asyncio.gather(
            *start("flood", 7), *start("b", 2), *start("c", 1), return_exceptions=True
        )

    found = asyncio.run(crowd())
    assert order == ["flood", "flood", "b", "c", "flood", "b", "flood", "flood"]
    refused = [each.status for each in found if each is not None]
    assert refused == [429, 429] and found[:5] == [None] * 5
    assert pool.idle
    pool.close()


def test_the_loop_comes_to_everything_else_between_two_scores() -> None:
    pool = ScoringPool(1, short=1.0)
    seen: list[str] = []

    async def crowd() -> None:
        loop = asyncio.get_running_loop()

        def tick() -> None:
            seen.append("tick")
            if seen.count("score") < 6:
                loop.call_soon(tick)

        loop.call_soon(tick)
        runs = [pool.run("a", slowly, seconds=0.0) for _ in range(6)]
        await asyncio.gather(*runs)

    def slowly() -> None:
        time.sleep(0.01)
        seen.append("score")

    asyncio.run(crowd())
    pairs = list(itertools.pairwise(seen))
    assert seen.count("score") == 6 and ("score", "score") not in pairs, seen
    pool.close()


def test_scores_have_half_of_a_loop_that_has_much_else_to_do() -> None:
    pool = ScoringPool(1, short=1.0)
    busy = 0

    async def crowd() -> None:
        async def other() -> None:
            nonlocal busy
            while True:
                time.sleep(0.02)
                busy += 1
                await asyncio.sleep(0)

        noise = asyncio.ensure_future(other())
        await asyncio.gather(*(pool.run("a", time.sleep, 0.002, seconds=0.0) for _ in range(60)))
        noise.cancel()

    asyncio.run(crowd())
    # One score a turn would be sixty turns of everything else.
    assert 2 <= busy <= 30
    pool.close()


def test_short_calls_that_are_late_or_given_up_are_not_made() -> None:
    pool = ScoringPool(1, queue=3, timeout=0.2, short=1.0)
    done: list[str] = []

    async def late() -> None:
        first = [asyncio.ensure_future(pool.run("b", time.sleep, n, seconds=0.0)) for n in (0, 0.4)]
        waits = asyncio.ensure_future(pool.run("a", done.append, "late", seconds=0.0))
        gone = asyncio.ensure_future(pool.run("a", done.append, "gone", seconds=0.0))
        asyncio.get_running_loop().call_soon(gone.cancel)
        assert await refusal(waits) == 503
        await asyncio.gather(*first, gone, return_exceptions=True)
        assert pool.idle
        await pool.run("a", done.append, "next", seconds=0.0)

    asyncio.run(late())
    assert done == ["next"]
    pool.close()


def test_a_stop_refuses_short_calls_that_wait() -> None:
    pool = ScoringPool(1, short=1.0)
    done: list[str] = []

    async def stop() -> None:
        loop = asyncio.get_running_loop()
        works = [pool.run("a", done.append, name, seconds=0.0) for name in ("first", "never")]
        tasks = [asyncio.ensure_future(work) for work in works]
        loop.call_soon(pool.close)
        await tasks[0]
        assert await refusal(tasks[1]) == 503

    asyncio.run(stop())
    assert done == ["first"] and pool.idle


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.booleans(), st.floats(0, 10)), max_size=40))
def test_what_is_expected_lies_between_what_was_seen(
    seen: list[tuple[int, bool, float]],
) -> None:
    pace = Pace()
    for size, reasons, seconds in seen:
        pace.note(size, reasons, seconds)
    for size, reasons, _ in seen:
        alike = [s for n, r, s in seen if (n.bit_length(), r) == (size.bit_length(), reasons)]
        assert min(alike) - 1e-9 <= pace.expected(size, reasons) <= max(alike) + 1e-9
    assert pace.expected(1 << 30, False) == float("inf")


def test_one_slow_score_does_not_count_for_ever() -> None:
    pace = Pace()
    pace.note(100, False, 1.0)
    for _ in range(60):
        pace.note(100, False, 0.001)
    assert pace.expected(100, False) < 0.005


def test_what_is_not_in_memory_is_never_short(tmp_path: Path) -> None:
    path = write_package(tmp_path)

    def load(path: Path, **more: object) -> Package:
        return Package.load(path)

    shelf, pool = Shelves(load), ScoringPool(short=1.0)  # type: ignore[arg-type]
    model = Model(path, shelf, lambda package: RequestReader(package.schema))
    loaded = Loaded(model, pool, "acme", "cards")
    request = msgspec.json.decode(msgspec.json.encode(request_of(3)), type=Envelope)

    def expected(request: Envelope) -> float:
        return model.expected(request, model.size(request))

    assert expected(request) == float("inf")
    threads: list[str] = []
    plain = Model.score

    def noted(*args: Any) -> Any:
        threads.append(here())
        return plain(*args)

    model.score = lambda *args: noted(model, *args)  # type: ignore[method-assign]
    found = [asyncio.run(loaded.score(request)).row.score for _ in range(3)]
    assert threads == ["score-0", here(), here()] and len(set(found)) == 1
    assert 0 < expected(request) < 1
    stored = msgspec.structs.replace(request, history="stored", events={})
    assert expected(stored) == float("inf")
    shelf.drop(path)
    assert expected(request) == float("inf")
    pool.close()


def test_a_stored_history_in_memory_is_scored_on_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read and timed by threads first; and always there where a database is another machine's."""
    threads: list[str] = []
    plain = Model.score

    def noted(*args: Any) -> Any:
        threads.append(here())
        return plain(*args)

    monkeypatch.setattr(Model, "score", noted)
    service = Service(tmp_path, short_ms=1000.0)
    whole = request_of(5)
    asked = {k: v for k, v in whole.items() if k != "events"} | {"history": "stored"}

    def found() -> list[float]:
        threads.clear()
        return [service.score(asked).json()["score"] for _ in range(4)]

    body = {"entity_id": whole["entity_id"], "events": whole["events"]}
    assert service.call("POST", "/v1/events", body).status_code == 200
    scores = found()
    assert threads == ["score-0", "score-0", here(), here()]
    # Another event: what is held of the customer is behind, by a block.
    body["events"] = {"statement": request_of(6, 1)["events"]["statement"][5:]}
    assert service.call("POST", "/v1/events", body).status_code == 200
    scores += found()
    assert threads == [here()] * 4
    assert len(set(scores[:4])) == len(set(scores[4:])) == 1 and scores[0] != scores[4]
    monkeypatch.setattr(type(service.database), "near", False)
    assert found() == scores[4:]
    assert threads == ["score-0"] * 4
    service.close()


def test_the_service_answers_alike_on_the_loop_and_on_a_thread(tmp_path: Path) -> None:
    answers: dict[float, list[Any]] = {}
    for short in (0.0, 1000.0):
        service = Service(tmp_path / f"{short:g}", short_ms=short)
        for number in range(12):
            found = service.score(request_of(number % 4))
            assert found.status_code == 200, found.text
            body = found.json()
            del body["request_id"], body["package"]
            answers.setdefault(short, []).append(body)
        assert service.runtime.deployments.pool.idle
        service.close()
    assert answers[0.0] == answers[1000.0]
