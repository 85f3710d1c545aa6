"""The backbone as an ONNX graph over a cached state, proved equal to whole histories.

One run takes the keys and values of cached events, new events behind them and a query behind
those, and answers what the history graph answers for the whole history, beside the new events'
keys and values. Cached and new events are padded: `cached` [B, 1] and `query_position` [B, 1] count
those that are real, at least one row of each must be there (ONNX Runtime's products divide by zero
on none). Two graph inputs more carry the mean and last state on.

Inputs beside those of `foundation.batching.HistoryBatch`: `cached` [B, 1] int64, `total` [B, D]
float64, `final` [B, D], and `key_0`, `value_0`, `key_1`, ... [P, B, H, R] of every block. Outputs:
`query`, `mean`, `last` [B, D] and `forecasts` [B, T] as of the history graph, `next_total`, and
`memory` [2 blocks, L + 1, B, D]: key and value of every block for the new events (and, in the last
row, of no meaning). `last` is the next `final`.

Shapes: B batch, P cached events, L new events, S = L + 1 tokens (new events, then the query), D
width, H heads, R = D / H, T forecasts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch

from finetune.causal_graph import (
    MASKED,
    after,
    answer,
    attend,
    causal_mask,
    event_tokens,
    heads,
    last_heads,
    mean_of,
    norm,
    put_at,
    query_tokens,
    rotary_turns,
    rows_at,
    total_before,
)
from finetune.graph_writer import DOUBLE, FLOAT, INT64, Products, Writer, plain_products
from finetune.history_graph import (
    OUTPUTS,
    TOLERANCE,
    HistoryGraph,
    frozen,
    open_session,
    probe_inputs,
)
from foundation.backbone import INPUTS, RiskBackbone
from foundation.errors import ArtifactError, ParityError
from foundation.tokenizer import Tokenizer

SPLITS = ((1, 0, 1), (1, 7, 4), (4, 33, 5), (2, 250, 6), (1, 64, 0))


def export_incremental(
    model: RiskBackbone,
    tokenizer: Tokenizer,
    path: str | Path,
    products: Products = plain_products,
    tolerance: float = TOLERANCE,
) -> float:
    """Write the incremental graph of a backbone for the codes of a tokenizer.

    Args:
        products: how matrices of the blocks are multiplied, see `finetune.quantized`; the proof
            compares with torch, so that others than plain ones need a tolerance of their own.

    Returns:
        Largest absolute difference to torch on whole histories, over the probes.

    Raises:
        ArtifactError: the backbone is bidirectional: every event then changes all others.
        ParityError: the graph differs from torch by more than `tolerance`.
    """
    with frozen(model.bind(tokenizer)):
        graph = incremental_graph(model, products)
        worst = _prove(graph, model)
    if not worst <= tolerance:
        raise ParityError(
            f"the incremental graph differs from torch by {worst:.2g}, allowed {tolerance:g}"
        )
    partial = Path(path).with_name(Path(path).name + ".partial")
    onnx.save(graph, str(partial))
    partial.replace(path)
    return worst


def incremental_graph(model: RiskBackbone, products: Products = plain_products) -> onnx.ModelProto:
    """The graph, as the module says.

    Args:
        model: bound, its tables frozen.

    Raises:
        ArtifactError: the backbone is bidirectional.
    """
    if model.config.bidirectional:
        raise ArtifactError(
            "a bidirectional backbone has no state to go on from; every event changes all others"
        )
    w, c = Writer(), model.config
    width, head_width = c.width, c.width // c.heads
    events, event_days = event_tokens(w, model, "B")
    query, query_days = query_tokens(w, model, "B")
    fresh = w.op("Transpose", w.input("query_position", INT64, ["B", 1]), perm=[1, 0])
    cached = w.input("cached", INT64, ["B", 1])
    past = [
        [
            w.input(f"{name}_{i}", FLOAT, ["P", "B", c.heads, head_width])
            for name in ("key", "value")
        ]
        for i in range(c.layers)
    ]
    tokens = w.op("Concat", events, query, axis=0)
    size, batch = w.op("Shape", tokens, start=0, end=1), w.op("Shape", tokens, start=1, end=2)
    step = w.op("Unsqueeze", w.arange(size), w.ints(1))
    here = w.op("Equal", step, fresh)
    place = w.op("Unsqueeze", w.arange(batch), w.ints(0))
    x = put_at(w, tokens, query, fresh, place)
    days = w.op("Where", here, query_days, w.op("Concat", event_days, query_days, axis=0))
    index = w.op("Add", step, w.op("Transpose", cached, perm=[1, 0]))
    turns = rotary_turns(w, model, index, days)
    # [B, 1, 1, P] of the past and [S, S] of the new tokens, as one [B, 1, S, P + S]
    behind = w.op("Unsqueeze", w.arange(w.op("Shape", past[0][0], start=0, end=1)), w.ints(0))
    absent = w.op("Cast", w.op("GreaterOrEqual", behind, cached), to=FLOAT)
    absent = w.op("Unsqueeze", w.op("Mul", absent, w.number(MASKED)), w.ints(1, 2))
    one = w.ints(1)
    before = w.op("Expand", absent, w.op("Concat", one, one, size, one, axis=0))
    among = w.op(
        "Expand", causal_mask(w, w.ints(0), size), w.op("Concat", batch, one, size, size, axis=0)
    )
    mask = w.op("Concat", before, among, axis=3)

    *blocks, last = model.blocks
    memory = []
    for block, (old_k, old_v) in zip(blocks, past, strict=False):
        q, k, v = heads(w, block, x, turns, products)
        memory += [k, v]
        k, v = w.op("Concat", old_k, k, axis=0), w.op("Concat", old_v, v, axis=0)
        seen = w.op("Reshape", attend(w, q, k, v, mask), w.ints(0, 0, width))
        x = after(w, block, x, seen, products)

    newest = w.op("Max", w.op("Sub", fresh, w.ints(1)), w.ints(0))
    own, final = (w.op("Add", w.op("Mul", row, batch), place) for row in (fresh, newest))
    q, k, v = last_heads(w, last, x, own, turns, products)
    memory += [k, v]
    old_k, old_v = past[-1]
    k, v = w.op("Concat", old_k, k, axis=0), w.op("Concat", old_v, v, axis=0)
    ahead = w.op("Greater", w.op("Transpose", step, perm=[1, 0]), "query_position")
    ahead = w.op("Mul", w.op("Cast", ahead, to=FLOAT), w.number(MASKED))
    only = w.op("Concat", absent, w.op("Unsqueeze", ahead, w.ints(1, 2)), axis=3)
    seen = w.op("Reshape", attend(w, q, k, v, only), w.ints(0, 0, width))
    answer(w, model, after(w, last, rows_at(w, x, own, width), seen, products), "B")

    states = norm(w, model.final_norm, x)
    total = w.input("total", DOUBLE, ["B", width])
    total = w.op("Add", total, total_before(w, states, step, fresh))
    newest_state = w.op("Reshape", rows_at(w, states, final, width), w.ints(-1, width))
    some = w.op("Greater", "query_position", w.ints(0))
    kept = w.input("final", FLOAT, ["B", width])
    w.output("mean", mean_of(w, total, w.op("Add", cached, "query_position")), ["B", width])
    w.output("last", w.op("Where", some, newest_state, kept), ["B", width])
    w.output("next_total", total, ["B", width], DOUBLE)
    flat = [w.op("Unsqueeze", w.op("Reshape", m, w.ints(0, 0, width)), w.ints(0)) for m in memory]
    w.output("memory", w.op("Concat", *flat, axis=0), [2 * c.layers, "S", "B", width])
    return w.finish("incremental")


def _prove(graph: onnx.ModelProto, model: RiskBackbone) -> float:
    """Largest difference of histories taken in two parts to torch on whole ones."""
    session = open_session(graph.SerializeToString())
    worst = 0.0
    for batch, before, fresh in SPLITS:
        inputs = probe_inputs(model, batch, max(before + fresh, 1))
        inputs["query_position"][:] = before + fresh
        with torch.no_grad():
            wanted = HistoryGraph(model)(*(torch.from_numpy(inputs[n]) for n in INPUTS))
        found = _in_two_parts(session, model, inputs, before, fresh)
        for name, a, b in zip(OUTPUTS, found, wanted, strict=True):
            if not np.isfinite(a).all() or a.shape != tuple(b.shape):
                raise ParityError(f"incremental '{name}' is not finite or has shape {a.shape}")
            worst = max(worst, float(np.abs(a - b.numpy()).max(initial=0.0)))
    return worst


def _in_two_parts(
    session: ort.InferenceSession,
    model: RiskBackbone,
    inputs: dict[str, np.ndarray],
    before: int,
    fresh: int,
) -> list[np.ndarray]:
    """The history outputs for `before` events in one run and `fresh` ones in another."""
    c, batch = model.config, len(inputs["days"])
    names = [i.name for i in session.get_inputs()]
    outputs = [o.name for o in session.get_outputs()]
    memory = np.zeros((2 * c.layers, 1, batch, c.width), np.float32)
    total, final = np.zeros((batch, c.width)), np.zeros((batch, c.width), np.float32)
    start, found = 0, {}
    for count in (before, fresh):
        feed = {
            n: a if n.startswith("query") else a[:, start : max(start + count, start + 1)]
            for n, a in inputs.items()
        }
        if feed["days"].shape[1] == 0:
            feed = {n: a if n.startswith("query") else inputs[n][:, :1] for n, a in feed.items()}
        feed["query_position"] = np.full((batch, 1), count)
        feed |= {"cached": np.full((batch, 1), start), "total": total, "final": final}
        heads_ = memory.reshape(*memory.shape[:3], c.heads, -1)
        feed |= {f"key_{i}": heads_[2 * i] for i in range(c.layers)}
        feed |= {f"value_{i}": heads_[2 * i + 1] for i in range(c.layers)}
        found = dict(zip(outputs, session.run(None, {n: feed[n] for n in names}), strict=True))
        new = found["memory"][:, :count]
        memory = new if start == 0 and count else np.concatenate([memory, new], axis=1)
        total, final, start = found["next_total"], found["last"], start + count
    return [found[name] for name in OUTPUTS]
