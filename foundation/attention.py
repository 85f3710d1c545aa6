"""The causal history encoder: pre-norm blocks with rotary positions and query tokens.

Events attend to earlier events and themselves. Query tokens attend to the events before their
position and to themselves; events never see queries, so that an encoded history serves every
query and could be cached.

Half of the rotary pairs turn with the event's index, half with days since the entity's first
event at periods from one day to about eight years (linear in time: log(1 + t / 8) would lose
recency late in a history). Rotary embedding after RoFormer (Su et al. 2021), RMSNorm and SwiGLU
as in LLaMA (Touvron et al. 2023).

Shapes: B batch, L events, Q query tokens, D width, H heads, R = D / H, C = R / 2 rotary pairs.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

INDEX_BASE = 1000.0
Angles = tuple[torch.Tensor, torch.Tensor]
KeyValues = tuple[torch.Tensor, torch.Tensor]
Angles = tuple[torch.Tensor, torch.Tensor]


class RMSNorm(nn.Module):
    """Root mean square normalisation with a learned scale."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class Rotary(nn.Module):
    """Angles of positions: index and days.

    Holds no parameter and no stored buffer; frequencies are constants of the configuration.
    """

    def __init__(self, head_width: int, shortest_days: float, longest_days: float) -> None:
        super().__init__()
        pairs = head_width // 2
        index_pairs = pairs // 2
        day_pairs = pairs - index_pairs
        self.index_frequencies = [
            INDEX_BASE ** (-i / max(index_pairs, 1)) for i in range(index_pairs)
        ]
        ratio = longest_days / shortest_days
        self.day_frequencies = [
            2 * math.pi / (shortest_days * ratio ** (i / max(day_pairs - 1, 1)))
            for i in range(day_pairs)
        ]

    def forward(self, index: torch.Tensor, days: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines.

        Args:
            index: [B, L] float32 event index.
            days: [B, L] float32 days since the entity's first event.

        Returns:
            Two tensors [B, 1, L, C].
        """
        by_index = index[..., None] * index.new_tensor(self.index_frequencies)
        by_days = days[..., None] * days.new_tensor(self.day_frequencies)
        angle = torch.cat([by_index, by_days], dim=-1)[:, None]
        return torch.cos(angle), torch.sin(angle)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn the pairs (x[i], x[i + C]) of [B, H, L, R] by their angles [B, 1, L, C]."""
    first, second = x.split(int(x.shape[-1]) // 2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class Block(nn.Module):
    """One pre-norm transformer layer over events and queries with shared weights."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.width, self.heads, self.hidden = width, heads, hidden
        self.attention_norm = RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_norm = RMSNorm(width)
        self.mlp_in = nn.Linear(width, 2 * hidden, bias=False)
        self.mlp_out = nn.Linear(hidden, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        events: torch.Tensor,
        queries: torch.Tensor | None,
        event_angles: Angles,
        query_angles: Angles | None,
        event_mask: torch.Tensor | None,
        query_mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One layer.

        Args:
            events: [B, L, D]; queries: [B, Q, D] or None.
            event_mask: [B, 1, L, L] bool, True where attended; None means causal.
            query_mask: [B, 1, Q, L + Q] bool over events, then the query tokens.
        """
        events, keys = self.read(events, event_angles, event_mask)
        if queries is None or query_angles is None or query_mask is None:
            return events, None
        return events, self.look(queries, keys, query_angles, query_mask)

    def read(
        self, events: torch.Tensor, angles: Angles, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, KeyValues]:
        """Events through the layer, and what queries may attend to.

        Returns:
            [B, L, D], and rotated keys and values, each [B, H, L, R]; they depend on no query, so
            a frozen history is encoded once for every channel.
        """
        q, k, v = self._heads(events)
        q, k = rotate(torch.cat([q, k], dim=1), *angles).split(self.heads, dim=1)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        mixed = events + self.dropout(self.attention_out(self._merge(seen)))
        return mixed + self._mlp(mixed), (k, v)

    def look(
        self, queries: torch.Tensor, keys: KeyValues, angles: Angles, mask: torch.Tensor
    ) -> torch.Tensor:
        """Query tokens [B, Q, D] through the layer, over the keys and values of `read`."""
        q, k, v = self._heads(queries)
        q, k = rotate(q, *angles), rotate(k, *angles)
        k, v = torch.cat([keys[0], k], dim=2), torch.cat([keys[1], v], dim=2)
        looked = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        queries = queries + self.dropout(self.attention_out(self._merge(looked)))
        return queries + self._mlp(queries)

    def _heads(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[B, L, D] -> three of [B, H, L, R]."""
        parts = self.qkv(self.attention_norm(x)).split(self.width, dim=-1)
        q, k, v = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in parts)
        return q, k, v

    @staticmethod
    def _merge(x: torch.Tensor) -> torch.Tensor:
        """[B, H, L, R] -> [B, L, D]."""
        return x.transpose(1, 2).flatten(2)

    def _mlp(self, x: torch.Tensor) -> torch.Tensor:
        gate, value = self.mlp_in(self.mlp_norm(x)).split(self.hidden, dim=-1)
        return self.dropout(self.mlp_out(F.silu(gate) * value))


def query_mask(position: torch.Tensor, length: int, chained: bool = False) -> torch.Tensor:
    """[B, 1, Q, L + Q] bool: a query sees the events before its position, and itself.

    Args:
        position: [B, Q] int64 number of leading events each query may see.
        length: L.
        chained: a query also sees the query tokens before it, as behind a soft prompt.
    """
    queries = position.shape[1]
    events = torch.arange(length, device=position.device) < position[..., None]
    order = torch.arange(queries, device=position.device)
    own = order[:, None] >= order if chained else order[:, None] == order
    own = own[None].expand(position.shape[0], -1, -1)
    return torch.cat([events, own], dim=-1)[:, None]


def bidirectional_mask(position: torch.Tensor, length: int) -> torch.Tensor:
    """[B, 1, L, L] bool: all events before the query see each other; padding sees itself."""
    inside = torch.arange(length, device=position.device) < position.amax(dim=1, keepdim=True)
    both = inside[:, :, None] & inside[:, None, :]
    order = torch.arange(length, device=position.device)
    return (both | (order[:, None] == order))[:, None]
