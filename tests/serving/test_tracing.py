"""Traces: a span for each part of a request, nothing of the request in them, nothing when off."""

from __future__ import annotations

import gzip
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from foundation.errors import ConfigError, InternalError
from serving.tracing import Tracing, note

ROOT = Path(__file__).resolve().parents[2]
REMOTE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def traced() -> Iterator[tuple[Tracing, Any]]:
    """Tracing into memory."""
    pytest.importorskip("opentelemetry.sdk", reason="the extra `tracing` is not installed")
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter=exporter)
    yield tracing, exporter
    tracing.close()


def test_a_request_is_one_trace_over_threads(traced: tuple[Tracing, Any]) -> None:
    tracing, exporter = traced

    def score(parent: Any) -> None:
        with tracing.span("model", parent, package="cards-1"):
            pass

    with tracing.span("request", tracing.caller(REMOTE), method="POST", route="/v1/score") as span:
        thread = threading.Thread(target=score, args=(tracing.carried(),))
        thread.start()
        thread.join()
        with tracing.span("decision", rows=3):
            pass
        note(span, status=200, channel="")
    spans = {s.name: s for s in exporter.get_finished_spans()}
    assert set(spans) == {"request", "model", "decision"}
    assert {s.context.trace_id for s in spans.values()} == {int(REMOTE[3:35], 16)}
    assert spans["request"].parent.span_id == int(REMOTE[36:52], 16)
    root = spans["request"].context.span_id
    assert [spans[n].parent.span_id for n in ("model", "decision")] == [root] * 2
    assert dict(spans["request"].attributes) == {
        "http.request.method": "POST",
        "http.route": "/v1/score",
        "http.response.status_code": 200,
    }
    assert dict(spans["decision"].attributes) == {"riskfm.rows": 3}
    resource = dict(spans["request"].resource.attributes)
    assert resource == {"service.name": "riskfm", "service.version": "0"}


def test_nothing_of_a_request_gets_in(traced: tuple[Tracing, Any]) -> None:
    tracing, exporter = traced
    with pytest.raises(ValueError, match="4711"), tracing.span("model"):
        raise ValueError("entity 4711 owes 12")
    (span,) = exporter.get_finished_spans()
    assert not span.events
    assert (span.status.is_ok, span.status.description) == (False, "ValueError")
    assert "4711" not in span.to_json()
    with pytest.raises(InternalError, match="no attribute"), tracing.span("model", entity_id="4"):
        pass
    with pytest.raises(InternalError, match="no span"), tracing.span("entity 4711"):
        pass


@pytest.mark.parametrize("header", ["", "x", REMOTE.upper(), REMOTE + "-1", "ff" + REMOTE[2:]])
def test_a_wrong_caller_is_nobody(traced: tuple[Tracing, Any], header: str) -> None:
    assert traced[0].caller(header) is None


def test_off_imports_nothing_and_costs_nothing() -> None:
    tracing = Tracing()
    assert tracing.span("request") is tracing.span("model", route="x")
    with tracing.span("request") as span:
        note(span, status=200)
    assert (tracing.carried(), tracing.caller(REMOTE)) == (None, None)
    begin = time.perf_counter()
    for _ in range(10_000):
        with tracing.span("model"):
            pass
    assert (time.perf_counter() - begin) / 10_000 < 200e-6
    tracing.close()
    code = "import sys, serving.tracing as t; t.Tracing(); sys.exit('opentelemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"riskfm\[tracing\]"):
        Tracing("http://127.0.0.1:1/v1/traces")


def test_spans_reach_a_collector() -> None:
    pytest.importorskip(
        "opentelemetry.exporter.otlp", reason="the extra `tracing` is not installed"
    )
    got: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            got.append((self.path, body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        tracing = Tracing(f"http://127.0.0.1:{server.server_address[1]}/v1/traces", "1.2")
        with tracing.span("request", route="/v1/score"), tracing.span("model"):
            pass
        tracing.close()
        server.shutdown()
        thread.join()
    ((path, body),) = got
    assert path == "/v1/traces"
    assert all(word in body for word in (b"riskfm", b"1.2", b"request", b"model", b"/v1/score"))
