"""Writing an ONNX graph node by node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 18
IR_VERSION = 10
CONTRIB = "com.microsoft"
FLOAT, DOUBLE = TensorProto.FLOAT, TensorProto.DOUBLE
INT64, UINT8 = TensorProto.INT64, TensorProto.UINT8
_SHARED = 64  # constants of at most so many numbers are written once


class Writer:
    """Collects the nodes, constants, inputs and outputs of one graph.

    Attributes:
        same_sums: a row's parts are summed in one order, however many rows there are.
    """

    def __init__(self) -> None:
        self.same_sums = False
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self._known: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._count = 0

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        name = self._fresh(kind)
        self.nodes.append(
            helper.make_node(kind, list(inputs), [name], name, domain=domain, **attributes)
        )
        return name

    def contrib(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of ONNX Runtime's own domain."""
        return self.op(kind, *inputs, domain=CONTRIB, **attributes)

    def constant(self, array: np.ndarray) -> str:
        """Add a constant and return its name."""
        array = np.array(array, order="C", copy=None)
        key = (array.dtype.str, array.shape, array.tobytes() if array.size <= _SHARED else b"")
        if array.size <= _SHARED and key in self._known:
            return self._known[key]
        name = self._fresh("constant")
        self.constants.append(numpy_helper.from_array(array, name))
        if array.size <= _SHARED:
            self._known[key] = name
        return name

    def ints(self, *values: int) -> str:
        """A constant [n] int64."""
        return self.constant(np.array(values, dtype=np.int64))

    def number(self, value: float) -> str:
        """A constant scalar float32."""
        return self.constant(np.array(value, dtype=np.float32))

    def slice(self, x: str, start: str, stop: str, axis: int = 0) -> str:
        """Rows start:stop along an axis; both bounds are [1] int64."""
        return self.op("Slice", x, start, stop, self.ints(axis))

    def arange(self, size: str, step_of: str | None = None) -> str:
        """[n] int64 0, 1, ... for a size [1] int64; from `step_of` [1] on where given."""
        first = self.op("Squeeze", step_of, self.ints(0)) if step_of else self._scalar(0)
        last = self.op("Squeeze", size, self.ints(0))
        if step_of:
            last = self.op("Add", first, last)
        return self.op("Range", first, last, self._scalar(1))

    def input(self, name: str, kind: int, shape: Sequence[int | str]) -> str:
        """Declare an input of the graph."""
        self.inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def output(self, name: str, value: str, shape: Sequence[int | str], kind: int = FLOAT) -> None:
        """Declare a value as an output of the graph."""
        self.nodes.append(helper.make_node("Identity", [value], [name], f"as_{name}"))
        self.outputs.append(helper.make_tensor_value_info(name, kind, list(shape)))

    def finish(self, name: str) -> onnx.ModelProto:
        """The graph, without inputs that no node reads."""
        if self.same_sums:
            self._never_sum_one()
        read = {i for node in self.nodes for i in node.input}
        inputs = [i for i in self.inputs if i.name in read]
        graph = helper.make_graph(self.nodes, name, inputs, self.outputs, self.constants)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="riskfm"
        )

    def _never_sum_one(self) -> None:
        """Rows [n, k, E] are summed over k with one row more, which is left out of the sums.

        ONNX Runtime sums the k of a single row in another order than those of several. Rows that a
        gather makes are made once more instead of being copied.
        """
        made = {node.output[0]: node for node in self.nodes}
        middle = self.ints(1)
        written, self.nodes = self.nodes, []
        for node in written:
            if node.op_type != "ReduceSum" or node.input[1] != middle:
                self.nodes.append(node)
                continue
            source = made.get(node.input[0])
            if source is not None and source.op_type == "Gather" and not source.attribute:
                rows = self.op("Gather", source.input[0], self._and_first(source.input[1]))
            else:
                rows = self._and_first(node.input[0])
            sums = self.op("ReduceSum", rows, middle, keepdims=0)
            last = [self.ints(0), self.ints(-1), self.ints(0)]
            self.nodes.append(helper.make_node("Slice", [sums, *last], node.output, node.name))
        read = {i for node in self.nodes for i in node.input} | {o.name for o in self.outputs}
        self.nodes = [node for node in self.nodes if read.intersection(node.output)]

    def _and_first(self, x: str) -> str:
        """Rows, and the first of them once more."""
        return self.op("Concat", x, self.slice(x, self.ints(0), self.ints(1)), axis=0)

    def _scalar(self, value: int) -> str:
        return self.constant(np.array(value, dtype=np.int64))

    def _fresh(self, kind: str) -> str:
        self._count += 1
        return f"{kind.lower()}_{self._count}"


@dataclass(frozen=True)
class Product:
    """A product [S, B, out] whose rows are still to be multiplied by `scale` [S, B, 1], if any.

    Left open because the next operation often takes the factor for less.
    """

    name: str
    scale: str = ""

    def settle(self, w: Writer, *more: str) -> str:
        """The product itself, its rows multiplied by further factors, empty ones left out."""
        factors = [f for f in (self.scale, *more) if f]
        if not factors:
            return self.name
        factor = factors[0]
        for each in factors[1:]:
            factor = w.op("Mul", factor, each)
        return w.op("Mul", self.name, factor)


# (writer, x [S, B, in], matrices [in, out] each) -> x times every matrix
Products = Callable[[Writer, str, Sequence[np.ndarray]], list[Product]]


def plain_products(w: Writer, x: str, matrices: Sequence[np.ndarray]) -> list[Product]:
    """Products in float32."""
    return [Product(w.op("MatMul", x, w.constant(matrix))) for matrix in matrices]
