"""From one JSON request to the frames a package scores: typed, columnar, point in time.

A `RequestReader` is built once per schema. It generates msgspec types for the rows and columns of
every source, so that decoding checks types, names and finite numbers in C; what reaches Python is
whole columns. Messages name the place (`events.statement[3].bill_amt`), never a value.

Conventions, the same as at import:
* a time without a zone is read in its source's time zone (as_of: the schema's); of a repeated
  hour the later one counts (as_of: the earlier), an hour that clocks skip has the offset before;
  zones may differ between events where each is explicit;
* known_at defaults to event_time plus the source's declared delay and is never before event_time;
* codes of categories may be JSON numbers or booleans: 1 and 1.0 are "1", true is "true";
* booleans may be words or digits as in files; text loses outer blanks, empty text is missing;
* identifiers are replaced by a keyed hash of this process before anything else sees them.
Unlike at import two equal events stay two: a request cannot carry what would tell them apart.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
import polars as pl
from msgspec import UNSET, Meta, UnsetType

from foundation.errors import listing, nearest
from foundation.history import storage_type
from foundation.schema import Field, Schema, duration_seconds
from foundation.validate import EARLIEST_US, FALSE_WORDS, TRUE_WORDS
from serving.messages import TEXT_LIMIT, ApiError, Envelope, refusal
from serving.times import Clock, iso

_SALT = secrets.token_bytes(32)
Text = Annotated[str, Meta(max_length=TEXT_LIMIT)]
_JSON_TYPES: dict[str, Any] = {
    "number": float,
    "money": float,
    "boolean": bool | int | Text,
    "timestamp": Text,
    "category": bool | int | float | Text,
    "text": Text,
    "identifier": int | Text,
}


@dataclass(frozen=True)
class ScoringInput:
    """One request as a package takes it (all times naive UTC, Datetime us).

    Attributes:
        frames: per source of the request entity_id, event_time, known_at and the fields.
        profile: one row of entity_id, known_at (null: always known) and the fields, or None.
        samples: one row of entity_id, as_of and the context columns.
        as_of: the moment, ISO 8601 with Z.
        used, ignored: events known before as_of, and the others.
        flags: what a reader of the score should know about the request.
    """

    frames: dict[str, pl.DataFrame]
    profile: pl.DataFrame | None
    samples: pl.DataFrame
    as_of: str
    used: int
    ignored: int
    flags: tuple[str, ...]


class RequestReader:
    """Reads requests against one schema; stateless after construction and safe for threads.

    Args:
        max_events: more events in one request get 413.
        future_seconds: an event further than this beyond now (or a later as_of) gets 422.
    """

    def __init__(
        self, schema: Schema, max_events: int = 10_000, future_seconds: int = 86_400
    ) -> None:
        self._schema = schema
        self._max_events = max_events
        self._future_us = future_seconds * 1_000_000
        self._clock = Clock(schema.time_zone)
        self._sources = {
            name: _Table(
                source.fields,
                Clock(schema.zone(name)),
                duration_seconds(source.delay, name) * 1_000_000,
            )
            for name, source in schema.sources.items()
        }
        self._profile = _Row(schema.profile_fields, self._clock, known=True)
        self._context = _Row(schema.context, self._clock)

    def read(self, request: Envelope, now_us: int) -> ScoringInput:
        """The request as frames.

        Args:
            now_us: the present, int64 microseconds since the epoch, UTC.
        Raises:
            ApiError: 422 naming the field at fault, 413 for too many events.
        """
        as_of_us = now_us
        if request.as_of is not None:
            as_of_us = self._clock.moment(request.as_of, "as_of")
        limit_us = max(now_us, as_of_us) + self._future_us
        frames: dict[str, pl.DataFrame] = {}
        used = total = 0
        flags = []
        for name, raw in request.events.items():
            table = self._sources.get(name)
            if table is None:
                raise ApiError(
                    422,
                    f"unknown source '{name[:80]}'{nearest(name, self._sources)}; "
                    f"sources: {listing(self._sources)}",
                    f"events.{name[:80]}",
                )
            frame, known_us = table.read(raw, f"events.{name}", request.entity_id, limit_us)
            if not len(known_us):
                continue
            frames[name] = frame
            total += len(known_us)
            if total > self._max_events:
                raise ApiError(413, f"more than {self._max_events} events in one request", "events")
            used += int((known_us < as_of_us).sum())
            if table.reads_sharing and "sharing_unknown" not in flags:
                flags.append("sharing_unknown")
        if used < total:
            flags.append("later_events_ignored")
        return ScoringInput(
            frames=frames,
            profile=self._profile_frame(request),
            samples=self._samples(request, as_of_us),
            as_of=iso(as_of_us),
            used=used,
            ignored=total - used,
            flags=tuple(flags),
        )

    def _profile_frame(self, request: Envelope) -> pl.DataFrame | None:
        if self._schema.profile is None and bytes(request.profile) not in (b"null", b"{}"):
            raise ApiError(422, "this package reads no profile", "profile")
        columns, known = self._profile.read(request.profile, "profile")
        if columns is None or self._schema.profile is None:
            return None
        head = [
            pl.Series("entity_id", [request.entity_id], dtype=pl.String),
            pl.Series("known_at", [known], dtype=pl.Int64).cast(pl.Datetime("us")),
        ]
        return pl.DataFrame(head + columns)

    def _samples(self, request: Envelope, as_of_us: int) -> pl.DataFrame:
        columns, _ = self._context.read(request.context, "context")
        if columns is None:
            columns = self._context.empty
        head = [
            pl.Series("entity_id", [request.entity_id], dtype=pl.String),
            pl.Series("as_of", [as_of_us], dtype=pl.Int64).cast(pl.Datetime("us")),
        ]
        return pl.DataFrame(head + columns)


class _Table:
    """Decoders of one source: a list of events, or an object of columns."""

    def __init__(self, fields: dict[str, Field], clock: Clock, delay_us: int) -> None:
        self._fields = fields
        self._clock = clock
        self._delay_us = delay_us
        self.reads_sharing = any(spec.sharing for spec in fields.values())
        types = [_JSON_TYPES[spec.kind] | None for spec in fields.values()]
        rename = {f"f{n}": name for n, name in enumerate(fields)}
        row: Any = msgspec.defstruct(
            "Event",
            [("event_time", Text), ("known_at", Text | None, None)]
            + [(f"f{n}", kind, None) for n, kind in enumerate(types)],
            forbid_unknown_fields=True,
            kw_only=True,
            rename=rename,
        )
        columns: list[tuple[str, Any, Any]] = [
            (f"f{n}", list[kind] | UnsetType, UNSET)  # type: ignore[valid-type]
            for n, kind in enumerate(types)
        ]
        block: Any = msgspec.defstruct(
            "Events",
            [
                ("event_time", list[Text]),
                ("known_at", list[Text | None] | UnsetType, UNSET),
                *columns,
            ],
            forbid_unknown_fields=True,
            kw_only=True,
            rename=rename,
        )
        self._names = ("event_time", "known_at", *fields)
        self._rows: msgspec.json.Decoder[Any] = msgspec.json.Decoder(list[row])
        self._block: msgspec.json.Decoder[Any] = msgspec.json.Decoder(block)

    def read(
        self, raw: msgspec.Raw, path: str, entity: str, limit_us: int
    ) -> tuple[pl.DataFrame, np.ndarray]:
        """The source's frame and [n] int64 known_us."""
        text = bytes(raw)
        columnar = text[:1] == b"{"
        if text == b"null":
            return pl.DataFrame(), np.empty(0, dtype=np.int64)
        if text[:1] not in (b"[", b"{"):
            raise ApiError(422, "expected a list of events or an object of columns", path)
        try:
            decoded = (self._block if columnar else self._rows).decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise refusal(exc, path, self._names) from None
        times, *columns = self._columns(decoded, path) if columnar else self._transposed(decoded)
        count = len(times)

        def at(name: str) -> Callable[[int], str]:
            if columnar:
                return lambda index: f"{path}.{name}[{index}]"
            return lambda index: f"{path}[{index}].{name}"

        event_us = self._clock.read(times, at("event_time"))
        if count and event_us.max() > limit_us:
            late = int(np.argmax(event_us > limit_us))
            raise ApiError(422, "the event lies in the future", at("event_time")(late))
        if count and event_us.min() < EARLIEST_US:
            early = int(np.argmax(event_us < EARLIEST_US))
            raise ApiError(422, "the event lies before 1970", at("event_time")(early))
        known_us = self._known(columns[0], event_us, at("known_at"))
        series = [
            pl.Series("entity_id", [entity], dtype=pl.String).new_from_index(0, count),
            pl.Series("event_time", event_us).cast(pl.Datetime("us")),
            pl.Series("known_at", known_us).cast(pl.Datetime("us")),
        ]
        for (name, spec), values in zip(self._fields.items(), columns[1:], strict=True):
            series.append(_series(name, spec.kind, values, self._clock, at(name), count))
        return pl.DataFrame(series), known_us

    def _known(
        self, given: Sequence[str | None] | None, event_us: np.ndarray, at: Callable[[int], str]
    ) -> np.ndarray:
        known_us = event_us + self._delay_us
        if given is None or given.count(None) == len(given):
            return known_us
        places = [index for index, text in enumerate(given) if text is not None]
        known_us[places] = self._clock.read(
            [given[index] for index in places], lambda index: at(places[index])
        )
        if (known_us < event_us).any():
            early = int(np.argmax(known_us < event_us))
            raise ApiError(422, "known_at is before event_time", at(early))
        return known_us

    def _transposed(self, rows: list[msgspec.Struct]) -> list[Any]:
        if not rows:
            return [()] * len(self._names)
        return list(zip(*map(msgspec.structs.astuple, rows), strict=True))

    def _columns(self, block: msgspec.Struct, path: str) -> list[Any]:
        columns: list[Any] = [None if c is UNSET else c for c in msgspec.structs.astuple(block)]
        count = len(columns[0])
        for name, column in zip(self._names, columns, strict=True):
            if column is not None and len(column) != count:
                raise ApiError(
                    422, f"{len(column)} values beside {count} of event_time", f"{path}.{name}"
                )
        return columns


