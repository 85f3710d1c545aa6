"""Steps of the network with their backward passes written out, for training.

Autograd keeps every intermediate of a formula and joins the gradients of its parts by copies; here
that traffic takes longer than the arithmetic. Each class equals a plain formula in
`foundation.attention`, which serves inference and export.

Shapes: B batch, L tokens, D width, H heads, R = D / H.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def with_backward(x: torch.Tensor) -> bool:
    """Whether gradients will be asked for, so that a written backward pass pays."""
    return torch.is_grad_enabled() and not torch.jit.is_tracing() and x.is_floating_point()


def whole_scores(q: torch.Tensor) -> bool:
    """Whether `CausalAttention` is the faster way: training on a CPU in plain float32."""
    return q.device.type == "cpu" and with_backward(q) and not torch.is_autocast_enabled("cpu")


def swapped(x: torch.Tensor) -> torch.Tensor:
    """The halves of the last axis exchanged."""
    first, second = x.split(int(x.shape[-1]) // 2, dim=-1)
    return torch.cat([second, first], dim=-1)


class NormPass(torch.autograd.Function):
    """x / rms(x) * weight over the last axis."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = x.to(weight.dtype)
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (wide * inverse).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        wide = x.to(weight.dtype)
        width = x.shape[-1]
        product = (grad * wide).view(-1, width)
        rows = inverse.view(-1)
        share = (product @ weight).mul_(rows**3).div_(-width).view(inverse.shape)
        found = (grad * weight).mul_(inverse).addcmul_(wide, share)
        return found.to(x.dtype), rows @ product, None


class SwigluPass(torch.autograd.Function):
    """silu(first half) * second half of the last axis."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        gate, value = x.chunk(2, dim=-1)
        opened = F.silu(gate)
        ctx.save_for_backward(x, opened)
        return opened * value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        x, opened = ctx.saved_tensors
        gate, value = x.chunk(2, dim=-1)
        found = torch.empty_like(x)
        for_gate, for_value = found.chunk(2, dim=-1)
        torch.mul(grad, opened, out=for_value)
        torch.ops.aten.silu_backward.grad_input(grad * value, gate, grad_input=for_gate)
        return found


class CausalAttention(torch.autograd.Function):
    """softmax(q k' scale, each token seeing itself and those before) v, over [B, H, L, R].

    Whole score matrices rather than the tiles of flash attention: histories are short, heads
    narrow, and products of whole matrices can use the bfloat16 units of a CPU, tiles cannot.
    """

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        shape = q.shape
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        order = torch.arange(shape[2])
        later = torch.zeros(shape[2], shape[2], dtype=q.dtype)
        later.masked_fill_(order[:, None] < order, -math.inf)
        scores = torch.baddbmm(later[None], q, k.transpose(1, 2), alpha=scale)
        share = torch.softmax(scores, dim=-1)
        ctx.save_for_backward(q, k, v, share)
        ctx.scale = scale
        return torch.bmm(share, v).view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, share = ctx.saved_tensors
        shape = grad.shape
        grad = grad.flatten(0, 1)
        for_v = torch.bmm(share.transpose(1, 2), grad)
        for_share = torch.bmm(grad, v.transpose(1, 2))
        scores = torch.ops.aten._softmax_backward_data(for_share, share, -1, share.dtype)
        for_q = torch.bmm(scores, k).mul_(ctx.scale)
        for_k = torch.bmm(scores.transpose(1, 2), q).mul_(ctx.scale)
        return for_q.view(shape), for_k.view(shape), for_v.view(shape), None


class RotatedHeads(torch.autograd.Function):
    """Joined queries, keys and values [B, L, 3 D] to [B, H, L, R] each, the first two turned.

    Angles as `foundation.attention.Rotary` gives them, [B, 1, L, R] with equal halves of the
    cosines and opposite halves of the sines: turning back is turning by the negated sines.
    """

    @staticmethod
    def forward(
        ctx: Any, joined: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, heads: int
    ) -> tuple[torch.Tensor, ...]:
        cos, sin = (a.transpose(1, 2)[:, :, None].to(joined.dtype) for a in (cos, sin))
        ctx.save_for_backward(cos, sin)
        parts = joined.unflatten(-1, (3, heads, -1))
        both = parts[:, :, :2]
        turned = (both * cos).addcmul_(swapped(both), sin)
        q, k = turned.transpose(1, 3).unbind(2)
        return q, k, parts[:, :, 2].transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        found = torch.stack([q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)], dim=2)
        both = found[:, :, :2]
        across = swapped(both)
        both.mul_(cos).addcmul_(across, sin, value=-1)
        return found.flatten(2), None, None, None
