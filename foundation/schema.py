"""The schema: which sources exist, what their fields mean, which outcomes are worth forecasting.

A schema is a YAML file; `load_schema` reads it strictly and checks that it agrees with itself.
Paths are relative to the schema file. Times without a zone are read in the source's zone.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
import zoneinfo
from pathlib import Path
from typing import Any, Literal

import msgspec

from foundation import strict
from foundation.errors import SchemaError, listing, nearest
from foundation.outcomes import Outcome, parse_outcome

Kind = Literal["category", "number", "money", "boolean", "text", "identifier", "timestamp"]
ROLES = (
    "other",
    "amount",
    "balance",
    "limit",
    "price",
    "count",
    "rate",
    "duration",
    "status",
    "type",
    "merchant_type",
    "channel",
    "place",
    "product",
    "flag",
    "date",
    "device",
    "phone",
    "address",
    "counterparty",
    "person",
    "score",
    "text",
)
RESERVED = ("entity_id", "event_time", "known_at")
RESERVED_SOURCES = ("profile", "context")
_DURATION = re.compile(r"(\d+)\s*(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Authorization(strict.Strict):
    """Who allowed what use of a source, until when."""

    by: str
    use: str
    until: dt.date | None = None


class Field(strict.Strict):
    """One column of a source, profile or context.

    Attributes:
        kind: what the values are; identifiers never enter a vocabulary.
        role: what the field means across lenders, one of `ROLES`.
        currency: ISO code, for `money`.
        grade: sensitivity, `public`, `internal`, `personal` or `secret`.
        column: name in the file where it differs.
        sharing: for `identifier`: models also read how many other entities shared the value
            before. Only the store knows that: a request with inline history is then scored with
            it missing and flagged `sharing_unknown`, so file and request may differ.
    """

    kind: Kind
    role: str = "other"
    currency: str = ""
    grade: Literal["public", "internal", "personal", "secret"] = "internal"
    column: str = ""
    sharing: bool = False
    description: str = ""


class Source(strict.Strict):
    """One table of events.

    Attributes:
        path: Parquet or CSV file, glob, or Delta directory.
        event_time: column of when it happened.
        known_at: column of when it could be known; without it event_time + delay.
        delay: declared delay such as `2d`, `12h`.
        time_zone: zone of naive times and of calendar features; empty takes the schema's.
    """

    path: str = ""
    entity: str = ""
    event_time: str = "event_time"
    known_at: str = ""
    delay: str = "0d"
    time_zone: str = ""
    fields: dict[str, Field] = {}
    authorization: Authorization | None = None


class ProfileTable(strict.Strict):
    """Slowly changing attributes; without `valid_time` they count as known from the beginning."""

    path: str = ""
    entity: str = ""
    valid_time: str = ""
    delay: str = "0d"
    fields: dict[str, Field] = {}
    authorization: Authorization | None = None


class Schema(strict.Strict):
    """The whole description of one lender's data."""

    name: str = "data"
    version: int = 1
    entity: str = "entity_id"
    time_zone: str = "UTC"
    sources: dict[str, Source] = {}
    profile: ProfileTable | None = None
    context: dict[str, Field] = {}
    outcomes: dict[str, str] = {}
    horizons_days: tuple[int, ...] = ()
    windows_days: tuple[int, ...] = (30, 90, 180, 365)
    ratios: tuple[tuple[str, str], ...] = ()

    @property
    def source_names(self) -> tuple[str, ...]:
        """Source names, sorted; a source's position is its index everywhere."""
        return tuple(self.sources)

    @property
    def profile_fields(self) -> dict[str, Field]:
        """Fields of the profile, empty without one."""
        return dict(self.profile.fields) if self.profile else {}

    def parsed_outcomes(self) -> tuple[Outcome, ...]:
        """The declared outcomes, parsed."""
        return tuple(parse_outcome(name, text) for name, text in self.outcomes.items())

    def zone(self, source: str) -> str:
        """Time zone of a source, IANA name."""
        return self.sources[source].time_zone or self.time_zone


def load_schema(path: str | Path) -> Schema:
    """Read and check a schema file.

    Raises:
        SchemaError: unknown keys, contradictions, unreadable outcomes.
    """
    return checked(strict.load(Schema, path, SchemaError), str(path))


def schema_from_dict(data: dict[str, Any], where: str = "schema") -> Schema:
    """A schema from plain data, checked like a file."""
    return checked(strict.convert(Schema, data, where, SchemaError), where)


def schema_to_dict(schema: Schema) -> dict[str, Any]:
    """Plain data, without defaults; `schema_from_dict` restores it exactly."""
    return strict.plain(schema)


def fingerprint(schema: Schema) -> str:
    """Digest of what changes the meaning of data; paths, notes and authorizations do not.

    Keys at their default do not count, so that a later version's new keys change no fingerprint.
    """
    data = schema_to_dict(schema)
    for table in [*data.get("sources", {}).values(), data.get("profile", {})]:
        table.pop("path", None)
        table.pop("authorization", None)
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def duration_seconds(text: str, where: str) -> int:
    """Seconds of a duration such as `2d`, `12h`, `30m`, `45s`.

    Raises:
        SchemaError: not such a duration.
    """
    match = _DURATION.fullmatch(str(text).strip())
    if match is None:
        raise SchemaError(f"{where}: '{text}' is no duration; write 2d, 12h, 30m or 45s")
    return int(match.group(1)) * _SECONDS[match.group(2)]


