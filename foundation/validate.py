"""Row checks at import: what is stored, and what goes to quarantine with its reason.

A file that lacks a declared column, or holds what no row of it can be read from, is refused whole.
A bad row is set aside with file, row number and reason (never its values: they may be personal).
Rows are numbered from 1 without the header; a row with several faults carries the first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

from foundation.errors import SchemaError, listing, nearest
from foundation.history import DAY_US, storage_type
from foundation.schema import Field, ProfileTable, Schema, Source, duration_seconds
from foundation.tables import Part, parse_numbers, parse_times

EARLIEST_US = 0
TRUE_WORDS = ("true", "t", "yes", "y", "1")
FALSE_WORDS = ("false", "f", "no", "n", "0")
DUPLICATE = "exact duplicate of an earlier row"
QUARANTINE_SCHEMA = {"source": pl.String, "file": pl.String, "row": pl.Int64, "reason": pl.String}


@dataclass(frozen=True)
class Checked:
    """What a table turned into.

    Attributes:
        good: `entity_id`, `event_time` (events only), `known_at` (null for an undated profile),
            declared fields in their storage type; file order.
        bad: `source`, `file`, `row`, `reason`.
        rows: rows read. ignored: columns of the file that the schema does not declare.
    """

    good: pl.DataFrame
    bad: pl.DataFrame
    rows: int
    ignored: tuple[str, ...]

    def reasons(self) -> dict[str, int]:
        """Reason to number of rows, most frequent first, ties by name."""
        counts = self.bad.group_by("reason").len().sort(["len", "reason"], descending=[True, False])
        return dict(counts.iter_rows())


def check_events(schema: Schema, name: str, parts: Iterable[Part], now_us: int) -> Checked:
    """Check the files of an event source.

    Args:
        now_us: the moment of import; times more than a day later are absurd.
    Raises:
        SchemaError: a declared column is missing.
        DataError: a time column that cannot be read at all, or mixes zones.
    """
    source = schema.sources[name]
    entity = source.entity or schema.entity
    wanted = {"entity_id": entity, "event_time": source.event_time}
    if source.known_at:
        wanted["known_at"] = source.known_at
    checked = [
        _check_part(
            f"source '{name}'", part, wanted, source.fields, schema.zone(name), source, now_us
        )
        for part in parts
    ]
    return _merged(name, checked)


def check_profile(schema: Schema, parts: Iterable[Part], now_us: int) -> Checked:
    """Check the files of the profile; raises as `check_events`."""
    profile = schema.profile or ProfileTable()
    wanted = {"entity_id": profile.entity or schema.entity}
    if profile.valid_time:
        wanted["event_time"] = profile.valid_time
    checked = [
        _check_part("profile", part, wanted, profile.fields, schema.time_zone, profile, now_us)
        for part in parts
    ]
    return _merged("profile", checked)


@dataclass(frozen=True)
class _Part:
    """One checked file, its rows still together."""

    frame: pl.DataFrame  # columns to store, `_reason`, `_file`, `_row`
    original: pl.DataFrame
    ignored: tuple[str, ...]


def _check_part(
    owner: str,
    part: Part,
    wanted: dict[str, str],
    fields: dict[str, Field],
    zone: str,
    table: Source | ProfileTable,
    now_us: int,
) -> _Part:
    columns = wanted | {name: field.column or name for name, field in fields.items()}
    _require(owner, part, columns)
    at = f"{part.file}, column"
    raw = part.frame
    out = {"entity_id": _as_text(raw[columns["entity_id"]])}
    faults: list[tuple[pl.Series, str]] = [(out["entity_id"].is_null(), "entity id is missing")]
    delay = pl.duration(seconds=duration_seconds(table.delay, owner))
    if "event_time" in wanted:
        event = parse_times(raw[wanted["event_time"]], zone, f"{at} '{wanted['event_time']}'")
        faults += _time_faults(event, raw[wanted["event_time"]], wanted["event_time"], now_us)
        out["event_time"] = event
        if "known_at" in wanted:
            known = parse_times(raw[wanted["known_at"]], zone, f"{at} '{wanted['known_at']}'")
            faults += _time_faults(known, raw[wanted["known_at"]], wanted["known_at"], now_us)
            early = f"'{wanted['known_at']}' is before '{wanted['event_time']}'"
            faults.append(((known < event).fill_null(False), early))
        else:
            known = pl.select(event + delay).to_series()
    else:
        known = pl.repeat(None, len(raw), dtype=pl.Datetime("us"), eager=True)
    out["known_at"] = known
    for name, field in fields.items():
        column = raw[columns[name]]
        _refuse_nested(owner, part, columns[name], column)
        out[name], fault, wrong = _field(column, field, zone, f"{at} '{columns[name]}'")
        faults.append((fault, f"'{columns[name]}' {wrong}"))
    reason = pl.coalesce(
        [pl.when(fault).then(pl.lit(text)) for fault, text in faults]
        + [pl.lit(None, dtype=pl.String)]
    )
    frame = pl.DataFrame(out).with_columns(
        reason.alias("_reason"),
        pl.lit(part.file).alias("_file"),
        pl.int_range(1, len(raw) + 1, dtype=pl.Int64, eager=True).alias("_row"),
    )
    if "event_time" in wanted and isinstance(table, ProfileTable):
        frame = frame.drop("event_time")
    ignored = tuple(c for c in raw.columns if c not in columns.values())
    return _Part(frame, raw, ignored)


def _require(owner: str, part: Part, columns: dict[str, str]) -> None:
    for column in columns.values():
        if column not in part.frame.columns:
            raise SchemaError(
                f"{owner} reads column '{column}', which {part.file} does not have"
                f"{nearest(column, part.frame.columns)}; its columns: "
                f"{listing(part.frame.columns)}"
            )


def _refuse_nested(owner: str, part: Part, name: str, column: pl.Series) -> None:
    if column.dtype.is_nested() or column.dtype in (pl.Binary, pl.Object):
        raise SchemaError(
            f"{owner}: column '{name}' of {part.file} holds {column.dtype}; a field must be a "
            "number, text, boolean or time: flatten it, or leave it undeclared"
        )


def _time_faults(
    times: pl.Series, raw: pl.Series, name: str, now_us: int
) -> list[tuple[pl.Series, str]]:
    us = times.to_physical()
    return [
        (raw.is_null(), f"'{name}' is missing"),
        (times.is_null(), f"'{name}' is no readable time"),
        ((us < EARLIEST_US).fill_null(False), f"'{name}' is before 1970"),
        ((us > now_us + DAY_US).fill_null(False), f"'{name}' is more than a day in the future"),
    ]


def _as_text(column: pl.Series) -> pl.Series:
    """Text without outer blanks, null where empty; whole floats lose their `.0`."""
    if column.dtype.is_float():
        whole = column.cast(pl.Int64, strict=False)
        if ((whole.cast(column.dtype) == column) | column.is_null() | column.is_nan()).all():
            column = whole
    text = column.cast(pl.String).str.strip_chars()
    return pl.select(pl.when(text != "").then(text)).to_series()


def _field(
    column: pl.Series, field: Field, zone: str, where: str
) -> tuple[pl.Series, pl.Series, str]:
    """Values in storage type, which rows are at fault, and what is wrong with them."""
    none = pl.repeat(False, len(column), dtype=pl.Boolean, eager=True)
    if field.kind in ("number", "money"):
        if column.dtype.is_temporal():
            raise SchemaError(f"{where} holds times; declare it as kind: timestamp")
        values = parse_numbers(column)
        given = column.is_not_null()
        if column.dtype.is_float():
            given = given & ~column.is_nan()
        return values, given & values.is_null(), "is no number"
    if field.kind == "boolean":
        text = _as_text(column).str.to_lowercase()
        values = pl.select(
            pl.when(text.is_in(TRUE_WORDS)).then(True).when(text.is_in(FALSE_WORDS)).then(False)
        ).to_series()
        return values, text.is_not_null() & values.is_null(), "is neither true nor false"
    if field.kind == "timestamp":
        values = parse_times(column, zone, where)
        return values, column.is_not_null() & values.is_null(), "is no readable time"
    return _as_text(column).cast(storage_type(field.kind)), none, "is no text"


def _merged(name: str, parts: list[_Part]) -> Checked:
    """Put the files of a table together and set exact duplicates aside."""
    frame = pl.concat([part.frame for part in parts])
    original = pl.concat([part.original for part in parts], how="vertical_relaxed")
    repeated = _repeats(original)
    frame = frame.with_columns(
        pl.when(pl.col("_reason").is_null() & repeated)
        .then(pl.lit(DUPLICATE))
        .otherwise("_reason")
        .alias("_reason")
    )
    bad = frame.filter(pl.col("_reason").is_not_null()).select(
        pl.lit(name).alias("source"), file="_file", row="_row", reason="_reason"
    )
    good = frame.filter(pl.col("_reason").is_null()).drop("_reason", "_file", "_row")
    ignored = parts[0].ignored if parts else ()
    return Checked(good, bad, len(frame), ignored)


def _repeats(frame: pl.DataFrame) -> pl.Series:
    """[rows] true for a row equal in every column of the file to an earlier one.

    Undeclared columns count, so that a transaction number keeps equal purchases apart. Hashes
    only propose candidates; equality is decided on the values.
    """
    if not len(frame):
        return pl.Series([], dtype=pl.Boolean)
    candidates = (
        pl.DataFrame({"h": frame.hash_rows(seed=0)}).select(pl.col("h").is_duplicated()).to_series()
    )
    rows = candidates.arg_true()
    out = pl.repeat(False, len(frame), dtype=pl.Boolean, eager=True)
    if not len(rows):
        return out
    later = ~frame[rows].select(pl.struct(pl.all()).is_first_distinct()).to_series()
    return out.scatter(rows.filter(later), True) if later.any() else out
