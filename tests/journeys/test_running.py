"""Running the service: several workers, one of them killed, and a stop under load."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from serving.audit import verify_log
from tests.contracts.tree import ROOT
from tests.journeys.served import Load, served, until
from tests.serving.fake_package import write_package

drains = pytest.mark.skipif(
    "draining" not in (ROOT / "serving" / "service.py").read_text(), reason="it does not drain"
)


@drains
def test_two_workers_lose_nothing(tmp_path: Path) -> None:
    """A killed worker comes back; a stop under load ends every request it took."""
    package = write_package(tmp_path, behaviour="slow 0.03")
    with served(
        tmp_path, "--package", str(package), "--workers", "2", RISKFM_DRAIN_SECONDS="1.5",
        RISKFM_LOG_FORMAT="json", RISKFM_WEBHOOK_TOKEN="planted-token",
    ) as service:  # fmt: skip
        until(lambda: len(service.workers()) == 2, 30, "two workers")
        first = set(service.workers())
        os.kill(next(iter(first)), signal.SIGKILL)
        until(lambda: len(set(service.workers()) - first) == 1, 60, "another worker")
        (fresh,) = set(service.workers()) - first
        until(service.ready, 30, "ready again")
        load = Load(service)
        until(lambda: len(load.answered) > 40, 60, "answers")
        began = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        statuses: set[int] = set()
        while service.process.poll() is None and 503 not in statuses:
            try:
                statuses.add(service.call("/v1/health/ready"))
            except OSError:
                break
            time.sleep(0.05)
        service.process.wait(60)
        took = time.monotonic() - began
        load.end()
        assert service.process.returncode == 0
        assert 503 in statuses, statuses
        assert load.lost == []
        assert set(load.answered) == {200}
        assert load.refused > 0
        assert took < 60, took
        assert fresh not in service.workers()
    log = (tmp_path / "service.log").read_text()
    events = [json.loads(line)["event"] for line in filter(None, log.splitlines())]
    # Lines are written together: those of the last requests are there all the same.
    assert events.count("request") >= len(load.answered)
    assert "planted-token" not in log
    assert service.key.split("_", 2)[2] not in log
    assert verify_log(tmp_path / "decisions.jsonl").lines >= len(load.answered)
