"""The tokenizer: events, profile and context of a schema to codes and continuous values.

Fitted once, on what was known before a moment; saved as JSON; the same code encodes a store of
millions of events and the 256 events of one request. Identifiers never reach it: `foundation.slots`
turns them into behaviour first.

Global codes: 0 is no slot (padding); then one range per slot, sources first in declared order, then
profile, then context. `extend` appends further ranges and leaves every old id alone.

Shapes: N events, S samples, K most slots of any source, P profile and context slots, X and Y extra
columns, V codes, G slots of the whole schema. Times are int64 microseconds since the epoch, UTC.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from foundation import strict
from foundation.calendar_features import (
    EVENT_EXTRA,
    QUERY_EXTRA,
    event_days,
    event_extra,
    query_extra,
)
from foundation.encoded import EncodedEvents, EncodedQueries, EncodedRows, SlotTable
from foundation.errors import ArtifactError, InternalError, listing
from foundation.fit_columns import fit_columns, require_before, schema_slots
from foundation.history import Cut, ProfileHistory, Timeline, latest_profile
from foundation.row_table import RowTable
from foundation.schema import ROLES, Schema, schema_from_dict, schema_to_dict
from foundation.schema import fingerprint as schema_fingerprint
from foundation.slots import (
    EventColumn,
    Slot,
    SlotColumn,
    row_columns,
    source_columns,
    source_slots,
)
from foundation.vocabulary import SLOT_KINDS, SlotCodes, TableCoder, fit_slot, grown, stable_hash

__all__ = [
    "EVENT_EXTRA",
    "QUERY_EXTRA",
    "EncodedEvents",
    "EncodedQueries",
    "EncodedRows",
    "SlotTable",
    "Tokenizer",
]
FORMAT = 1
PROFILE, CONTEXT = "profile", "context"


class _TokenizerFile(strict.Strict):
    """The JSON document."""

    format: int
    schema: dict[str, Any]
    sources: tuple[str, ...]
    slots: tuple[SlotCodes, ...]


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A fitted tokenizer.

    Attributes:
        schema: what it was fitted on, without paths and authorizations.
        sources: source names; a source's position is its index in `EncodedEvents.source`.
        slots: every slot with its codes, in order of first id.
    """

    schema: Schema
    sources: tuple[str, ...]
    slots: tuple[SlotCodes, ...]
    _accepted: list[Schema] = field(default_factory=list, repr=False)

    # ---------------------------------------------------------------- fit

    @classmethod
    def fit(
        cls,
        schema: Schema,
        timeline: Timeline,
        profile: ProfileHistory | None = None,
        context: pl.DataFrame | None = None,
        *,
        max_values: int = 1000,
        min_count: int = 2,
        n_bins: int = 32,
        until_us: int | None = None,
    ) -> Tokenizer:
        """Learn vocabularies and bins from events, profile rows and context rows.

        Args:
            timeline, profile, context: only what was known before the moment of fitting; context
                may have a column `as_of` (Datetime us).
            max_values, min_count: values kept of a category, the rest becomes unknown.
            n_bins: quantile bins of a number.
            until_us: if given, anything known at or after it is refused.

        Raises:
            DataError: an event, profile row or context row is not older than `until_us`.
        """
        require_before(until_us, timeline, profile, context)
        empty = cls(_bare(schema), schema.source_names, ())
        data = fit_columns(schema, timeline, profile, context, until_us)
        return empty._with(schema, data, max_values, min_count, n_bins)

    def extend(
        self,
        schema: Schema,
        timeline: Timeline,
        profile: ProfileHistory | None = None,
        context: pl.DataFrame | None = None,
        *,
        max_values: int = 1000,
        min_count: int = 2,
        n_bins: int = 32,
        until_us: int | None = None,
    ) -> Tokenizer:
        """A new tokenizer that also knows new sources, slots and category values.

        Old ids, bins and columns stay as they are; whatever is new gets ids at the end. Slots that
        `schema` no longer has keep their codes and encode as missing.

        Raises:
            ArtifactError: a field changed its kind.
            DataError: as for `fit`.
        """
        require_before(until_us, timeline, profile, context)
        data = fit_columns(schema, timeline, profile, context, until_us)
        return self._with(schema, data, max_values, min_count, n_bins)

    def _with(
        self,
        schema: Schema,
        data: list[tuple[Slot, SlotColumn]],
        max_values: int,
        min_count: int,
        n_bins: int,
    ) -> Tokenizer:
        slots = {s.key: s for s in self.slots}
        first = self.size
        for slot, column in data:
            old = slots.get(slot.key)
            if old is None:
                slots[slot.key] = fit_slot(slot, column, first, max_values, min_count, n_bins)
                first += slots[slot.key].size
                continue
            _require_kind(slot, old)
            slots[slot.key] = grown(old, column, first, max_values, min_count)
            first += slots[slot.key].size - old.size
        new = tuple(s for s in schema.source_names if s not in self.sources)
        return Tokenizer(_bare(schema), self.sources + new, tuple(slots.values()))

    # ---------------------------------------------------------------- files

    def to_json(self) -> str:
        """Canonical JSON: the same tokenizer always gives the same text."""
        data = {
            "format": FORMAT,
            "schema": schema_to_dict(self.schema),
            "sources": list(self.sources),
            "slots": [strict.plain(s) for s in self.slots],
        }
        return json.dumps(
            data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )

    @classmethod
    def from_json(cls, text: str, where: str = "tokenizer.json") -> Tokenizer:
        """Read what `to_json` wrote.

        Raises:
            ArtifactError: not JSON, of another format, or contradicting itself.
        """
        try:
            data = json.loads(text)
        except ValueError as exc:
            raise ArtifactError(f"{where}: not valid JSON: {exc}") from None
        if isinstance(data, dict) and data.get("format") != FORMAT:
            raise ArtifactError(
                f"{where}: format {data.get('format')!r} is not {FORMAT}; it was written by "
                "another version of riskfm, fit the tokenizer again"
            )
        file = strict.convert(_TokenizerFile, data, where, ArtifactError)
        for slot in file.slots:
            slot.check()
        found = cls(schema_from_dict(file.schema, f"{where}: schema"), file.sources, file.slots)
        ids = [s.ids() for s in found.slots]
        every = np.sort(np.concatenate(ids)) if ids else np.empty(0, dtype=np.int32)
        if not np.array_equal(every, np.arange(1, len(every) + 1)):
            raise ArtifactError(f"{where}: damaged: global codes overlap or have gaps")
        missing = set(found.schema.sources) - set(found.sources)
        if missing:
            raise ArtifactError(f"{where}: damaged: sources {listing(missing)} have no index")
        unlearned = {s.key for s in schema_slots(found.schema)} - {s.key for s in file.slots}
        if unlearned:
            raise ArtifactError(f"{where}: damaged: no codes for {listing(sorted(unlearned))}")
        return found

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    # ---------------------------------------------------------------- tables for the model

    @cached_property
    def size(self) -> int:
        """V: number of global codes, code 0 included."""
        return 1 + sum(s.size for s in self.slots)

    @cached_property
    def width(self) -> int:
        """K: most slots of any source."""
        return max((len(c.slots) for c in self._coders.values()), default=0)

    @cached_property
    def row_width(self) -> int:
        """P: number of profile and context slots."""
        return len(self._row_coder.slots)

    @cached_property
    def code_slot(self) -> np.ndarray:
        """[V] int32 slot index of every code; 0 for code 0, which belongs to no slot."""
        out = np.zeros(self.size, dtype=np.int32)
        for index, slot in enumerate(self.slots):
            out[slot.ids()] = index
        return out

    @cached_property
    def code_text(self) -> tuple[str, ...]:
        """[V] meaning of every code across schemas: `kind|role or name|value`; code 0 is empty."""
        out = [""] * self.size
        for slot in self.slots:
            for code, word in zip(slot.ids().tolist(), slot.words(), strict=True):
                out[code] = f"{slot.kind}|{slot.meaning()}|{word}"
        return tuple(out)

    @cached_property
    def _code_hash(self) -> np.ndarray:
        return _hash_pairs(self.code_text)

    def hashes(self, modulus: int) -> np.ndarray:
        """[V, 2] int64 in [0, modulus): two stable hashes of `code_text`; row 0 is to be masked."""
        return self._code_hash % modulus

    @cached_property
    def slot_table(self) -> SlotTable:
        """Owner, kind, role and hashed name of every slot."""
        places = {PROFILE: -1, CONTEXT: -2} | {n: i for i, n in enumerate(self.sources)}
        columns = {
            c.key: k
            for coder in (*self._coders.values(), self._row_coder)
            for k, c in enumerate(coder.slots)
        }
        return SlotTable(
            owner=tuple(s.owner for s in self.slots),
            name=tuple(s.name for s in self.slots),
            source=np.array([places[s.owner] for s in self.slots], dtype=np.int64),
            column=np.array([columns[s.key] for s in self.slots], dtype=np.int64),
            kind=np.array([SLOT_KINDS.index(s.kind) for s in self.slots], dtype=np.int64),
            role=np.array([ROLES.index(s.role) for s in self.slots], dtype=np.int64),
            name_hash=_hash_pairs([f"slot|{s.name}" for s in self.slots]),
        )

    def source_hashes(self, modulus: int) -> np.ndarray:
        """[sources, 2] int64 in [0, modulus): stable hashes of the source names."""
        return _hash_pairs([f"source|{s}" for s in self.sources]) % modulus

    # ---------------------------------------------------------------- encode

    def encode_events(self, timeline: Timeline) -> EncodedEvents:
        """Encode every event of a timeline.

        An event's row depends on itself and on events of its entity that were known before it.

        Raises:
            ArtifactError: the timeline's schema lacks slots of this tokenizer or has a source it
                does not know.
        """
        self._accept(timeline.schema)
        names = timeline.schema.source_names
        index = np.array([self.sources.index(n) for n in names], dtype=np.int16)
        code = np.zeros((len(timeline), self.width), dtype=np.int32)
        value = np.zeros((len(timeline), self.width), dtype=np.float32)
        for source, name in enumerate(names):
            rows = timeline.positions(source)
            if len(rows):
                where = slice(None) if len(rows) == len(timeline) else rows
                columns = source_columns(timeline, source)
                self._coders[name].encode_into(code, value, where, columns, len(rows))
        zones = tuple(timeline.schema.zone(n) for n in names)
        return EncodedEvents(
            source=index[timeline.source] if len(names) else timeline.source,
            code=code,
            value=value,
            extra=event_extra(timeline, zones, timeline.entity),
            days=event_days(timeline),
        )

    def encode_rows(
        self,
        profile_rows: pl.DataFrame | RowTable | None,
        context_rows: pl.DataFrame | RowTable | None,
        as_of_us: np.ndarray,
    ) -> EncodedRows:
        """Encode profile and context rows, one per sample.

        Args:
            profile_rows, context_rows: S rows each, null or absent columns where nothing is known;
                None where there is no such table.
            as_of_us: [S] int64; timestamps count days up to it.
        """
        count = len(as_of_us)
        code = np.zeros((count, self.row_width), dtype=np.int32)
        value = np.zeros((count, self.row_width), dtype=np.float32)
        columns: dict[str, EventColumn] = {}
        tables = (
            (PROFILE, self.schema.profile_fields, profile_rows),
            (CONTEXT, self.schema.context, context_rows),
        )
        for owner, fields, frame in tables:
            if frame is None or not fields:
                continue
            if len(frame) != count:
                raise InternalError(f"{owner} has {len(frame)} rows for {count} samples")
            found = row_columns(fields, frame, as_of_us)
            columns |= {f"{owner}.{name}": column for name, column in found.items()}
        self._row_coder.encode_into(code, value, slice(None), columns, count)
        return EncodedRows(code, value)

    def encode_query(
        self,
        cut: Cut,
        timeline: Timeline,
        profile: ProfileHistory | None = None,
        context: pl.DataFrame | RowTable | None = None,
        entity_ids: pl.Series | None = None,
    ) -> EncodedQueries:
        """Encode the query token of every sample of a cut.

        Only events and profile rows with known_at < as_of count; context is known at as_of.

        Args:
            cut: of `timeline`.
            context: S rows, or None.
            entity_ids: [S] ids; needed to find the profile of entities without events.

        Raises:
            ArtifactError: as for `encode_events`.
        """
        self._accept(timeline.schema)
        days, extra = query_extra(timeline, cut, self.schema.time_zone)
        rows = None
        if profile is not None and self.schema.profile_fields:
            ids = entity_ids if entity_ids is not None else _entity_ids(cut, timeline)
            found = latest_profile(profile, ids, cut.as_of_us)
            rows = profile.rows
            if not (len(rows) == len(found) == 1 and found[0] == 0):  # a request's single row
                rows = _picked(rows, found)
        tokens = self.encode_rows(rows, context, cut.as_of_us)
        return EncodedQueries(days, extra, tokens.code, tokens.value)

    @cached_property
    def _coders(self) -> dict[str, TableCoder]:
        """Per source what encodes its events."""
        return {n: TableCoder([s for s in self.slots if s.owner == n]) for n in self.sources}

    @cached_property
    def _row_coder(self) -> TableCoder:
        slots = [s for s in self.slots if s.owner in (PROFILE, CONTEXT)]
        return TableCoder(slots, by_key=True)

    def _accept(self, schema: Schema) -> None:
        """Refuse a schema whose events this tokenizer would misread; remembers the ones it took."""
        if any(schema is s for s in self._accepted):
            return
        if schema_fingerprint(schema) != schema_fingerprint(self.schema):
            known = {s.key: s for s in self.slots}
            given = {s.key: s for n in schema.source_names for s in source_slots(schema, n)}
            own = {s.key for n in self.schema.source_names for s in source_slots(self.schema, n)}
            absent = sorted(own - set(given))
            if absent:
                raise ArtifactError(
                    f"the tokenizer needs fields that schema '{schema.name}' lacks: "
                    f"{listing(absent)}; score with the schema it was fitted on or fit a new one"
                )
            strange = sorted(set(schema.source_names) - set(self.sources))
            if strange:
                raise ArtifactError(
                    f"the tokenizer does not know sources {listing(strange)} of schema "
                    f"'{schema.name}'; it knows {listing(self.sources)}; extend it first"
                )
            for key in own:
                _require_kind(given[key], known[key])
        del self._accepted[:-7]
        self._accepted.append(schema)


