"""Few rows of a table as arrays: the form in which a request arrives.

A request brings a few hundred rows; a data frame for each of its columns would cost more than
reading them. Everything that reads a slot (foundation.slots) takes these beside Series and gives
the same values.

Shapes: n rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl


@dataclass(frozen=True)
class Words:
    """A column of strings as numbers: looked up once for all who ask.

    Attributes:
        code: [n] int64 place in `values`, -1 where missing.
        values: different strings, in order of first sight.
        given: the column itself where it came as one.
    """

    code: np.ndarray
    values: tuple[str, ...]
    given: pl.Series | None = None

    @classmethod
    def of(cls, column: pl.Series | Words) -> Words:
        """The words of a String Series, by a dictionary: for few values."""
        if isinstance(column, Words):
            return column
        found = cls.read(column.to_list())
        return cls(found.code, found.values, column)

    @classmethod
    def read(cls, texts: Sequence[str | None]) -> Words:
        """The words of a list."""
        values = tuple(v for v in dict.fromkeys(texts) if v is not None)
        place: dict[str | None, int] = {v: k for k, v in enumerate(values)} | {None: -1}
        code = np.fromiter(map(place.__getitem__, texts), np.int64, len(texts))
        return cls(code, values)

    @cached_property
    def series(self) -> pl.Series:
        """The column as a String Series."""
        if self.given is not None:
            return self.given
        values = [*self.values, None]
        return pl.Series([values[k] for k in self.code.tolist()], dtype=pl.String)

    def __len__(self) -> int:
        return len(self.code)

    def __getitem__(self, rows: slice | np.ndarray) -> Words:
        return Words(self.code[rows], self.values)


@dataclass(frozen=True)
class RowTable:
    """Some rows of an event source, of the profile or of the context.

    Attributes:
        columns: field -> `Words` for strings, identifiers and booleans (`true`, `false`); float64
            [n] for numbers, NaN where missing, and for moments in microseconds since the epoch,
            UTC. A field left out is missing.
        size: n.
    """

    columns: Mapping[str, Words | np.ndarray]
    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, rows: np.ndarray) -> RowTable:
        """The rows at some places; -1 gives a row of nothing but missing values."""
        absent = rows < 0
        columns: dict[str, Words | np.ndarray] = {}
        for name, column in self.columns.items():
            picked = column[rows]
            if absent.any():
                if isinstance(picked, Words):
                    picked = Words(np.where(absent, -1, picked.code), picked.values)
                else:
                    picked = np.where(absent, np.nan, picked)
            columns[name] = picked
        return RowTable(columns, len(rows))

    @classmethod
    def joined(cls, parts: Sequence[RowTable]) -> RowTable:
        """The rows of several tables of the same fields, one after another."""
        if len(parts) == 1:
            return parts[0]
        names = dict.fromkeys(name for part in parts for name in part.columns)
        columns: dict[str, Words | np.ndarray] = {}
        for name in names:
            found = [(part.columns.get(name), part.size) for part in parts]
            if any(isinstance(column, Words) for column, _ in found):
                columns[name] = _joined_words(
                    [column if isinstance(column, Words) else _no_words(n) for column, n in found]
                )
            else:
                columns[name] = np.concatenate(
                    [
                        column if isinstance(column, np.ndarray) else np.full(n, np.nan)
                        for column, n in found
                    ]
                )
        return cls(columns, sum(part.size for part in parts))


def _no_words(size: int) -> Words:
    return Words(np.full(size, -1, dtype=np.int64), ())


def _joined_words(parts: Sequence[Words]) -> Words:
    values = tuple(dict.fromkeys(value for part in parts for value in part.values))
    place = {value: k for k, value in enumerate(values)}
    codes = [
        np.array([*(place[value] for value in part.values), -1], dtype=np.int64)[part.code]
        for part in parts
    ]
    return Words(np.concatenate(codes), values)
