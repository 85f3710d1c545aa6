"""A cached state answers what the whole history answers, or it is rebuilt."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.event_carry import Carry, encode_next, encode_next_query
from finetune.features import POOLINGS, open_session
from finetune.history_graph import export_history
from finetune.incremental import COLUMNS, EntityState, IncrementalEncoder, rows_of
from finetune.incremental_graph import export_incremental
from foundation.backbone import RiskBackbone, RiskBackboneConfig
from foundation.batching import history_batch
from foundation.errors import ArtifactError, InternalError, ParityError
from foundation.history import Timeline, build_timeline, cut
from foundation.schema import Schema, schema_from_dict
from foundation.tokenizer import Tokenizer
from tests.finetune.test_history_graph import SIZES
from tests.foundation.small_lender import SCHEMA as WITH_IDENTIFIER
from tests.foundation.small_lender import START, frames

TOLERANCE = 1e-5
WINDOW = 9
SCHEMA = schema_from_dict(
    {
        "name": "two sources",
        "sources": {
            "payment": {"fields": {"amount": {"kind": "money"}, "shop": {"kind": "category"}}},
            "statement": {"fields": {"bill": {"kind": "money"}}, "time_zone": "Asia/Shanghai"},
        },
        "outcomes": {"quiet": "silence(payment) within 31d"},
    }
)
IDS = pl.Series("entity_id", ["e"])


class Made(NamedTuple):
    tokenizer: Tokenizer
    encoder: IncrementalEncoder
    history: ort.InferenceSession


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    tables, _ = frames(12)
    timeline = build_timeline(
        SCHEMA, {n: f.drop("device", strict=False) for n, f in tables.items()}
    )
    tokenizer = Tokenizer.fit(SCHEMA, timeline, None)
    torch.manual_seed(1)
    model = RiskBackbone(RiskBackboneConfig(**SIZES | {"layers": 3}))
    with torch.no_grad():
        model.forecast_head.weight.normal_(std=0.3)
    folder = tmp_path_factory.mktemp("graphs")
    assert export_history(model, tokenizer, folder / "history.onnx") <= TOLERANCE
    assert export_incremental(model, tokenizer, folder / "incremental.onnx") <= TOLERANCE
    encoder = IncrementalEncoder.load(folder / "incremental.onnx", WINDOW)
    return Made(tokenizer, encoder, open_session(str(folder / "history.onnx")))


def events_of(rows: list[tuple[int, int, bool]], schema: Schema = SCHEMA) -> Timeline:
    """A timeline of one entity from (hour known, hours late, whether a payment) in import order."""
    tables = {}
    for name, wanted in (("payment", True), ("statement", False)):
        mine = [(k, late, i) for i, (k, late, pay) in enumerate(rows) if pay is wanted]
        known = [START + dt.timedelta(hours=k) for k, _, _ in mine]
        tables[name] = pl.DataFrame(
            {
                "entity_id": ["e"] * len(mine),
                "event_time": [START + dt.timedelta(hours=k - late) for k, late, _ in mine],
                "known_at": known,
                "amount": [10.0 + 7 * i for _, _, i in mine],
                "bill": [100.0 + 30 * i for _, _, i in mine],
                "shop": ["food", "fuel"] * (len(mine) // 2) + ["games"] * (len(mine) % 2),
            },
            schema_overrides={
                "entity_id": pl.String,
                "event_time": pl.Datetime("us"),
                "known_at": pl.Datetime("us"),
                "amount": pl.Float64,
                "bill": pl.Float64,
                "shop": pl.String,
            },
        )
    return build_timeline(schema, tables)


def part_of(timeline: Timeline, start: int, stop: int) -> Timeline:
    """Some consecutive events alone, as they arrive."""
    tables = {}
    for source, name in enumerate(timeline.schema.source_names):
        here = np.flatnonzero(timeline.source[start:stop] == source) + start
        tables[name] = timeline.frames[source][timeline.row[here]]
    return build_timeline(timeline.schema, tables)


def moment(hours: float) -> np.ndarray:
    since = (START - dt.datetime(1970, 1, 1)) / dt.timedelta(microseconds=1)
    return np.array([int(since + hours * 3.6e9)])


def whole(made: Made, timeline: Timeline, as_of_us: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the history graph says."""
    found = cut(timeline, IDS, as_of_us)
    queries = made.tokenizer.encode_query(found, timeline, entity_ids=IDS)
    events = made.tokenizer.encode_events(timeline)
    feed = history_batch(events, found, queries, WINDOW).arrays()
    names = [o.name for o in made.history.get_outputs()]
    feed = {i.name: feed[i.name] for i in made.history.get_inputs()}
    out = dict(zip(names, made.history.run(None, feed), strict=True))
    return np.concatenate([out[p] for p in POOLINGS], axis=1), out["forecasts"]


