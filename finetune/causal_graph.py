"""The causal backbone as ONNX operators: what whole and cached histories share.

The query token stands behind its history's last event, where a causal network lets it see exactly
the events before it and itself: events and query share every product, and one causal mask serves
all. Time comes first and the batch second, so that heads are read in place instead of being
transposed. The last block takes keys and values of all tokens, but follows the query alone.

Shapes: B batch, L events, S = L + 1 tokens (events, then the query), K slots, X and Y extra
columns, D width, H heads, R = D / H, C = R / 2 rotary pairs, E slot width, M knots, T forecasts.
Tokens are [S, B, D], heads [S, B, H, R].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from torch import nn

from finetune.graph_writer import DOUBLE, FLOAT, INT64, Product, Products, Writer, plain_products
from foundation.attention import Block, RMSNorm
from foundation.backbone import RiskBackbone
from foundation.calendar_features import EVENT_EXTRA, QUERY_EXTRA
from foundation.event_encoder import Fusion, TokenTable

# Added to the scores of what must not be seen. Minus infinity would have softmax work in denormal
# numbers, six times slower, and so would -80 the product behind it. Masked weights become at most
# exp(MASKED + the spread of a row's scores), far under float32's resolution beside the others.
MASKED = -60.0


@dataclass(frozen=True)
class Turns:
    """Rotary angles.

    Attributes:
        cos, sin: [S B, C]; row: the row of both for every token to turn, int64.
        own: the tokens to turn are some of all.
    """

    cos: str
    sin: str
    row: str
    own: bool = False


def history_graph(model: RiskBackbone, products: Products = plain_products) -> onnx.ModelProto:
    """The graph of whole histories; inputs and outputs as `finetune.history_graph` states them.

    Args:
        model: causal, bound, its tables frozen.
        products: how matrices of the blocks are multiplied.
    """
    w = Writer()
    width = model.config.width
    events, event_days = event_tokens(w, model, "B")
    query, query_days = query_tokens(w, model, "B")
    position = w.op("Transpose", w.input("query_position", INT64, ["B", 1]), perm=[1, 0])
    tokens = w.op("Concat", events, query, axis=0)
    size, batch = w.op("Shape", tokens, start=0, end=1), w.op("Shape", tokens, start=1, end=2)
    step = w.op("Unsqueeze", w.arange(size), w.ints(1))
    here = w.op("Equal", step, position)
    place = w.op("Unsqueeze", w.arange(batch), w.ints(0))
    x = put_at(w, tokens, query, position, place)
    days = w.op("Where", here, query_days, w.op("Concat", event_days, query_days, axis=0))
    index = w.op("Expand", step, w.op("Concat", size, batch, axis=0))
    turns = rotary_turns(w, model, index, days)
    parts = _parts(w, size)

    *blocks, last = model.blocks
    for block in blocks:
        q, k, v = heads(w, block, x, turns, products)
        attended = []
        for start, stop, mask in parts:
            past_k, past_v = (_upto(w, z, stop, size) for z in (k, v))
            attended.append(attend(w, w.slice(q, start, stop), past_k, past_v, mask))
        seen = w.op("Concat", *attended, axis=0)
        x = after(w, block, x, w.op("Reshape", seen, w.ints(0, 0, width)), products)

    before = w.op("Max", w.op("Sub", position, w.ints(1)), w.ints(0))
    own, final = (
        w.op("Add", w.op("Mul", row, batch), place)  # [1, B] rows of [S B, D]
        for row in (position, before)
    )
    states = norm(w, model.final_norm, x)
    some = w.op("Min", w.op("Cast", "query_position", to=FLOAT), w.number(1.0))
    newest = w.op("Reshape", rows_at(w, states, final, width), w.ints(-1, width))
    total = total_before(w, states, step, position)
    w.output("mean", mean_of(w, total, "query_position"), ["B", width])
    w.output("last", w.op("Mul", newest, some), ["B", width])

    ahead = w.op("Greater", w.op("Transpose", step, perm=[1, 0]), "query_position")
    mask = w.op("Mul", w.op("Cast", ahead, to=FLOAT), w.number(MASKED))
    q, k, v = last_heads(w, last, x, own, turns, products)
    seen = attend(w, q, k, v, w.op("Unsqueeze", mask, w.ints(1, 2)))
    seen = w.op("Reshape", seen, w.ints(0, 0, width))
    answer(w, model, after(w, last, rows_at(w, x, own, width), seen, products), "B")
    w.outputs.sort(key=lambda o: ("query", "mean", "last", "forecasts").index(o.name))
    return w.finish("history")


def event_tokens(w: Writer, model: RiskBackbone, batch: int | str) -> tuple[str, str]:
    """Events before any has seen another, [L, B, D], and their days, [L, B].

    Declares the inputs source, code, value, extra and days.
    """
    source = w.op("Transpose", w.input("source", INT64, [batch, "L"]), perm=[1, 0])
    shape = w.op("Concat", w.op("Shape", source), w.ints(model.config.width), axis=0)
    table = _array(model.tables().source) + _array(model.event_fusion.extra.bias)
    embedded = w.op("Gather", w.constant(table), w.op("Reshape", source, w.ints(-1)))
    slots = _slots(w, model, ("code", "value"), (batch, "L"), event=True)
    total = embedded if slots is None else w.op("Add", slots, embedded)
    extra = w.input("extra", FLOAT, [batch, "L", model.config.extra])
    read = _read(model, EVENT_EXTRA)
    tokens = _fused(w, model.event_fusion, total, _rows(w, extra, len(read)), read)
    days = w.op("Transpose", w.input("days", FLOAT, [batch, "L"]), perm=[1, 0])
    return w.op("Reshape", tokens, shape), days


def query_tokens(w: Writer, model: RiskBackbone, batch: int | str) -> tuple[str, str]:
    """Query tokens, [1, B, D], and their days, [1, B]; declares the inputs of a query."""
    slots = _slots(w, model, ("query_code", "query_value"), (batch, 1), event=False)
    bias = w.constant(_array(model.query_fusion.extra.bias))
    total = bias if slots is None else w.op("Add", slots, bias)
    extra = w.input("query_extra", FLOAT, [batch, 1, model.config.query_extra])
    read, token = _read(model, QUERY_EXTRA), _array(model.query_token)
    tokens = _fused(w, model.query_fusion, total, _rows(w, extra, len(read)), read, token)
    days = w.op("Transpose", w.input("query_days", FLOAT, [batch, 1]), perm=[1, 0])
    return w.op("Unsqueeze", tokens, w.ints(0)), days


def rotary_turns(w: Writer, model: RiskBackbone, index: str, days: str) -> Turns:
    """Angles of tokens from their index [S, B] int64 and days [S, B]."""
    frequencies = (model.rotary.index_frequencies, model.rotary.day_frequencies)
    turned = [
        w.op("Mul", w.op("Reshape", at, w.ints(-1, 1)), w.constant(np.array([f], np.float32)))
        for at, f in zip((w.op("Cast", index, to=FLOAT), days), frequencies, strict=True)
    ]
    angle = w.op("Concat", *turned, axis=1)
    count = w.op("Unsqueeze", w.op("Size", days), w.ints(0))
    row = w.op("Reshape", w.arange(count), w.op("Shape", days))
    return Turns(w.op("Cos", angle), w.op("Sin", angle), row)


def norm(w: Writer, module: RMSNorm, x: str) -> str:
    """Root mean square normalisation."""
    weight = w.constant(_array(module.weight))
    return w.op("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=module.eps)


def heads(
    w: Writer, block: Block, x: str, turns: Turns, products: Products
) -> tuple[str, str, str]:
    """Rotated and scaled queries, rotated keys, and values of all tokens, [S, B, H, R] each."""
    q, k, v = products(w, norm(w, block.attention_norm, x), _projections(block))
    return _turned(w, block, q, turns), _turned(w, block, k, turns), _cut(w, block, v.settle(w))


def last_heads(
    w: Writer, block: Block, x: str, own: str, turns: Turns, products: Products
) -> tuple[str, str, str]:
    """`heads` with the queries of rows `own` [1, B] only: [1, B, H, R]."""
    query, key, value = _projections(block)
    seen = norm(w, block.attention_norm, x)
    k, v = products(w, seen, [key, value])
    (q,) = products(w, rows_at(w, seen, own, block.width), [query])
    only = Turns(turns.cos, turns.sin, own, own=True)
    return _turned(w, block, q, only), _turned(w, block, k, turns), _cut(w, block, v.settle(w))


def attend(w: Writer, q: str, k: str, v: str, mask: str | None) -> str:
    """[s, B, H, R] of rows q [s, B, H, R] over t tokens; mask broadcasts to [B, H, s, t]."""
    scores = scores_of(w, q, k)
    share = w.op("Softmax", scores if mask is None else w.op("Add", scores, mask), axis=-1)
    return w.op("Transpose", w.contrib("FusedMatMul", share, v, transBatchB=1), perm=[2, 0, 1, 3])


def scores_of(w: Writer, q: str, k: str) -> str:
    """[B, H, s, t] scores of rows q [s, B, H, R] over tokens k [t, B, H, R]."""
    return w.contrib("FusedMatMul", q, k, transBatchA=1, transBatchB=1, transB=1)


def after(w: Writer, block: Block, x: str, seen: str, products: Products) -> str:
    """What leaves a block, [S, B, D], given what entered it and what its heads saw."""
    hidden = block.mlp_out.in_features
    (mixed,) = products(w, seen, [_matrix(block.attention_out)])
    x = w.op("Add", x, mixed.settle(w))
    into = _matrix(block.mlp_in)
    gate, value = products(w, norm(w, block.mlp_norm, x), [into[:, :hidden], into[:, hidden:]])
    gated = w.op("Mul", _silu(w, gate.settle(w)), value.name)
    (out,) = products(w, gated, [_matrix(block.mlp_out)])
    return w.op("Add", x, out.settle(w, value.scale))


def answer(w: Writer, model: RiskBackbone, own: str, batch: int | str) -> None:
    """The outputs `query` and `forecasts` from the query's last state [1, B, D]."""
    width, head = model.config.width, model.forecast_head
    query = w.op("Reshape", norm(w, model.final_norm, own), w.ints(-1, width))
    w.output("query", query, [batch, width])
    product = w.op("MatMul", query, w.constant(_matrix(head)))
    forecasts = w.op("Add", product, w.constant(_array(head.bias)))
    w.output("forecasts", forecasts, [batch, head.out_features])


