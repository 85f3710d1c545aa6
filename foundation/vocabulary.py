"""Vocabularies: the values of one slot to codes, and numbers to bins with a continuous position.

A slot owns local codes, which the tokenizer maps onto global ids:

* category: 0 missing, 1 unknown, then its values by falling count;
* text: 0 missing, then `TEXT_BUCKETS` buckets of the CRC-32 of the normalised text;
* number: 0 missing, 1 zero, then quantile bins.

A number also keeps its quantile position: piecewise-linear between the fitted quantiles, within
[0, 1] inside the fitted range and at most `TAIL` outside it.

Shapes: n values of one slot, m edges of a number slot.
"""

from __future__ import annotations

import hashlib
import zlib
from typing import Literal

import numpy as np
import polars as pl

from foundation import strict
from foundation.errors import ArtifactError
from foundation.slots import Slot, SlotColumn

MISSING = 0
UNKNOWN = 1
ZERO = 1
FIRST_VALUE = 2
TEXT_BUCKETS = 256
TAIL = 0.05
SLOT_KINDS = ("category", "number", "text")
# Positions of bins are told apart to this fraction when they are hashed; more than 2 * n_bins.
_HASH_STEPS = 128
# Numbers beyond this magnitude count as this magnitude, so that differences stay finite.
_HUGE = 1e200
# Up to this many values a dictionary beats the cast to an Enum, whose fixed cost is 100 us.
_SMALL = 4096


