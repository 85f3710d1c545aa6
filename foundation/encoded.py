"""What the tokenizer makes: encoded events, rows and queries, and what a model knows of slots.

Shapes: N events, S samples, K most slots of any source, P profile and context slots, X and Y extra
columns, G slots of the whole schema.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class EncodedEvents:
    """Every event of a timeline, in its order.

    Attributes:
        source: [N] int16 source index of the tokenizer.
        code: [N, K] int32 global code, 0 where the source has no such slot.
        value: [N, K] float32 quantile position of numbers, 0 for categories and missing.
        extra: [N, X] float32 columns `EVENT_EXTRA`.
        days: [N] float32 days since the entity's first event.
    """

    source: np.ndarray
    code: np.ndarray
    value: np.ndarray
    extra: np.ndarray
    days: np.ndarray

    def __len__(self) -> int:
        return len(self.source)


@dataclass
class EncodedRows:
    """Profile and context of S samples: code [S, P] int32 and value [S, P] float32."""

    code: np.ndarray
    value: np.ndarray


@dataclass
class EncodedQueries:
    """What a query token carries.

    Attributes:
        days: [S] float32 from the entity's first event to as_of, 0 without events.
        extra: [S, Y] float32 columns `QUERY_EXTRA`.
        code, value: [S, P] int32 and float32, profile then context.
    """

    days: np.ndarray
    extra: np.ndarray
    code: np.ndarray
    value: np.ndarray

    def __len__(self) -> int:
        return len(self.days)


@dataclass(frozen=True)
class SlotTable:
    """What a model needs to know of each slot, whatever the schema.

    Attributes:
        owner: [G] source name, `profile` or `context`; name: [G] slot name.
        source: [G] int64 source index; -1 profile, -2 context.
        column: [G] int64 column of the slot in `code` of its source or of the queries.
        kind: [G] int64 index into `vocabulary.SLOT_KINDS`; role: [G] int64 into `schema.ROLES`.
        name_hash: [G, 2] int64, non-negative; take it modulo a table's rows.
    """

    owner: tuple[str, ...]
    name: tuple[str, ...]
    source: np.ndarray
    column: np.ndarray
    kind: np.ndarray
    role: np.ndarray
    name_hash: np.ndarray
