"""Everything a service needs to know about its tenants, opened and closed as one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from serving.database import Database
from serving.tenancy.background import Background
from serving.tenancy.idempotency import KEEP_SECONDS, Idempotency, Sealing
from serving.tenancy.key_ring import KeyRing
from serving.tenancy.limits import Quotas, RateLimits
from serving.tenancy.metering import Meter
from serving.tenancy.people import People
from serving.tenancy.principal import Principal
from serving.tenancy.shared_limits import SharedRateLimits

PURGE_SECONDS = 60.0


class Rates(Protocol):
    """Rate limits of this process or shared ones."""

    def admit(self, principal: Principal) -> dict[str, str]:
        """Take a request's token."""

    def remaining(self, principal: Principal) -> dict[str, str]:
        """What is left."""


class Front:
    """Keys, limits, quotas, idempotency, people and usage of one worker.

    Args:
        people: where people are declared; None: in `database`.
        vault, hide: seal answers and hide keys, as `serving.safety` does.
        log, node: the decision log this worker's node writes, and the node's name.
        valkey: URL of shared rate limits; empty: each of `workers` keeps its share.
        refresh_seconds: the longest time a change of keys, tenants and limits goes unnoticed.
        keep_seconds: how long an idempotency key is remembered; `lease_seconds`: longer than any
            request may take.
    Attributes:
        rates_block: whether `rates.admit` asks the network and belongs into a thread.
    """

    def __init__(
        self,
        database: Database,
        *,
        vault: Sealing,
        hide: Callable[[str, str], str],
        log: str | Path,
        node: str = "node",
        people: Database | None = None,
        workers: int = 1,
        valkey: str = "",
        remember_seconds: float = 300.0,
        refresh_seconds: float = 1.0,
        keep_seconds: float = KEEP_SECONDS,
        lease_seconds: float = 60.0,
    ) -> None:
        self.database = database
        self.keys = KeyRing(database, remember_seconds, refresh_seconds)
        limits = self.keys.limits
        self._shared = SharedRateLimits(valkey, limits, workers) if valkey else None
        self.rates: Rates = self._shared or RateLimits(limits, workers)
        self.rates_block = bool(valkey)
        self.quotas = Quotas(database, limits)
        self.idempotency = Idempotency(database, vault, hide, keep_seconds, lease_seconds)
        self.people = People(people or database, refresh_seconds)
        self.meter = Meter(database, log, node)
        self._background = (
            Background("quotas", 1.0, self.quotas.sync),
            Background("metering", 1.0, lambda: self.meter.advance(wait=False)),
            Background("idempotency", PURGE_SECONDS, self.idempotency.purge),
        )

    def close(self) -> None:
        """Stop, and write down what was counted; after the decision log was closed."""
        self.keys.close()
        for each in self._background:
            each.close()
        self.quotas.sync()
        self.meter.advance()
        if self._shared is not None:
            self._shared.close()
