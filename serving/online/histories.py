"""The history a score is given on: the request's events, the stored ones, or both.

Stored events are cut at as_of as all others. Of events that are equal in everything the stored and
the request's count together as often as in the one of the two that has more of them: a caller may
send again what it posted. Stored ones stand before the request's where both were known at the same
moment and happened at the same moment, as earlier imports stand before later ones.

Flags of an answer: `no_stored_history`, `stale_history`, `stored_history_left_out`,
`stored_history_cut` (older events than are kept were dropped), `stored_fields_differ` (a field was
posted for a channel that reads it otherwise, and counts as missing).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np

from foundation.row_table import RowTable
from foundation.schema import Schema
from serving.messages import ApiError, Envelope, HistoryAnswer
from serving.online.bounds import Bound, Bounds
from serving.online.erasing import Forgetting
from serving.online.events import Events, repeated
from serving.online.states import EntityStates, Frozen
from serving.online.store import OnlineStore, StoredHistory
from serving.requests import RequestReader, ScoringInput

if TYPE_CHECKING:
    from finetune.features import Follow

_TENANTS = 4096


class Hasher(Protocol):
    """What hides names of a tenant; `serving.safety.hashing.EntityHasher` is one."""

    def hash(self, tenant: str, entity_id: str) -> str:
        """The keyed hash of a customer."""

    def identifier_key(self, tenant: str) -> bytes:
        """The key that hides identifiers in events."""


class Histories:
    """Reads requests together with what is stored of their customers; safe to share.

    Args:
        hasher: of customers and of identifiers in events.
        states: what the backbone made of histories, kept between scores; None keeps nothing.
    """

    def __init__(
        self,
        store: OnlineStore,
        bounds: Bounds,
        hasher: Hasher,
        states: EntityStates | None = None,
    ) -> None:
        self.store, self.bounds, self.states = store, bounds, states
        self._hasher = hasher
        self._key = lru_cache(_TENANTS)(hasher.identifier_key)
        self._forgetting = Forgetting(store.database, self._forget, self._forget_all)

    def read(
        self,
        tenant: str,
        channel: str,
        reader: RequestReader,
        request: Envelope,
        now_us: int,
        version: int | None = None,
    ) -> ScoringInput:
        """A request as its package takes it.

        Args:
            reader: of the package's schema.
            now_us: the present, microseconds since the epoch, UTC.
            version: take the stored history as it was then, as a replay does.
        Raises:
            ApiError: 422 and 413 as `RequestReader.read`, 422 where events are given that are not
                asked for, 409 where the channel refuses a missing or stale history.
        """
        brings = any(bytes(events) != b"null" for events in request.events.values())
        if request.history == "stored" and brings:
            raise ApiError(
                422,
                'the request brings events and asks for the stored ones alone; write "both"',
                "history",
            )
        given = reader.read(request, now_us, self._key(tenant))
        if request.history == "inline":
            return given
        stored = self.store.read(tenant, self._hasher.hash(tenant, request.entity_id))
        if stored is not None and version is not None:
            stored = stored.until(version)
        return joined_input(given, stored, request.history, self.bounds.of(tenant, channel))

    def at_hand(self, tenant: str, request: Envelope, package: Frozen) -> int | None:
        """Bytes in memory of what a score reads beside what the request brings.

        Returns:
            None where it would have to wait for another machine, or where much is to be made
            first: the history decoded, its state encoded.
        """
        if request.history == "inline":
            return 0
        entity = self._hasher.hash(tenant, request.entity_id)
        if self.states is not None and not self.states.at_hand(package, tenant, entity):
            return None
        return self.store.at_hand(tenant, entity)

    def follow(self, tenant: str, request: Envelope, package: Frozen) -> Follow | None:
        """What the package runs in place of its whole graph, from a kept state.

        Returns:
            None for the whole graph: always for requests that bring all of their history, whose
            customers need not come again.
        """
        if self.states is None or request.history == "inline":
            return None
        entity = self._hasher.hash(tenant, request.entity_id)
        return self.states.follow(package, tenant, entity)

    def follow_many(
        self, tenant: str, requests: Sequence[Envelope], package: Frozen
    ) -> tuple[list[int], Follow | None]:
        """Rows of a batch that go on from kept states, and what the package runs for them."""
        if self.states is None:
            return [], None
        stored = [row for row, request in enumerate(requests) if request.history != "inline"]
        hidden = [self._hasher.hash(tenant, requests[row].entity_id) for row in stored]
        rows, follow = self.states.follow_many(package, tenant, hidden)
        return [stored[row] for row in rows], follow

    def erase(self, tenant: str, entity: str) -> int:
        """Erase what is stored of a customer (a keyed hash); how many events it was."""
        count = self.store.erase(tenant, entity)
        self._forget(tenant, entity)
        return count

    def forget_erased(self) -> None:
        """Drop from memory what other processes erased; to be called every second."""
        self._forgetting.look()

    def _forget(self, tenant: str, entity: str) -> None:
        self.store.forget(tenant, entity)
        if self.states is not None:
            self.states.drop(tenant, entity)

    def _forget_all(self) -> None:
        self.store.forget_all()
        if self.states is not None:
            self.states.drop_all()

    def close(self) -> None:
        """Close what is kept open for reading."""
        self.store.close()

    def of(self, tenant: str, channel: str) -> Memory:
        """What a channel's release remembers of its customers."""
        return Memory(self, tenant, channel)


