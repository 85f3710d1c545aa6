"""The graph that tuned channels of a backbone share, proved equal to the tuned model.

What a channel has learnt comes from outside, as inputs with empty defaults (see
`finetune.adapters`): nothing of it is in the graph, which is therefore the same for every channel
of a backbone, of any rank and any number of prompt tokens.

Shapes: B batch, L events, D width, M prompt tokens, R rank.
"""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import nn

from finetune.features import open_session
from foundation.attention import Angles, Block, KeyValues, causal_mask, query_mask, rotate
from foundation.backbone import INPUTS, RiskBackbone
from foundation.errors import ParityError

OPSET = 18
TOLERANCE = 1e-5
# Softmax over minus infinity works in denormal numbers, six times slower.
MASKED = -60.0
PROBES = ((1, 1), (3, 1), (1, 7), (5, 33), (2, 256))
TIMED = ("source", "code", "value", "extra", "days")
ALWAYS = ("readout", "bias")
DOWN, UP = ".down", ".up"


class LowRank(nn.Module):
    """A matrix of the backbone plus a low-rank update: x W' + (x down) up (Hu et al. 2022)."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        self.update: tuple[torch.Tensor, torch.Tensor] | None = None
        self.sizes: tuple[int, int] | None = None

    def forward(self, x: torch.Tensor, start: int = 0) -> torch.Tensor:
        """[B, L, in] to [B, L, out - start]: the outputs from `start` on."""
        assert self.update is not None
        down, up = self.update
        if self.sizes is None:
            return nn.functional.linear(x, self.weight[start:]) + (x @ down) @ up[:, start:]
        flat = x.flatten(0, 1)  # of two axes, so that product and sum become one operator
        out = torch.addmm(flat @ self.weight[start:].T, flat @ down, up[:, start:])
        return out.view(*self.sizes, -1)


class SharedGraph(nn.Module):
    """A backbone that takes a channel's adapter with every batch and answers its logit [B]."""

    def __init__(self, backbone: RiskBackbone, names: Sequence[str]) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(backbone)
        self.names = tuple(names)
        for name in updated(names):
            parent, _, child = name.rpartition(".")
            linear = backbone.get_submodule(name)
            setattr(self.backbone.get_submodule(parent), child, LowRank(linear))

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inputs = dict(zip(INPUTS, tensors[: len(INPUTS)], strict=True))
        adapter = dict(zip(self.names, tensors[len(INPUTS) :], strict=True))
        for name in updated(self.names):
            self.backbone.get_submodule(name).update = adapter[name + DOWN], adapter[name + UP]
        state = self.state(inputs, adapter.get("prompt"))
        return ((state * adapter["readout"]).sum(-1) + adapter["bias"],)

    def state(self, inputs: dict[str, torch.Tensor], prompt: torch.Tensor | None) -> torch.Tensor:
        """[B, D] state of each history's query, as `finetune.finetuned.TunedBackbone.state`."""
        model = self.backbone
        events = model.encode_tokens(
            inputs["source"], inputs["code"], inputs["value"], inputs["extra"]
        )
        days = inputs["days"]
        index = torch.arange(days.shape[1], dtype=days.dtype).expand_as(days)
        angles = model.rotary(index, days)
        queries = model.encode_queries(
            inputs["query_code"], inputs["query_value"], inputs["query_extra"]
        )
        position, moment = inputs["query_position"], inputs["query_days"]
        if prompt is not None:
            queries = torch.cat([prompt[None].expand(queries.shape[0], -1, -1), queries], dim=1)
            count = prompt.shape[0] + 1
            position, moment = position.expand(-1, count), moment.expand(-1, count)
        own_angles = model.rotary(position.to(days.dtype), moment)
        seen = query_mask(position, events.shape[1], chained=True).clamp(min=MASKED)
        mask = causal_mask(events).clamp(min=MASKED)
        sizes = (days.shape[0], days.shape[1])
        *blocks, last = model.blocks
        for block in blocks:
            with _many(block, sizes):
                events, keys = block.read(events, angles, mask)
            queries = block.look(queries, keys, own_angles, seen)
        with _many(last, sizes):
            keys = _keys(last, events, angles)
        queries = last.look(queries, keys, own_angles, seen)
        return model.final_norm(queries)[:, -1]


def updated(names: Sequence[str]) -> list[str]:
    """Matrices of the backbone that an adapter of these tensors updates."""
    return [name.removesuffix(DOWN) for name in names if name.endswith(DOWN)]


