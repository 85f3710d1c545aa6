"""The backbone as an ONNX graph, proved equal to torch before anyone may use it.

Inputs are those of `foundation.batching.HistoryBatch` with one query per history; B and L are
dynamic. Outputs of the history graph, in this order: `query` [B, D], `mean` and `last` [B, D] of
the event states the query may see, as they enter the last block (zero for a history without
events), `forecasts` [B, T] log-odds, of based targets the part that the network adds. The tables of
token embeddings are constants of the graph.

A causal backbone is written operator by operator (`finetune.causal_graph`), a quarter faster than
what torch's exporter makes of it; a bidirectional one is traced.

Shapes: B batch, L events, K slots, X and Y extra columns, P profile and context slots, D width,
T forecast targets.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import nn

from finetune.causal_graph import MASKED, history_graph
from foundation.backbone import INPUTS, RiskBackbone
from foundation.errors import ParityError
from foundation.tokenizer import Tokenizer

OPSET = 18
TOLERANCE = 1e-5
OUTPUTS = ("query", "mean", "last", "forecasts")
PROBES = ((1, 1), (3, 1), (1, 7), (5, 33), (2, 256))
TIMED = ("source", "code", "value", "extra", "days")


class HistoryGraph(nn.Module):
    """What the history graph computes."""

    def __init__(self, model: RiskBackbone) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        named = dict(zip(INPUTS, inputs, strict=True))
        out = self.model(**named, queries_only=True)
        position = named["query_position"]
        steps = torch.arange(out.events.shape[1], device=position.device)
        inside = (steps < position)[..., None].to(out.events.dtype)
        final = (steps == position - 1)[..., None].to(out.events.dtype)
        count = position.clamp(min=1).to(out.events.dtype)
        return (
            out.query[:, 0],
            (out.events * inside).sum(1) / count,
            (out.events * final).sum(1),
            out.forecasts[:, 0],
        )


def export_history(
    model: RiskBackbone, tokenizer: Tokenizer, path: str | Path, tolerance: float = TOLERANCE
) -> float:
    """Write the history graph of a backbone for the codes of a tokenizer.

    Returns:
        Largest absolute difference to torch over the probes.

    Raises:
        ParityError: the graph differs from torch by more than `tolerance`.
    """
    with frozen(model.bind(tokenizer)):
        module = HistoryGraph(model).eval()
        written = not model.config.bidirectional
        graph = history_graph(model) if written else _export(module, model, OUTPUTS)
        worst = prove(graph, module, model, OUTPUTS, tolerance)
    partial = Path(path).with_name(Path(path).name + ".partial")
    onnx.save(graph, str(partial))
    partial.replace(path)
    return worst


def probe_inputs(
    model: RiskBackbone, batch: int, length: int, seed: int = 0
) -> dict[str, np.ndarray]:
    """Random inputs of a bound backbone: histories of 0 to `length` events, padded.

    The first history is as long as possible, the last one empty (also where it is the only one).
    """
    rng = np.random.default_rng([seed, batch, length])
    layout = {name: tensor.numpy(force=True) for name, tensor in model.layout.items()}
    of_event = layout["slot_owner"] >= 0
    width = int(layout["slot_column"][of_event].max(initial=-1)) + 1
    rows, codes = int((~of_event).sum()), len(layout["code_slot"])
    position = rng.integers(0, length + 1, (batch, 1))
    position[0], position[-1] = length, 0
    inside = np.arange(length) < position
    days = np.cumsum(rng.gamma(0.3, 20.0, (batch, length)), axis=1) * inside

    def numbers(*shape: int) -> np.ndarray:
        return rng.random(shape, dtype=np.float32)

    return {
        "source": rng.integers(0, max(len(layout["source_name"]), 1), (batch, length)) * inside,
        "code": rng.integers(0, codes, (batch, length, width)) * inside[..., None],
        "value": numbers(batch, length, width) * inside[..., None].astype(np.float32),
        "extra": numbers(batch, length, model.config.extra) * inside[..., None].astype(np.float32),
        "days": days.astype(np.float32),
        "query_days": (days.max(axis=1, keepdims=True) + 3.5).astype(np.float32),
        "query_extra": numbers(batch, 1, model.config.query_extra),
        "query_code": rng.integers(0, codes, (batch, 1, rows)),
        "query_value": numbers(batch, 1, rows),
        "query_position": position,
    }


def prove(
    graph: onnx.ModelProto,
    module: nn.Module,
    model: RiskBackbone,
    outputs: Sequence[str],
    tolerance: float,
) -> float:
    """Compare a graph with its module over several batch sizes and lengths.

    Returns:
        The largest absolute difference.

    Raises:
        ParityError: it is above `tolerance`.
    """
    session = open_session(graph.SerializeToString())
    fed = {i.name for i in session.get_inputs()}
    worst = 0.0
    for batch, length in PROBES:
        inputs = probe_inputs(model, batch, length)
        with torch.no_grad():
            wanted = module(*(torch.from_numpy(inputs[name]) for name in INPUTS))
        found = session.run(list(outputs), {k: v for k, v in inputs.items() if k in fed})
        for name, a, b in zip(outputs, found, wanted, strict=True):
            if not np.isfinite(a).all() or a.shape != tuple(b.shape):
                raise ParityError(f"exported '{name}' is not finite or has shape {a.shape}")
            worst = max(worst, float(np.abs(a - b.numpy()).max(initial=0.0)))
    if not worst <= tolerance:
        raise ParityError(
            f"the exported graph differs from torch by {worst:.2g}, allowed {tolerance:g}"
        )
    return worst


def open_session(graph: bytes | str, threads: int = 1) -> ort.InferenceSession:
    """A CPU session with so many threads of its own."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _export(module: nn.Module, model: RiskBackbone, outputs: Sequence[str]) -> onnx.ModelProto:
    """Trace a module with dynamic B and L.

    By the TorchScript exporter: one second where the exporter on torch.export takes seventeen for
    the same speed, and its Attention operator of opset 23 is slower than what is exported here.
    """
    example = probe_inputs(model, 3, 5)
    axes = {name: {0: "B", 1: "L"} if name in TIMED else {0: "B"} for name in INPUTS}
    axes |= {name: {0: "B"} for name in outputs}
    file = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            tuple(torch.from_numpy(example[name]) for name in INPUTS),
            file,
            dynamo=False,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=list(outputs),
            dynamic_axes=axes,
        )
    return _finite_masks(onnx.load_from_string(file.getvalue()))


def _finite_masks(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Replace the masks' minus infinity by `MASKED`, which says why.

    The parity proofs and golden rows would show a difference.
    """
    for node in graph.graph.node:
        if node.op_type == "Constant" and node.attribute[0].HasField("t"):
            value = onnx.numpy_helper.to_array(node.attribute[0].t)
            if value.dtype == np.float32 and np.isneginf(value).all() and value.size:
                finite = np.full_like(value, MASKED)
                node.attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(finite))
    return graph


@contextlib.contextmanager
def frozen(model: RiskBackbone) -> Iterator[None]:
    """The model in evaluation mode with its tables as constants, restored afterwards."""
    training = model.training
    model.eval().freeze_tables()
    try:
        yield
    finally:
        model.thaw_tables().train(training)