class SlotCodes(strict.Strict):
    """What was learned about one slot; the form in which a tokenizer is saved.

    Attributes:
        owner, name, field, kind, role, title: as in `foundation.slots.Slot`.
        blocks: ranges of global ids as (first, count), in order of local codes.
        values: of a category, without missing and unknown.
        edges: [m] fitted quantiles of a number, rising; levels: [m] their positions in [0, 1].
        bins: number of bins; bin b starts at edges[b], the first is open below, the last above.
    """

    owner: str
    name: str
    field: str
    kind: Literal["category", "number", "text"]
    role: str
    title: str
    blocks: tuple[tuple[int, int], ...]
    values: tuple[str, ...] = ()
    edges: tuple[float, ...] = ()
    levels: tuple[float, ...] = ()
    bins: int = 0

    @property
    def key(self) -> str:
        """Unique over the schema: `owner.name`."""
        return f"{self.owner}.{self.name}"

    @property
    def size(self) -> int:
        """Number of local codes."""
        if self.kind == "text":
            return 1 + TEXT_BUCKETS
        return FIRST_VALUE + (len(self.values) if self.kind == "category" else self.bins)

    def ids(self) -> np.ndarray:
        """[size] int32 global id of every local code."""
        return np.concatenate([np.arange(a, a + n, dtype=np.int32) for a, n in self.blocks])

    def words(self) -> list[str]:
        """[size] what each local code stands for, the same in every schema."""
        if self.kind == "text":
            return ["missing", *(f"bucket:{b}" for b in range(TEXT_BUCKETS))]
        if self.kind == "category":
            return ["missing", "unknown", *(f"value:{v}" for v in self.values)]
        steps = [round(level * _HASH_STEPS) for level in self.levels[: self.bins]]
        return ["missing", "zero", *(f"bin:{s}" for s in steps or [_HASH_STEPS // 2])]

    def meaning(self) -> str:
        """Role, or the name where the role says nothing; shared by lenders."""
        return self.role if self.role != "other" else self.name

    def check(self) -> None:
        """Refuse a slot that contradicts itself.

        Raises:
            ArtifactError: naming the slot and what is wrong.
        """
        faults = {
            "blocks do not cover its codes": sum(n for _, n in self.blocks) != self.size,
            "values repeat": len(set(self.values)) != len(self.values),
            "edges and levels differ in length": len(self.edges) != len(self.levels),
            "edges do not rise": not bool(np.all(np.diff(self.edges) > 0)),
            "levels leave [0, 1]": any(not 0 <= x <= 1 for x in self.levels),
            "bins do not match edges": self.kind == "number"
            and self.bins not in (max(1, len(self.edges) - 1), max(1, len(self.edges))),
        }
        for fault, found in faults.items():
            if found:
                raise ArtifactError(f"tokenizer: slot '{self.key}' is damaged: {fault}")


def fit_slot(
    slot: Slot, column: SlotColumn, first: int, max_values: int, min_count: int, n_bins: int
) -> SlotCodes:
    """Learn one slot; its global ids are `first`, `first + 1`, ...

    Args:
        column: [n] values as `foundation.slots.source_columns` gives them.
        max_values, min_count: of a category, how many values at most and seen how often at least.
        n_bins: of a number.
    """
    learned: dict[str, object] = {}
    if slot.kind == "category":
        learned = {"values": frequent_values(column, max_values, min_count)}
    elif slot.kind == "number":
        edges, levels, bins = quantiles(np.asarray(column, dtype=np.float64), n_bins)
        learned = {"edges": edges, "levels": levels, "bins": bins}
    found = SlotCodes(
        owner=slot.owner, name=slot.name, field=slot.field, kind=slot.kind, role=slot.role,
        title=slot.title, blocks=((first, 0),), **learned,
    )
    return with_blocks(found, ((first, found.size),))


def with_blocks(codes: SlotCodes, blocks: tuple[tuple[int, int], ...]) -> SlotCodes:
    """The same slot at other global ids."""
    fields = {f: getattr(codes, f) for f in codes.__struct_fields__} | {"blocks": blocks}
    return SlotCodes(**fields)


def grown(codes: SlotCodes, column: SlotColumn, first: int, max_values: int, min_count: int
          ) -> SlotCodes:
    """A category with further values appended at global ids from `first`; other slots unchanged.

    Bins stay: a number keeps its code and its position for ever.
    """
    if codes.kind != "category":
        return codes
    known = set(codes.values)
    found = frequent_values(column, max_values + len(known), min_count)
    new = tuple(v for v in found if v not in known)[: max(0, max_values - len(known))]
    if not new:
        return codes
    fields = {f: getattr(codes, f) for f in codes.__struct_fields__}
    fields |= {"values": codes.values + new, "blocks": (*codes.blocks, (first, len(new)))}
    return SlotCodes(**fields)


def frequent_values(column: SlotColumn, max_values: int, min_count: int) -> tuple[str, ...]:
    """Values by falling count, equal counts by value."""
    table = pl.DataFrame({"v": column}).drop_nulls().group_by("v").len()
    table = table.filter(pl.col("len") >= min_count)
    table = table.sort(["len", "v"], descending=[True, False]).head(max_values)
    return tuple(table["v"].to_list())


def quantiles(
    values: np.ndarray, n_bins: int
) -> tuple[tuple[float, ...], tuple[float, ...], int]:
    """Quantile edges of the finite non-zero values.

    Edges are values that occurred. Where one value fills several quantiles it becomes one edge at
    their mean level, so that counts and round amounts keep bins of their own.

    Returns:
        edges, their levels in [0, 1], number of bins. Without any value: no edge and one bin.
    """
    values = np.clip(values[np.isfinite(values) & (values != 0)], -_HUGE, _HUGE)
    if len(values) == 0:
        return (), (), 1
    levels = np.linspace(0.0, 1.0, n_bins + 1)
    rank = np.minimum((levels * len(values)).astype(np.int64), len(values) - 1)
    edges, index, count = np.unique(
        np.partition(values, np.unique(rank))[rank], return_index=True, return_counts=True
    )
    middle = (levels[index] + levels[index + count - 1]) / 2
    bins = len(edges) if count[-1] > 1 else max(1, len(edges) - 1)
    return tuple(edges.tolist()), tuple(middle.tolist()), bins


class Coder:
    """Encodes one slot; tables are built once, a call only looks up."""

    def __init__(self, codes: SlotCodes) -> None:
        self.codes = codes
        self.key = codes.key
        self.name = codes.name
        self.kind = codes.kind
        self.ids = codes.ids()
        if codes.kind == "category":
            self._values = {None: self.ids[MISSING]}
            self._values |= {v: self.ids[i + FIRST_VALUE] for i, v in enumerate(codes.values)}
            self._enum = pl.Enum(codes.values)
            self._by_rank = np.append(self.ids[FIRST_VALUE:], self.ids[UNKNOWN])
        elif codes.kind == "number":
            self._number_tables()

    def encode(self, column: SlotColumn) -> tuple[np.ndarray, np.ndarray | None]:
        """Global codes and positions.

        Args:
            column: [n] String Series or float64 array.
        Returns:
            code: [n] int32; value: [n] float32 for numbers, else None (zero).
        """
        if self.kind == "number":
            return self._encode_numbers(np.asarray(column, dtype=np.float64))
        assert isinstance(column, pl.Series)
        if self.kind == "text":
            return self.ids[text_buckets(column)], None
        return self._encode_categories(column), None

    def _encode_categories(self, column: pl.Series) -> np.ndarray:
        if len(column) <= _SMALL:
            get, unknown = self._values.get, self.ids[UNKNOWN]
            return np.array([get(v, unknown) for v in column.to_list()], dtype=np.int32)
        rank = column.cast(self._enum, strict=False).to_physical().cast(pl.UInt32)
        code = self._by_rank[rank.fill_null(len(self.codes.values)).to_numpy()]
        if column.null_count():
            code[column.is_null().to_numpy()] = self.ids[MISSING]
        return code

    def _number_tables(self) -> None:
        edges, levels = np.array(self.codes.edges), np.array(self.codes.levels)
        self._edges = edges
        if len(edges) == 0:
            edges, levels = np.zeros(1), np.full(1, 0.5)
        run, rise = np.diff(edges), np.diff(levels)
        slope = np.divide(rise, run, out=np.zeros_like(rise), where=run > 1e-300)
        # Row j serves values with j edges at or below them; the outer rows are the flat tails.
        self._from = np.concatenate([edges[:1], edges])
        self._base = np.concatenate([levels[:1], levels])
        self._slope = np.concatenate([[0.0], slope, [0.0]])
        bins = np.clip(np.arange(len(edges) + 1) - 1, 0, self.codes.bins - 1)
        self._bin_ids = self.ids[FIRST_VALUE + bins]
        self._span = float(edges[-1] - edges[0]) or abs(float(edges[0])) or 1.0

    def _encode_numbers(self, column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        number = np.clip(column, -_HUGE, _HUGE)
        edges = self._edges
        below = np.searchsorted(edges, number, side="right")
        code = self._bin_ids[below]
        position = number - self._from[below]
        position *= self._slope[below]
        position += self._base[below]
        if len(edges):
            low, high = number < edges[0], number > edges[-1]
            if low.any():
                position[low] -= self._tail(edges[0] - number[low])
            if high.any():
                position[high] += self._tail(number[high] - edges[-1])
        code[number == 0] = self.ids[ZERO]
        missing = np.isnan(number)
        if missing.any():
            code[missing] = self.ids[MISSING]
            position[missing] = 0.0
        return code, position.astype(np.float32)

    def _tail(self, beyond: np.ndarray) -> np.ndarray:
        """Saturating at TAIL, half of it one fitted range away."""
        return TAIL * (beyond / (beyond + self._span))


def text_buckets(column: pl.Series) -> np.ndarray:
    """[n] int64 local codes of texts: lower case, digits folded to 0, white space collapsed.

    CRC-32 rather than a library's hash: it must be the same in every process and version.
    """
    distinct = column.unique()
    known = distinct.to_list()
    normal = distinct.str.to_lowercase().str.replace_all(r"\d+", "0")
    normal = normal.str.replace_all(r"\s+", " ").str.strip_chars()
    bucket = {
        raw: 1 + zlib.crc32(text.encode()) % TEXT_BUCKETS if text else MISSING
        for raw, text in zip(known, normal.to_list(), strict=True)
    }
    if len(column) <= _SMALL:
        return np.array([bucket[v] for v in column.to_list()], dtype=np.int64)
    texts = [v for v in known if v is not None]
    table = np.array([*(bucket[v] for v in texts), MISSING], dtype=np.int64)
    rank = column.cast(pl.Enum(texts)).to_physical().cast(pl.UInt32)
    return table[rank.fill_null(len(texts)).to_numpy()]


def stable_hash(text: str, salt: int) -> int:
    """63 bits of blake2b, the same on every machine."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, salt=bytes([salt])).digest()
    return int.from_bytes(digest, "little") >> 1
