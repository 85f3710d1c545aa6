"""Feature tables: what every recipe reads, in blocks of columns.

Shapes: S samples, F columns. Values are float32; NaN is missing. A code column holds the position
of its level as a float. A forecast column holds a probability.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from foundation.errors import InternalError, listing, nearest

BLOCKS = ("aggregate", "profile", "context", "forecast", "embedding")


@dataclass(frozen=True)
class Column:
    """One column of a feature table.

    Attributes:
        name: unique within the table.
        block: one of `BLOCKS`.
        kind: `number`, or `code` for the position of a level.
        levels: names of the codes 0, 1, ... of a code column.
        group: columns explained together as one reason.
        title: words for people.
    """

    name: str
    block: str
    kind: Literal["number", "code"] = "number"
    levels: tuple[str, ...] = ()
    group: str = ""
    title: str = ""


@dataclass
class FeatureTable:
    """Columns and their values for S samples.

    Attributes:
        values: [S, F] float32, NaN missing.
        histories: what recipes that read raw histories need, or None; offers `take(rows)`.
        thin: [S] bool, samples without any event, or None where nobody asked.
    """

    columns: tuple[Column, ...]
    values: np.ndarray
    histories: Any = None
    thin: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.columns = tuple(self.columns)
        if self.values.ndim != 2 or self.values.shape[1] != len(self.columns):
            raise InternalError(
                f"feature table of {len(self.columns)} columns has values {self.values.shape}"
            )
        if self.values.dtype != np.float32:
            raise InternalError(f"feature table values must be float32, not {self.values.dtype}")

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def _position(self) -> dict[str, int]:
        """Column name -> place; made when first asked for, a request never asks."""
        places = {c.name: i for i, c in enumerate(self.columns)}
        if len(places) != len(self.columns):
            raise InternalError("feature table has two columns of one name")
        return places

    @property
    def names(self) -> tuple[str, ...]:
        """Column names in order."""
        return tuple(c.name for c in self.columns)

    @property
    def blocks(self) -> frozenset[str]:
        """Blocks with at least one column, and `history` where raw histories are attached."""
        found = {c.block for c in self.columns}
        return frozenset(found | ({"history"} if self.histories is not None else set()))

    def index(self, name: str) -> int:
        """Position of a column.

        Raises:
            InternalError: no such column; names the nearest.
        """
        if name not in self._position:
            raise InternalError(
                f"feature table has no column '{name}'{nearest(name, self._position)}; "
                f"columns: {listing(self._position)}"
            )
        return self._position[name]

    def matrix(self, names: Sequence[str]) -> np.ndarray:
        """[S, len(names)] float32: some columns in the order asked for."""
        return self.values[:, [self.index(n) for n in names]]

    def select(self, wanted: Iterable[str]) -> FeatureTable:
        """Columns of the blocks or of the names given, in table order; histories stay."""
        keep = frozenset([wanted] if isinstance(wanted, str) else wanted)
        for name in keep - set(BLOCKS) - set(self._position) - {"history"}:
            self.index(name)
        at = [i for i, c in enumerate(self.columns) if c.block in keep or c.name in keep]
        return FeatureTable(
            tuple(self.columns[i] for i in at), self.values[:, at], self.histories, self.thin
        )

    def block(self, name: str) -> FeatureTable:
        """Columns of one block."""
        return self.select((name,))

    def take(self, rows: np.ndarray) -> FeatureTable:
        """Some of the samples, in the order given."""
        histories = None if self.histories is None else self.histories.take(rows)
        thin = None if self.thin is None else self.thin[rows]
        return FeatureTable(self.columns, self.values[rows], histories, thin)
