"""What of a history its next events and its next query must know: a few moments and a count.

An event's gaps reach back to the event known before it and to the last one of its source, its days
to the first of all; a query's columns to the first, the last and the number of events. `Carry`
holds these, so that new events are encoded alone, to the same bytes as within the whole history.

Shapes: L new events of one entity. Times are int64 microseconds since the epoch, UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from foundation.calendar_features import event_days, event_extra
from foundation.encoded import EncodedEvents, EncodedQueries
from foundation.errors import ArtifactError, InternalError
from foundation.history import Cut, ProfileHistory, Timeline
from foundation.schema import Schema
from foundation.tokenizer import Tokenizer


@dataclass(frozen=True)
class Carry:
    """The end of an entity's history, in the order in which its events became known.

    Attributes:
        count: events so far; the others mean nothing where it is 0.
        first_us, last_us: event times of the first and of the last event.
        last_known_us: when the last event became known, the latest of all.
        last_source: its source.
        source_us: event time of every source's last event.
    """

    count: int = 0
    first_us: int = 0
    last_us: int = 0
    last_known_us: int = 0
    last_source: str = ""
    source_us: Mapping[str, int] = field(default_factory=dict)

    def precedes(self, timeline: Timeline) -> bool:
        """Whether all events of a timeline stand behind this history.

        They do not where one arrived late: known no later than what is here already (at the same
        moment, with an earlier event time or an earlier source). The history must then be encoded
        afresh; so must that of a schema with identifier fields, whose tokens count how often each
        identifier was seen before. Equal in all three, events count as imported later.

        Raises:
            InternalError: the timeline has events of several entities.
        """
        if len(timeline.offsets) > 2:
            raise InternalError("a history goes on with events of one entity")
        if not len(timeline) or not self.count:
            return True
        names = timeline.schema.source_names
        first = (
            int(timeline.known_us[0]),
            int(timeline.event_us[0]),
            names[int(timeline.source[0])],
        )
        if not {*self.source_us} <= {*names} or _has_identifiers(timeline.schema):
            return False
        return first >= (self.last_known_us, self.last_us, self.last_source)

    def before(self, as_of_us: int) -> bool:
        """Whether every event of this history is known before a moment."""
        return not self.count or self.last_known_us < as_of_us

    def after(self, timeline: Timeline) -> Carry:
        """With the events of a timeline behind it.

        Raises:
            InternalError: they do not stand behind it, see `precedes`.
        """
        if not self.precedes(timeline):
            raise InternalError("events of the past cannot be added behind a history")
        if not len(timeline):
            return self
        names = timeline.schema.source_names
        latest = dict(self.source_us)
        for source, name in enumerate(names):
            of_source = timeline.event_us[timeline.source == source]
            if len(of_source):
                latest[name] = int(of_source[-1])
        return Carry(
            count=self.count + len(timeline),
            first_us=self.first_us if self.count else int(timeline.event_us[0]),
            last_us=int(timeline.event_us[-1]),
            last_known_us=int(timeline.known_us[-1]),
            last_source=names[int(timeline.source[-1])],
            source_us=latest,
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {**vars(self), "source_us": dict(self.source_us)}

    @classmethod
    def from_dict(cls, data: Any) -> Carry:
        """From plain data.

        Raises:
            ArtifactError: damaged.
        """
        numbers = ("count", "first_us", "last_us", "last_known_us")
        if (
            not isinstance(data, dict)
            or {*data} != {*numbers, "last_source", "source_us"}
            or any(type(data[n]) is not int for n in numbers)
            or data["count"] < 0
            or not isinstance(data["last_source"], str)
            or not isinstance(data["source_us"], dict)
            or any(type(us) is not int for us in data["source_us"].values())
        ):
            raise ArtifactError("the end of a cached history is damaged")
        return cls(**data)


def encode_next(tokenizer: Tokenizer, timeline: Timeline, carry: Carry) -> EncodedEvents:
    """Encode new events of one entity as they would be within the whole history.

    Args:
        timeline: the new events alone.
        carry: the history before them.

    Raises:
        InternalError: the events do not stand behind that history, see `Carry.precedes`.
        ArtifactError: as for `Tokenizer.encode_events`.
    """
    if not carry.precedes(timeline):
        raise InternalError("events of the past cannot be encoded behind a history")
    encoded = tokenizer.encode_events(timeline)
    if not carry.count or not len(timeline):
        return encoded
    # The first event, then the last of every source, the very last behind them all.
    schema = timeline.schema
    place = {name: i for i, name in enumerate(schema.source_names)}
    anchors = {n: us for n, us in carry.source_us.items() if n != carry.last_source}
    moments = [carry.first_us, *anchors.values(), carry.last_us]
    owners = [place[n] for n in (carry.last_source, *anchors, carry.last_source)]
    joined = _bare_timeline(
        schema,
        timeline.entity_ids,
        np.concatenate([np.array(moments, dtype=np.int64), timeline.event_us]),
        np.concatenate([np.array(owners, dtype=np.int16), timeline.source]),
    )
    zones = tuple(schema.zone(n) for n in schema.source_names)
    new = slice(len(moments), None)
    encoded.extra = event_extra(joined, zones, joined.entity)[new]
    encoded.days = event_days(joined)[new]
    return encoded


def encode_next_query(
    tokenizer: Tokenizer,
    schema: Schema,
    carry: Carry,
    entity_id: str,
    as_of_us: int,
    profile: ProfileHistory | None = None,
    context: pl.DataFrame | None = None,
) -> EncodedQueries:
    """Encode the query of one entity behind its history, as `Tokenizer.encode_query` would.

    Raises:
        InternalError: an event of the history is not known before `as_of_us`.
    """
    if not carry.before(as_of_us):
        raise InternalError("a query cannot stand before an event of its history")
    count = carry.count
    event_us = np.zeros(count, dtype=np.int64)
    event_us[:1], event_us[-1:] = carry.first_us, carry.last_us
    ids = pl.Series("entity_id", [entity_id], dtype=pl.String)
    timeline = _bare_timeline(schema, ids, event_us, np.zeros(count, dtype=np.int16))
    cut = Cut(
        entity=np.array([0 if count else -1], dtype=np.int64),
        start=np.zeros(1, dtype=np.int64),
        stop=np.array([count], dtype=np.int64),
        as_of_us=np.array([as_of_us], dtype=np.int64),
    )
    return tokenizer.encode_query(cut, timeline, profile, context, entity_ids=ids)


def _has_identifiers(schema: Schema) -> bool:
    fields = (field for source in schema.sources.values() for field in source.fields.values())
    return any(field.kind == "identifier" for field in fields)


def _bare_timeline(
    schema: Schema, entity_ids: pl.Series, event_us: np.ndarray, source: np.ndarray
) -> Timeline:
    """Event times and sources of one entity, without rows."""
    nothing = np.zeros(len(event_us), dtype=np.int64)
    offsets = np.array([0, len(event_us)], dtype=np.int64)
    return Timeline(schema, entity_ids, offsets, nothing, event_us, source, nothing, ())
