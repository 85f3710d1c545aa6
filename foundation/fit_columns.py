"""What a tokenizer is fitted on: every slot with values known before the moment of fitting."""

from __future__ import annotations

import numpy as np
import polars as pl

from foundation.errors import DataError
from foundation.history import ProfileHistory, Timeline
from foundation.schema import Schema
from foundation.slots import (
    Slot,
    SlotColumn,
    Words,
    context_slots,
    profile_slots,
    row_columns,
    source_columns,
    source_slots,
)


def schema_slots(schema: Schema) -> list[Slot]:
    """Every slot of a schema."""
    events = [slot for name in schema.source_names for slot in source_slots(schema, name)]
    return [*events, *profile_slots(schema), *context_slots(schema)]


def fit_columns(
    schema: Schema,
    timeline: Timeline,
    profile: ProfileHistory | None,
    context: pl.DataFrame | None,
    until_us: int | None,
) -> list[tuple[Slot, SlotColumn]]:
    """Every slot of a schema with the values to learn from, in order of global ids."""
    out: list[tuple[Slot, SlotColumn]] = []
    for source, name in enumerate(schema.source_names):
        found = source_columns(timeline, source)
        values: dict[str, SlotColumn] = {
            k: v.series if isinstance(v, Words) else v for k, v in found.items()
        }
        out += [(slot, values[slot.name]) for slot in source_slots(schema, name)]
    moment = until_us
    if moment is None:
        moment = int(timeline.known_us.max()) if len(timeline) else 0
    for slots, fields, frame in (
        (profile_slots(schema), schema.profile_fields, profile.frame if profile else None),
        (context_slots(schema), schema.context, context),
    ):
        frame = pl.DataFrame() if frame is None else frame
        at_us = np.full(len(frame), moment, dtype=np.int64)
        if "as_of" in frame.columns and "as_of" not in fields:
            at_us = frame["as_of"].cast(pl.Datetime("us")).cast(pl.Int64).to_numpy()
        found = row_columns(fields, frame, at_us)
        for slot in slots:
            column = found[slot.name]
            out.append((slot, column.series if isinstance(column, Words) else column))
    return out


def require_before(
    until_us: int | None,
    timeline: Timeline,
    profile: ProfileHistory | None,
    context: pl.DataFrame | None,
) -> None:
    """Refuse anything known at or after the moment of fitting.

    Raises:
        DataError: says what and how much of it.
    """
    if until_us is None:
        return
    known = {"events": timeline.known_us}
    if profile is not None:
        known["profile rows"] = profile.known_us
    if context is not None and "as_of" in context.columns:
        known["context rows"] = context["as_of"].cast(pl.Datetime("us")).cast(pl.Int64).to_numpy()
    for what, moments in known.items():
        late = int(np.count_nonzero(moments >= until_us))
        if late:
            raise DataError(
                f"{late} of {len(moments)} {what} became known at or after the moment the "
                "tokenizer is fitted for; cut them before fitting"
            )