def checked(schema: Schema, where: str) -> Schema:
    """The schema itself after every consistency check.

    Raises:
        SchemaError: naming the source, field, ratio or outcome at fault.
    """
    _check_zone(schema.time_zone, where)
    for name, source in schema.sources.items():
        _check_source(name, source, where)
    if schema.profile is not None:
        _check_fields(schema.profile.fields, f"{where}: profile")
        duration_seconds(schema.profile.delay, f"{where}: profile delay")
    _check_fields(schema.context, f"{where}: context")
    if min(schema.windows_days, default=1) < 1:
        raise SchemaError(f"{where}: windows_days must be at least 1")
    for pair in schema.ratios:
        _check_ratio(schema, pair, where)
    for name in schema.outcomes:
        if not re.fullmatch(r"[^\W\d_]\w*", name):
            raise SchemaError(f"{where}: outcome name '{name}' must be letters, digits and _")
    for outcome in schema.parsed_outcomes():
        _check_outcome(schema, outcome, where)
    return in_order(schema)


def in_order(schema: Schema) -> Schema:
    """The schema with sources, fields and outcomes sorted by name.

    A source's index and a slot's column then never depend on how a file was written, so that a
    schema read back from canonical JSON encodes exactly as the one it was written from.
    """

    def by_name(items: dict[str, Any]) -> dict[str, Any]:
        return dict(sorted(items.items()))

    replace = msgspec.structs.replace
    sources = {n: replace(s, fields=by_name(s.fields)) for n, s in schema.sources.items()}
    profile = schema.profile
    if profile is not None:
        profile = replace(profile, fields=by_name(profile.fields))
    return replace(
        schema, sources=by_name(sources), profile=profile, context=by_name(schema.context),
        outcomes=by_name(schema.outcomes),
    )  # fmt: skip


def _check_zone(zone: str, where: str) -> None:
    try:
        zoneinfo.ZoneInfo(zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError):
        raise SchemaError(
            f"{where}: unknown time zone '{zone}'; write UTC or Asia/Shanghai"
        ) from None


def _check_source(name: str, source: Source, where: str) -> None:
    if not re.fullmatch(r"[^\W\d_]\w*", name):
        raise SchemaError(f"{where}: source name '{name}' must be letters, digits and _")
    if name in RESERVED_SOURCES:
        raise SchemaError(f"{where}: '{name}' cannot name a source; choose another name")
    duration_seconds(source.delay, f"{where}: source '{name}' delay")
    if source.time_zone:
        _check_zone(source.time_zone, f"{where}: source '{name}'")
    _check_fields(source.fields, f"{where}: source '{name}'")


def _check_fields(fields: dict[str, Field], where: str) -> None:
    for name, field in fields.items():
        if name in RESERVED:
            raise SchemaError(
                f"{where}: field '{name}' has a reserved name; rename it with 'column'"
            )
        if field.sharing and field.kind != "identifier":
            raise SchemaError(f"{where}: field '{name}' is no identifier, it cannot have 'sharing'")
        if field.role not in ROLES:
            raise SchemaError(
                f"{where}: field '{name}' has unknown role '{field.role}'"
                f"{nearest(field.role, ROLES)}; roles: {listing(ROLES, 30)}"
            )


def _check_ratio(schema: Schema, pair: tuple[str, str], where: str) -> None:
    """Both parts are `owner.field`, the owner a source, `profile` or `context`."""
    at = f"{where}: ratio [{', '.join(pair)}]"
    tables = {name: source.fields for name, source in schema.sources.items()}
    tables |= {"profile": schema.profile_fields, "context": schema.context}
    for part in pair:
        owner, dot, name = part.partition(".")
        if not dot:
            raise SchemaError(f"{at}: '{part}' names no source; write source.field")
        if owner not in tables:
            raise SchemaError(
                f"{at} reads unknown source '{owner}'{nearest(owner, tables)}; "
                f"sources: {listing(tables)}"
            )
        fields = tables[owner]
        if name not in fields:
            raise SchemaError(
                f"{at} reads unknown field '{part}'{nearest(name, fields)}; "
                f"fields: {listing(fields)}"
            )
        if fields[name].kind not in ("number", "money", "timestamp"):
            raise SchemaError(f"{at}: '{part}' is a {fields[name].kind}, no number or time")


def _check_outcome(schema: Schema, outcome: Outcome, where: str) -> None:
    at = f"{where}: outcome '{outcome.name}'"
    pairs = [(outcome.source, outcome.field or outcome.date_field)] if outcome.source else []
    if outcome.versus_field:
        source, _, field = outcome.versus_field.partition(".")
        pairs.append((source, field))
    for source, field in pairs:
        if source not in schema.sources:
            raise SchemaError(
                f"{at} reads unknown source '{source}'{nearest(source, schema.sources)}; "
                f"sources: {listing(schema.sources)}"
            )
        fields = schema.sources[source].fields
        if field and field not in fields:
            raise SchemaError(
                f"{at} reads unknown field '{source}.{field}'{nearest(field, fields)}; "
                f"fields: {listing(fields)}"
            )
    fields = schema.sources[outcome.source].fields if outcome.source else {}
    if outcome.kind in ("sum", "compare") and fields[outcome.field].kind not in ("number", "money"):
        raise SchemaError(f"{at}: '{outcome.field}' is no number; use: field in ('a', 'b')")
    if outcome.kind == "late" and fields[outcome.date_field].kind != "timestamp":
        raise SchemaError(f"{at}: '{outcome.date_field}' is no timestamp")