@dataclass(frozen=True)
class Memory:
    """`Histories` of one tenant's channel, for whatever answers there."""

    histories: Histories
    tenant: str
    channel: str

    def read(
        self, reader: RequestReader, request: Envelope, now_us: int, version: int | None = None
    ) -> ScoringInput:
        """See `Histories.read`."""
        return self.histories.read(self.tenant, self.channel, reader, request, now_us, version)

    def at_hand(self, request: Envelope, package: Frozen) -> int | None:
        """See `Histories.at_hand`."""
        return self.histories.at_hand(self.tenant, request, package)

    def follow(self, request: Envelope, package: Frozen) -> Follow | None:
        """See `Histories.follow`."""
        return self.histories.follow(self.tenant, request, package)

    def follow_many(
        self, requests: Sequence[Envelope], package: Frozen
    ) -> tuple[list[int], Follow | None]:
        """See `Histories.follow_many`."""
        return self.histories.follow_many(self.tenant, requests, package)


def joined_input(
    given: ScoringInput, stored: StoredHistory | None, source: str, bound: Bound
) -> ScoringInput:
    """A request with the stored events, or what the channel wants instead of them.

    Args:
        source: stored or both, for the answer.
    Raises:
        ApiError: 409, nothing fresh enough is stored and the channel refuses.
    """
    events, differ = ({}, False) if stored is None else stored.of(given.schema)
    known = [int((e.known_us < given.as_of_us).sum()) for e in events.values()]
    newest = max((_newest(e, given.as_of_us) for e in events.values()), default=None, key=_last)
    age = None if newest is None else (given.as_of_us - newest) / 1e6
    flags: list[str] = []
    if age is None:
        flags.append("no_stored_history")
    elif bound.max_age_seconds is not None and age > bound.max_age_seconds:
        flags.append("stale_history")
    if flags and bound.fallback == "refuse":
        raise ApiError(409, _refusal(age, bound), "history")
    if "stale_history" in flags and bound.fallback == "without":
        flags.append("stored_history_left_out")
        events, known = {}, []
    if events and differ:
        flags.append("stored_fields_differ")
    if events and stored is not None and stored.dropped:
        flags.append("stored_history_cut")
    tables = _merged(events, given.tables, given.schema)
    total = sum(len(table[0]) for table in tables.values())
    used = sum(int((table[1] < given.as_of_us).sum()) for table in tables.values())
    own = [f for f in given.flags if f not in ("later_events_ignored", "sharing_unknown")]
    if _reads_sharing(given.schema, tables):
        own.append("sharing_unknown")
    if used < total:
        own.append("later_events_ignored")
    version = None if stored is None else stored.version
    return replace(
        given,
        tables=tables,
        used=used,
        ignored=total - used,
        flags=(*own, *flags),
        history=HistoryAnswer(source, sum(known), age, version),
    )


def _merged(
    stored: Mapping[str, Events],
    given: Mapping[str, tuple[np.ndarray, np.ndarray, RowTable]],
    schema: Schema,
) -> dict[str, tuple[np.ndarray, np.ndarray, RowTable]]:
    """Stored and given events by source, each once."""
    tables: dict[str, tuple[np.ndarray, np.ndarray, RowTable]] = {}
    for source in schema.source_names:
        old, new = stored.get(source), given.get(source)
        if old is None or not len(old):
            if new is not None:
                tables[source] = new
            continue
        tables[source] = old.event_us, old.known_us, old.rows
        if new is None:
            continue
        fresh = Events.read(new, schema.sources[source].fields)
        rows = np.flatnonzero(~repeated([old], fresh))
        if len(rows):
            fresh = fresh if len(rows) == len(fresh) else fresh.take(rows)
            tables[source] = (
                np.concatenate([old.event_us, fresh.event_us]),
                np.concatenate([old.known_us, fresh.known_us]),
                RowTable.joined([old.rows, fresh.rows]),
            )
    return tables


def _newest(events: Events, as_of_us: int) -> int | None:
    """When the last of the events known before a moment became known."""
    known = events.known_us[events.known_us < as_of_us]
    return int(known.max()) if len(known) else None


def _last(moment: int | None) -> tuple[bool, int]:
    return (False, 0) if moment is None else (True, moment)


def _reads_sharing(schema: Schema, tables: Mapping[str, object]) -> bool:
    return any(f.sharing for name in tables for f in schema.sources[name].fields.values())


def _refusal(age: float | None, bound: Bound) -> str:
    if age is None:
        return (
            "nothing known before as_of is stored about this customer, and the channel scores "
            "stored histories only; post events first or send them with the request"
        )
    return (
        f"the newest stored event of this customer was known {age / 86_400:.1f} days before as_of; "
        f"the channel takes at most {(bound.max_age_seconds or 0.0) / 86_400:.1f}; post newer "
        "events or send them with the request"
    )