def rows_at(w: Writer, x: str, rows: str, width: int) -> str:
    """[..., D] rows of [S, B, D] by their numbers among all S B; D is the width."""
    return w.op("Gather", w.op("Reshape", x, w.ints(-1, width)), rows)


def total_before(w: Writer, states: str, step: str, position: str) -> str:
    """[B, D] float64: states [S, B, D] of steps before `position` [1, B], summed.

    In float32 the sum of some hundred states is off by 1e-5, and more with every event added.
    """
    inside = w.op("Cast", w.op("Unsqueeze", w.op("Less", step, position), w.ints(2)), to=FLOAT)
    exact = w.op("Cast", w.op("Mul", states, inside), to=DOUBLE)
    return w.op("ReduceSum", exact, w.ints(0), keepdims=0)


def mean_of(w: Writer, total: str, count: str) -> str:
    """[B, D] float32: float64 sums over counts [B, 1] int64; zero where there is none."""
    count = w.op("Cast", w.op("Max", count, w.ints(1)), to=DOUBLE)
    return w.op("Cast", w.op("Div", total, count), to=FLOAT)


def put_at(w: Writer, x: str, row: str, position: str, place: str) -> str:
    """x [S, B, D] with row [1, B, D] where position [1, B] says; place is 0, 1, ... [1, B]."""
    found = w.op("Concat", *(w.op("Unsqueeze", i, w.ints(2)) for i in (position, place)), axis=2)
    return w.op("ScatterND", x, found, row)


