"""More than the service can do: it refuses, says when to come again, and is as before after."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.errors import ConfigError
from serving.api import Application
from serving.audit import follow, verify_log
from serving.messages import ApiError
from serving.room import PER_REQUEST, Room
from serving.settings import Settings
from serving.tenancy.metering import read_usage
from tests.serving.fake_package import request_of
from tests.serving.harness import Service

SMALL = {"waiting_bytes": 1 << 20, "max_body_bytes": 200_000, "max_batch_bytes": 200_000}


def statuses(answers: list[httpx.Response]) -> dict[int, int]:
    """How often each status was answered; every refusal says when to come again."""
    found: dict[int, int] = {}
    for answer in answers:
        found[answer.status_code] = found.get(answer.status_code, 0) + 1
        assert answer.status_code == 200 or answer.headers["retry-after"] == "1"
    return found


def clear(service: Service) -> None:
    """The service holds nothing any more and answers."""
    assert service.score(request_of(1)).status_code == 200
    service.loop.run_until_complete(asyncio.sleep(0.01))
    assert service.runtime.room.total == 0 and service.runtime.deployments.pool.idle


def shut(service: Service) -> threading.Event:
    """Scores of the service's package wait until this opens."""
    package = service.runtime.deployments.pick("default").package
    package.gate = threading.Event()
    return package.gate


