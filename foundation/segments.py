"""Reductions over many short ranges at once: the arithmetic under the aggregates.

A flat layout puts the rows of segment after segment into one axis. Every reduction reads only its
own segment, in order, so that a segment's result never depends on its neighbours: a sample alone
and the same sample among thousands give the same bits.

Shapes: M flat rows, S segments, R stacked rows that are reduced together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Segments:
    """Ranges of a flat axis, one after another without gaps.

    Attributes:
        counts: [S] int64 rows of each segment, zero allowed.
        filled: [S'] int64 indices of the segments that have rows.
        starts: [S'] int64 first flat row of each of them.
    """

    counts: np.ndarray
    filled: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, counts: np.ndarray) -> Segments:
        """Segments with these numbers of rows."""
        counts = np.asarray(counts, dtype=np.int64)
        filled = np.flatnonzero(counts)
        ends = np.cumsum(counts)
        return cls(counts, filled, (ends - counts)[filled])

    def __len__(self) -> int:
        return len(self.counts)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """[R, M] to [R, S]; zero for an empty segment."""
        return self._reduce(np.add, values, 0.0)

    def min(self, values: np.ndarray) -> np.ndarray:
        """[R, M] to [R, S]; +inf for an empty segment."""
        return self._reduce(np.minimum, values, np.inf)

    def max(self, values: np.ndarray) -> np.ndarray:
        """[R, M] to [R, S]; -inf for an empty segment."""
        return self._reduce(np.maximum, values, -np.inf)

    def select(self, kept: np.ndarray) -> Segments:
        """The segments of some rows.

        Args:
            kept: [M'] int64 flat rows, ascending.
        """
        if not len(self.starts):
            return self
        if len(self.counts) == 1:
            return Segments.of(np.array([len(kept)]))
        counts = np.zeros(len(self.counts), dtype=np.int64)
        counts[self.filled] = np.diff(kept.searchsorted(self.starts), append=len(kept))
        return Segments.of(counts)

    def _reduce(self, ufunc: np.ufunc, values: np.ndarray, empty: float) -> np.ndarray:
        if len(self.filled) == len(self.counts) and len(self.counts) and values.shape[0]:
            return ufunc.reduceat(values, self.starts, axis=1)
        out = np.full((values.shape[0], len(self.counts)), empty)
        if len(self.starts) and values.shape[0]:
            out[:, self.filled] = ufunc.reduceat(values, self.starts, axis=1)
        return out


def flat_rows(start: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray, Segments]:
    """Ranges [start, stop) laid out flat.

    Returns:
        row: [M] int64 rows of every range, range after range.
        owner: [M] int64 index of the range each row belongs to.
        segments: the S ranges on the flat axis.
    """
    counts = stop - start
    owner = np.repeat(np.arange(len(counts)), counts)
    return range_rows(start, stop), owner, Segments.of(counts)


def range_rows(start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """[M] int64 rows of every range [start, stop), range after range."""
    if len(start) == 1:
        return np.arange(start[0], stop[0])
    counts = stop - start
    row = np.repeat(start - (np.cumsum(counts) - counts), counts)
    row += np.arange(len(row))
    return row


def chunks(counts: np.ndarray, limit: int) -> Iterator[slice]:
    """Slices of consecutive samples whose rows stay near `limit` together."""
    ends = np.cumsum(counts + 1)
    first = 0
    while first < len(counts):
        before = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + limit, side="right")))
        yield slice(first, last)
        first = last


def divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b in float64, NaN where b is zero or missing."""
    return np.where(np.equal(b, 0), np.nan, a) / b
