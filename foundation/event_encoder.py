"""From the tokens of an event to one vector, with weights that know no vocabulary.

A token's embedding is looked up by the hash of its text (two rows of a fixed table) plus its
field's embedding (kind + role + hashed name), so that another schema's tokenizer plugs in without
a new weight. The table of all codes is built once per step (or once per model in an exported
graph); every slot of every event is then a single lookup. Slots pass a gate of their field, a
non-linearity and a sum (deep sets, Zaheer et al. 2017), the sum a small MLP. Only numbers have a
position in their bin, so that columns without numbers are sums of looked-up rows.

Shapes: K slots of an event, V codes, S slots of the schema, M knots of the continuous value, E slot
width, D width, X extra columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from foundation.attention import RMSNorm, swiglu
from foundation.schema import ROLES
from foundation.vocabulary import SLOT_KINDS

if TYPE_CHECKING:
    from foundation.tokenizer import Tokenizer

KINDS = (*SLOT_KINDS, "source")
_WIDE = 2**31
NUMBER = SLOT_KINDS.index("number")


class Tables(NamedTuple):
    """What codes and sources mean, computed once per step.

    Attributes:
        code: [V, E] a code's embedding with its field's; the row of code 0 is zero.
        scale: [V, E] what its field makes of a position within a bin; zero for code 0.
        still: [V, E] a slot without position after the non-linearity.
        source: [sources, E] embeddings of sources.
    """

    code: torch.Tensor
    scale: torch.Tensor
    still: torch.Tensor
    source: torch.Tensor


@dataclass(frozen=True)
class Layout:
    """How the codes of a tokenizer map onto slots, fields and hash rows.

    Attributes:
        code_rows: [V, 2] int64 rows of the hash table: by meaning alone, which other schemas
            share, and by meaning and field name. Code 0 is masked.
        code_slot: [V] int64 slot of a code; code_local: [V] int64 its number within the slot.
        slot_kind, slot_role: [S] int64; slot_name: [S, 2] int64 rows of the name table.
        slot_owner: [S] int64 source index; -1 profile, -2 context.
        slot_column: [S] int64 column of the slot among its owner's.
        slot_codes: [V - 1] int64 codes, slot after slot; those of slot s stand at
            slot_first[s]:slot_stop[s].
        source_name: [sources, 2] int64 rows of the name table.
    """

    code_rows: np.ndarray
    code_slot: np.ndarray
    code_local: np.ndarray
    slot_kind: np.ndarray
    slot_role: np.ndarray
    slot_name: np.ndarray
    slot_owner: np.ndarray
    slot_column: np.ndarray
    slot_codes: np.ndarray
    slot_first: np.ndarray
    slot_stop: np.ndarray
    source_name: np.ndarray

    def tensors(self) -> dict[str, torch.Tensor]:
        """The arrays as tensors, by name."""
        return {name: torch.from_numpy(array) for name, array in vars(self).items()}


def layout_of(tokenizer: Tokenizer, hash_rows: int, name_rows: int) -> Layout:
    """The layout of a tokenizer for tables of so many rows."""
    table = tokenizer.slot_table
    slots = tokenizer.code_slot.astype(np.int64)
    rows = tokenizer.hashes(_WIDE)
    names = table.name_hash % _WIDE
    if len(names):
        rows = np.stack([rows[:, 0], rows[:, 1] + names[slots, 0]], axis=1)
    sizes = np.array([s.size for s in tokenizer.slots], dtype=np.int64)
    last = np.cumsum(sizes)
    ids = [s.ids().astype(np.int64) for s in tokenizer.slots]
    every = np.concatenate(ids) if ids else np.zeros(0, np.int64)
    local = np.zeros(len(slots), np.int64)
    local[every] = np.arange(len(every)) - np.repeat(last - sizes, sizes)
    return Layout(
        code_rows=rows % hash_rows,
        code_slot=slots,
        code_local=local,
        slot_kind=table.kind,
        slot_role=table.role,
        slot_name=table.name_hash % name_rows,
        slot_owner=table.source,
        slot_column=table.column,
        slot_codes=every,
        slot_first=last - sizes,
        slot_stop=last,
        source_name=tokenizer.source_hashes(name_rows),
    )


class TokenTable(nn.Module):
    """Embeddings of codes, fields, sources and continuous values."""

    def __init__(self, slot_width: int, hash_rows: int, name_rows: int, knots: int) -> None:
        super().__init__()
        self.knots = knots
        self.hashes = nn.Embedding(hash_rows, slot_width)
        self.names = nn.Embedding(name_rows, slot_width)
        self.kinds = nn.Embedding(len(KINDS), slot_width)
        self.roles = nn.Embedding(len(ROLES), slot_width)
        self.field_gate = nn.Linear(slot_width, 2 * slot_width)
        self.value = nn.Linear(2 * knots, slot_width)

    def fields(self, layout: dict[str, torch.Tensor]) -> torch.Tensor:
        """[S, E] embeddings of fields: kind + role + hashed name."""
        return (
            self.kinds(layout["slot_kind"])
            + self.roles(layout["slot_role"])
            + self.names(layout["slot_name"]).sum(1)
        )

    def sources(self, layout: dict[str, torch.Tensor]) -> torch.Tensor:
        """[sources, E] embeddings of sources by hashed name."""
        return self.kinds.weight[KINDS.index("source")] + self.names(layout["source_name"]).sum(1)

    def forward(self, layout: dict[str, torch.Tensor]) -> Tables:
        """The tables of a layout."""
        fields, sources = self.fields(layout), self.sources(layout)
        slot = layout["code_slot"]
        if not len(fields):
            empty = fields.new_zeros((len(slot), fields.shape[-1]))
            return Tables(empty, empty, empty, sources)
        gate, scale = self.field_gate(fields).chunk(2, dim=-1)
        present = (torch.arange(len(slot), device=slot.device) > 0).to(fields.dtype)[:, None]
        table = self.hashes(layout["code_rows"]).sum(1) + fields[slot]
        table = table * (2 * torch.sigmoid(gate))[slot] * present
        scale = (1 + scale)[slot] * present
        nowhere = self.value(self._features(table.new_zeros(1)))
        return Tables(table, scale, F.silu(table + nowhere * scale), sources)

    def slots(
        self, tables: Tables, code: torch.Tensor, value: torch.Tensor, numbers: Sequence[int]
    ) -> torch.Tensor:
        """[..., E]: the sum of an event's slots after a non-linearity.

        Args:
            code: [..., K] int64; value: [..., K] float32 position in [0, 1].
            numbers: the columns of K that may hold numbers; of others no position is read.
        """
        columns = int(code.shape[-1])
        still = [k for k in range(columns) if k not in set(numbers)]
        total = None
        if still:
            total = _sum_of_rows(tables.still, _columns(code, still))
        if len(still) < columns:
            code, value = _columns(code, numbers), _columns(value, numbers)
            moved = self.value(self._features(value)) * F.embedding(code, tables.scale)
            found = F.silu(F.embedding(code, tables.code) + moved).sum(-2)
            total = found if total is None else total + found
        if total is None:
            return tables.still.new_zeros((*code.shape[:-1], tables.still.shape[-1]))
        return total

    def _features(self, value: torch.Tensor) -> torch.Tensor:
        """[..., 2M]: hats between knots and cosines of a position in [0, 1].

        Piecewise-linear and periodic embeddings after Gorishniy et al. 2022.
        """
        steps = torch.arange(self.knots, device=value.device, dtype=value.dtype)
        hats = F.relu(1 - (value[..., None] * (self.knots - 1) - steps).abs())
        waves = torch.cos(torch.pi * value[..., None] * (steps + 1))
        return torch.cat([hats, waves], dim=-1)


def number_columns(layout: Layout) -> tuple[list[int], list[int]]:
    """Columns of events, and of queries, that hold numbers of any source."""
    numbers = layout.slot_kind == NUMBER
    event = layout.slot_owner >= 0
    return (
        sorted({int(k) for k in layout.slot_column[numbers & event]}),
        sorted({int(k) for k in layout.slot_column[numbers & ~event]}),
    )


def _columns(x: torch.Tensor, columns: Sequence[int]) -> torch.Tensor:
    """Some columns of [..., K]; all of them as they are."""
    if len(columns) == x.shape[-1]:
        return x
    return x[..., torch.tensor(columns, device=x.device)]


def _sum_of_rows(table: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
    """[..., E]: rows of [V, E] summed over the last axis of `code` [..., K]."""
    if torch.jit.is_tracing():
        return F.embedding(code, table).sum(-2)
    flat = code.reshape(-1, code.shape[-1])
    return F.embedding_bag(flat, table, mode="sum").view(*code.shape[:-1], table.shape[-1])


class Fusion(nn.Module):
    """What stands in one position, slots and extra columns, to one vector of width D."""

    def __init__(self, slot_width: int, width: int, hidden: int, extra: int) -> None:
        super().__init__()
        self.extra = nn.Linear(extra, slot_width)
        self.norm = RMSNorm(slot_width)
        self.mix_in = nn.Linear(slot_width, 2 * hidden)
        self.mix_out = nn.Linear(hidden, width)
        self.skip = nn.Linear(slot_width, width, bias=False)

    def forward(self, slots: torch.Tensor, extra: torch.Tensor) -> torch.Tensor:
        """[..., E] slots (with the source) and [..., X] extra columns to [..., D]."""
        mixed = self.norm(slots + self.extra(extra))
        return self.mix_out(swiglu(self.mix_in(mixed))) + self.skip(mixed)
