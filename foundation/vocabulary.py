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
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, cast

import numpy as np
import polars as pl
from msgspec.structs import replace

from foundation import strict
from foundation.errors import ArtifactError
from foundation.slots import EventColumn, Slot, SlotColumn, Words

MISSING = 0
UNKNOWN = 1
ZERO = 1
FIRST_VALUE = 2
TEXT_BUCKETS = 256
TAIL = 0.05
SlotKind = Literal["category", "number", "text"]
SLOT_KINDS: tuple[SlotKind, ...] = ("category", "number", "text")
# Positions of bins are told apart to this fraction when they are hashed; more than 2 * n_bins.
_HASH_STEPS = 128
# Numbers beyond this magnitude count as this magnitude, so that differences stay finite.
_HUGE = 1e200
# Up to this many values a dictionary beats the cast to an Enum, whose fixed cost is 100 us.
_SMALL = 4096
# Rows encoded at a time, so that the columns of a block stay in the processor's cache.
_BLOCK = 8192
_BLOCKS_WORTH_THREADS = 8


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
    kind: SlotKind
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
    found = SlotCodes(
        owner=slot.owner,
        name=slot.name,
        field=slot.field,
        kind=cast(SlotKind, slot.kind),
        role=slot.role,
        title=slot.title,
        blocks=(),
    )
    if slot.kind == "category":
        found = replace(found, values=frequent_values(column, max_values, min_count))
    elif slot.kind == "number":
        edges, levels, bins = quantiles(np.asarray(column, dtype=np.float64), n_bins)
        found = replace(found, edges=edges, levels=levels, bins=bins)
    return replace(found, blocks=((first, found.size),))


