"""Padded batches hold exactly the histories asked for, in every size and order."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from foundation.batching import HistoryBatch, gather_histories, history_batches
from foundation.encoded import EncodedEvents, EncodedQueries
from foundation.history import Cut


def some_events(count: int, rng: np.random.Generator) -> EncodedEvents:
    return EncodedEvents(
        source=rng.integers(0, 3, count).astype(np.int16),
        code=rng.integers(1, 99, (count, 4)).astype(np.int32),
        value=rng.random((count, 4), dtype=np.float32),
        extra=rng.random((count, 5), dtype=np.float32),
        days=rng.random(count, dtype=np.float32),
    )


def some_samples(events: int, samples: int, rng: np.random.Generator) -> tuple[Cut, EncodedQueries]:
    ends = np.sort(rng.integers(0, events + 1, (samples, 2)), axis=1)
    cut = Cut(np.zeros(samples, np.int64), ends[:, 0], ends[:, 1], np.arange(samples))
    queries = EncodedQueries(
        days=rng.random(samples, dtype=np.float32),
        extra=rng.random((samples, 3), dtype=np.float32),
        code=rng.integers(1, 9, (samples, 2)).astype(np.int32),
        value=rng.random((samples, 2), dtype=np.float32),
    )
    return cut, queries


@given(
    seed=st.integers(0, 10**6),
    samples=st.integers(0, 30),
    batch_size=st.integers(1, 9),
    max_events=st.integers(1, 12),
    by_length=st.booleans(),
)
def test_batches_hold_the_last_events(
    seed: int, samples: int, batch_size: int, max_events: int, by_length: bool
) -> None:
    rng = np.random.default_rng(seed)
    events = some_events(40, rng)
    cut, queries = some_samples(40, samples, rng)
    seen: list[int] = []
    for rows, batch in history_batches(
        events, cut, queries, batch_size, max_events, sort_by_length=by_length
    ):
        seen += rows.tolist()
        longest = int(np.minimum(cut.stop - cut.start, max_events)[rows].max())
        assert batch.code.shape == (len(rows), max(1, longest), 4)
        for place, sample in enumerate(rows):
            stop = cut.stop[sample]
            own = slice(max(cut.start[sample], stop - max_events), stop)
            length = own.stop - own.start
            assert batch.query_position[place].tolist() == [length]
            for name in ("source", "code", "value", "extra", "days"):
                column = getattr(batch, name)[place]
                assert (column[:length] == getattr(events, name)[own]).all()
                assert not column[length:].any()
            for name in ("days", "extra", "code", "value"):
                wanted = getattr(queries, name)[sample]
                assert (getattr(batch, f"query_{name}")[place, 0] == wanted).all()
    assert sorted(seen) == list(range(samples))
    if not by_length:
        assert seen == sorted(seen)


def test_sorting_by_length_pads_little() -> None:
    rng = np.random.default_rng(0)
    events = some_events(400, rng)
    cut, queries = some_samples(400, 64, rng)
    cells = {
        by_length: sum(
            batch.source.size
            for _, batch in history_batches(events, cut, queries, 8, 400, by_length)
        )
        for by_length in (True, False)
    }
    assert cells[True] < 0.8 * cells[False]


@settings(max_examples=25, deadline=None)
@given(count=st.integers(0, 60), size=st.integers(1, 9), seed=st.integers(0, 99))
def test_alike_histories_are_never_padded(count: int, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    cut, queries = some_samples(80, count, rng)
    made = list(history_batches(some_events(80, rng), cut, queries, size, 7, alike=True))
    seen = np.concatenate([rows for rows, _ in made]) if made else np.zeros(0, np.int64)
    assert np.sort(seen).tolist() == list(range(count))
    for rows, batch in made:
        length = np.minimum(cut.stop - cut.start, 7)[rows]
        assert 0 < len(rows) <= size and len(np.unique(length)) == 1
        assert batch.source.shape[1] == max(1, length[0])
    lengths = np.minimum(cut.stop - cut.start, 7)
    assert len(made) == sum(-(-n // size) for n in np.unique(lengths, return_counts=True)[1])


def test_names_types_and_order_are_those_of_the_graph() -> None:
    rng = np.random.default_rng(0)
    cut, queries = some_samples(10, 3, rng)
    ((_, batch),) = history_batches(some_events(10, rng), cut, queries, 8, 10)
    assert isinstance(batch, HistoryBatch) and len(batch) == 3
    assert {k: (v.dtype.name, v.ndim) for k, v in batch.arrays().items()} == {
        "source": ("int64", 2), "code": ("int64", 3), "value": ("float32", 3),
        "extra": ("float32", 3), "days": ("float32", 2), "query_days": ("float32", 2),
        "query_extra": ("float32", 3), "query_code": ("int64", 3),
        "query_value": ("float32", 3), "query_position": ("int64", 2),
    }  # fmt: skip


@pytest.mark.parametrize("count", [0, 5])
def test_samples_without_events_still_make_a_batch(count: int) -> None:
    rng = np.random.default_rng(0)
    nothing = np.zeros(2, np.int64)
    padded = gather_histories(some_events(count, rng), nothing, nothing, 8)
    assert padded.code.shape == (2, 1, 4) and not padded.code.any()
    assert padded.length.tolist() == [0, 0] and (padded.position == -1).all()
    assert gather_histories(some_events(count, rng), nothing[:0], nothing[:0], 8).code.shape[0] == 0


def test_positions_lead_back_to_the_timeline() -> None:
    events = some_events(9, np.random.default_rng(0))
    padded = gather_histories(events, np.array([0, 4]), np.array([3, 9]), 4)
    assert padded.position.tolist() == [[0, 1, 2, -1], [5, 6, 7, 8]]
    assert padded.length.tolist() == [3, 4]
