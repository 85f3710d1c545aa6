"""Written backward passes equal autograd through the plain formula."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from foundation.attention import RMSNorm, Rotary, rotate, swiglu
from foundation.event_encoder import TokenTable
from foundation.passes import CausalAttention, NormPass, RotatedHeads, SwigluPass


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 5))
def test_norm_gradients(seed: int, rows: int, length: int) -> None:
    x, weight = random(rows, length, 8, seed=seed), random(8, seed=seed + 1)
    assert torch.autograd.gradcheck(
        lambda *a: NormPass.apply(*a, 1e-6), (x, weight), fast_mode=True
    )


@given(st.integers(0, 1000), st.integers(1, 5))
def test_gated_product_gradients(seed: int, length: int) -> None:
    assert torch.autograd.gradcheck(
        SwigluPass.apply, (random(2, length, 6, seed=seed),), fast_mode=True
    )


@given(st.integers(0, 1000), st.integers(1, 5))
def test_rotation_gradients(seed: int, length: int) -> None:
    joined = random(2, length, 3 * 2 * 4, seed=seed)
    angle = random(2, 1, length, 2, seed=seed + 1).detach()
    cos, sin = angle.cos().repeat(1, 1, 1, 2), torch.cat([-angle.sin(), angle.sin()], dim=-1)
    assert torch.autograd.gradcheck(
        lambda x: RotatedHeads.apply(x, cos, sin, 2), (joined,), fast_mode=True
    )


@given(st.integers(0, 1000), st.integers(1, 6))
def test_attention_gradients(seed: int, length: int) -> None:
    heads = [random(2, 2, length, 4, seed=seed + part) for part in range(3)]
    assert torch.autograd.gradcheck(
        lambda *a: CausalAttention.apply(*a, 0.5), tuple(heads), fast_mode=True
    )
    wanted = F.scaled_dot_product_attention(*heads, is_causal=True, scale=0.5)
    torch.testing.assert_close(CausalAttention.apply(*heads, 0.5), wanted)


def test_training_and_inference_read_the_same() -> None:
    """The same values with gradients (written passes) and without (plain formulas)."""
    x = random(3, 7, 16).detach().float().requires_grad_()
    norm = RMSNorm(16)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2.0, 16))
        plain = norm(x), swiglu(x)
    torch.testing.assert_close(norm(x), plain[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(swiglu(x), plain[1], atol=1e-6, rtol=0)
    angles = Rotary(8, 1.0, 2922.0)(torch.arange(7.0).expand(3, 7), torch.rand(3, 7) * 900)
    joined = random(3, 7, 3 * 16).detach().float()
    q, k, v = (p.unflatten(-1, (2, 8)).transpose(1, 2) for p in joined.split(16, -1))
    found = RotatedHeads.apply(joined, *angles, 2)
    for one, wanted in zip(found, (rotate(q, *angles), rotate(k, *angles), v), strict=True):
        torch.testing.assert_close(one, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("numbers", [[], [1], [0, 2], [0, 1, 2]])
def test_columns_without_numbers_read_no_position(numbers: list[int]) -> None:
    """Summing looked-up rows equals the formula that takes every column as a number."""
    torch.manual_seed(0)
    tokens = TokenTable(8, 32, 16, 4)
    layout = {
        "code_rows": torch.randint(0, 32, (9, 2)),
        "code_slot": torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2]),
        "slot_kind": torch.zeros(3, dtype=torch.int64),
        "slot_role": torch.zeros(3, dtype=torch.int64),
        "slot_name": torch.randint(0, 16, (3, 2)),
        "source_name": torch.randint(0, 16, (1, 2)),
    }
    tables = tokens(layout)
    code, value = torch.randint(0, 9, (4, 5, 3)), torch.rand(4, 5, 3)
    value[..., [k for k in range(3) if k not in numbers]] = 0.0
    found = tokens.slots(tables, code, value, numbers)
    moved = tokens.value(tokens._features(value)) * F.embedding(code, tables.scale)
    wanted = F.silu(F.embedding(code, tables.code) + moved).sum(-2)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    value[..., [k for k in range(3) if k not in numbers]] = 0.5
    assert torch.equal(found, tokens.slots(tables, code, value, numbers))
