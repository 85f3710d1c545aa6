"""Folds: grouped, stratified, deterministic, safe for few rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.crossval import assign_folds, forward_splits, possible_folds, repeated_splits
from foundation.errors import SampleError

DAY = 86_400_000_000
ROWS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 15)), min_size=6, max_size=80).filter(
    lambda rows: min(len({g for y, g in rows if y == c}) for c in (0, 1)) >= 2
)


@given(ROWS, st.integers(2, 6), st.integers(0, 3))
def test_an_entity_never_stands_on_both_sides(rows, folds: int, seed: int) -> None:  # type: ignore[no-untyped-def]
    y, groups = (np.array(c) for c in zip(*rows, strict=True))
    splits = repeated_splits(y, groups, folds, 2, seed)
    tested = np.zeros((2, len(y)), int)
    for s in splits:
        assert not set(groups[s.train]) & set(groups[s.test])
        assert len(np.union1d(s.train, s.test)) == len(y)
        tested[s.repeat, s.test] += 1
    assert (tested == 1).all()
    again = repeated_splits(y, groups, folds, 2, seed)
    assert all((a.test == b.test).all() for a, b in zip(splits, again, strict=True))


def test_folds_are_stratified_and_repeats_differ() -> None:
    random = np.random.default_rng(0)
    y = (random.random(303) < 0.13).astype(float)
    folds = assign_folds(y, np.arange(303), 5, 3, 0)
    for fold in folds:
        assert np.ptp(np.bincount(fold, weights=y)) <= 1
        assert np.ptp(np.bincount(fold)) <= 2
    assert (folds[0] != folds[1]).any()
    assert (assign_folds(y, np.arange(303), 5, 1, 1) != folds[0]).any()


def test_few_bads_make_fewer_folds() -> None:
    y = np.array([1, 1, 1, 0, 0, 0, 0, 0.0])
    assert possible_folds(y, np.arange(8), 5) == 3
    for s in repeated_splits(y, np.arange(8), 5, 1, 0):
        assert y[s.train].sum() == 2 and y[s.test].sum() == 1


def test_one_entity_with_bads_is_refused() -> None:
    y = np.array([1, 1, 0, 0.0])
    with pytest.raises(SampleError, match="at least two entities with label 1"):
        assign_folds(y, np.array([0, 0, 1, 2]), 5, 1, 0)


def test_forward_splits_train_on_what_was_known() -> None:
    random = np.random.default_rng(0)
    as_of = np.sort(random.integers(0, 400, 300)) * DAY
    y = (random.random(300) < 0.3).astype(float)
    groups = random.integers(0, 200, 300)
    known = as_of + 30 * DAY
    splits = forward_splits(y, groups, as_of, 4, known)
    assert len(splits) >= 3
    for s in splits:
        start = as_of[s.test].min()
        assert (known[s.train] <= start).all() and (as_of[s.train] < start).all()
        assert not set(groups[s.train]) & set(groups[s.test])
    assert as_of[splits[0].test].max() < as_of[splits[1].test].min()


def test_forward_splits_without_time_are_refused() -> None:
    with pytest.raises(SampleError, match="time-aware"):
        forward_splits(np.array([0, 1, 0, 1.0]), np.arange(4), np.zeros(4, np.int64))