def causal_mask(w: Writer, first: str, stop: str) -> str:
    """[s, t] to add to scores: rows first to stop - 1 of t = stop tokens see themselves and those
    before; both bounds are [1] int64, first is below stop (Trilu of nothing ends the process)."""
    shape = w.op("Concat", w.op("Sub", stop, first), stop, axis=0)
    behind = w.op("Add", first, w.ints(1))
    return w.op("Trilu", w.op("Expand", w.number(MASKED), shape), behind, upper=1)


def _parts(w: Writer, size: str) -> list[tuple[str, str, str]]:
    """First row, row behind the last, and mask, of the two halves of a history's rows.

    The first half may have no row; its mask is where the second sees the second.
    """
    half = w.op("Div", size, w.ints(2))
    mask = causal_mask(w, half, size)
    corner = (
        w.op("Concat", w.ints(0), half, axis=0),
        w.op("Concat", half, w.op("Add", half, half), axis=0),
    )
    first = w.op("Slice", mask, *corner, w.ints(0, 1))
    return [(w.ints(0), half, first), (half, size, mask)]


def _upto(w: Writer, x: str, stop: str, size: str) -> str:
    """The first rows of x, which has `size`."""
    return x if stop == size else w.slice(x, w.ints(0), stop)


def _rows(w: Writer, x: str, columns: int) -> str:
    """[B, L, columns] as [L B, columns]: a row for every token."""
    return w.op("Reshape", w.op("Transpose", x, perm=[1, 0, 2]), w.ints(-1, columns))