def shared_graph(backbone: RiskBackbone, adapter: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """The graph for adapters of these tensors; their values and M and R leave no trace in it.

    Args:
        backbone: bound to its tokenizer; without any update.
    """
    names = [*ALWAYS, *sorted(adapter.keys() - set(ALWAYS))]
    module = SharedGraph(backbone, names).eval().requires_grad_(False)
    module.backbone.freeze_tables()
    example = [*_probe(backbone, 3, 5).values()]
    # Sizes that occur nowhere else, so that no other is taken for one of them.
    example += [np.zeros(_sizes(name, adapter[name], 2), np.float32) for name in names]
    axes = {name: {0: "B", 1: "L"} if name in TIMED else {0: "B"} for name in INPUTS}
    axes |= {"logit": {0: "B"}, "prompt": {0: "M"}}
    axes |= {name: {1: "R"} if name.endswith(DOWN) else {0: "R"} for name in names if "." in name}
    file = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            tuple(torch.from_numpy(array) for array in example),
            file,
            dynamo=False,
            opset_version=OPSET,
            input_names=[*INPUTS, *names],
            output_names=["logit"],
            dynamic_axes={n: a for n, a in axes.items() if n in (*INPUTS, *names, "logit")},
        )
    model = onnx.load_from_string(file.getvalue())
    for name in names:
        empty = np.zeros(_sizes(name, adapter[name], 0), np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(empty, name))
    return model


def prove_shared(
    graph: onnx.ModelProto,
    adapter: Mapping[str, np.ndarray],
    tuned: nn.Module,
    tolerance: float = TOLERANCE,
) -> float:
    """Compare graph and adapter with the tuned model over several batch sizes and lengths.

    Args:
        tuned: takes the backbone's inputs by name and answers logits [B]; its `backbone` is bound.
    Returns:
        the largest absolute difference.
    Raises:
        ParityError: it is above `tolerance`.
    """
    session: ort.InferenceSession = open_session(graph.SerializeToString())
    fed = {i.name for i in session.get_inputs()}
    worst = 0.0
    for batch, length in PROBES:
        inputs = _probe(tuned.backbone, batch, length)
        with torch.no_grad():
            wanted = tuned(**{k: torch.from_numpy(v) for k, v in inputs.items()}).numpy()
        feed = {k: v for k, v in inputs.items() if k in fed} | dict(adapter)
        found = session.run(["logit"], feed)[0]
        if found.shape != wanted.shape or not np.isfinite(found).all():
            raise ParityError(f"the tuned graph's logit is not finite or has shape {found.shape}")
        worst = max(worst, float(np.abs(found - wanted).max(initial=0.0)))
    if not worst <= tolerance:
        raise ParityError(
            f"the tuned graph with its adapter differs from torch by {worst:.2g}, allowed "
            f"{tolerance:g}"
        )
    return worst


@contextlib.contextmanager
def _many(block: Block, sizes: tuple[int, int]) -> Iterator[None]:
    """The block reads events [B, L, ...]: many, where an operator saved is worth a change of shape.

    B and L are taken once, for a graph would ask every tensor for its own.
    """
    updates = [module for module in block.modules() if isinstance(module, LowRank)]
    for module in updates:
        module.sizes = sizes
    try:
        yield
    finally:
        for module in updates:
            module.sizes = None


def _keys(block: Block, events: torch.Tensor, angles: Angles) -> KeyValues:
    """As `Block.keys`, with an update of its matrix where there is one."""
    if not isinstance(block.qkv, LowRank):
        return block.keys(events, angles)
    joined = block.qkv(block.attention_norm(events), start=block.width)
    k, v = (
        part.unflatten(-1, (block.heads, -1)).transpose(1, 2)
        for part in joined.split(block.width, dim=-1)
    )
    return rotate(k, *angles), v


def _probe(backbone: RiskBackbone, batch: int, length: int) -> dict[str, np.ndarray]:
    """Inputs of a bound backbone in the order of `INPUTS`."""
    from finetune.history_graph import probe_inputs

    found = probe_inputs(backbone, batch, length)
    return {name: found[name] for name in INPUTS}


def _sizes(name: str, value: np.ndarray, free: int) -> list[int]:
    """The shape of a tensor of an adapter with M or R set to `free`."""
    sizes = list(value.shape)
    if name.endswith(DOWN):
        sizes[1] = free
    elif name.endswith(UP) or name == "prompt":
        sizes[0] = free
    return sizes
