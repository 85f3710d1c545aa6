"""What the decision log does not take is neither answered nor counted nor billed."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving.audit import Unwritable, verify_log
from serving.routes.call import Call
from serving.tenancy.metering import read_usage
from tests.serving.fake_package import request_of
from tests.serving.harness import Service

PATH = "/v1/score/batch"
ROWS = 100


class Disk:
    """Syncs of the decision log; after `good` of them the disk is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, good: int) -> None:
        self.good = good
        really = os.fsync

        def sync(number: int) -> None:
            if self.good <= 0:
                raise OSError(28, "no space left on device")
            self.good -= 1
            really(number)

        monkeypatch.setattr("serving.audit.os.fsync", sync)


def body(rows: int = ROWS) -> bytes:
    return json.dumps({"requests": [request_of(2, n) for n in range(rows)]}).encode()


def counted(service: Service) -> int:
    return service.runtime.front.quotas.used("default", "default")[0]


def billed(service: Service) -> int:
    """What the meter counts once the service is closed; the log's lines are as many."""
    service.close()
    today = dt.datetime.now(dt.UTC).date()
    days = (str(today - dt.timedelta(1)), str(today + dt.timedelta(1)))
    units = sum(row.units for row in read_usage(service.database, "default", *days))
    log = Path(service.settings.audit_path).read_text().splitlines()
    lines = [json.loads(line) for line in log]
    assert units == sum("event" not in line for line in lines)
    verify_log(service.settings.audit_path)
    return units


@pytest.mark.parametrize("how", ["durable", "once"])
def test_a_batch_on_a_full_disk_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    service = Service(tmp_path, audit_durable=how == "durable", timeout_seconds=60)
    disk = Disk(monkeypatch, 0)
    key = {"idempotency_key": "k1"} if how == "once" else {}
    answer = service.call("POST", PATH, body(), **key)
    assert answer.status_code == 503 and "cannot be written down" in answer.text
    assert counted(service) == 0
    disk.good = 1000
    again = _until_written(lambda: service.call("POST", PATH, body(), **key))
    assert again["scored"] == ROWS, again
    assert counted(service) == ROWS
    assert billed(service) == ROWS


@pytest.mark.parametrize("how", ["durable", "once"])
def test_rows_whose_line_is_lost_are_refused_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The disk takes the first group of lines and none of the others."""
    durable, slow = how == "durable", {"behaviour": "slow 0.05"}
    service = Service(tmp_path, slow, audit_durable=durable, timeout_seconds=60)
    Disk(monkeypatch, 1)
    key = {"idempotency_key": "k1"} if how == "once" else {}
    answer = service.call("POST", PATH, body(), **key).json()
    assert 0 < answer["scored"] < ROWS and answer["scored"] + answer["failed"] == ROWS
    for row in answer["results"]:
        assert ("answer" in row) != ("error" in row)
        assert "answer" in row or row["error"]["code"] == "unavailable"
    assert counted(service) == answer["scored"]
    if key:  # the stored answer is the one that was billed
        assert service.call("POST", PATH, body(), **key).json() == answer
    assert billed(service) == answer["scored"]


@pytest.mark.parametrize("taken", [0, 1, 40])
def test_a_log_that_takes_no_more_ends_a_batch_row_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    service = Service(tmp_path, timeout_seconds=60)
    append, left = service.runtime.audit.append, [taken]

    def few(*line: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise Unwritable("the decision log is too far behind")
        return append(*line)

    monkeypatch.setattr(service.runtime.audit, "append", few)
    answer = service.call("POST", PATH, body())
    if not taken:
        assert answer.status_code == 503
    else:
        given = [row["row"] for row in answer.json()["results"] if "answer" in row]
        assert answer.status_code == 200 and given == list(range(taken))
    assert counted(service) == taken
    assert billed(service) == taken


def test_one_score_on_a_full_disk_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(tmp_path, timeout_seconds=60)
    disk = Disk(monkeypatch, 0)
    given = json.dumps(request_of(2)).encode()
    for path in ("/v1/score", "/v1/query"):
        found = service.call("POST", path, given.replace(b', "reasons": true', b""),
                             idempotency_key="k1")  # fmt: skip
        assert found.status_code == 503, found.text
        assert counted(service) == 0
    disk.good = 1000
    _until_written(lambda: service.call("POST", "/v1/score", given, idempotency_key="k1"))
    assert counted(service) == 1
    assert billed(service) == 1


def test_who_stops_waiting_stops_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that is cancelled while its line is written leaves the log as it was."""
    service = Service(tmp_path, timeout_seconds=60)

    async def cancelled() -> None:
        call = Call("r1")
        line = {"tenant": "default", "route": "/v1/score"}
        call.written.append(service.runtime.audit.append(line, "c1"))
        waiting = asyncio.ensure_future(call.logged())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    for _ in range(20):
        service.loop.run_until_complete(cancelled())
    assert service.score(request_of(2)).status_code == 200
    assert billed(service) == 21


def _until_written(send: Callable[[], Any]) -> Any:
    """Send until the log is written again, which it tries each second."""
    for _ in range(40):
        found = send()
        if found.status_code == 200:
            return found.json()
        time.sleep(0.1)
    raise AssertionError("the log is never written again")