def _require_kind(slot: Slot, old: SlotCodes) -> None:
    if slot.kind != old.kind:
        raise ArtifactError(
            f"field '{slot.key}' is of kind {slot.kind}, the tokenizer learned it as {old.kind}; "
            "rename the field or fit a new tokenizer"
        )


def _entity_ids(cut: Cut, timeline: Timeline) -> pl.Series:
    if (cut.entity < 0).any():
        raise InternalError("encode_query needs entity_ids: a sample's entity has no events")
    return timeline.entity_ids[cut.entity]


def _picked(rows: pl.DataFrame | RowTable, at: np.ndarray) -> pl.DataFrame | RowTable:
    """Rows at some places, null where a place is -1."""
    if isinstance(rows, RowTable):
        return rows[at]
    picked = pl.Series(np.where(at >= 0, at, np.nan), nan_to_null=True)
    return rows.select(pl.all().gather(picked.cast(pl.Int64)))


def _hash_pairs(texts: list[str] | tuple[str, ...]) -> np.ndarray:
    """[n, 2] int64, non-negative."""
    pairs = [(stable_hash(t, 1), stable_hash(t, 2)) for t in texts]
    return np.array(pairs, dtype=np.int64).reshape(len(texts), 2)


def _bare(schema: Schema) -> Schema:
    """The schema without paths and authorizations, which are no part of what was learned."""
    data = schema_to_dict(schema)
    for table in [*data.get("sources", {}).values(), data.get("profile", {})]:
        table.pop("path", None)
        table.pop("authorization", None)
    return schema_from_dict(data, schema.name)
