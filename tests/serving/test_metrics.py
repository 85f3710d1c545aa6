"""Metrics stay few whatever is asked for, and add up over processes, dead ones left out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.metrics import FAILURES, MAX_PACKAGES, MAX_ROUTES, Metrics
from tests.serving.harness import Service

ROOT = Path(__file__).resolve().parents[2]
WORKER = """
import os, sys
from serving.metrics import Metrics
metrics = Metrics()
metrics.request("/v1/score", 200, "p", 0.1)
metrics.waiting("p", 3)
if sys.argv[1] == "die":
    os.kill(os.getpid(), 9)
print(metrics.text().decode())
"""


def series(metrics: Metrics) -> set[str]:
    """Every series, without its value."""
    lines = metrics.text().decode().splitlines()
    return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}


def value(text: str, name: str) -> float:
    """The value of one series."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.M)
    assert found, f"{name} is not among\n{text}"
    return float(found.group(1))


def test_hostile_requests_make_no_series(tmp_path: Path) -> None:
    service = Service(tmp_path)
    try:
        service.call("GET", "/v1/nothing")
        service.call("POST", "/v1/score", {"entity_id": "c", "package": "other"})
        service.call("DELETE", "/v1/score")
        for method in ("PUT", "PATCH", "OPTIONS", "TRACE", "BREW"):
            service.call(method, "/v1/score")
            service.call(method, "/v1/nothing")
        service.call("GET", "/v1/packages/none")
        service.call("GET", "/v1/packages/none", key="rfm_0_x")
        before = series(service.runtime.metrics)
        for number in range(40):
            word = f"hostile{number}"
            service.call("GET", f"/{word}/{number}")
            service.call("GET", f"/v1/packages/{word}")
            service.call("POST", "/v1/score", {"entity_id": word, "package": word})
            service.call(f"M{number}", "/v1/score")
            service.call("GET", "/v1/packages", key=f"rfm_{word}_x")
        after = series(service.runtime.metrics)
        assert not [name for name in after if "hostile" in name or "M1" in name]
        assert len(after - before) <= 30, after - before
    finally:
        service.close()


def test_names_of_ours_are_bounded_too() -> None:
    metrics = Metrics(tenants=3)
    for number in range(2 * MAX_PACKAGES):
        tenant = f"t{number % 50}"
        metrics.request(f"/v1/{number % (2 * MAX_ROUTES)}", 200 + number % 3, "p", 0.01, tenant)
        metrics.waiting(f"p{number}", 1)
        metrics.release_failed(f"reason {number}")
        metrics.lag(f"projection {number}", number)
        metrics.shed("queue")
        metrics.cached("key", number % 2 == 0)
    found = series(metrics)
    tenants = {n for n in found if n.startswith("riskfm_tenant_requests_total")}
    assert {re.search('tenant="(.*?)"', n).group(1) for n in tenants} == {  # type: ignore[union-attr]
        "t0", "t1", "t2", "other",
    }  # fmt: skip
    assert len([n for n in found if n.startswith("riskfm_waiting")]) == MAX_PACKAGES
    routes = {n for n in found if n.startswith("riskfm_request_seconds_count")}
    assert len(routes) == MAX_ROUTES + 1
    text = metrics.text().decode()
    assert value(text, 'riskfm_release_failures_total{reason="other"}') == 2 * MAX_PACKAGES
    assert value(text, 'riskfm_cache_total{cache="key",result="hit"}') == MAX_PACKAGES


@given(st.text(), st.text(), st.integers(), st.floats(0, 100))
def test_any_text_is_a_label_at_most_once(route: str, word: str, status: int, ms: float) -> None:
    metrics = Metrics()
    before = series(metrics)
    for name in (word, word + "x"):
        metrics.shed(name)
        metrics.entity_state(name)
        metrics.request("/v1/score", status, "", ms, tenant=name)
    assert len(series(metrics) - before) <= 26
    assert not [n for n in series(metrics) if "tenant_requests" in n]


def test_every_metric_can_be_told() -> None:
    metrics = Metrics()
    metrics.replayed()
    metrics.switched()
    metrics.release_failed(FAILURES[0])
    metrics.decision_log(4)
    metrics.lag("usage", 512)
    metrics.sessions(1024)
    metrics.entity_state("rebuilt")
    metrics.draining()
    metrics.scored("p", 0.4, 0.01)
    text = metrics.text().decode()
    assert value(text, "riskfm_decision_log_waiting") == 4
    assert value(text, 'riskfm_projection_lag_bytes{projection="usage"}') == 512
    assert value(text, "riskfm_session_bytes") == 1024
    assert value(text, 'riskfm_entity_states_total{result="rebuilt"}') == 1
    assert value(text, "riskfm_draining") == 1
    assert value(text, "riskfm_idempotency_replays_total") == 1
    assert value(text, 'riskfm_score_bucket{le="0.4",package="p"}') == 1


def test_processes_add_up_and_the_dead_leave_their_queues(tmp_path: Path) -> None:
    environment = os.environ | {
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)
    }  # fmt: skip
    texts = []
    for word in ("live", "die", "live"):
        done = subprocess.run(
            [sys.executable, "-c", WORKER, word],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode in (0, -9), done.stderr
        texts.append(done.stdout)
    name = 'riskfm_requests_total{package="p",route="/v1/score",status="200"}'
    assert (value(texts[0], name), value(texts[2], name)) == (1, 3)
    # Gauges of processes that are gone, killed or ended, are gone with them.
    assert value(texts[2], 'riskfm_waiting{package="p"}') == 3


@pytest.mark.parametrize("status", [99, 600, -1])
def test_a_wrong_status_is_other(status: int) -> None:
    metrics = Metrics(tenants=1)
    metrics.request("/v1/score", status, "", 0.1, "acme")
    text = metrics.text().decode()
    assert value(text, 'riskfm_tenant_requests_total{status="other",tenant="acme"}') == 1
