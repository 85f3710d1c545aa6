"""Statistics of many ranges of a panel's rows: windows, sums, extremes, lags, streaks.

Everything is computed on demand. For few rows, as in a request, sums of all kinds come out of one
call; for many, only what is asked for is computed, and rows that no window reaches stay unread.
Both give the same bits.

Shapes: n events of the source, Kn numbers, Kg flags, Kc categories, S samples, M flat rows,
W windows.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from foundation.history import DAY_US, SMALL, first_not_before
from foundation.panels import ALL, HALF, Panel, places_of
from foundation.segments import Segments, divide, range_rows

KINDS = ("number", "square", "present", "flag")


class RangeStatistics:
    """Statistics of S ranges of a panel, computed on demand and kept.

    Windows: `all`, `recent half` (the newer half of the events), `30d`, `30d before` (the 30 days
    before the last 30 days). Days count back from as_of by event time.

    Args:
        start, stop: [S] ranges of panel rows.
        as_of_us: [S] int64.
        reach_days: only windows of at most so many days are asked for, and what needs no row
            (lags, presence, the latest event); older rows are then left unread. None reads all.
    """

    def __init__(
        self,
        panel: Panel,
        start: np.ndarray,
        stop: np.ndarray,
        as_of_us: np.ndarray,
        reach_days: int | None = None,
    ) -> None:
        self.panel = panel
        self.start, self.stop = start, stop
        self.as_of_us = as_of_us
        self.reach_days = reach_days
        self.many = int((stop - start).sum()) > SMALL
        first = start
        if reach_days is not None and len(panel.known_us):
            # An event of the window became known at the earliest `soonest_us` after its start.
            since = as_of_us - reach_days * DAY_US + panel.soonest_us
            first = first_not_before(panel.known_us, start, stop, since)
        self.row = range_rows(first, stop)
        self.segments = Segments.of(stop - first)
        moment = np.repeat(as_of_us, self.segments.counts)
        self.age = (moment - panel.event_us.take(self.row)) / DAY_US
        self._windows: dict[str, tuple[Segments, np.ndarray | None]] = {}
        self._sums: dict[tuple[str, str], np.ndarray] = {}
        self._extremes: dict[tuple[str, str], np.ndarray] = {}
        self._means: dict[tuple[str, ...], np.ndarray] = {}

    @cached_property
    def newer(self) -> np.ndarray:
        """[M] bool: rows of the newer half of their range."""
        counts, length = self.segments.counts, self.stop - self.start
        return (self.row - np.repeat(self.start, counts)) * 2 >= np.repeat(length, counts)

    @cached_property
    def numbers(self) -> np.ndarray:
        """[Kn, M] float64."""
        return self._take(self.panel.numbers)

    @cached_property
    def flags(self) -> np.ndarray:
        """[Kg, M] bool."""
        layout = self.panel.layout
        codes = self._take(self.panel.codes)
        index = {c.slot: k for k, c in enumerate(layout.categories)}
        out = np.empty((len(layout.flags), len(self.row)), dtype=bool)
        for k, flag in enumerate(layout.flags):
            if flag.slot:
                at = index[flag.slot]
                np.equal(codes[at], places_of(layout.categories[at].levels)[flag.value], out=out[k])
            elif flag.above:
                np.greater(self.numbers[flag.number], flag.bound, out=out[k])
            else:
                np.greater_equal(self.numbers[flag.number], flag.bound, out=out[k])
        return out

    @cached_property
    def present_rows(self) -> np.ndarray:
        """[Kn, M] bool."""
        return ~np.isnan(self.numbers)

    @cached_property
    def filled(self) -> np.ndarray:
        """[Kn, M] float64: numbers, zero where missing."""
        return self.numbers if self.panel.complete else np.where(self.present_rows, self.numbers, 0)

    def _kind(self, kind: str) -> np.ndarray:
        """[K, M] float64 rows that sums of a kind add up."""
        if kind == "number":
            return self.filled
        if kind == "square":
            return self.filled * self.filled
        return np.asarray(self.present_rows if kind == "present" else self.flags, dtype=np.float64)

    def window(self, name: str) -> tuple[Segments, np.ndarray | None]:
        """Segments of a window and its rows among the M, ascending (None for all)."""
        if name not in self._windows:
            keep = None if name == ALL else self.newer if name == HALF else self._between(name)
            kept = None if keep is None else np.flatnonzero(keep)
            if kept is None or 0 < len(kept) == len(self.row):
                self._windows[name] = (self.segments, None)
            else:
                self._windows[name] = (self.segments.select(kept), kept)
        return self._windows[name]

    def _between(self, name: str) -> np.ndarray:
        days = int(name.split("d")[0])
        if name.endswith("before"):
            return (self.age > days) & (self.age <= 2 * days)
        return (self.age >= 0) & (self.age <= days)

    def count(self, windows: tuple[str, ...]) -> np.ndarray:
        """[W, 1, S] events."""
        counts = [self.window(w)[0].counts for w in windows]
        return np.array(counts, dtype=np.float64).reshape(len(windows), 1, -1)

    def _sum(self, windows: tuple[str, ...], kind: str) -> np.ndarray:
        """[W, K, S] sums of the rows of a kind."""
        for name in windows:
            if (name, kind) not in self._sums:
                segments, kept = self.window(name)
                kinds = (kind,) if self.many else KINDS
                rows = [self._kind(k) for k in kinds]
                table = rows[0] if len(rows) == 1 else np.concatenate(rows)
                table = table if kept is None else table.take(kept, axis=1)
                found = segments.sum(table)
                ends = np.cumsum([len(r) for r in rows])[:-1]
                parts = np.split(found, ends) if len(rows) > 1 else [found]
                self._sums |= {(name, k): part for k, part in zip(kinds, parts, strict=True)}
        return np.array([self._sums[w, kind] for w in windows])

    def present(self, windows: tuple[str, ...]) -> np.ndarray:
        """[W, Kn, S] events with a value."""
        if self.many and self.panel.complete:
            if windows == (ALL,):
                counts = (self.stop - self.start).astype(np.float64)[None, None]
            else:
                counts = self.count(windows)
            return np.repeat(counts, len(self.panel.numbers), axis=1)
        if self.reach_days is not None and windows == (ALL,):
            before = self.panel.present_before
            return (before[:, self.stop] - before[:, self.start]).astype(np.float64)[None]
        return self._sum(windows, "present")

    def sum(self, windows: tuple[str, ...]) -> np.ndarray:
        """[W, Kn, S]; zero without events."""
        return self._sum(windows, "number")

    def mean(self, windows: tuple[str, ...]) -> np.ndarray:
        """[W, Kn, S]; NaN without a value."""
        if windows not in self._means:
            self._means[windows] = divide(self.sum(windows), self.present(windows))
        return self._means[windows]

    def std(self, windows: tuple[str, ...]) -> np.ndarray:
        """[W, Kn, S] population standard deviation; NaN without a value."""
        square = divide(self._sum(windows, "square"), self.present(windows))
        variance = square - self.mean(windows) ** 2
        return np.sqrt(np.where(variance < 1e-12 * square, 0.0, variance))

    def extreme(self, windows: tuple[str, ...], side: str) -> np.ndarray:
        """[W, Kn, S] smallest (`min`) or largest (`max`) value; NaN without a value."""
        worst = np.inf if side == "min" else -np.inf
        rows = self.numbers
        if not self.panel.complete:
            rows = np.where(self.present_rows, rows, worst)
        for name in windows:
            if (name, side) not in self._extremes:
                segments, kept = self.window(name)
                table = rows if kept is None else rows.take(kept, axis=1)
                found = segments.min(table) if side == "min" else segments.max(table)
                self._extremes[name, side] = _finite(found)
        return np.array([self._extremes[w, side] for w in windows])

    def hits(self, windows: tuple[str, ...]) -> np.ndarray:
        """[W, Kg, S] events where the flag is set."""
        return self._sum(windows, "flag")

    def lag(self, steps: int, table: np.ndarray | None = None) -> np.ndarray:
        """[K, S] values of the event `steps` before the last; NaN where there is none."""
        table = self.panel.numbers if table is None else table
        at = self.stop - 1 - steps
        inside = at >= self.start
        out = np.full((table.shape[0], len(at)), np.nan)
        out[:, inside] = table[:, at[inside]]
        return out

    def since_event(self) -> np.ndarray:
        """[1, S] days since the latest event."""
        if self.reach_days is not None:
            return self._since_latest()
        return _finite(self.segments.min(self.age[None]))

    def _since_latest(self) -> np.ndarray:
        """`since_event` where older rows are unread: they count only where no newer one does."""
        age = self.segments.min(self.age[None])
        old = np.flatnonzero((age[0] > (self.reach_days or 0)) & (self.stop > self.start))
        start, stop = self.start[old], self.stop[old]
        moment = np.repeat(self.as_of_us[old], stop - start)
        found = (moment - self.panel.event_us.take(range_rows(start, stop))) / DAY_US
        age[:, old] = Segments.of(stop - start).min(found[None])
        return _finite(age)

    def since_first(self) -> np.ndarray:
        """[1, S] days since the earliest event."""
        return _finite(self.segments.max(self.age[None]))

    def since_hit(self) -> np.ndarray:
        """[Kg, S] days since the flag was last set; NaN where never."""
        return _finite(self.segments.min(np.where(self.flags, self.age, np.inf)))

    def longest(self) -> np.ndarray:
        """[Kc, S] longest streak of any value."""
        return _finite(self.segments.max(self._take(self.panel.streaks)))

    def longest_hit(self) -> np.ndarray:
        """[Kg, S] longest streak of the flag's category value; NaN for flags of numbers."""
        layout = self.panel.layout
        index = {c.slot: k for k, c in enumerate(layout.categories)}
        at = np.array([index.get(f.slot, 0) for f in layout.flags], dtype=np.int64)
        if not len(layout.categories):
            return np.full((len(layout.flags), len(self.segments)), np.nan)
        streaks = self._take(self.panel.streaks)[at]
        return _finite(self.segments.max(np.where(self.flags, streaks, 0.0)))

    def distinct(self) -> np.ndarray:
        """[Kc, S] different values seen."""
        return self.segments.sum(self._take(self.panel.firsts))

    def _take(self, table: np.ndarray) -> np.ndarray:
        if len(self.start) == 1:
            return table[:, self.start[0] : self.stop[0]]
        return np.take(table, self.row, axis=1)


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)
