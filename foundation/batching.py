"""Samples and encoded events to padded batches, the same for training, export and scoring.

A history that is longer than asked for keeps its last events. Batches are right-padded with code 0
to their longest history; a query sees the events before its position and itself, events never see
queries.

Shapes: N events, S samples, B batch, L longest history of the batch (at least 1), K slots of an
event, X extra columns, Q queries of a history, P profile and context slots, Y query columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np

from foundation.history import Cut
from foundation.tokenizer import EncodedEvents, EncodedQueries


@dataclass
class HistoryBatch:
    """One padded batch; attribute names are the input names of the exported graph.

    Attributes:
        source: [B, L] int64; code: [B, L, K] int64; value: [B, L, K] float32.
        extra: [B, L, X] float32; days: [B, L] float32. All 0 where padded.
        query_days: [B, Q] float32; query_extra: [B, Q, Y] float32.
        query_code: [B, Q, P] int64; query_value: [B, Q, P] float32.
        query_position: [B, Q] int64 number of leading events the query may see.
    """

    source: np.ndarray
    code: np.ndarray
    value: np.ndarray
    extra: np.ndarray
    days: np.ndarray
    query_days: np.ndarray
    query_extra: np.ndarray
    query_code: np.ndarray
    query_value: np.ndarray
    query_position: np.ndarray

    def __len__(self) -> int:
        return len(self.source)

    def arrays(self) -> dict[str, np.ndarray]:
        """Every array by name, as an ONNX session is fed."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass
class PaddedHistories:
    """The event half of a batch.

    Attributes:
        source, code, value, extra, days: as in `HistoryBatch`.
        length: [B] int64 events of each history; position: [B, L] int64 timeline position of every
            event, -1 where padded.
    """

    source: np.ndarray
    code: np.ndarray
    value: np.ndarray
    extra: np.ndarray
    days: np.ndarray
    length: np.ndarray
    position: np.ndarray


def gather_histories(
    events: EncodedEvents, start: np.ndarray, stop: np.ndarray, max_events: int
) -> PaddedHistories:
    """Ranges of events as padded arrays.

    Args:
        start, stop: [B] int64; range b is events start[b]:stop[b], of which the last `max_events`
            are taken.
        max_events: at least 1.
    """
    start = np.maximum(np.asarray(start, dtype=np.int64), np.asarray(stop) - max_events)
    length = np.asarray(stop, dtype=np.int64) - start
    if len(length) == 1 and length[0]:
        return _gather_one(events, int(start[0]), int(length[0]))
    steps = np.arange(max(1, int(length.max(initial=0))))
    filled = steps < length[:, None]
    flat = (start[:, None] + steps)[filled]

    def padded(column: np.ndarray, dtype: type) -> np.ndarray:
        out = np.zeros(filled.shape + column.shape[1:], dtype=dtype)
        out[filled] = column[flat]
        return out

    position = np.full(filled.shape, -1, dtype=np.int64)
    position[filled] = flat
    return PaddedHistories(
        source=padded(events.source, np.int64),
        code=padded(events.code, np.int64),
        value=padded(events.value, np.float32),
        extra=padded(events.extra, np.float32),
        days=padded(events.days, np.float32),
        length=length,
        position=position,
    )


def _gather_one(events: EncodedEvents, start: int, length: int) -> PaddedHistories:
    """`gather_histories` of one range, which needs no padding."""
    rows = slice(start, start + length)
    return PaddedHistories(
        source=events.source[None, rows].astype(np.int64),
        code=events.code[None, rows].astype(np.int64),
        value=events.value[None, rows],
        extra=events.extra[None, rows],
        days=events.days[None, rows],
        length=np.array([length], dtype=np.int64),
        position=np.arange(start, start + length)[None],
    )


def history_batches(
    events: EncodedEvents,
    cut: Cut,
    queries: EncodedQueries,
    batch_size: int,
    max_events: int,
    sort_by_length: bool = True,
    alike: bool = False,
) -> Iterator[tuple[np.ndarray, HistoryBatch]]:
    """Batches of samples with one query each, after their last event.

    Args:
        cut, queries: [S] samples of the timeline that `events` encodes.
        sort_by_length: batch histories of like length together, so that little is padding.
        alike: only histories of equal length share a batch, so that nothing is padding.

    Yields:
        rows: [B] int64 sample indices, and their batch; every sample comes exactly once.
    """
    length = np.minimum(cut.stop - cut.start, max_events)
    sort = sort_by_length or alike
    order = np.argsort(length, kind="stable") if sort else np.arange(len(cut))
    steps = np.diff(length[order]) if alike else order[:0]
    for part in np.split(order, np.flatnonzero(steps) + 1):
        for begin in range(0, len(part), batch_size):
            rows = part[begin : begin + batch_size]
            yield rows, history_batch(events, cut.part(rows), query_rows(queries, rows), max_events)


def history_batch(
    events: EncodedEvents, cut: Cut, queries: EncodedQueries, max_events: int
) -> HistoryBatch:
    """All samples of a cut as one batch."""
    histories = gather_histories(events, cut.start, cut.stop, max_events)
    return HistoryBatch(
        source=histories.source,
        code=histories.code,
        value=histories.value,
        extra=histories.extra,
        days=histories.days,
        query_days=queries.days[:, None].astype(np.float32),
        query_extra=queries.extra[:, None].astype(np.float32),
        query_code=queries.code[:, None].astype(np.int64),
        query_value=queries.value[:, None].astype(np.float32),
        query_position=histories.length[:, None],
    )


def query_rows(queries: EncodedQueries, rows: np.ndarray | slice) -> EncodedQueries:
    """The queries of some samples."""
    return EncodedQueries(
        queries.days[rows], queries.extra[rows], queries.code[rows], queries.value[rows]
    )
