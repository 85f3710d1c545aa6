"""Which rows the panel of a source has, decided from the schema and the values of the fit data.

A number slot is a row as it is; a category of integers counts as a number too; frequent values and
values that declared outcomes name get flags; declared ratios inside a source become rows.
"""

from __future__ import annotations

import polars as pl

from foundation.panels import CategoryRow, FlagRow, NumberRow, SourceLayout, as_float
from foundation.schema import Schema
from foundation.slots import Slot, context_slots, profile_slots, source_slots

MAX_LEVELS = 100
MAX_FLAGS = 8
MAX_ORDER_VALUES = 24


def source_layout(schema: Schema, source: int, values: dict[str, pl.Series]) -> SourceLayout:
    """The rows of a source's panel, chosen from the values of the fit data."""
    name = schema.source_names[source]
    numbers: list[NumberRow] = []
    flags: list[FlagRow] = []
    categories: list[CategoryRow] = []
    for slot in source_slots(schema, name):
        column = values[slot.name]
        if slot.kind == "number":
            numbers.append(_number_row(slot, "slot"))
            if slot.role == "date":
                flags.append(_bound_flag(slot, len(numbers) - 1, 0.0, above=True))
            continue
        levels = frequent(column)
        categories.append(
            CategoryRow(slot=slot.name, levels=levels, field=slot.field, title=slot.title)
        )
        for value in _flagged(schema, name, slot, levels):
            title = f"{slot.title} = {value}"
            flags.append(
                FlagRow(
                    name=f"{slot.name}={value}",
                    slot=slot.name,
                    value=value,
                    field=slot.field,
                    title=title,
                )
            )
        if is_order(levels):
            numbers.append(_number_row(slot, "order"))
            top = max(_integers(levels))
            for bound in (1, 2, 3):
                if min(_integers(levels)) < bound < top:
                    flags.append(_bound_flag(slot, len(numbers) - 1, float(bound), above=False))
    numbers += _ratio_rows(schema, name)
    numbers.append(NumberRow(name="gap", kind="gap", title="days between"))
    return SourceLayout(
        source=source,
        name=name,
        numbers=tuple(numbers),
        flags=tuple(flags),
        categories=tuple(categories),
    )


def frequent(column: pl.Series, limit: int = MAX_LEVELS) -> tuple[str, ...]:
    """Distinct values, most frequent first, ties by name."""
    counts = pl.DataFrame({"v": column.cast(pl.String)}).drop_nulls().group_by("v").len()
    ranked = counts.sort(["len", "v"], descending=[True, False]).head(limit)
    return tuple(ranked["v"].to_list())


def is_order(levels: tuple[str, ...]) -> bool:
    """Whether a category's values are few integers (some other codes among them allowed)."""
    integers = _integers(levels)
    few = len(integers) >= 3 and len(levels) <= MAX_ORDER_VALUES
    return few and 2 * len(integers) >= len(levels) and max(integers) - min(integers) <= 99


def _integers(levels: tuple[str, ...]) -> list[int]:
    parsed = as_float(pl.Series(levels, dtype=pl.String))
    return [int(v) for v in parsed if v == v and v == int(v)]


def _flagged(schema: Schema, source: str, slot: Slot, levels: tuple[str, ...]) -> list[str]:
    """The most frequent values and those that declared outcomes name."""
    named = {
        value
        for outcome in schema.parsed_outcomes()
        if outcome.source == source and outcome.field == slot.field
        for value in outcome.values
    }
    return [v for k, v in enumerate(levels) if k < MAX_FLAGS or v in named]


def _number_row(slot: Slot, kind: str) -> NumberRow:
    name = f"{slot.name} level" if kind == "order" else slot.name
    return NumberRow(name=name, kind=kind, slot=slot.name, field=slot.field, title=slot.title)


def _bound_flag(slot: Slot, number: int, bound: float, above: bool) -> FlagRow:
    sign = ">" if above else ">="
    return FlagRow(
        name=f"{slot.name}{sign}{bound:g}",
        number=number,
        above=above,
        bound=bound,
        field=slot.field,
        title=f"{slot.title} {sign} {bound:g}",
    )


def _ratio_rows(schema: Schema, source: str) -> list[NumberRow]:
    """Declared ratios whose two sides stand in this source."""
    out = []
    for a, b in declared_ratios(schema):
        if a[0] == b[0] == source:
            title = f"{words_of(a[1])} to {words_of(b[1])}"
            out.append(
                NumberRow(
                    name=f"{a[1]}/{b[1]}",
                    kind="ratio",
                    slot=a[1],
                    other=b[1],
                    field=a[1],
                    title=title,
                )
            )
            title = f"{words_of(a[1])} to the previous {words_of(b[1])}"
            out.append(
                NumberRow(
                    name=f"{a[1]}/previous {b[1]}",
                    kind="ratio_previous",
                    slot=a[1],
                    other=b[1],
                    field=a[1],
                    title=title,
                )
            )
    return out


def declared_ratios(schema: Schema) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """Ratios as ((owner, number slot), (owner, number slot)); other declarations are left out."""
    slots = {s.key: s for s in [*profile_slots(schema), *context_slots(schema)]}
    for name in schema.source_names:
        slots |= {s.key: s for s in source_slots(schema, name)}
    out = []
    for numerator, denominator in schema.ratios:
        pair = [_slot_key(text, slots) for text in (numerator, denominator)]
        if all(pair):
            left, right = (slots[key] for key in pair)
            out.append(((left.owner, left.name), (right.owner, right.name)))
    return out


def _slot_key(text: str, slots: dict[str, Slot]) -> str:
    """The number slot a declared `owner.field` means, empty for none."""
    for key in (text, f"{text}.days"):
        if key in slots and slots[key].kind == "number":
            return key
    return ""


def words_of(name: str) -> str:
    return name.replace("_", " ").replace(".", " ").lower()