def _slots(
    w: Writer, model: RiskBackbone, names: tuple[str, str], shape: Sequence[int | str], event: bool
) -> str | None:
    """[L B, E]: the sum of each token's slots as `TokenTable.slots`; None without any slot."""
    owners = model.layout["slot_owner"].numpy(force=True)
    mine = owners >= 0 if event else owners < 0
    columns = model.layout["slot_column"].numpy(force=True)[mine]
    width = int(columns.max(initial=-1)) + 1
    if not width:
        return None
    numbers = model._numbers[0 if event else 1]
    still = [k for k in range(width) if k not in set(numbers)]
    tables, tokens = model.tables(), model.tokens
    code = _rows(w, w.input(names[0], INT64, [*shape, width]), width)
    found = []
    if still:
        picked = w.op("Gather", code, w.ints(*still), axis=1)
        rows = w.op("Gather", w.constant(_array(tables.still)), picked)
        found.append(w.op("ReduceSum", rows, w.ints(1), keepdims=0))
    if numbers:
        value = _rows(w, w.input(names[1], FLOAT, [*shape, width]), width)
        value = w.op("Gather", value, w.ints(*numbers), axis=1)
        picked = w.op("Reshape", w.op("Gather", code, w.ints(*numbers), axis=1), w.ints(-1))
        # What the layer of positions adds to all of a code is a part of the code.
        scale = _array(tables.scale)
        bias = scale * _array(tokens.value.bias)
        moved = w.op("Mul", _positions(w, tokens, value), w.op("Gather", w.constant(scale), picked))
        known = w.op("Gather", w.constant(_array(tables.code) + bias), picked)
        rows = _silu(w, w.op("Add", known, moved))
        rows = w.op("Reshape", rows, w.ints(-1, len(numbers), scale.shape[1]))
        found.append(w.op("ReduceSum", rows, w.ints(1), keepdims=0))
    return found[0] if len(found) == 1 else w.op("Add", *found)


