"""From one JSON request to the rows a package scores: typed, columnar, point in time.

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
* identifiers are replaced by a keyed hash before anything else sees them: the tenant's where the
  service keeps histories, so that equality survives between stored and given events.
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

from finetune.features import Population
from foundation.array_history import joined_profile, joined_timeline
from foundation.errors import listing, nearest
from foundation.row_table import RowTable, Words
from foundation.schema import Field, Schema, duration_seconds
from foundation.validate import EARLIEST_US, FALSE_WORDS, TRUE_WORDS
from serving.messages import TEXT_LIMIT, ApiError, Envelope, HistoryAnswer, refusal
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
    """One request as a package takes it.

    Attributes:
        tables: per source of the request event_us and known_us ([n] int64, UTC) and the fields.
        profile: known_us (None: always known) and the fields of one row, or None.
        context: one row.
        as_of_us: the moment, UTC; as_of: the same as ISO 8601 with Z.
        used, ignored: events known before as_of, and the others.
        flags: what a reader of the score should know about the request.
        history: of the stored events, where the request asked for them.
    """

    schema: Schema
    entity_id: str
    tables: dict[str, tuple[np.ndarray, np.ndarray, RowTable]]
    profile: tuple[int | None, RowTable] | None
    context: RowTable
    as_of_us: int
    as_of: str
    used: int
    ignored: int
    flags: tuple[str, ...]
    history: HistoryAnswer | None = None

    def population(self) -> Population:
        """The request as the rows of a package."""
        return population_of([self], pl.Series("entity_id", [self.entity_id], dtype=pl.String))


def population_of(rows: Sequence[ScoringInput], entity_ids: pl.Series) -> Population:
    """Requests to one schema as the rows of a package.

    Args:
        entity_ids: [S] strings, sorted, unique: what the rows are called in the population.
    """
    schema = rows[0].schema
    tables = {
        name: [(i, *row.tables[name]) for i, row in enumerate(rows) if name in row.tables]
        for name in schema.source_names
    }
    profiles = [(i, *row.profile) for i, row in enumerate(rows) if row.profile is not None]
    return Population(
        timeline=joined_timeline(schema, entity_ids, tables),
        profile=joined_profile(entity_ids, profiles),
        entity_ids=entity_ids,
        as_of_us=np.array([row.as_of_us for row in rows], dtype=np.int64),
        context=RowTable.joined([row.context for row in rows]) if schema.context else None,
    )


class RequestReader:
    """Reads requests against one schema; stateless after construction and safe for threads.

    Args:
        max_events: more events in one request get 413.
        future_seconds: an as_of further than this beyond now, or an event further than this
            beyond now (or a later as_of), gets 422.
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

    @property
    def schema(self) -> Schema:
        """What requests are read by."""
        return self._schema

    def read(self, request: Envelope, now_us: int, key: bytes = _SALT) -> ScoringInput:
        """The request as frames.

        Args:
            now_us: the present, int64 microseconds since the epoch, UTC.
            key: hides identifiers, at most 64 bytes; that of this process where none is given.
        Raises:
            ApiError: 422 naming the field at fault, 413 for too many events.
        """
        as_of_us = now_us
        if request.as_of is not None:
            as_of_us = self._clock.moment(request.as_of, "as_of")
            if as_of_us > now_us + self._future_us:
                raise ApiError(422, "the moment lies in the future", "as_of")
            if as_of_us < EARLIEST_US:
                raise ApiError(422, "the moment lies before 1970", "as_of")
        limit_us = max(now_us, as_of_us) + self._future_us
        tables: dict[str, tuple[np.ndarray, np.ndarray, RowTable]] = {}
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
            found = table.read(raw, f"events.{name}", limit_us, key)
            known_us = found[1]
            if not len(known_us):
                continue
            tables[name] = found
            total += len(known_us)
            if total > self._max_events:
                raise ApiError(413, f"more than {self._max_events} events in one request", "events")
            used += int((known_us < as_of_us).sum())
            if table.reads_sharing and "sharing_unknown" not in flags:
                flags.append("sharing_unknown")
        if used < total:
            flags.append("later_events_ignored")
        return ScoringInput(
            schema=self._schema,
            entity_id=request.entity_id,
            tables=tables,
            profile=self._profile_row(request, key),
            context=self._context_row(request, key),
            as_of_us=as_of_us,
            as_of=iso(as_of_us),
            used=used,
            ignored=total - used,
            flags=tuple(flags),
        )

    def _profile_row(self, request: Envelope, key: bytes) -> tuple[int | None, RowTable] | None:
        if self._schema.profile is None and bytes(request.profile) not in (b"null", b"{}"):
            raise ApiError(422, "this package reads no profile", "profile")
        row, known_us = self._profile.read(request.profile, "profile", key)
        if row is None or self._schema.profile is None:
            return None
        return known_us, row

    def _context_row(self, request: Envelope, key: bytes) -> RowTable:
        row, _ = self._context.read(request.context, "context", key)
        return RowTable({}, 1) if row is None else row


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
        self, raw: msgspec.Raw, path: str, limit_us: int, key: bytes
    ) -> tuple[np.ndarray, np.ndarray, RowTable]:
        """Event and known times, [n] int64, and the fields."""
        text = bytes(raw)
        columnar = text[:1] == b"{"
        if text == b"null":
            none = np.empty(0, dtype=np.int64)
            return none, none, RowTable({}, 0)
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
        read = {
            name: _column(spec.kind, values, self._clock, at(name), key)
            for (name, spec), values in zip(self._fields.items(), columns[1:], strict=True)
            if values is not None
        }
        return event_us, known_us, RowTable(read, count)

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

    def read(self, raw: msgspec.Raw, path: str, key: bytes) -> tuple[RowTable | None, int | None]:
        """One row and its known_us; None for JSON null."""
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
        columns = {
            name: _column(spec.kind, [value], self._clock, lambda _, n=name: f"{path}.{n}", key)
            for (name, spec), value in zip(self._fields.items(), values, strict=True)
        }
        return RowTable(columns, 1), known_us


