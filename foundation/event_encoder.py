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

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from foundation.attention import RMSNorm
from foundation.schema import ROLES

if TYPE_CHECKING:
    from foundation.tokenizer import Tokenizer

KINDS = ("category", "number", "text", "source")


def hash_row(text: str, salt: int, rows: int) -> int:
    """Row of a table for a text; stable across machines (blake2b), never row 0."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, salt=bytes([salt])).digest()
    return 1 + int.from_bytes(digest, "little") % (rows - 1)


@dataclass(frozen=True)
class Layout:
    """How the codes of a tokenizer map onto slots, fields and hash rows.

    Attributes:
        code_rows: [V, 2] int64 rows of the hash table; code 0 is empty.
        code_slot: [V] int64 slot of a code (0 for code 0, masked by the encoder).
        slot_kind, slot_role: [S] int64; slot_name: [S, 2] int64 rows of the name table.
        slot_owner: [S] int64 source index; -1 profile, -2 context.
        slot_column: [S] int64 column of the slot among its owner's.
        slot_first, slot_stop: [S] int64 range of the slot's codes.
        source_name: [sources, 2] int64 rows of the name table.
    """

    code_rows: np.ndarray
    code_slot: np.ndarray
    slot_kind: np.ndarray
    slot_role: np.ndarray
    slot_name: np.ndarray
    slot_owner: np.ndarray
    slot_column: np.ndarray
    slot_first: np.ndarray
    slot_stop: np.ndarray
    source_name: np.ndarray

    def tensors(self) -> dict[str, torch.Tensor]:
        """The arrays as tensors, by name."""
        return {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in vars(self).items()}


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
    """What stands in one position, slots and extra columns, to one vector of the history encoder."""

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
        gate, inner = self.mix_in(mixed).chunk(2, dim=-1)
        return self.mix_out(F.silu(gate) * inner) + self.skip(mixed)
