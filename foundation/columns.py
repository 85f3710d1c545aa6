"""Which aggregate columns a schema and its history call for.

`source_layout` looks at the fit data of one source and decides the rows of its panel; the
`candidates` functions list every column worth trying, each with a name, words for people, a group
for reasons and a priority. The fit keeps those that carry information.

A number slot gets its last values, level, extremes, spread and trend; a category its last value,
streaks and the shares of its frequent values; a category of integers counts as both.
"""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from foundation import strict
from foundation.panels import ALL, HALF, CategoryRow, FlagRow, NumberRow, SourceLayout, as_float
from foundation.schema import Schema
from foundation.slots import Slot, context_slots, profile_slots, source_slots

MAX_LEVELS = 100
MAX_FLAGS = 8
MAX_ORDER_VALUES = 24


class AggregateColumn(strict.Strict):
    """One column.

    Attributes:
        name: unique, such as `statement.status last` or `basket.sales_value sum 28d`.
        kind: `number` or `code`, an index into `levels` (-1 unseen).
        group: what reasons add up by, `source.field`.
        title: words for people.
        block: `aggregate`, `profile` or `context`.
        layout: index of the source layout, -1 for profile and context.
        stat, window, row: which statistic of the layout's panel.
        slot: profile or context slot; for a ratio over the profile its slot.
        over: how a ratio continues: `profile` divides by the profile slot, `under profile` is
            divided by it, `same` divides by `over_layout`, `over_row` of the same statistic.
    """

    name: str
    kind: str = "number"
    levels: tuple[str, ...] = ()
    group: str = ""
    title: str = ""
    block: str = "aggregate"
    layout: int = -1
    stat: str = ""
    window: str = ALL
    row: int = 0
    slot: str = ""
    over: str = ""
    over_layout: int = -1
    over_row: int = 0
    priority: int = 5


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
            flags.append(FlagRow(name=f"{slot.name}={value}", slot=slot.name, value=value,
                                 field=slot.field, title=title))
        if is_order(levels):
            numbers.append(_number_row(slot, "order"))
            top = max(_integers(levels))
            for bound in (1, 2, 3):
                if min(_integers(levels)) < bound < top:
                    flags.append(_bound_flag(slot, len(numbers) - 1, float(bound), above=False))
    numbers += _ratio_rows(schema, name)
    numbers.append(NumberRow(name="gap", kind="gap", title="days between"))
    return SourceLayout(source=source, name=name, numbers=tuple(numbers), flags=tuple(flags),
                        categories=tuple(categories))


def frequent(column: pl.Series, limit: int = MAX_LEVELS) -> tuple[str, ...]:
    """Distinct values, most frequent first, ties by name."""
    counts = pl.DataFrame({"v": column.cast(pl.String)}).drop_nulls().group_by("v").len()
    ranked = counts.sort(["len", "v"], descending=[True, False]).head(limit)
    return tuple(ranked["v"].to_list())


def is_order(levels: tuple[str, ...]) -> bool:
    """Whether a category's values are few integers (some other codes among them allowed)."""
    integers = _integers(levels)
    few = 3 <= len(integers) and len(levels) <= MAX_ORDER_VALUES
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
    return FlagRow(name=f"{slot.name}{sign}{bound:g}", number=number, above=above, bound=bound,
                   field=slot.field, title=f"{slot.title} {sign} {bound:g}")


def _ratio_rows(schema: Schema, source: str) -> list[NumberRow]:
    """Declared ratios whose two sides stand in this source."""
    out = []
    for a, b in _declared_ratios(schema):
        if a[0] == b[0] == source:
            title = f"{_words(a[1])} to {_words(b[1])}"
            out.append(NumberRow(name=f"{a[1]}/{b[1]}", kind="ratio", slot=a[1], other=b[1],
                                 field=a[1], title=title))
            title = f"{_words(a[1])} to the previous {_words(b[1])}"
            out.append(NumberRow(name=f"{a[1]}/previous {b[1]}", kind="ratio_previous", slot=a[1],
                                 other=b[1], field=a[1], title=title))
    return out


