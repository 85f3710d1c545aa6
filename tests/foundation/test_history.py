"""The as-of cut against a brute-force oracle; nothing known at or after it gets through."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation import history
from foundation.history import (
    build_profile,
    build_timeline,
    cut,
    entity_codes,
    flatten,
    latest_profile,
)
from foundation.schema import Schema, schema_from_dict
from foundation.slots import source_values

SCHEMA: Schema = schema_from_dict(
    {
        "sources": {
            "pay": {
                "fields": {
                    "amount": {"kind": "money"},
                    "status": {"kind": "category"},
                    "due": {"kind": "timestamp"},
                    "device": {"kind": "identifier", "sharing": True},
                }
            },
            "call": {"fields": {"note": {"kind": "category"}}},
        }
    }
)
ENTITIES = ("a", "b", "c")

# small times make ties; `delay` makes late events
EVENT = st.tuples(
    st.sampled_from(("pay", "call")),
    st.sampled_from(ENTITIES),
    st.integers(0, 6),  # event time, microseconds
    st.integers(0, 3),  # known that much later
    st.integers(0, 9),  # content
)
EVENTS = st.lists(EVENT, max_size=30)
SAMPLES = st.lists(
    st.tuples(st.sampled_from((*ENTITIES, "z")), st.integers(-1, 11)), min_size=1, max_size=12
)


def frames(events: list[tuple]) -> dict[str, pl.DataFrame]:
    """Frames in list order, which is the import order."""
    out: dict[str, pl.DataFrame] = {}
    for name in ("pay", "call"):
        rows = [e for e in events if e[0] == name]
        columns: dict[str, Any] = {
            "entity_id": pl.Series([e[1] for e in rows], dtype=pl.String),
            "event_time": moments([e[2] for e in rows]),
            "known_at": moments([e[2] + e[3] for e in rows]),
        }
        content = [e[4] for e in rows]
        if name == "pay":
            columns |= {
                "amount": pl.Series([float(c) for c in content], dtype=pl.Float64),
                "status": pl.Series([f"s{c % 3}" for c in content], dtype=pl.String),
                "due": moments(list(content)),
                "device": pl.Series([f"d{c % 4}" for c in content], dtype=pl.String),
                "device__shared_with": pl.Series([c % 2 for c in content], dtype=pl.Int64),
            }
        else:
            columns["note"] = pl.Series([f"n{c}" for c in content], dtype=pl.String)
        out[name] = pl.DataFrame(columns)
    return out


def moments(us: list[int]) -> pl.Series:
    return pl.Series(us, dtype=pl.Int64).cast(pl.Datetime("us"))


def oracle(events: list[tuple], entity: str, as_of: int) -> list[tuple]:
    """Known before as_of, by a plain loop: (known, event, source, import order) and content."""
    kept = []
    for source in SCHEMA.source_names:
        own = [e for e in events if e[0] == source]
        for row, (_, who, when, late, content) in enumerate(own):
            if who == entity and when + late < as_of:
                kept.append((when + late, when, SCHEMA.source_names.index(source), row, content))
    return sorted(kept)


def histories(events: list[tuple], samples: list[tuple[str, int]]) -> list[list[tuple]]:
    timeline = build_timeline(SCHEMA, frames(events))
    made = cut(timeline, pl.Series([s[0] for s in samples]), np.array([s[1] for s in samples]))
    out: list[list[tuple]] = [[] for _ in samples]
    for position, sample in zip(*flatten(made), strict=True):
        source = int(timeline.source[position])
        row = int(timeline.row[position])
        frame = timeline.frames[source]
        paid = SCHEMA.source_names[source] == "pay"
        content = int(frame["amount"][row]) if paid else int(frame["note"][row][1:])
        known, event = int(timeline.known_us[position]), int(timeline.event_us[position])
        out[sample].append((known, event, source, row, content))
    return out


@given(EVENTS, SAMPLES)
def test_cut_equals_oracle(events: list[tuple], samples: list[tuple[str, int]]) -> None:
    assert histories(events, samples) == [oracle(events, e, t) for e, t in samples]


@given(EVENTS, EVENTS, st.integers(-1, 11))
def test_future_changes_no_byte(events: list[tuple], other: list[tuple], as_of: int) -> None:
    """Everything known at or after as_of is replaced by other events; not a byte changes."""
    past = [e for e in events if e[2] + e[3] < as_of]
    future = [(s, e, t + as_of + 1, d, c) for s, e, t, d, c in other]
    # other entities' future too, and placed between the past events of the import
    mixed = [x for pair in zip(past, future, strict=False) for x in pair]
    mixed += past[len(future) :] + future[len(past) :]
    assert slots_before(events, as_of) == slots_before(mixed, as_of) == slots_before(past, as_of)


def slots_before(events: list[tuple], as_of: int) -> list[bytes]:
    """Bytes of every slot of every event in the cuts at as_of, in timeline order."""
    timeline = build_timeline(SCHEMA, frames(events))
    made = cut(timeline, pl.Series(ENTITIES), np.full(len(ENTITIES), as_of))
    position, sample = flatten(made)
    out = [
        sample.tobytes(),
        timeline.known_us[position].tobytes(),
        timeline.event_us[position].tobytes(),
        timeline.source[position].tobytes(),
    ]
    for index in range(2):
        own = position[timeline.source[position] == index]
        rank = np.searchsorted(timeline.positions(index), own)
        for name, column in sorted(source_values(timeline, index).items()):
            out.append(f"{name}={column.gather(rank).to_list()}".encode())
    return out


def test_event_at_as_of_is_not_known() -> None:
    events = [("pay", "a", 5, 0, 1), ("pay", "a", 4, 1, 2), ("pay", "a", 4, 0, 3)]
    assert histories(events, [("a", 5)]) == [[(4, 4, 1, 2, 3)]]


def test_late_event_stands_where_it_became_known() -> None:
    events = [("pay", "a", 1, 3, 7), ("pay", "a", 2, 0, 8)]
    (history,) = histories(events, [("a", 10)])
    assert [row[4] for row in history] == [8, 7]


def test_ties_keep_source_then_import_order() -> None:
    events = [("call", "a", 3, 0, 1), ("pay", "a", 3, 0, 2), ("pay", "a", 3, 0, 1)]
    (history,) = histories(events, [("a", 4)])
    assert [(row[2], row[4]) for row in history] == [(0, 1), (1, 2), (1, 1)]


def test_no_events_at_all() -> None:
    timeline = build_timeline(SCHEMA, {})
    made = cut(timeline, pl.Series(["a"]), np.array([5]))
    assert (made.entity.tolist(), made.start.tolist(), made.stop.tolist()) == ([-1], [0], [0])


@given(st.lists(st.sampled_from(("", "a", "b", "é", "中")), max_size=20), st.integers(0, 20))
def test_entity_codes(ids: list[str], split: int) -> None:
    columns = [pl.Series(ids[:split], dtype=pl.String), pl.Series(ids[split:], dtype=pl.String)]
    names, codes = entity_codes(*columns)
    assert names.to_list() == sorted(set(ids), key=str.encode)
    assert [names[int(c)] for c in np.concatenate(codes)] == ids


PROFILE_ROWS = st.lists(
    st.tuples(st.sampled_from(ENTITIES), st.none() | st.integers(0, 5)), max_size=12
)


def profile_frame(rows: list[tuple[str, int | None]]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "entity_id": pl.Series([r[0] for r in rows], dtype=pl.String),
            "known_at": pl.Series([r[1] for r in rows], dtype=pl.Int64).cast(pl.Datetime("us")),
            "n": pl.Series(range(len(rows)), dtype=pl.Int64),
        }
    )


@settings(deadline=None, max_examples=40)
@given(EVENTS, SAMPLES, PROFILE_ROWS)
def test_few_rows_take_another_path_to_the_same_bytes(
    events: list[tuple], samples: list[tuple[str, int]], rows: list[tuple[str, int | None]]
) -> None:
    ids, at = pl.Series([s[0] for s in samples]), np.array([s[1] for s in samples])

    def everything() -> list[tuple]:
        timeline, profile = (
            build_timeline(SCHEMA, frames(events)),
            build_profile(profile_frame(rows)),
        )
        made = cut(timeline, ids, at)
        arrays = (
            timeline.offsets,
            timeline.known_us,
            timeline.event_us,
            timeline.source,
            timeline.row,
            made.entity,
            made.start,
            made.stop,
            profile.offsets,
            profile.known_us,
            latest_profile(profile, ids, at),
        )
        listed = [timeline.entity_ids, profile.entity_ids, *profile.frame.get_columns()]
        found = [(str(a.dtype), a.tobytes()) for a in arrays]
        return found + [(str(c.dtype), c.name, c.to_list()) for c in listed]

    few = everything()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history, "SMALL", -1)
        assert everything() == few


@given(PROFILE_ROWS, SAMPLES)
def test_latest_profile_equals_oracle(
    rows: list[tuple[str, int | None]], samples: list[tuple[str, int]]
) -> None:
    profile = build_profile(profile_frame(rows))
    at = np.array([s[1] for s in samples])
    found = latest_profile(profile, pl.Series([s[0] for s in samples]), at)
    got = [None if row < 0 else profile.frame["n"][int(row)] for row in found]
    expected = []
    for entity, as_of in samples:
        known = [
            (-1 if t is None else t, n)
            for n, (e, t) in enumerate(rows)
            if e == entity and (t is None or t < as_of)
        ]
        expected.append(max(known)[1] if known else None)
    assert got == expected
