"""From the tokens of an event to one vector, with weights that know no vocabulary.

A token's embedding is looked up by the hash of its text (two rows of a fixed table) plus its
field's embedding (kind + role + hashed name), so that another schema's tokenizer plugs in without
a new weight. The table of all codes is built once per step (or once per model in an exported
graph); every slot of every event is then a single lookup. Slots pass a gate of their field, a
non-linearity and a sum (deep sets, Zaheer et al. 2017), the sum a small MLP.

Shapes: K slots of an event, V codes, S slots of the schema, M knots of the continuous value, E slot
width, D width, X extra columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from foundation.attention import RMSNorm
from foundation.schema import ROLES
from foundation.vocabulary import SLOT_KINDS

if TYPE_CHECKING:
    from foundation.tokenizer import Tokenizer

KINDS = (*SLOT_KINDS, "source")
_WIDE = 2**31


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

    def forward(self, layout: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Per code its embedding with its field's, and the scale of its field on values.

        Returns:
            Two tensors [V, E]; rows of code 0 are zero.
        """
        fields = self.fields(layout)
        gate, scale = self.field_gate(fields).chunk(2, dim=-1)
        slot = layout["code_slot"]
        present = (torch.arange(len(slot), device=slot.device) > 0).to(fields.dtype)[:, None]
        if not len(fields):
            empty = fields.new_zeros((len(slot), fields.shape[-1]))
            return empty, empty
        table = self.hashes(layout["code_rows"]).sum(1) + fields[slot]
        return table * (2 * torch.sigmoid(gate))[slot] * present, (1 + scale)[slot] * present

    def slots(
        self, tables: tuple[torch.Tensor, torch.Tensor], code: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """[..., E]: the sum of an event's slots after a non-linearity.

        Args:
            code: [..., K] int64; value: [..., K] float32 position in [0, 1].
        """
        table, scale = tables
        continuous = self.value(self._features(value)) * F.embedding(code, scale)
        return F.silu(F.embedding(code, table) + continuous).sum(-2)

    def _features(self, value: torch.Tensor) -> torch.Tensor:
        """[..., 2M]: hats between knots and cosines of a position in [0, 1].

        Piecewise-linear and periodic embeddings after Gorishniy et al. 2022.
        """
        steps = torch.arange(self.knots, device=value.device, dtype=value.dtype)
        hats = F.relu(1 - (value[..., None] * (self.knots - 1) - steps).abs())
        waves = torch.cos(torch.pi * value[..., None] * (steps + 1))
        return torch.cat([hats, waves], dim=-1)


class Fusion(nn.Module):
    """What stands in one position, slots and extra columns, to one vector of width D."""

    def __init__(self, slot_width: int, width: int, hidden: int, extra: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.extra = nn.Linear(extra, slot_width)
        self.norm = RMSNorm(slot_width)
        self.mix_in = nn.Linear(slot_width, 2 * hidden)
        self.mix_out = nn.Linear(hidden, width)
        self.skip = nn.Linear(slot_width, width, bias=False)

    def forward(self, slots: torch.Tensor, extra: torch.Tensor) -> torch.Tensor:
        """[..., E] slots (with the source) and [..., X] extra columns to [..., D]."""
        mixed = self.norm(slots + self.extra(extra))
        gate, inner = self.mix_in(mixed).split(self.hidden, dim=-1)
        return self.mix_out(F.silu(gate) * inner) + self.skip(mixed)
