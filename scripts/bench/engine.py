"""Speed of the backbone's graphs on one thread: whole histories, cached states, 8-bit products.

    python scripts/bench/engine.py [--size small] [--rounds 60]

An untrained network of the size of a shipped configuration on invented events; what a network has
learned does not change how long it takes. All cases take turns in one process, in processor time,
so that their ratios hold on a busy machine; the figure is the fastest quarter's median. The rate of
products is that of the same matrices in graphs of nothing else.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import polars as pl
import torch

from finetune.causal_graph import history_graph
from finetune.features import open_session
from finetune.graph_writer import FLOAT, Product, Writer, plain_products
from finetune.history_graph import export_history, frozen, probe_inputs
from finetune.incremental_graph import export_incremental
from finetune.quantized import TOLERANCE, export_quantised, int8_products
from foundation.backbone import RiskBackbone, RiskBackboneConfig
from foundation.history import build_timeline
from foundation.pretrain_config import load_pretrain_config
from foundation.schema import schema_from_dict
from foundation.tokenizer import Tokenizer

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "pretrain"
EVENTS, NEW = 256, 4
# Share of the rate of products, times faster than float32, milliseconds: of `small` only.
SHARE_BAR, INT8_BAR, INCREMENTAL_BAR = 0.75, 1.7, 5.0
FIELDS = {
    "amount": {"kind": "money"},
    "balance": {"kind": "money"},
    "merchant": {"kind": "category"},
    "channel": {"kind": "category"},
    "status": {"kind": "category"},
}
Case = Callable[[], object]


def main() -> None:
    """Export, measure, print one JSON object a figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="small", help="a file of configs/pretrain")
    parser.add_argument("--rounds", type=int, default=60)
    given = parser.parse_args()
    model, tokenizer = untrained(given.size)
    with tempfile.TemporaryDirectory() as folder:
        report(given.size, given.rounds, model, tokenizer, Path(folder))


def untrained(size: str) -> tuple[RiskBackbone, Tokenizer]:
    """A network of a shipped size, bound to a tokenizer of invented purchases."""
    config = load_pretrain_config(CONFIGS / f"{size}.yaml")
    schema = schema_from_dict({"name": "bench", "sources": {"purchase": {"fields": FIELDS}}})
    rng, count = np.random.default_rng(0), 2000
    columns = {
        name: rng.lognormal(3, 1, count)
        if kind["kind"] == "money"
        else np.char.add("v", rng.integers(0, 12, count).astype(str))
        for name, kind in FIELDS.items()
    }
    times = pl.Series(rng.integers(0, 10**15, count)).cast(pl.Datetime("us"))
    frame = pl.DataFrame({"entity_id": ["e"] * count, **columns}).with_columns(
        times.alias("event_time"), times.alias("known_at")
    )
    tokenizer = Tokenizer.fit(schema, build_timeline(schema, {"purchase": frame}), None)
    torch.manual_seed(0)
    sizes = {k: getattr(config.model, k) for k in config.model.__struct_fields__}
    model = RiskBackbone(RiskBackboneConfig(**sizes, targets=["a", "b", "c"]))
    return model.bind(tokenizer).eval(), tokenizer


def report(size: str, rounds: int, model: RiskBackbone, tokenizer: Tokenizer, folder: Path) -> None:
    """Export every graph, let them take turns, print the figures."""
    whole = export_history(model, tokenizer, folder / "whole")
    cached = export_incremental(model, tokenizer, folder / "cached")
    whole8 = export_quantised(model, tokenizer, folder / "whole8")
    cached8 = export_incremental(model, tokenizer, folder / "cached8", int8_products, TOLERANCE)
    say = f"{size}, {EVENTS} events"
    for what, worst in (
        ("largest difference to torch: history", whole),
        ("largest difference to torch: cached", cached),
        ("largest difference to torch: history, int8", whole8),
        ("largest difference to torch: cached, int8", cached8),
    ):
        figure(what, worst, "", say)
    cases: dict[str, Case] = {}
    for name in ("whole", "whole8"):
        cases[name] = run_of(open_session(str(folder / name)), whole_feed(model, EVENTS))
    for name in ("cached", "cached8"):
        session = open_session(str(folder / name))
        cases[name] = run_of(session, cached_feed(model, EVENTS - NEW, NEW))
        cases[f"{name} query"] = run_of(session, cached_feed(model, EVENTS, 0))
    with frozen(model):
        for bits, block in ((8, 32), (8, 128), (4, 32)):
            graph = history_graph(model, block_products(bits, block))
            session = open_session(graph.SerializeToString())
            cases[f"blocks {bits} {block}"] = run_of(session, whole_feed(model, EVENTS))
        session = open_session(history_graph(model, tensor_products).SerializeToString())
        cases["tensor"] = run_of(session, whole_feed(model, EVENTS))
    shapes = products_of(model, EVENTS)
    for i, (shape, _) in enumerate(shapes):
        cases[f"product {i}"] = product_case(*shape)
    took = take_turns(cases, rounds)

    pure = sum(took[f"product {i}"] * times for i, (_, times) in enumerate(shapes))
    work = sum(2 * np.prod(shape) * times for shape, times in shapes)
    bars = size == "small"
    figure("rate of products", work / pure / 1e6, "GFLOP/s", f"{work / 1e9:.2f} GFLOP")
    figure("whole history", took["whole"], "ms", say)
    share = pure / took["whole"]
    figure("share of that rate", share, "", say, SHARE_BAR if bars else None, "higher")
    figure("whole history, int8", took["whole8"], "ms", say)
    faster = took["whole"] / took["whole8"]
    figure("int8 faster than float32", faster, "times", say, INT8_BAR if bars else None, "higher")
    new = f"{size}, {EVENTS - NEW} cached, {NEW} new"
    figure("cached state", took["cached"], "ms", new, INCREMENTAL_BAR if bars else None)
    figure("cached state, int8", took["cached8"], "ms", new)
    figure("cached state, query alone", took["cached query"], "ms", say)
    figure("cached state, query alone, int8", took["cached8 query"], "ms", say)
    for bits, block in ((8, 32), (8, 128), (4, 32)):
        way = f"not taken: MatMulNBits, {bits} bits, blocks of {block}"
        figure(way, took[f"blocks {bits} {block}"], "ms", say)
    figure("not taken: one scale a tensor", took["tensor"], "ms", say)