class _Row:
    """Decoder of the profile or the context: one object."""

    def __init__(self, fields: dict[str, Field], clock: Clock, known: bool = False) -> None:
        self._fields = fields
        self._clock = clock
        self._known = known
        head = [("known_at", Text | None, None)] if known else []
        row = msgspec.defstruct(
            "Row",
            head
            + [(f"f{n}", _JSON_TYPES[s.kind] | None, None) for n, s in enumerate(fields.values())],
            forbid_unknown_fields=True,
            kw_only=True,
            rename={f"f{n}": name for n, name in enumerate(fields)},
        )
        self._names = tuple(fields)
        self._decoder = msgspec.json.Decoder(row | None)
        self.empty = [pl.Series(n, [None], dtype=storage_type(s.kind)) for n, s in fields.items()]

    def read(self, raw: msgspec.Raw, path: str) -> tuple[list[pl.Series] | None, int | None]:
        """One-row columns in declared order and known_us; None for JSON null."""
        try:
            row = self._decoder.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            valid = (*(("known_at",) if self._known else ()), *self._names)
            raise refusal(exc, path, valid) from None
        if row is None:
            return None, None
        values = list(msgspec.structs.astuple(row))
        known_us = None
        if self._known:
            known_text, *values = values
            if known_text is not None:
                known_us = int(self._clock.read([known_text], lambda _: f"{path}.known_at")[0])
        columns = [
            _series(name, spec.kind, [value], self._clock, lambda _, n=name: f"{path}.{n}", 1)
            for (name, spec), value in zip(self._fields.items(), values, strict=True)
        ]
        return columns, known_us