def in_pool(service: Service) -> int:
    """Scores that wait or run."""
    return service.runtime.deployments.pool.held("default")


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(1, 60), st.booleans()), max_size=60
    )
)
def test_room_adds_up_and_is_always_left_for_another(steps: list[tuple[str, int, bool]]) -> None:
    room, held = Room(100), {"a": [], "b": [], "c": []}  # type: dict[str, list[int]]
    room_for_all = room.limit
    for tenant, size, takes in steps:
        if takes:
            try:
                room.take(tenant, size)
                held[tenant].append(size)
            except ApiError as exc:
                full = size > room.limit - room.total
                assert exc.status == (503 if full else 429) and exc.headers["Retry-After"]
        elif held[tenant]:
            room.leave(tenant, held[tenant].pop())
        assert room.total == sum(map(sum, held.values())) <= room_for_all
        assert all(room.held(name) == sum(sizes) for name, sizes in held.items())
        free = room.limit - room.total
        if free >= 2:
            room.take("newcomer", free // 2)
            room.leave("newcomer", free // 2)
    assert not room.held("newcomer")


def test_a_body_that_is_allowed_fits() -> None:
    with pytest.raises(ConfigError, match="waiting_bytes is 1048576: with max_batch_bytes"):
        Room.of(Settings(waiting_bytes=1 << 20))
    assert Room.of(Settings()).limit > 2 * (Settings().max_batch_bytes + PER_REQUEST)


def test_waiting_requests_have_bounded_memory(tmp_path: Path) -> None:
    """Bodies that together exceed the room are refused at once, whatever the queue allows."""
    service = Service(tmp_path, queue=1000, **SMALL)
    clear(service)
    gate = shut(service)
    body = json.dumps(request_of(900)).encode()
    assert 90_000 < len(body) < 200_000

    async def flood() -> tuple[list[httpx.Response], int]:
        works = [service.send("POST", "/v1/score", body) for _ in range(40)]
        tasks = [asyncio.ensure_future(work) for work in works]
        # Whoever is not refused waits for the gate.
        while sum(task.done() for task in tasks) + in_pool(service) < len(tasks):
            await asyncio.sleep(0.001)
        most = service.runtime.room.total
        gate.set()
        return await asyncio.gather(*tasks), most

    answers, most = service.loop.run_until_complete(flood())
    found = statuses(answers)
    assert set(found) == {200, 429} and 3 <= found[200] <= 10, found
    assert 0 < most <= service.runtime.room.limit // 2
    text = service.call("GET", "/v1/metrics").text
    assert f'riskfm_shed_total{{reason="memory"}} {found[429]}.0' in text
    clear(service)
    service.close()
    assert verify_log(service.settings.audit_path).lines == found[200] + 2


def test_ten_times_too_much_is_shed_and_passes(tmp_path: Path) -> None:
    service = Service(tmp_path, {"behaviour": "slow 0.01"}, queue=8)
    clear(service)

    async def crowd() -> list[httpx.Response]:
        return await asyncio.gather(
            *(service.send("POST", "/v1/score", request_of(2, seed)) for seed in range(80))
        )

    found = statuses(service.loop.run_until_complete(crowd()))
    assert set(found) == {200, 429} and found[200] >= 8, found
    text = service.call("GET", "/v1/metrics").text
    assert f'riskfm_shed_total{{reason="queue"}} {found[429]}.0' in text
    clear(service)
    service.close()
    # What was refused was neither decided nor counted.
    assert verify_log(service.settings.audit_path).lines == found[200] + 2
    service.runtime.front.meter.advance()
    used = read_usage(service.database, "default", "2000-01-01", "2999-01-01")
    assert sum(row.units for row in used) == found[200] + 2


def test_slow_bodies_wait_for_themselves(tmp_path: Path) -> None:
    """Bodies that trickle in hold no scoring thread, and not for ever."""
    service = Service(tmp_path, timeout_seconds=1.5, **SMALL)
    clear(service)

    async def trickle() -> Any:
        yield b'{"entity_id": "'
        for _ in range(1000):
            await asyncio.sleep(0.05)
            yield b"x"

    async def slow() -> httpx.Response:
        headers = {"authorization": f"Bearer {service.key}", "content-type": "application/json"}
        return await service.client.post("/v1/score", content=trickle(), headers=headers)

    async def both() -> tuple[list[httpx.Response], list[httpx.Response]]:
        loris = [asyncio.ensure_future(slow()) for _ in range(20)]
        await asyncio.sleep(0.1)
        quick = [await service.send("POST", "/v1/score", request_of(2)) for _ in range(5)]
        assert not any(each.done() for each in loris)
        return await asyncio.gather(*loris), quick

    begin = time.monotonic()
    loris, quick = service.loop.run_until_complete(both())
    assert {answer.status_code for answer in quick} == {200}
    assert {answer.status_code for answer in loris} == {408}
    assert loris[0].json()["error"]["code"] == "too_slow" and time.monotonic() - begin < 20
    clear(service)
    service.close()


async def leaves(application: Application, key: str, body: bytes, after: float) -> list[Any]:
    """POST /v1/score of a client that closes its connection; what it was sent."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[Any] = []

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await asyncio.sleep(after)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"authorization", f"Bearer {key}".encode()), (b"content-type", b"application/json")]
    scope = {
        "type": "http", "method": "POST", "path": "/v1/score", "query_string": b"",
        "headers": headers, "server": ("test", 80), "scheme": "http", "root_path": "",
    }  # fmt: skip
    await application(scope, receive, send)
    return sent


def test_who_went_away_is_not_scored(tmp_path: Path) -> None:
    service = Service(tmp_path, queue=50, threads=1)
    clear(service)
    package = service.runtime.deployments.pick("default").package
    before, gate = package.scored, shut(service)
    body = json.dumps(request_of(2)).encode()

    async def crowd() -> tuple[list[httpx.Response], list[list[Any]]]:
        first = asyncio.ensure_future(service.send("POST", "/v1/score", request_of(2)))
        while not package.scored > before:
            await asyncio.sleep(0.001)
        # The only thread is at work: the others wait, and leave before it comes to them.
        gone = [leaves(service.application, service.key, body, 0.02) for _ in range(30)]
        sent = await asyncio.gather(*gone)
        gate.set()
        last = await service.send("POST", "/v1/score", request_of(2))
        return [await first, last], sent

    answers, sent = service.loop.run_until_complete(crowd())
    assert [answer.status_code for answer in answers] == [200, 200] and sent == [[]] * 30
    assert package.scored == before + 2
    clear(service)
    service.close()
    assert verify_log(service.settings.audit_path).lines == 4


@pytest.mark.parametrize("durable", [True, False])
def test_a_full_disk_stops_decisions_until_there_is_space(
    tmp_path: Path, durable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is decided that cannot be logged; whatever was decided is logged in the end."""
    monkeypatch.setattr("serving.audit._TRY_AGAIN_SECONDS", 0.05)
    service = Service(tmp_path, audit_durable=durable)
    given = [service.score(request_of(2))]
    sync, full = os.fsync, True
    while not follow(service.settings.audit_path)[0]:
        time.sleep(0.01)

    def fsync(number: int) -> None:
        if full:
            raise OSError(28, "No space left on device")
        sync(number)

    monkeypatch.setattr(os, "fsync", fsync)
    refused = []
    for number in range(40):
        answer = service.score(request_of(2, number))
        (given if answer.status_code == 200 else refused).append(answer)
        time.sleep(0.02)
    assert refused and {answer.status_code for answer in refused} == {503}
    assert all(answer.headers["retry-after"] == "5" for answer in refused)
    assert len(given) == 1 if durable else 1 < len(given) < 30
    assert service.call("GET", "/v1/health/ready", key=None).status_code == 503
    full = False
    deadline = time.monotonic() + 60
    while service.call("GET", "/v1/health/ready", key=None).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    given.append(service.score(request_of(2)))
    service.close()
    records, _ = follow(service.settings.audit_path, events=True)
    decisions = [record for record in records if "event" not in record]
    answered = {answer.json()["request_id"] for answer in given}
    assert {record["request_id"] for record in decisions} == answered
    assert len(decisions) == len(given)
    (pause,) = [record for record in records if record.get("event") == "log_resumed"]
    assert pause["late"] == len(given) - 2
    assert verify_log(service.settings.audit_path).lines == len(given) + 1


def test_repeated_and_reordered_requests_are_decided_once(tmp_path: Path) -> None:
    service = Service(tmp_path, {"behaviour": "slow 0.003"}, queue=200)
    clear(service)

    async def crowd() -> dict[str, list[httpx.Response]]:
        keys = [f"k{number % 10}" for number in range(40)]
        keys = keys[::-1] + keys[::3]
        answers = await asyncio.gather(
            *(
                service.send("POST", "/v1/score", request_of(2, int(key[1:])), idempotency_key=key)
                for key in keys
            )
        )
        found: dict[str, list[httpx.Response]] = {}
        for key, answer in zip(keys, answers, strict=True):
            found.setdefault(key, []).append(answer)
        return found

    for _ in range(2):
        for key, answers in service.loop.run_until_complete(crowd()).items():
            assert {answer.status_code for answer in answers} <= {200, 409}
            bodies = {answer.content for answer in answers if answer.status_code == 200}
            assert len(bodies) == 1 and json.loads(bodies.pop())["entity_id"] == f"c{key[1:]}"
    service.close()
    assert verify_log(service.settings.audit_path).lines == 11


def test_scores_that_came_too_late_are_counted_as_shed(tmp_path: Path) -> None:
    service = Service(tmp_path, {"behaviour": "slow 0.6"}, timeout_seconds=0.3, threads=1)
    service.score(request_of(1))

    async def crowd() -> list[httpx.Response]:
        return await asyncio.gather(*(service.send("POST", "/v1/score", request_of(1, n))
                                      for n in range(3)))  # fmt: skip

    assert statuses(service.loop.run_until_complete(crowd())) == {503: 3}
    text = service.call("GET", "/v1/metrics").text
    assert 'riskfm_shed_total{reason="timeout"} 4.0' in text
    service.close()


def test_a_full_queue_is_told_before_the_body_is_read(tmp_path: Path) -> None:
    service = Service(tmp_path, queue=1)
    gate = shut(service)

    async def both() -> httpx.Response:
        first = asyncio.ensure_future(service.send("POST", "/v1/score", request_of(1)))
        while not in_pool(service):
            await asyncio.sleep(0.001)
        refused = await service.send("POST", "/v1/score", b"no JSON")
        gate.set()
        assert (await first).status_code == 200
        return refused

    refused = service.loop.run_until_complete(both())
    assert refused.status_code == 429, refused.text
    assert refused.headers["retry-after"] == "1"
    assert service.call("POST", "/v1/score", b"no JSON").status_code == 400
    service.close()