def _column(
    kind: str, values: Sequence[Any], clock: Clock, at: Callable[[int], str], key: bytes
) -> Words | np.ndarray:
    """A column as `RowTable` holds it."""
    if kind == "identifier":
        return Words.read([_hidden(v, key) for v in values])
    if kind in ("category", "text"):
        return _codes(values)
    if kind == "boolean":
        return _truths(values, at)
    if kind == "timestamp":
        places = [index for index, text in enumerate(values) if text is not None]
        moments = np.full(len(values), np.nan)
        moments[places] = clock.read([values[i] for i in places], lambda i: at(places[i]))
        return moments
    # None becomes NaN; JSON has no NaN of its own.
    return np.array(values, dtype=np.float64)


def _codes(values: Sequence[Any]) -> Words:
    """Category codes as text, as an import reads them from a file of numbers."""
    found = Words.read(values)
    # Text equals nothing but text, so that different values show whether all were.
    if not set(map(type, found.values)) <= {str}:
        return Words.read([_text(value) for value in values])
    clean = [value.strip() for value in found.values]
    if tuple(clean) == found.values and "" not in clean:
        return found
    # Blanks around a code and empty codes are rare: look again.
    tidy = dict(zip(found.values, clean, strict=True))
    return Words.read([None if value is None else tidy[value] or None for value in values])


def _text(value: Any) -> str | None:
    if value is None:
        return None
    if type(value) is str:
        return value.strip() or None
    if type(value) is bool:
        return str(value).lower()
    whole = type(value) is float and value.is_integer()
    return str(int(value)) if whole else str(value)


def _truths(values: Sequence[Any], at: Callable[[int], str]) -> Words:
    """Booleans; anything but booleans passes through the words an import knows."""
    kinds = set(map(type, values))
    if kinds <= {bool, type(None)}:
        given = values if kinds == {bool} else [-1 if value is None else value for value in values]
        return Words(np.array(given, dtype=np.int64), ("false", "true"))
    out: list[str | None] = []
    for index, value in enumerate(values):
        code_text = _text(value)
        if code_text is not None and code_text.lower() not in TRUE_WORDS + FALSE_WORDS:
            raise ApiError(422, "expected true or false", at(index))
        true = code_text is not None and code_text.lower() in TRUE_WORDS
        out.append(None if code_text is None else "true" if true else "false")
    return Words.read(out)


def _hidden(value: int | str | None, key: bytes) -> str | None:
    """An identifier as a keyed hash: equality survives, the value does not."""
    text = "" if value is None else str(value).strip()
    if not text:
        return None
    return hashlib.blake2b(text.encode(), digest_size=16, key=key).hexdigest()