def take_turns(cases: dict[str, Case], rounds: int) -> dict[str, float]:
    """Milliseconds of processor time of every case: the median of its fastest quarter."""
    took = np.zeros((rounds, len(cases)))
    for row in took:
        for i, case in enumerate(cases.values()):
            started = time.process_time()
            case()
            row[i] = time.process_time() - started
    best = np.sort(took, axis=0)[: max(1, rounds // 4)]
    return dict(zip(cases, 1000 * np.median(best, axis=0), strict=True))


def whole_feed(model: RiskBackbone, events: int) -> dict[str, np.ndarray]:
    """One history without padding."""
    inputs = probe_inputs(model, 1, max(events, 1))
    inputs["query_position"][:] = events
    return inputs


def cached_feed(model: RiskBackbone, cached: int, new: int) -> dict[str, np.ndarray]:
    """New events behind a random state."""
    c = model.config
    shape = (2 * c.layers, cached, 1, c.heads, c.width // c.heads)
    memory = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return {
        **whole_feed(model, new),
        "cached": np.full((1, 1), cached),
        "total": np.zeros((1, c.width)),
        "final": np.zeros((1, c.width), np.float32),
        **{f"key_{i}": memory[2 * i] for i in range(c.layers)},
        **{f"value_{i}": memory[2 * i + 1] for i in range(c.layers)},
    }


def run_of(session: ort.InferenceSession, inputs: dict[str, np.ndarray]) -> Case:
    """A run of a graph."""
    feed = {i.name: inputs[i.name] for i in session.get_inputs()}
    return lambda: session.run(None, feed)


def products_of(model: RiskBackbone, events: int) -> list[tuple[tuple[int, int, int, int], int]]:
    """(rows, inner, columns, batch) of the products of a whole history, and how often each comes.

    Counted as the network is defined: square attention, all events; of the last block only keys and
    values. What belongs to the query alone and to the numbers' positions is left out.
    """
    c = model.config
    width, head, blocks, fused = c.width, c.width // c.heads, c.layers - 1, c.fusion_hidden
    return [
        ((events, width, 3 * width, 1), blocks),
        ((events, width, width, 1), blocks + 2),
        ((events, width, 2 * c.hidden, 1), blocks),
        ((events, c.hidden, width, 1), blocks),
        ((events, head, events, c.heads), blocks),
        ((events, events, head, c.heads), blocks),
        ((events, c.slot_width, 2 * fused, 1), 1),
        ((events, fused, width, 1), 1),
        ((events, c.slot_width, width, 1), 1),
    ]


def product_case(rows: int, inner: int, columns: int, batch: int) -> Case:
    """A product as a graph of its own: with a constant where there is no batch."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, rows, inner)).astype(np.float32)
    y = rng.normal(size=(batch, inner, columns)).astype(np.float32)
    w = Writer()
    left = w.input("x", FLOAT, x.shape)
    right = w.constant(y[0]) if batch == 1 else w.input("y", FLOAT, y.shape)
    w.output("z", w.op("MatMul", left, right), (batch, rows, columns))
    return run_of(open_session(w.finish("product").SerializeToString()), {"x": x, "y": y})


def block_products(bits: int, block: int) -> Callable[..., list[Product]]:
    """Weights in blocks of so many bits, activations rounded by block to 8."""
    top, shift = 2 ** (bits - 1) - 1, 2 ** (bits - 1)

    def products(w: Writer, x: str, matrices: Sequence[np.ndarray]) -> list[Product]:
        found = []
        for matrix in matrices:
            inner, columns = matrix.shape
            if inner % block:
                found += plain_products(w, x, [matrix])
                continue
            parts = matrix.T.reshape(columns, inner // block, block)
            size = np.maximum(np.abs(parts).max(-1), 1e-12).astype(np.float32) / np.float32(top)
            steps = (np.rint(parts / size[..., None]) + shift).astype(np.uint8)
            if bits == 4:
                steps = steps[..., 0::2] | (steps[..., 1::2] << 4)
            sizes = {"K": inner, "N": columns, "bits": bits, "block_size": block}
            constants = w.constant(steps), w.constant(size)
            name = w.contrib("MatMulNBits", x, *constants, accuracy_level=4, **sizes)
            found.append(Product(name))
        return found

    return products


def tensor_products(w: Writer, x: str, matrices: Sequence[np.ndarray]) -> list[Product]:
    """One scale a tensor of activations: a row depends on its batch."""
    found = []
    for matrix in matrices:
        size = (np.abs(matrix).max(0) / 127).astype(np.float32)
        steps = np.rint(matrix / size).astype(np.int8)
        constants = (w.constant(a) for a in (steps, size, np.zeros(len(size), np.int8)))
        found.append(Product(w.contrib("DynamicQuantizeMatMul", x, *constants)))
    return found


def figure(
    what: str, value: float, unit: str, on: str, bar: float | None = None, better: str = "lower"
) -> None:
    """Print one line for the table of `run_all.py`."""
    row = {"what": what, "value": round(float(value), 7), "unit": unit, "on": on}
    if bar is not None:
        row |= {"bar": bar, "better": better}
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