rows = st.lists(
    st.tuples(st.integers(0, 400), st.sampled_from([0, 0, 0, 1, 200]), st.booleans()),
    min_size=1,
    max_size=22,
)


@settings(deadline=None, max_examples=30)
@given(rows=rows, cuts=st.lists(st.integers(0, 22), max_size=4), later=st.integers(1, 900))
def test_events_added_in_parts(made: Made, rows: list, cuts: list[int], later: int) -> None:
    timeline = events_of(rows)
    total = len(timeline)
    bounds = sorted({0, total, *(c for c in cuts if c <= total)})
    tokens = made.tokenizer.encode_events(timeline)
    carry, state = Carry(), None
    for start, stop in pairwise(bounds):
        new = part_of(timeline, start, stop)
        assert carry.precedes(new)
        encoded = encode_next(made.tokenizer, new, carry)
        for name in COLUMNS:
            expected = getattr(tokens, name)[start:stop]
            np.testing.assert_array_equal(getattr(encoded, name), expected, strict=True)
        carry = carry.after(new)
        state = made.encoder.advance(state, encoded, carry)[1]
        assert len(state) == min(stop, WINDOW)
    assert state is not None
    assert carry == Carry().after(timeline)
    for at in (401, 401 + later):
        as_of = moment(at)
        query = encode_next_query(made.tokenizer, SCHEMA, carry, "e", int(as_of[0]))
        answer = made.encoder.query(EntityState.from_bytes(state.to_bytes()), query)
        states, forecasts = whole(made, timeline, as_of)
        np.testing.assert_allclose(answer.states, states, atol=TOLERANCE)
        np.testing.assert_allclose(answer.forecasts, forecasts, atol=TOLERANCE)


@settings(deadline=None, max_examples=30)
@given(rows=rows, more=rows, moments=st.lists(st.integers(0, 500), min_size=1, max_size=4))
def test_whatever_happens_the_answer_is_that_of_the_whole_history(
    made: Made, rows: list, more: list, moments: list[int]
) -> None:
    state = None
    # Events arrive behind, among and before the others, and as_of moves back and forth.
    for count, hour in enumerate(moments):
        timeline = events_of(rows + more[: count * 3])
        as_of = moment(hour)
        found = cut(timeline, IDS, as_of)
        stop = int(found.stop[0])
        queries = made.tokenizer.encode_query(found, timeline, entity_ids=IDS)
        seen = rows_of(made.tokenizer.encode_events(timeline), 0, stop)
        carry = Carry().after(part_of(timeline, 0, stop))
        fits = state is not None and state.begins(rows_of(seen, max(0, stop - WINDOW), stop))
        answer, state, rebuilt = made.encoder.follow(state, seen, carry, queries)
        assert rebuilt != fits
        assert len(state) == min(stop, WINDOW)
        states, forecasts = whole(made, timeline, as_of)
        np.testing.assert_allclose(answer.states, states, atol=TOLERANCE)
        np.testing.assert_allclose(answer.forecasts, forecasts, atol=TOLERANCE)


def followed(made: Made, rows: list, hour: int, state: EntityState | None) -> tuple:
    timeline = events_of(rows)
    found = cut(timeline, IDS, moment(hour))
    queries = made.tokenizer.encode_query(found, timeline, entity_ids=IDS)
    stop = int(found.stop[0])
    seen = rows_of(made.tokenizer.encode_events(timeline), 0, stop)
    return made.encoder.follow(state, seen, Carry().after(part_of(timeline, 0, stop)), queries)


