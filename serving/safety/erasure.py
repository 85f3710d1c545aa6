"""Erasure of one person across every store that keeps something of it.

Each store offers an `Eraser`. A run first counts (`dry_run`), then erases, then counts again: what
is left is a fault and is said. The result enters the decision log as a line `"event":"erasure"`:
when, by whom, which stores, how many rows, and the keyed hash of the person, never the id.

The decision log itself is not erased: of a person it holds a keyed hash, scores and outcomes, which
a lender must be able to account for; a line cannot leave a chain. Models are not retrained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from foundation.errors import InternalError, RiskfmError, UserError
from serving.audit import DecisionLog
from serving.safety.hashing import EntityHasher


@dataclass(frozen=True)
class ErasureCount:
    """What one store held, or removed, of a person.

    Attributes:
        rows: rows, records or values, by the store's own count.
        note: what a person should know, such as that something lies elsewhere.
    """

    rows: int
    note: str = ""


class Eraser(Protocol):
    """Removes a person from one store; repeating it changes nothing.

    Stores that keep hashes find it by `entity_hash` (`EntityHasher.hash`), others by `entity_id`.
    With `dry_run` nothing is changed and `rows` says what would be removed.
    """

    def __call__(
        self, tenant: str, entity_hash: str, entity_id: str, *, dry_run: bool = False
    ) -> ErasureCount: ...


@dataclass(frozen=True)
class ErasureResult:
    """What a run found, by store; `failed` are stores that could not be erased, and why."""

    counts: dict[str, ErasureCount]
    failed: dict[str, str]
    dry_run: bool

    @property
    def rows(self) -> int:
        """Rows of all stores."""
        return sum(count.rows for count in self.counts.values())

    def lines(self) -> list[str]:
        """For a terminal."""
        done = "would be removed" if self.dry_run else "removed"
        out = [
            f"{name}: {c.rows:,} rows {done}{'; ' + c.note if c.note else ''}"
            for name, c in self.counts.items()
        ]
        return out + [f"{name}: NOT ERASED: {why}" for name, why in self.failed.items()]


class Erasure:
    """The erasers of a service, by the name of their store."""

    def __init__(self, hasher: EntityHasher) -> None:
        self._hasher = hasher
        self._erasers: dict[str, Eraser] = {}

    def register(self, name: str, eraser: Eraser) -> None:
        """Add a store.

        Raises:
            InternalError: the name is taken.
        """
        if name in self._erasers:
            raise InternalError(f"two stores for erasure are called '{name}'")
        self._erasers[name] = eraser

    @property
    def stores(self) -> tuple[str, ...]:
        """Names of the stores, in the order they are erased."""
        return tuple(self._erasers)

    def look(self, tenant: str, entity_id: str) -> ErasureResult:
        """Count what an erasure would remove; changes nothing.

        Raises:
            UserError: an empty id.
        """
        return self._run(tenant, entity_id, dry_run=True)

    def erase(self, tenant: str, entity_id: str, by: str, log: DecisionLog) -> ErasureResult:
        """Erase, look whether anything is left, and write it down.

        Every store is tried, whatever happens to another.

        Raises:
            UserError: an empty id or nobody who asks for it.
            InternalError: the decision log cannot be written.
        """
        if not by.strip():
            raise UserError("an erasure needs the person who does it: --by NAME")
        done = self._run(tenant, entity_id, dry_run=False)
        left = self._run(tenant, entity_id, dry_run=True)
        failed = dict(left.failed) | done.failed
        for name, count in left.counts.items():
            if count.rows and name not in failed:
                failed[name] = f"{count.rows:,} rows are still there"
        stores: dict[str, Any] = {name: count.rows for name, count in done.counts.items()}
        log.append(
            {
                "event": "erasure",
                "tenant": tenant,
                "by": by.strip(),
                "stores": stores,
                "failed": sorted(failed) or None,
            },
            entity_id.strip(),
        ).result()
        return ErasureResult(done.counts, failed, dry_run=False)

    def _run(self, tenant: str, entity_id: str, dry_run: bool) -> ErasureResult:
        entity_id = entity_id.strip()  # as the service reads it
        if not entity_id:
            raise UserError("the entity id is empty")
        hidden = self._hasher.hash(tenant, entity_id)
        counts: dict[str, ErasureCount] = {}
        failed: dict[str, str] = {}
        for name, eraser in self._erasers.items():
            try:
                counts[name] = eraser(tenant, hidden, entity_id, dry_run=dry_run)
            except (RiskfmError, OSError) as exc:
                failed[name] = str(exc)
        return ErasureResult(counts, failed, dry_run)