def _declared_ratios(schema: Schema) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """Ratios as ((owner, number slot), (owner, number slot)); other declarations are left out."""
    slots = {s.key: s for s in [*profile_slots(schema), *context_slots(schema)]}
    for name in schema.source_names:
        slots |= {s.key: s for s in source_slots(schema, name)}
    out = []
    for left, right in schema.ratios:
        pair = tuple(_slot_key(text, slots) for text in (left, right))
        if all(pair):
            out.append(tuple((slots[key].owner, slots[key].name) for key in pair))
    return out


def _slot_key(text: str, slots: dict[str, Slot]) -> str:
    """The number slot a declared `owner.field` means, empty for none."""
    for key in (text, f"{text}.days"):
        if key in slots and slots[key].kind == "number":
            return key
    return ""


def _words(name: str) -> str:
    return name.replace("_", " ").replace(".", " ").lower()


def _span(window: str) -> str:
    """Words of a window."""
    if window == ALL:
        return "over the whole history"
    return f"in the last {window.removesuffix('d')} days"


def source_candidates(
    schema: Schema, at: int, layout: SourceLayout, windows: tuple[str, ...]
) -> Iterator[AggregateColumn]:
    """Every column of one source."""
    yield from _event_columns(at, layout, windows)
    for row, number in enumerate(layout.numbers):
        yield from _number_columns(at, layout, row, number, windows)
    for row, flag in enumerate(layout.flags):
        yield from _flag_columns(at, layout, row, flag, windows)
    for row, category in enumerate(layout.categories):
        base = {"layout": at, "row": row, "group": f"{layout.name}.{category.field}"}
        key, title = f"{layout.name}.{category.slot}", category.title
        yield AggregateColumn(name=f"{key} last", kind="code", levels=category.levels,
                              stat="code", title=f"last {title}", priority=1, **base)
        for stat, words, priority in (
            ("distinct", f"different values of {title}", 3),
            ("streak", f"times in a row with the last {title}", 2),
            ("longest", f"longest run of one {title}", 4),
        ):
            yield AggregateColumn(name=f"{key} {stat}", stat=stat, title=words,
                                  priority=priority, **base)


def _event_columns(
    at: int, layout: SourceLayout, windows: tuple[str, ...]
) -> Iterator[AggregateColumn]:
    name, words = layout.name, f"{_words(layout.name)} events"
    base = {"layout": at, "group": f"{name}.events"}
    yield AggregateColumn(name=f"{name} since_last", stat="since_event", priority=1,
                          title=f"days since the last of the {words}", **base)
    yield AggregateColumn(name=f"{name} since_first", stat="since_first", priority=1,
                          title=f"days since the first of the {words}", **base)
    for window in (ALL, *windows):
        yield AggregateColumn(name=f"{name} count {window}", stat="count", window=window,
                              title=f"{words} {_span(window)}", priority=1, **base)
    for window in windows:
        yield AggregateColumn(name=f"{name} count_share {window}", stat="count_share",
                              window=window, title=f"share of the {words} {_span(window)}",
                              priority=3, **base)
        yield AggregateColumn(name=f"{name} count_change {window}", stat="count_change",
                              window=window, priority=2,
                              title=f"{words} {_span(window)} against as long before", **base)


def _number_columns(
    at: int, layout: SourceLayout, row: int, number: NumberRow, windows: tuple[str, ...]
) -> Iterator[AggregateColumn]:
    key, words = f"{layout.name}.{number.name}", number.title
    base = {"layout": at, "row": row, "group": f"{layout.name}.{number.field or 'events'}"}
    for stat, title, priority in (
        ("last", f"last {words}", 1),
        ("lag1", f"{words} one before the last", 2),
        ("lag2", f"{words} two before the last", 3),
        ("step", f"last {words} minus the one before", 3),
        ("above_mean", f"last {words} minus its mean", 2),
        ("half_trend", f"{words}: newer half minus older half", 2),
    ):
        yield AggregateColumn(name=f"{key} {stat}", stat=stat, title=title, priority=priority,
                              window=HALF if stat == "half_trend" else ALL, **base)
    for window in (ALL, *windows):
        for stat, title, priority in (
            ("mean", "mean", 1 if window == ALL else 2), ("max", "largest", 2),
            ("min", "smallest", 3), ("sum", "sum of", 2), ("std", "spread of", 3),
        ):
            if stat == "sum" and (number.kind != "slot" or number.slot.endswith(".days")):
                continue
            yield AggregateColumn(name=f"{key} {stat} {window}", stat=stat, window=window,
                                  title=f"{title} {words} {_span(window)}",
                                  priority=priority, **base)
    for window in windows:
        yield AggregateColumn(name=f"{key} mean_change {window}", stat="mean_change",
                              window=window, priority=3,
                              title=f"{words} {_span(window)} minus its mean", **base)
        if number.kind == "slot":
            yield AggregateColumn(name=f"{key} sum_change {window}", stat="sum_change",
                                  window=window, priority=2,
                                  title=f"{words} {_span(window)} against as long before", **base)