def test_when_a_state_is_rebuilt(made: Made) -> None:
    rows = [(10 * i, 0, i % 3 > 0) for i in range(6)]
    _, state, rebuilt = followed(made, rows, 100, None)
    assert rebuilt
    assert not followed(made, rows, 300, state)[2], "as_of moved on"
    assert not followed(made, [*rows, (70, 65, True)], 300, state)[2], "known later, told of before"
    assert followed(made, [*rows, (25, 0, True)], 300, state)[2], "imported into the past"
    assert followed(made, rows[:-1], 300, state)[2], "erased"
    assert followed(made, rows, 45, state)[2], "as_of before an event of the state"
    full = [(10 * i, 0, i % 3 > 0) for i in range(WINDOW)]
    _, state, _ = followed(made, full, 300, None)
    assert followed(made, [*full, (100, 0, True)], 300, state)[2], "the window slides"


def test_the_past_is_no_extension(made: Made) -> None:
    timeline = events_of([(50, 0, True), (60, 0, False)])
    carry = Carry().after(timeline)
    late = events_of([(60, 0, True)])  # a payment stands before a statement of the same moment
    assert not carry.precedes(late)
    assert carry.precedes(events_of([(60, 0, False)]))
    with pytest.raises(InternalError, match="past"):
        encode_next(made.tokenizer, late, carry)
    assert not carry.before(int(moment(60)[0]))
    assert carry.before(int(moment(60)[0]) + 1)
    with pytest.raises(InternalError, match="before an event"):
        encode_next_query(made.tokenizer, SCHEMA, carry, "e", int(moment(60)[0]))
    tables, _ = frames(1)
    identified = build_timeline(WITH_IDENTIFIER, {"payment": tables["payment"]})
    assert not replace(carry, last_known_us=0).precedes(identified)


def test_an_entity_without_events(made: Made) -> None:
    timeline = events_of([(50, 0, True)])
    as_of = moment(10)
    state = made.encoder.begin(rows_of(made.tokenizer.encode_events(timeline), 0, 0), Carry())
    query = encode_next_query(made.tokenizer, SCHEMA, Carry(), "e", int(as_of[0]))
    states, forecasts = whole(made, timeline, as_of)
    again = EntityState.from_bytes(state.to_bytes())
    for each in (state, again):
        answer = made.encoder.query(each, query)
        np.testing.assert_allclose(answer.states, states, atol=TOLERANCE)
        np.testing.assert_allclose(answer.forecasts, forecasts, atol=TOLERANCE)


def test_bytes_of_a_state(made: Made) -> None:
    timeline = events_of([(10 * i, 0, i % 2 > 0) for i in range(5)])
    tokens = made.tokenizer.encode_events(timeline)
    state = made.encoder.begin(tokens, Carry().after(timeline))
    data = state.to_bytes()
    again = EntityState.from_bytes(data)
    assert again.carry == state.carry
    assert again.begins(tokens)
    np.testing.assert_array_equal(again.memory, state.memory, strict=True)
    half = EntityState.from_bytes(state.to_bytes(half=True))
    np.testing.assert_allclose(half.memory, state.memory, atol=5e-3)
    for place in range(0, len(data), 37):
        broken = data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]
        with pytest.raises(ArtifactError, match="state"):
            EntityState.from_bytes(broken)
    for wrong in (b"", data[:-1], data + b"\0", data[:40]):
        with pytest.raises(ArtifactError, match="state"):
            EntityState.from_bytes(wrong)
    with pytest.raises(InternalError, match="another backbone"):
        made.encoder.extend(replace(state, backbone="other"), tokens, state.carry)
    with pytest.raises(InternalError, match="do not make"):
        made.encoder.extend(state, tokens, state.carry)


def test_what_cannot_be_incremental(made: Made, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = RiskBackbone(RiskBackboneConfig(**SIZES | {"bidirectional": True}))
    with pytest.raises(ArtifactError, match="bidirectional"):
        export_incremental(model, made.tokenizer, tmp_path / "i.onnx")
    model = RiskBackbone(RiskBackboneConfig(**SIZES))
    with pytest.raises(ParityError, match="differs"):
        export_incremental(model, made.tokenizer, tmp_path / "i.onnx", tolerance=-1.0)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ArtifactError, match="no such graph"):
        IncrementalEncoder.load(tmp_path / "i.onnx", WINDOW)
    assert export_history(model, made.tokenizer, tmp_path / "h.onnx") <= TOLERANCE
    with pytest.raises(ArtifactError, match="no cached state"):
        IncrementalEncoder.load(tmp_path / "h.onnx", WINDOW)