def _series(
    name: str,
    kind: str,
    values: Sequence[Any] | None,
    clock: Clock,
    at: Callable[[int], str],
    count: int,
) -> pl.Series:
    """A column in the type it is stored in; None stands for a column that was left out."""
    dtype = storage_type(kind)
    if values is None:
        return pl.Series(name, [None], dtype=dtype).new_from_index(0, count)
    if kind == "identifier":
        return pl.Series(name, [_hidden(v) for v in values], dtype=dtype)
    if kind in ("category", "text"):
        return pl.Series(name, _codes(values), dtype=dtype)
    if kind == "boolean":
        return pl.Series(name, _truths(values, at), dtype=dtype)
    if kind == "timestamp":
        places = [index for index, text in enumerate(values) if text is not None]
        parsed = clock.read([values[i] for i in places], lambda i: at(places[i]))
        moments = pl.Series(name, parsed)
        if len(places) < count:
            empty = pl.Series(name, [None], dtype=pl.Int64).new_from_index(0, count)
            moments = empty.scatter(places, parsed)
        return moments.cast(dtype)
    # None becomes NaN; JSON has no NaN of its own.
    return pl.Series(name, np.array(values, dtype=np.float64), nan_to_null=True)


def _codes(values: Sequence[Any]) -> list[str | None]:
    """Category codes as text, as an import reads them from a file of numbers."""
    if set(map(type, values)) <= {str, type(None)}:
        clean = {v: None if v is None else v.strip() or None for v in set(values)}
        return list(map(clean.__getitem__, values))
    return [
        value.strip() or None
        if type(value) is str
        else None
        if value is None
        else str(value).lower()
        if type(value) is bool
        else str(int(value))
        if type(value) is float and value.is_integer()
        else str(value)
        for value in values
    ]


def _truths(values: Sequence[Any], at: Callable[[int], str]) -> Sequence[bool | None]:
    """Booleans; anything but booleans passes through the words an import knows."""
    if set(map(type, values)) <= {bool, type(None)}:
        return values
    out: list[bool | None] = []
    for index, code in enumerate(_codes(values)):
        if code is not None and code.lower() not in TRUE_WORDS + FALSE_WORDS:
            raise ApiError(422, "expected true or false", at(index))
        out.append(None if code is None else code.lower() in TRUE_WORDS)
    return out


def _hidden(value: int | str | None) -> str | None:
    """An identifier as a keyed hash: equality survives, the value does not."""
    text = "" if value is None else str(value).strip()
    if not text:
        return None
    return hashlib.blake2b(text.encode(), digest_size=16, key=_SALT).hexdigest()