def _flag_columns(
    at: int, layout: SourceLayout, row: int, flag: FlagRow, windows: tuple[str, ...]
) -> Iterator[AggregateColumn]:
    key, words = f"{layout.name}.{flag.name}", flag.title
    base = {"layout": at, "row": row, "group": f"{layout.name}.{flag.field}"}
    yield AggregateColumn(name=f"{key} since", stat="since_hit", priority=2,
                          title=f"days since {words}", **base)
    if flag.slot:
        yield AggregateColumn(name=f"{key} longest", stat="longest_hit", priority=4,
                              title=f"longest run of {words}", **base)
    for window in (ALL, *windows):
        yield AggregateColumn(name=f"{key} share {window}", stat="share", window=window,
                              priority=2, title=f"share of {words} {_span(window)}", **base)
        yield AggregateColumn(name=f"{key} hits {window}", stat="hits", window=window,
                              priority=3, title=f"times {words} {_span(window)}", **base)


def ratio_candidates(
    schema: Schema, layouts: tuple[SourceLayout, ...], windows: tuple[str, ...]
) -> Iterator[AggregateColumn]:
    """Declared ratios: last by last, sum by sum, and against the profile."""
    places = {
        (layout.name, row.name): (at, k)
        for at, layout in enumerate(layouts)
        for k, row in enumerate(layout.numbers)
    }
    for (owner_a, a), (owner_b, b) in _declared_ratios(schema):
        left, right = places.get((owner_a, a)), places.get((owner_b, b))
        title = f"{_words(a)} to {_words(b)}"
        if left and right:
            shared = {"layout": left[0], "row": left[1], "over": "same",
                      "over_layout": right[0], "over_row": right[1]}
            kinds = [("last", ALL)] if owner_a != owner_b else []
            kinds += [("sum", w) for w in (ALL, *windows)]
        elif left and owner_b in ("profile", "context"):
            shared = {"layout": left[0], "row": left[1], "over": owner_b, "slot": b}
            kinds = [("last", ALL), ("lag1", ALL), ("max", ALL)]
            kinds += [("mean", w) for w in (ALL, *windows)]
        elif right and owner_a in ("profile", "context"):
            shared = {"layout": right[0], "row": right[1], "over": f"under {owner_a}", "slot": a}
            kinds = [("last", ALL), ("max", ALL), ("mean", ALL)]
        elif owner_a == owner_b and owner_a in ("profile", "context"):
            yield AggregateColumn(name=f"{owner_a}.{a} / {owner_b}.{b}", slot=a, over="row",
                                  stat=b, block=owner_a, group=f"{owner_a}.{a}", title=title,
                                  priority=0)
            continue
        else:
            continue
        for stat, window in kinds:
            suffix = f"{stat} {window}" if stat in ("sum", "mean") else stat
            yield AggregateColumn(name=f"{owner_a}.{a} / {owner_b}.{b} {suffix}", stat=stat,
                                  window=window, group=f"{owner_a}.{a}", priority=1,
                                  title=f"{title}, {stat} {_span(window)}", **shared)


def row_candidates(
    slots: tuple[Slot, ...], levels: dict[str, tuple[str, ...]]
) -> Iterator[AggregateColumn]:
    """Profile or context columns as they are."""
    for slot in slots:
        code = slot.kind != "number"
        yield AggregateColumn(
            name=slot.key, kind="code" if code else "number", block=slot.owner, slot=slot.name,
            levels=levels.get(slot.key, ()) if code else (), group=f"{slot.owner}.{slot.field}",
            title=slot.title, priority=0,
        )
