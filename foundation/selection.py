"""Which part of a store a computation may read: `--until`, `--entities`, `--exclude-entities`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from foundation.errors import DataError, UserError, listing, nearest
from foundation.tables import is_table, parse_times, read_table

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
        DataError: an entity file that cannot be read or lacks `entity_id`, or no entity is left.
    """
    if entities and exclude_entities:
        raise UserError("give --entities or --exclude-entities, not both")
    chosen = chosen_entities(
        store,
        entity_file(entities) if entities else None,
        entity_file(exclude_entities) if exclude_entities else None,
    )
    until_us = until_microseconds(until, store.schema.time_zone)
    return Selection(until_us, chosen, entity_digest(chosen))


def chosen_entities(
    store: EventStore,
    entities: Sequence[str] | pl.Series | None,
    excluded: Sequence[str] | pl.Series | None,
) -> pl.Series | None:
    """The sorted ids that may be read: these only, or all but those; None for all.

    Raises:
        DataError: none is left.
    """
    if entities is None and excluded is None:
        return None
    wanted = store.entity_ids() if entities is None else pl.Series("entity_id", entities)
    wanted = wanted.cast(pl.String).unique().sort()
    if excluded is not None:
        out = pl.Series("entity_id", excluded).cast(pl.String)
        wanted = wanted.filter(~wanted.is_in(out.implode()))
    if wanted.is_empty():
        raise DataError("no entity is left to learn from; check the entity files")
    return wanted


def entity_digest(chosen: pl.Series | None) -> str:
    """Names an entity set in a run's record; `all` for no choice."""
    if chosen is None:
        return "all"
    return hashlib.sha256("\n".join(chosen.to_list()).encode()).hexdigest()[:16]


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
    """The sorted unique ids of a table's column `entity_id`, or of a text with one id per line.

    Raises:
        DataError: missing, unreadable, or a table without `entity_id`.
    """
    path = Path(path)
    if path.is_file() and not is_table(path):
        ids = _lines(path)
    else:
        frame = read_table(path, "entity file")
        if "entity_id" not in frame.columns:
            raise DataError(
                f"{path}: column 'entity_id' is missing{nearest('entity_id', frame.columns)}; "
                f"columns: {listing(frame.columns)}"
            )
        ids = frame["entity_id"].cast(pl.String)
    return ids.drop_nulls().unique().sort()


def _lines(path: Path) -> pl.Series:
    """Ids of a plain text; a first line `entity_id` is a header."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"{path}: cannot be read as a list of entities: {exc}") from None
    ids = [line for line in lines if line]
    return pl.Series("entity_id", ids[1:] if ids[:1] == ["entity_id"] else ids, pl.String)
