"""The heads of a package that read columns, as one graph.

A package may hold a dozen small heads. One session for all of them costs half the memory and half
the time of a dozen sessions: `x [B, c] float32`, every column that any head reads, once, to one
output `[B] float32` for each head, which carries the head's name. A head picks its own columns;
behind that its operators are what they were, so its logit is the same to the last bit.

Shapes: B rows, c columns read by any head.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from finetune.heads import IR_VERSION, Head

INPUT = "x"


def join_heads(heads: Sequence[Head], read: Sequence[str]) -> onnx.ModelProto:
    """One graph of several heads.

    Args:
        heads: with distinct names, each with columns.
        read: the columns of `x` in order; all that the heads read.
    """
    at = {column: i for i, column in enumerate(read)}
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []
    outputs = []
    versions: dict[str, int] = {}
    for head in heads:
        graph = _copy(head.model)
        versions |= {o.domain: o.version for o in head.model.opset_import}
        names = {value: f"{head.name}/{value}" for value in _values(graph)}
        names[graph.output[0].name] = head.name
        _rename(graph, names)
        own = numpy_helper.from_array(
            np.array([at[column] for column in head.columns], dtype=np.int64), f"{head.name}/at"
        )
        picked = graph.input[0].name
        nodes += [helper.make_node("Gather", [INPUT, own.name], [picked], axis=1), *graph.node]
        constants += [own, *graph.initializer]
        outputs.append(helper.make_tensor_value_info(head.name, TensorProto.FLOAT, ["B"]))
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "heads",
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["B", len(read)])],
            outputs,
            constants,
        ),
        opset_imports=[helper.make_opsetid(d, v) for d, v in sorted(versions.items())],
        ir_version=IR_VERSION,
        producer_name="riskfm",
    )
    onnx.checker.check_model(model)
    return model


def single_head(joined: onnx.ModelProto, name: str, width: int) -> onnx.ModelProto:
    """One head of a joined graph by itself: `x [B, width]` to `logit [B]`."""
    prefix = f"{name}/"
    graph = onnx.GraphProto(name=name)
    graph.node.extend(
        n
        for n in joined.graph.node
        if n.output[0] == name or (n.output[0].startswith(prefix) and INPUT not in n.input)
    )
    graph.initializer.extend(
        t for t in joined.graph.initializer if t.name.startswith(prefix) and t.name != f"{prefix}at"
    )
    graph.input.append(
        helper.make_tensor_value_info(f"{prefix}{INPUT}", TensorProto.FLOAT, ["B", width])
    )
    graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B"]))
    names = {value: value.removeprefix(prefix) for value in _values(graph)}
    names[name] = "logit"
    _rename(graph, names)
    model = helper.make_model(
        graph, opset_imports=joined.opset_import, ir_version=IR_VERSION, producer_name="riskfm"
    )
    onnx.checker.check_model(model)
    return model


def _copy(model: onnx.ModelProto) -> onnx.GraphProto:
    graph = onnx.GraphProto()
    graph.CopyFrom(model.graph)
    return graph


def _values(graph: onnx.GraphProto) -> set[str]:
    """Names of every value: inputs, constants and what nodes make."""
    made = {name for node in graph.node for name in node.output if name}
    return made | {i.name for i in graph.input} | {t.name for t in graph.initializer}


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Give values new names, in place; nodes lose theirs, which need not be distinct."""
    for node in graph.node:
        node.name = ""
        node.input[:] = [names.get(i, i) for i in node.input]
        node.output[:] = [names.get(o, o) for o in node.output]
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    for value in (*graph.input, *graph.output):
        value.name = names[value.name]