def grown(
    codes: SlotCodes, column: SlotColumn, first: int, max_values: int, min_count: int
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
    return replace(codes, values=codes.values + new, blocks=(*codes.blocks, (first, len(new))))


def frequent_values(column: SlotColumn, max_values: int, min_count: int) -> tuple[str, ...]:
    """Values by falling count, equal counts by value."""
    table = pl.DataFrame({"v": column}).drop_nulls().group_by("v").len()
    table = table.filter(pl.col("len") >= min_count)
    table = table.sort(["len", "v"], descending=[True, False]).head(max_values)
    return tuple(table["v"].to_list())


def quantiles(values: np.ndarray, n_bins: int) -> tuple[tuple[float, ...], tuple[float, ...], int]:
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


class _Lookup(dict[str | None, int]):
    """Value to global id; whatever it does not hold is unknown."""

    unknown = 0

    def __missing__(self, key: str | None) -> int:
        return self.unknown


class CategoryCoder:
    """Looks up the values of one category or text slot."""

    def __init__(self, codes: SlotCodes) -> None:
        self.codes = codes
        self.ids = codes.ids()
        if codes.kind == "category":
            ids = self.ids.tolist()
            self._lookup = _Lookup(zip(codes.values, ids[FIRST_VALUE:], strict=True))
            self._lookup[None] = ids[MISSING]
            self._lookup.unknown = ids[UNKNOWN]
            self._enum = pl.Enum(codes.values)
            self._by_rank = np.append(self.ids[FIRST_VALUE:], self.ids[UNKNOWN])

    def encode(self, column: pl.Series | Words) -> np.ndarray:
        """[n] int32 global codes of strings."""
        if self.codes.kind == "text":
            return self.ids[text_buckets(column)]
        if len(column) <= _SMALL:
            words = Words.of(column)
            found = map(self._lookup.__getitem__, (*words.values, None))
            return np.fromiter(found, np.int32, len(words.values) + 1)[words.code]
        column = column.series if isinstance(column, Words) else column
        rank = column.cast(self._enum, strict=False).to_physical().cast(pl.UInt32)
        code = self._by_rank[rank.fill_null(len(self.codes.values)).to_numpy()]
        if column.null_count():
            code[column.is_null().to_numpy()] = self.ids[MISSING]
        return code


class NumberCoder:
    """Bins and positions of several number slots at once.

    The tables of all slots stand end to end: row j of a slot serves values with j edges at or below
    them, the outer rows are the flat tails. Shapes: R number slots, n values of each.
    """

    def __init__(self, slots: Sequence[SlotCodes]) -> None:
        self.count = len(slots)
        self._edges = [np.array(s.edges, dtype=np.float64) for s in slots]
        tables = [_number_table(s) for s in slots]
        sizes = [len(t[0]) for t in tables]
        self._offset = (np.cumsum([0, *sizes])[:-1]).reshape(-1, 1)
        self._from, self._base, self._slope, self._bin = (
            np.concatenate([t[part] for t in tables]) if tables else np.empty(0)
            for part in range(4)
        )
        self._missing, self._zero = (
            np.array([s.ids()[local] for s in slots], dtype=np.int32).reshape(-1, 1)
            for local in (MISSING, ZERO)
        )
        ends = [(e[0], e[-1]) if len(e) else (-np.inf, np.inf) for e in self._edges]
        self._low, self._high = np.array(ends, dtype=np.float64).reshape(-1, 2).T[:, :, None]
        span = [float(b - a) or abs(float(a)) for a, b in ends]
        self._span = np.array(span, dtype=np.float64).reshape(-1, 1)

    def encode(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Global codes and positions.

        Args:
            numbers: [R, n] float64, NaN where missing.

        Returns:
            code: [R, n] int32; position: [R, n] float64, 0 where missing.
        """
        numbers = np.clip(numbers, -_HUGE, _HUGE)
        row = np.empty(numbers.shape, dtype=np.intp)
        for slot, edges in enumerate(self._edges):
            row[slot] = edges.searchsorted(numbers[slot], side="right")
        row += self._offset
        code = self._bin.take(row)
        position = numbers - self._from.take(row)
        position *= self._slope.take(row)
        position += self._base.take(row)
        for outside, end, sign in (
            (numbers < self._low, self._low, -1.0),
            (numbers > self._high, self._high, 1.0),
        ):
            if outside.any():
                owner = np.nonzero(outside)[0]
                beyond = np.abs(numbers[outside] - end[owner, 0])
                position[outside] += sign * TAIL * (beyond / (beyond + self._span[owner, 0]))
        np.copyto(code, self._zero, where=numbers == 0)
        missing = np.isnan(numbers)
        np.copyto(code, self._missing, where=missing)
        np.copyto(position, 0.0, where=missing)
        return code, position


def _number_table(codes: SlotCodes) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Start, level, slope and global id, each [m + 1], of one number slot."""
    edges = np.array(codes.edges or (0.0,))
    levels = np.array(codes.levels or (0.5,))
    run, rise = np.diff(edges), np.diff(levels)
    slope = np.divide(rise, run, out=np.zeros_like(rise), where=run > 1e-300)
    bins = np.clip(np.arange(len(edges) + 1) - 1, 0, codes.bins - 1)
    return (
        np.concatenate([edges[:1], edges]),
        np.concatenate([levels[:1], levels]),
        np.concatenate([[0.0], slope, [0.0]]),
        codes.ids()[FIRST_VALUE + bins],
    )


class TableCoder:
    """Encodes all slots of one source, or of profile and context, slot k into column k.

    Args:
        slots: in column order.
        by_key: look columns up by `owner.name` rather than by name.
    """

    def __init__(self, slots: Sequence[SlotCodes], by_key: bool = False) -> None:
        self.slots = tuple(slots)
        self._names = [s.key if by_key else s.name for s in slots]
        self._missing = [int(s.ids()[MISSING]) for s in slots]
        self._number_at = [k for k, s in enumerate(slots) if s.kind == "number"]
        self._numbers = NumberCoder([slots[k] for k in self._number_at])
        self._categories = {k: CategoryCoder(s) for k, s in enumerate(slots) if s.kind != "number"}

    def encode_into(
        self,
        code: np.ndarray,
        value: np.ndarray,
        rows: np.ndarray | slice,
        columns: Mapping[str, EventColumn],
        count: int,
    ) -> None:
        """Write into some rows of code [N, K] and value [N, K]; absent columns become missing.

        Args:
            rows: the `count` rows that belong to this table.
        """
        words: dict[int, np.ndarray | int] = {}
        for k, coder in self._categories.items():
            column = columns.get(self._names[k])
            if isinstance(column, pl.Series | Words):
                words[k] = coder.encode(column)
            else:
                words[k] = self._missing[k]
        numbers = [columns.get(self._names[k]) for k in self._number_at]

        def encode_block(start: int) -> None:
            stop = min(start + _BLOCK, count)
            block = np.empty((len(self.slots), stop - start), dtype=np.int32)
            places = np.zeros((len(self.slots), stop - start), dtype=np.float32)
            for k, found in words.items():
                block[k] = found if isinstance(found, int) else found[start:stop]
            if numbers:
                given = np.full((len(numbers), stop - start), np.nan)
                for slot, column in enumerate(numbers):
                    if isinstance(column, np.ndarray | pl.Series):
                        given[slot] = column[start:stop]
                block[self._number_at], places[self._number_at] = self._numbers.encode(given)
            target = slice(start, stop) if isinstance(rows, slice) else rows[start:stop]
            code[target, : len(self.slots)] = block.T
            value[target, : len(self.slots)] = places.T

        starts = range(0, count, _BLOCK)
        if len(starts) < _BLOCKS_WORTH_THREADS:
            for start in starts:
                encode_block(start)
        else:
            # numpy lets go of the interpreter lock; as many threads as polars was given.
            with ThreadPoolExecutor(pl.thread_pool_size()) as pool:
                list(pool.map(encode_block, starts))


def text_buckets(column: pl.Series | Words) -> np.ndarray:
    """[n] int64 local codes of texts: lower case, digits folded to 0, white space collapsed.

    CRC-32 rather than a library's hash: it must be the same in every process and version.
    """
    if len(column) <= _SMALL:
        words = Words.of(column)
        known, code = words.values, words.code
    else:
        column = column.series if isinstance(column, Words) else column
        distinct = column.unique().drop_nulls()
        known = tuple(distinct.to_list())
        rank = column.cast(pl.Enum(distinct)).to_physical().cast(pl.Int64)
        code = rank.fill_null(len(known)).to_numpy()
    normal = pl.Series(known, dtype=pl.String).str.to_lowercase().str.replace_all(r"\d+", "0")
    normal = normal.str.replace_all(r"\s+", " ").str.strip_chars()
    buckets = [
        1 + zlib.crc32(text.encode()) % TEXT_BUCKETS if text else MISSING
        for text in normal.to_list()
    ]
    return np.array([*buckets, MISSING], dtype=np.int64)[code]


def stable_hash(text: str, salt: int) -> int:
    """63 bits of blake2b, the same on every machine."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, salt=bytes([salt])).digest()
    return int.from_bytes(digest, "little") >> 1
