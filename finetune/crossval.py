"""Repeated, stratified folds in which an entity never stands on both sides.

Shapes: S samples, R repeats, K folds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foundation.errors import SampleError


@dataclass(frozen=True)
class Split:
    """One training and one test side, row positions, ascending."""

    repeat: int
    fold: int
    train: np.ndarray
    test: np.ndarray


def possible_folds(y: np.ndarray, groups: np.ndarray, folds: int) -> int:
    """The number of folds that leaves each fold an entity of either class, at most `folds`."""
    bad = len(np.unique(groups[y == 1]))
    good = len(np.unique(groups[y == 0]))
    return max(0, min(folds, bad, good))


def assign_folds(
    y: np.ndarray, groups: np.ndarray, folds: int, repeats: int, seed: int
) -> np.ndarray:
    """[R, S] int64: the fold of every sample in every repeat.

    Entities are dealt out in a random order, those with a bad first and the larger ones first
    within each class, so that folds hold about the same number of bads and of samples.

    Raises:
        SampleError: fewer than two entities with a bad, or with a good.
    """
    count = possible_folds(y, groups, folds)
    if count < 2:
        raise SampleError(
            f"cross-validation needs at least two entities with label 1 and two with label 0; "
            f"found {len(np.unique(groups[y == 1]))} and {len(np.unique(groups[y == 0]))}"
        )
    _, member = np.unique(groups, return_inverse=True)
    size = np.bincount(member)
    bads = np.bincount(member, weights=y)
    out = np.empty((repeats, len(y)), dtype=np.int64)
    for repeat in range(repeats):
        random = np.random.default_rng((seed, repeat)).random(len(size))
        order = np.lexsort((random, -size, -bads))
        fold = np.empty(len(size), dtype=np.int64)
        fold[order] = _deal(len(order), count)
        out[repeat] = fold[member]
    return out


def _deal(count: int, folds: int) -> np.ndarray:
    """0..folds-1, then backwards, and so on: neighbours in the order balance out."""
    position = np.arange(count)
    lap, step = position // folds, position % folds
    return np.where(lap % 2 == 0, step, folds - 1 - step)


def repeated_splits(
    y: np.ndarray, groups: np.ndarray, folds: int = 5, repeats: int = 3, seed: int = 0
) -> list[Split]:
    """Repeated stratified splits grouped by entity; see `assign_folds`."""
    assigned = assign_folds(y, groups, folds, repeats, seed)
    return [
        Split(r, int(k), np.flatnonzero(fold != k), np.flatnonzero(fold == k))
        for r, fold in enumerate(assigned)
        for k in np.unique(fold)
    ]


def forward_splits(
    y: np.ndarray,
    groups: np.ndarray,
    as_of_us: np.ndarray,
    folds: int = 4,
    label_known_us: np.ndarray | None = None,
) -> list[Split]:
    """Time-aware splits: train on earlier windows, test on the next one.

    The samples are cut into folds + 1 windows of equal size by as_of. A training row must have
    its label known before the test window begins, and its entity must not stand in the window.
    Windows without both classes on either side are left out.

    Args:
        as_of_us, label_known_us: [S] int64 microseconds; without the latter as_of counts.
    Raises:
        SampleError: no window can be judged.
    """
    known = as_of_us if label_known_us is None else np.maximum(as_of_us, label_known_us)
    edges = np.unique(np.quantile(as_of_us, np.linspace(0, 1, folds + 2)[1:-1], method="higher"))
    stops = np.append(edges[1:], np.iinfo(np.int64).max)
    out: list[Split] = []
    for number, (start, stop) in enumerate(zip(edges, stops, strict=True)):
        test = np.flatnonzero((as_of_us >= start) & (as_of_us < stop))
        early = (known < start) & ~np.isin(groups, groups[test])
        train = np.flatnonzero(early)
        if min(len(np.unique(y[train])), len(np.unique(y[test]))) == 2:
            out.append(Split(0, number, train, test))
    if not out:
        raise SampleError(
            "time-aware cross-validation needs windows with both labels before and after a date; "
            "these samples have none"
        )
    return out
