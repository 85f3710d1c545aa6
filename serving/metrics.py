"""Prometheus metrics with bounded labels: routes are templates, packages are loaded ones.

Under several worker processes (PROMETHEUS_MULTIPROC_DIR is set) an answer adds up all of them.
"""

from __future__ import annotations

import os

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_SCORES = tuple(round(0.05 * step, 2) for step in range(1, 21))


class Metrics:
    """The counters of one application; `text` is what Prometheus reads."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self._requests = Counter(
            "riskfm_requests_total",
            "Requests by route, status and package.",
            ("route", "status", "package"),
            registry=registry,
        )
        self._seconds = Histogram(
            "riskfm_request_seconds",
            "Time from request to answer.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._model = Histogram(
            "riskfm_model_seconds",
            "Time inside the package, without the waiting.",
            ("package",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._scores = Histogram(
            "riskfm_score", "Scores given.", ("package",), buckets=_SCORES, registry=registry
        )
        self._waiting = Gauge(
            "riskfm_waiting",
            "Requests waiting or being scored.",
            ("package",),
            registry=registry,
            multiprocess_mode="livesum",
        )

    def request(self, route: str, status: int, package: str, seconds: float) -> None:
        """Count an answered request; `route` is a template, `package` a loaded id or empty."""
        self._requests.labels(route, str(status), package).inc()
        self._seconds.labels(route).observe(seconds)

    def scored(self, package: str, score: float, seconds: float) -> None:
        """Count a score and the time the model took."""
        self._model.labels(package).observe(seconds)
        self._scores.labels(package).observe(score)

    def waiting(self, package: str, count: int) -> None:
        """Set the length of a package's queue."""
        self._waiting.labels(package).set(count)

    def text(self) -> bytes:
        """The exposition format of Prometheus."""
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)
            return generate_latest(registry)
        return generate_latest(self._registry)
