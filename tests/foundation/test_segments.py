"""Segmented reductions: equal to a slow loop, and the same bits alone as among others."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.segments import Segments, chunks, divide, flat_rows

COUNTS = st.lists(st.integers(0, 40), min_size=0, max_size=12)


@settings(deadline=None, max_examples=25)
@given(COUNTS, st.integers(0, 2**31))
def test_reductions_equal_a_loop_and_do_not_depend_on_neighbours(counts: list[int], seed: int):
    rng = np.random.default_rng(seed)
    segments = Segments.of(np.array(counts, dtype=np.int64))
    values = rng.normal(size=(3, sum(counts))) * 10.0 ** rng.integers(-6, 7)
    total, low, high = segments.sum(values), segments.min(values), segments.max(values)
    keep = rng.random(sum(counts)) < 0.5
    chosen = segments.select(np.flatnonzero(keep))
    first = 0
    for k, count in enumerate(counts):
        own = np.ascontiguousarray(values[:, first : first + count])
        alone = Segments.of(np.array([count]))
        assert alone.sum(own)[:, 0].tobytes() == np.ascontiguousarray(total[:, k]).tobytes()
        assert np.allclose(total[:, k], own.sum(axis=1))
        assert (low[:, k] == own.min(axis=1, initial=np.inf)).all()
        assert (high[:, k] == own.max(axis=1, initial=-np.inf)).all()
        assert chosen.counts[k] == keep[first : first + count].sum()
        first += count


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), min_size=1, max_size=9))
def test_flat_rows_lists_every_range(ranges: list[tuple[int, int]]):
    start = np.array([a for a, _ in ranges])
    stop = start + np.array([n for _, n in ranges])
    row, owner, segments = flat_rows(start, stop)
    expected = [(r, s) for s, (a, n) in enumerate(ranges) for r in range(a, a + n)]
    assert list(zip(row.tolist(), owner.tolist(), strict=True)) == expected
    assert segments.counts.tolist() == [n for _, n in ranges]


@settings(deadline=None, max_examples=25)
@given(COUNTS, st.integers(1, 50))
def test_chunks_cover_every_sample_once(counts: list[int], limit: int):
    parts = list(chunks(np.array(counts, dtype=np.int64), limit))
    assert [i for p in parts for i in range(p.start, p.stop)] == list(range(len(counts)))
    sizes = [sum(counts[p]) for p in parts]
    assert all(size <= limit or p.stop - p.start == 1 for size, p in zip(sizes, parts, strict=True))


def test_divide_gives_nan_for_a_zero_divisor():
    assert np.isnan(divide(np.array([1.0]), np.array([0.0])))[0]
    assert divide(np.array([3.0]), np.array([2.0]))[0] == 1.5
