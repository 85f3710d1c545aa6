"""The causal history encoder: pre-norm blocks with rotary positions and query tokens.

Events attend to earlier events and themselves. Query tokens attend to the events before their
position and to themselves; events never see queries, so that an encoded history serves every
query and could be cached.

Half of the rotary pairs turn with the event's index, half with days since the entity's first
event at periods from one day to about eight years (linear in time: log(1 + t / 8) would lose
recency late in a history). Rotary embedding after RoFormer (Su et al. 2021), RMSNorm and SwiGLU
as in LLaMA (Touvron et al. 2023).

The norm, the rotation and the SwiGLU product carry their backward passes with them
(foundation.passes): in training, memory traffic costs more here than arithmetic.

Shapes: B batch, L events, Q query tokens, D width, H heads, R = D / H, C = R / 2 rotary pairs.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from foundation.passes import (
    CausalAttention,
    NormPass,
    RotatedHeads,
    SwigluPass,
    swapped,
    whole_scores,
    with_backward,
)

INDEX_BASE = 1000.0
Angles = tuple[torch.Tensor, torch.Tensor]
KeyValues = tuple[torch.Tensor, torch.Tensor]


class RMSNorm(nn.Module):
    """Root mean square normalisation with a learned scale."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if with_backward(x):
            return NormPass.apply(x, self.weight, self.eps)
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

    def forward(self, index: torch.Tensor, days: torch.Tensor) -> Angles:
        """Cosines, and sines with the sign of the half they turn.

        Args:
            index: [B, L] float32 event index.
            days: [B, L] float32 days since the entity's first event.

        Returns:
            Two tensors [B, 1, L, R].
        """
        by_index = index[..., None] * index.new_tensor(self.index_frequencies)
        by_days = days[..., None] * days.new_tensor(self.day_frequencies)
        angle = torch.cat([by_index, by_days], dim=-1)[:, None]
        cos, sin = torch.cos(angle), torch.sin(angle)
        return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn the pairs (x[i], x[i + C]) of [B, H, L, R] by their angles [B, 1, L, R]."""
    return x * cos + swapped(x) * sin


class Block(nn.Module):
    """One pre-norm transformer layer over events and queries with shared weights."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.width, self.heads, self.scale = width, heads, (width // heads) ** -0.5
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
            event_mask: [B or 1, 1, L, L] added to the scores; None means causal.
            query_mask: [B, 1, Q, L + Q] added to the scores of events, then query tokens.
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
        q, k, v = self._heads(events, angles)
        if torch.jit.is_tracing():
            mask = causal_mask(events) if mask is None else mask
            scores = (q * self.scale) @ k.transpose(-1, -2) + mask
            seen = torch.softmax(scores, dim=-1) @ v
        elif mask is None and whole_scores(q):
            seen = CausalAttention.apply(q, k, v, self.scale)
        else:
            seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        mixed = events + self.dropout(self.attention_out(self._merge(seen)))
        return mixed + self._mlp(mixed), (k, v)

    def keys(self, events: torch.Tensor, angles: Angles) -> KeyValues:
        """What queries may attend to, as `read` gives it, without taking the events further."""
        events = self.attention_norm(events)
        if type(self.qkv) is nn.Linear:
            joined = F.linear(events, self.qkv.weight[self.width :])
        else:  # an adapter stands in its place
            joined = self.qkv(events)[..., self.width :]
        k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in joined.split(self.width, dim=-1)
        )
        return rotate(k, *angles), v

    def look(
        self, queries: torch.Tensor, keys: KeyValues, angles: Angles, mask: torch.Tensor
    ) -> torch.Tensor:
        """Query tokens [B, Q, D] through the layer, over the keys and values of `read`."""
        q, k, v = self._heads(queries, angles)
        q = q * self.scale
        past, own = q @ keys[0].transpose(-1, -2), q @ k.transpose(-1, -2)
        share = torch.softmax(torch.cat([past, own], dim=-1) + mask, dim=-1)
        length = past.shape[-1]  # stays dynamic in a traced graph
        looked = share[..., :length] @ keys[1] + share[..., length:] @ v
        queries = queries + self.dropout(self.attention_out(self._merge(looked)))
        return queries + self._mlp(queries)

    def _heads(
        self, x: torch.Tensor, angles: Angles
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[B, L, D] -> rotated queries, rotated keys and values, each [B, H, L, R]."""
        joined = self.qkv(self.attention_norm(x))
        if with_backward(joined):
            return RotatedHeads.apply(joined, *angles, self.heads)
        parts = joined.split(self.width, dim=-1)
        q, k, v = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in parts)
        return rotate(q, *angles), rotate(k, *angles), v

    @staticmethod
    def _merge(x: torch.Tensor) -> torch.Tensor:
        """[B, H, L, R] -> [B, L, D]."""
        return x.transpose(1, 2).flatten(2)

    def _mlp(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.mlp_out(swiglu(self.mlp_in(self.mlp_norm(x)))))


def swiglu(x: torch.Tensor) -> torch.Tensor:
    """[..., 2n] -> [..., n]: the first half gates the second."""
    if with_backward(x):
        return SwigluPass.apply(x)
    gate, value = x.split(int(x.shape[-1]) // 2, dim=-1)
    return F.silu(gate) * value


def query_mask(position: torch.Tensor, length: int, chained: bool = False) -> torch.Tensor:
    """[B, 1, Q, L + Q] to add to scores: a query sees the events before its position, and itself.

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
    return _added(torch.cat([events, own], dim=-1)[:, None])


def bidirectional_mask(position: torch.Tensor, length: int) -> torch.Tensor:
    """[B, 1, L, L] to add to scores: all events before the query see each other; padding itself."""
    inside = torch.arange(length, device=position.device) < position.amax(dim=1, keepdim=True)
    both = inside[:, :, None] & inside[:, None, :]
    order = torch.arange(length, device=position.device)
    return _added((both | (order[:, None] == order))[:, None])


def causal_mask(events: torch.Tensor) -> torch.Tensor:
    """[1, 1, L, L] to add to the scores of events [B, L, D]: each sees itself and those before."""
    order = torch.arange(events.shape[1], device=events.device)
    return _added((order[:, None] >= order)[None, None])


def _added(seen: torch.Tensor) -> torch.Tensor:
    """Zero where attended, minus infinity elsewhere."""
    return torch.zeros_like(seen, dtype=torch.float32).masked_fill(~seen, -math.inf)
