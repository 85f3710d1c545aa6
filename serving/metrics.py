"""Prometheus metrics with bounded labels, whatever is asked of the service.

A label is a declared word (`REASONS`, `CACHES`, ...), a status code, or a name of ours: a route's
template, a loaded package, a tenant. Of such names each process shows a bounded number, in the
order it met them; further ones count as `other`. Tenants are named only where the operator says
how many (`metrics_tenants`).

Under several worker processes (PROMETHEUS_MULTIPROC_DIR is set) an answer adds up all of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

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
OTHER = "other"
MAX_ROUTES = 100
MAX_PACKAGES = 600
# Why a request got no answer although nothing was wrong with it.
REASONS = ("queue", "timeout", "rate", "quota", "stopping", "memory")
# Why a release did not go live; the one before stays.
FAILURES = ("load", "verify", "golden", "parity", "memory", "registry")
CACHES = ("key", "session", "entity", "history", "list", "decision_file")
PROJECTIONS = ("usage", "decisions")
STATES = ("used", "rebuilt", "full")
SHADOWS = ("scored", "dropped", "refused", "failed", "lost")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_SCORES = tuple(round(0.05 * step, 2) for step in range(1, 21))


class _Names:
    """The first few names as they are, all others as one."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen: set[str] = set()

    def label(self, name: str) -> str:
        if name in self._seen:
            return name
        if len(self._seen) >= self._limit:
            return OTHER
        self._seen.add(name)
        return name


class Metrics:
    """The counters of one application; `text` is what Prometheus reads.

    Args:
        tenants: how many tenants are named; 0: none.
    """

    def __init__(self, tenants: int = 0) -> None:
        self._registry = CollectorRegistry()
        self._routes, self._packages = _Names(MAX_ROUTES), _Names(MAX_PACKAGES)
        self._tenants = _Names(tenants) if tenants else None
        self._requests = self._counter(
            "requests", "Requests by route, status and package.", "route", "status", "package"
        )
        self._seconds = self._histogram(
            "request_seconds", "Time from request to answer.", _SECONDS, "route"
        )
        self._model = self._histogram(
            "model_seconds", "Time inside the package, without the waiting.", _SECONDS, "package"
        )
        self._scores = self._histogram("score", "Scores given.", _SCORES, "package")
        self._waiting = self._gauge("waiting", "Requests waiting or being scored.", "package")
        self._by_tenant = self._counter(
            "tenant_requests", "Requests by tenant and kind of status.", "tenant", "status"
        )
        self._shed = self._counter("shed", "Requests turned away, by reason.", "reason")
        self._replays = self._counter("idempotency_replays", "Answers given a second time.")
        self._switches = self._counter("release_switches", "Releases that went live.")
        self._failures = self._counter(
            "release_failures", "Releases that did not go live, by reason.", "reason"
        )
        self._log_waiting = self._gauge("decision_log_waiting", "Decisions not yet on the disk.")
        self._lag = self._gauge(
            "projection_lag_bytes", "Decision log not yet counted, by who counts.", "projection"
        )
        self._cache = self._counter("cache", "Look-ups in memory.", "cache", "result")
        self._session_bytes = self._gauge("session_bytes", "Models held in memory.")
        self._states = self._counter(
            "entity_states", "Scores by what became of the entity's kept state.", "result"
        )
        self._failed = self._gauge(
            "release_failed", "Releases this process should answer with and could not load."
        )
        self._shadow = self._counter(
            "shadow", "Requests for releases in shadow, by what became of them.", "outcome"
        )
        self._draining = self._gauge("draining", "Workers that finish and take no more.")

    def request(
        self, route: str, status: int, package: str, seconds: float, tenant: str = ""
    ) -> None:
        """Count an answered request.

        Args:
            route: the template, `unmatched` where there is none.
            package: id of the loaded package that answered, or empty.
            tenant: whose key it was, or empty.
        """
        route = self._routes.label(route)
        code = str(status) if 100 <= status <= 599 else OTHER
        self._requests.labels(route, code, self._packages.label(package)).inc()
        self._seconds.labels(route).observe(seconds)
        if self._tenants is not None and tenant:
            kind = f"{code[0]}xx" if code != OTHER else OTHER
            self._by_tenant.labels(self._tenants.label(tenant), kind).inc()

    def scored(self, package: str, score: float, seconds: float) -> None:
        """Count a score and the time the model took."""
        package = self._packages.label(package)
        self._model.labels(package).observe(seconds)
        self._scores.labels(package).observe(score)

    def waiting(self, package: str, count: int) -> None:
        """Set the length of a package's queue."""
        self._waiting.labels(self._packages.label(package)).set(count)

    def shed(self, reason: str) -> None:
        """Count a request turned away; `reason` is one of `REASONS`."""
        self._shed.labels(_one_of(reason, REASONS)).inc()

    def replayed(self) -> None:
        """Count an answer that an idempotency key found."""
        self._replays.inc()

    def switched(self) -> None:
        """Count a release that went live."""
        self._switches.inc()

    def release_failed(self, reason: str) -> None:
        """Count a release that did not go live; `reason` is one of `FAILURES`."""
        self._failures.labels(_one_of(reason, FAILURES)).inc()

    def decision_log(self, waiting: int) -> None:
        """Set how many decisions wait for the disk."""
        self._log_waiting.set(waiting)

    def lag(self, projection: str, count: int) -> None:
        """Set how many bytes of the decision log one of `PROJECTIONS` has not read."""
        self._lag.labels(_one_of(projection, PROJECTIONS)).set(count)

    def cached(self, cache: str, hit: bool) -> None:
        """Count a look-up in one of `CACHES`."""
        self._cache.labels(_one_of(cache, CACHES), "hit" if hit else "miss").inc()

    def sessions(self, size: int) -> None:
        """Set the bytes of models this process holds."""
        self._session_bytes.set(size)

    def entity_state(self, result: str) -> None:
        """Count what became of an entity's kept state: one of `STATES`."""
        self._states.labels(_one_of(result, STATES)).inc()

    def draining(self) -> None:
        """This process finishes what it has and takes no more."""
        self._draining.set(1)

    def releases_failed(self, count: int) -> None:
        """Set how many releases are waited for that could not be loaded."""
        self._failed.set(count)

    def shadow(self, outcome: str, count: int = 1) -> None:
        """Count requests for releases in shadow; `outcome` is one of `SHADOWS`."""
        self._shadow.labels(_one_of(outcome, SHADOWS)).inc(count)

    def text(self) -> bytes:
        """The exposition format of Prometheus."""
        folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        if folder:
            _forget_dead(folder)
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)
            return generate_latest(registry)
        return generate_latest(self._registry)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"riskfm_{name}_total", help_text, labels, registry=self._registry)

    def _gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        return Gauge(
            f"riskfm_{name}",
            help_text,
            labels,
            registry=self._registry,
            multiprocess_mode="livesum",
        )

    def _histogram(
        self, name: str, help_text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(
            f"riskfm_{name}", help_text, labels, buckets=buckets, registry=self._registry
        )


def _one_of(word: str, words: Iterable[str]) -> str:
    return word if word in words else OTHER


def _forget_dead(folder: str) -> None:
    """Leave out what killed workers held: queues and bytes are gone with them."""
    pids = {path.stem.rpartition("_")[2] for path in Path(folder).glob("gauge_live*.db")}
    for pid in pids:
        if pid.isdigit() and not Path("/proc", pid).exists() and Path("/proc").is_dir():
            multiprocess.mark_process_dead(int(pid), folder)
