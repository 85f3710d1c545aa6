"""Which part of a store a computation may read: `--until`, `--entities`, `--exclude-entities`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from foundation.errors import DataError, UserError, listing, nearest
from foundation.tables import parse_times, read_table

if TYPE_CHECKING:
    from foundation.store import EventStore


@dataclass(frozen=True)
class Selection:
    """A bound in time and a set of entities.

    Attributes:
        until_us: events with known_at >= it are never read; None reads everything.
        entities: sorted ids that may be read; None for all.
        digest: names the entity set in a run's record, `all` without a filter.
    """

    until_us: int | None
    entities: pl.Series | None
    digest: str


def read_selection(
    store: EventStore,
    until: str | None,
    entities: str | Path | None,
    exclude_entities: str | Path | None,
) -> Selection:
    """Read the three options.

    Raises:
        UserError: both entity options at once, or a date that cannot be read.
        DataError: an entity file without `entity_id`.
    """
    if entities and exclude_entities:
        raise UserError("give --entities or --exclude-entities, not both")
    until_us = until_microseconds(until, store.schema.time_zone)
    chosen: pl.Series | None = None
    if entities:
        chosen = entity_file(entities)
    elif exclude_entities:
        left_out = entity_file(exclude_entities)
        every = store.entity_ids()
        chosen = every.filter(~every.is_in(left_out.implode()))
    if chosen is None:
        return Selection(until_us, None, "all")
    if chosen.is_empty():
        raise UserError("no entity is left to read; check --entities or --exclude-entities")
    joined = "\n".join(chosen.to_list())
    return Selection(until_us, chosen, hashlib.sha256(joined.encode()).hexdigest()[:16])


def until_microseconds(until: str | None, zone: str) -> int | None:
    """A date or time as microseconds since the epoch; without a zone it is read in `zone`.

    Raises:
        UserError: unreadable.
    """
    if until is None:
        return None
    try:
        moment = parse_times(pl.Series("until", [str(until)]), zone, "--until")
    except DataError as exc:
        raise UserError(f"--until '{until}' is no date; write 2017-09-01 ({exc})") from None
    value = moment.to_physical().cast(pl.Int64)[0]
    if value is None:
        raise UserError(f"--until '{until}' is no date; write 2017-09-01")
    return int(value)


def entity_file(path: str | Path) -> pl.Series:
    """The sorted unique `entity_id` of a CSV or Parquet file."""
    frame = read_table(path, str(path))
    frame = frame.collect() if isinstance(frame, pl.LazyFrame) else frame
    if "entity_id" not in frame.columns:
        raise DataError(
            f"{path}: column 'entity_id' is missing{nearest('entity_id', frame.columns)}; "
            f"columns: {listing(frame.columns)}"
        )
    return frame["entity_id"].cast(pl.String).drop_nulls().unique().sort()