def _positions(w: Writer, tokens: TokenTable, value: str) -> str:
    """[N, E] of N positions within bins: hats and waves through their layer, without its bias."""
    steps = np.arange(tokens.knots, dtype=np.float32)
    # A product with [position, 1] takes less than operations that spread a position over knots.
    pair = w.op("Pad", w.op("Reshape", value, w.ints(-1, 1)), w.ints(0, 0, 0, 1), w.number(1.0))
    slope = np.full_like(steps, tokens.knots - 1)
    apart = w.op("MatMul", pair, w.constant(np.stack([slope, -steps])))
    hats = w.op("Relu", w.op("Sub", w.number(1.0), w.op("Abs", apart)))
    turn = (np.float32(torch.pi) * (steps + 1)).astype(np.float32)
    waves = w.op("Cos", w.op("MatMul", pair, w.constant(np.stack([turn, 0 * turn]))))
    return w.op("MatMul", w.op("Concat", hats, waves, axis=-1), w.constant(_matrix(tokens.value)))


def _fused(
    w: Writer,
    fusion: Fusion,
    total: str,
    extra: str,
    read: np.ndarray,
    token: np.ndarray | float = 0.0,
) -> str:
    """[N, D]: `Fusion` of slots and extra columns, plus a constant token.

    Args:
        total: [N, E] or [E] slots and the bias of the extra columns.
        extra: [N, X]; read where `read` [X] is 1.
    """
    hidden = fusion.mix_out.in_features
    total = w.op("Gemm", extra, w.constant(_matrix(fusion.extra) * read[:, None]), total)
    mixed = norm(w, fusion.norm, total)
    into, bias = _matrix(fusion.mix_in), _array(fusion.mix_in.bias)
    gate, value = (
        w.op("Gemm", mixed, w.constant(into[:, half]), w.constant(bias[half]))
        for half in (slice(hidden), slice(hidden, None))
    )
    gated = w.op("Mul", _silu(w, gate), value)
    out = np.concatenate([_matrix(fusion.mix_out), _matrix(fusion.skip)])
    constant = w.constant(_array(fusion.mix_out.bias) + token)
    return w.op("Gemm", w.op("Concat", gated, mixed, axis=-1), w.constant(out), constant)


def _projections(block: Block) -> list[np.ndarray]:
    """Matrices [D, D] of queries, scaled, of keys and of values."""
    joined = _matrix(block.qkv)
    q, k, v = (joined[:, i * block.width : (i + 1) * block.width] for i in range(3))
    return [q * np.float32(block.scale), k, v]


def _turned(w: Writer, block: Block, x: Product, turns: Turns) -> str:
    """[S, B, D] turned by its tokens' angles, as heads."""
    cos, sin, row = turns.cos, turns.sin, turns.row
    if x.scale:  # angles are an eighth of what they turn, or less
        factor = w.op("Reshape", x.scale, w.ints(-1, 1))
        if turns.own:
            cos, sin = (w.op("Gather", z, w.op("Reshape", row, w.ints(-1))) for z in (cos, sin))
            row = w.op(
                "Reshape", w.arange(w.op("Shape", factor, start=0, end=1)), w.op("Shape", row)
            )
        cos, sin = w.op("Mul", cos, factor), w.op("Mul", sin, factor)
    turned = w.contrib("RotaryEmbedding", x.name, row, cos, sin, num_heads=block.heads)
    return _cut(w, block, turned)


def _cut(w: Writer, block: Block, x: str) -> str:
    """[S, B, D] -> [S, B, H, R]."""
    return w.op("Reshape", x, w.ints(0, 0, block.heads, block.width // block.heads))


def _silu(w: Writer, x: str) -> str:
    return w.contrib("QuickGelu", x, alpha=1.0)


def _read(model: RiskBackbone, names: Sequence[str]) -> np.ndarray:
    """[X] float32: 0 for extra columns that the model ignores, else 1."""
    return np.array([name not in model.config.ignored_extra for name in names], dtype=np.float32)


def _matrix(linear: nn.Linear) -> np.ndarray:
    """[in, out] weights."""
    return np.ascontiguousarray(_array(linear.weight).T)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().float().numpy()
