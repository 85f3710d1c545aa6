"""Which aggregate columns a schema and its history call for.

The `candidates` functions list every column worth trying, each with a name, words for people, a
group for reasons and a priority. The fit keeps those that carry information.

A number slot gets its last values, level, extremes, spread and trend; a category its last value,
streaks and the shares of its frequent values; a category of integers counts as both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from foundation import strict
from foundation.layouts import declared_ratios, words_of
from foundation.panels import ALL, HALF, FlagRow, NumberRow, SourceLayout
from foundation.schema import Schema
from foundation.slots import Slot


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
        base: dict[str, Any] = {
            "layout": at,
            "row": row,
            "group": f"{layout.name}.{category.field}",
        }
        key, title = f"{layout.name}.{category.slot}", category.title
        yield AggregateColumn(
            name=f"{key} last",
            kind="code",
            levels=category.levels,
            stat="code",
            title=f"last {title}",
            priority=1,
            **base,
        )
        for stat, words, priority in (
            ("distinct", f"different values of {title}", 3),
            ("streak", f"times in a row with the last {title}", 2),
            ("longest", f"longest run of one {title}", 4),
        ):
            yield AggregateColumn(
                name=f"{key} {stat}", stat=stat, title=words, priority=priority, **base
            )


def _event_columns(
    at: int, layout: SourceLayout, windows: tuple[str, ...]
) -> Iterator[AggregateColumn]:
    name, words = layout.name, f"{words_of(layout.name)} events"
    base: dict[str, Any] = {"layout": at, "group": f"{name}.events"}
    yield AggregateColumn(
        name=f"{name} since_last",
        stat="since_event",
        priority=1,
        title=f"days since the last of the {words}",
        **base,
    )
    yield AggregateColumn(
        name=f"{name} since_first",
        stat="since_first",
        priority=1,
        title=f"days since the first of the {words}",
        **base,
    )
    for window in (ALL, *windows):
        yield AggregateColumn(
            name=f"{name} count {window}",
            stat="count",
            window=window,
            title=f"{words} {_span(window)}",
            priority=1,
            **base,
        )
    for window in windows:
        yield AggregateColumn(
            name=f"{name} count_share {window}",
            stat="count_share",
            window=window,
            title=f"share of the {words} {_span(window)}",
            priority=3,
            **base,
        )
        yield AggregateColumn(
            name=f"{name} count_change {window}",
            stat="count_change",
            window=window,
            priority=2,
            title=f"{words} {_span(window)} against as long before",
            **base,
        )


def _number_columns(
    at: int, layout: SourceLayout, row: int, number: NumberRow, windows: tuple[str, ...]
) -> Iterator[AggregateColumn]:
    key, words = f"{layout.name}.{number.name}", number.title
    base: dict[str, Any] = {
        "layout": at,
        "row": row,
        "group": f"{layout.name}.{number.field or 'events'}",
    }
    for stat, title, priority in (
        ("last", f"last {words}", 1),
        ("lag1", f"{words} one before the last", 2),
        ("lag2", f"{words} two before the last", 3),
        ("step", f"last {words} minus the one before", 3),
        ("above_mean", f"last {words} minus its mean", 2),
        ("half_trend", f"{words}: newer half minus older half", 2),
    ):
        yield AggregateColumn(
            name=f"{key} {stat}",
            stat=stat,
            title=title,
            priority=priority,
            window=HALF if stat == "half_trend" else ALL,
            **base,
        )
    for window in (ALL, *windows):
        for stat, title, priority in (
            ("mean", "mean", 1 if window == ALL else 2),
            ("max", "largest", 2),
            ("min", "smallest", 3),
            ("sum", "sum of", 2),
            ("std", "spread of", 3),
        ):
            if stat == "sum" and (number.kind != "slot" or number.slot.endswith(".days")):
                continue
            yield AggregateColumn(
                name=f"{key} {stat} {window}",
                stat=stat,
                window=window,
                title=f"{title} {words} {_span(window)}",
                priority=priority,
                **base,
            )
    for window in windows:
        yield AggregateColumn(
            name=f"{key} mean_change {window}",
            stat="mean_change",
            window=window,
            priority=3,
            title=f"{words} {_span(window)} minus its mean",
            **base,
        )
        if number.kind == "slot":
            yield AggregateColumn(
                name=f"{key} sum_change {window}",
                stat="sum_change",
                window=window,
                priority=2,
                title=f"{words} {_span(window)} against as long before",
                **base,
            )


def _flag_columns(
    at: int, layout: SourceLayout, row: int, flag: FlagRow, windows: tuple[str, ...]
) -> Iterator[AggregateColumn]:
    key, words = f"{layout.name}.{flag.name}", flag.title
    base: dict[str, Any] = {"layout": at, "row": row, "group": f"{layout.name}.{flag.field}"}
    yield AggregateColumn(
        name=f"{key} since", stat="since_hit", priority=2, title=f"days since {words}", **base
    )
    if flag.slot:
        yield AggregateColumn(
            name=f"{key} longest",
            stat="longest_hit",
            priority=4,
            title=f"longest run of {words}",
            **base,
        )
    for window in (ALL, *windows):
        yield AggregateColumn(
            name=f"{key} share {window}",
            stat="share",
            window=window,
            priority=2,
            title=f"share of {words} {_span(window)}",
            **base,
        )
        yield AggregateColumn(
            name=f"{key} hits {window}",
            stat="hits",
            window=window,
            priority=3,
            title=f"times {words} {_span(window)}",
            **base,
        )


def ratio_candidates(
    schema: Schema, layouts: tuple[SourceLayout, ...], windows: tuple[str, ...]
) -> Iterator[AggregateColumn]:
    """Declared ratios: last by last, sum by sum, and against the profile."""
    places = {
        (layout.name, row.name): (at, k)
        for at, layout in enumerate(layouts)
        for k, row in enumerate(layout.numbers)
    }
    for (owner_a, a), (owner_b, b) in declared_ratios(schema):
        left, right = places.get((owner_a, a)), places.get((owner_b, b))
        title = f"{words_of(a)} to {words_of(b)}"
        if left and right:
            shared: dict[str, Any] = {
                "layout": left[0],
                "row": left[1],
                "over": "same",
                "over_layout": right[0],
                "over_row": right[1],
            }
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
            yield AggregateColumn(
                name=f"{owner_a}.{a} / {owner_b}.{b}",
                slot=a,
                over="row",
                stat=b,
                block=owner_a,
                group=f"{owner_a}.{a}",
                title=title,
                priority=0,
            )
            continue
        else:
            continue
        for stat, window in kinds:
            suffix = f"{stat} {window}" if stat in ("sum", "mean") else stat
            yield AggregateColumn(
                name=f"{owner_a}.{a} / {owner_b}.{b} {suffix}",
                stat=stat,
                window=window,
                group=f"{owner_a}.{a}",
                priority=1,
                title=f"{title}, {stat} {_span(window)}",
                **shared,
            )


def row_candidates(
    slots: tuple[Slot, ...], levels: dict[str, tuple[str, ...]]
) -> Iterator[AggregateColumn]:
    """Profile or context columns as they are."""
    for slot in slots:
        code = slot.kind != "number"
        yield AggregateColumn(
            name=slot.key,
            kind="code" if code else "number",
            block=slot.owner,
            slot=slot.name,
            levels=levels.get(slot.key, ()) if code else (),
            group=f"{slot.owner}.{slot.field}",
            title=slot.title,
            priority=0,
        )
