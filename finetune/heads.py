"""Fitted recipes as ONNX graphs, and the same sums in numpy.

A head is a graph that takes `x [B, f] float32` (the columns it names, in order, NaN missing) and
answers `logit [B] float32`. A package adds heads up: total = offset + sum(weight * logit).

A linear head sums terms, each of one column, or of several probabilities. Rows are summed by
ReduceSum, not by a matrix product, so that a row's score does not depend on the rows beside it.

Shapes: B rows, f columns of a head, m number terms, k steps (one-hot codes and bin edges).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from finetune.table import FeatureTable

OPSET = 18
IR_VERSION = 9
TRANSFORMS = ("identity", "log", "logit")
LOGIT_MARGIN = 1e-4
# A column that varies less is constant.
LEAST_SPREAD = 1e-6


@dataclass
class Head:
    """One graph of a package.

    Attributes:
        name: unique within a package.
        columns: feature names in the order of `x`.
        model: ONNX graph, `x [B, f] float32` to `logit [B] float32`; without columns, the tuned
            graph of a backbone, which reads histories.
        weight: factor of its logit in the total.
        adapter: what makes a tuned graph this channel's; see `finetune.tuned_graph`.
    """

    name: str
    columns: tuple[str, ...]
    model: onnx.ModelProto
    weight: float = 1.0
    adapter: dict[str, np.ndarray] | None = None


@dataclass(frozen=True)
class NumberTerm:
    """weight * clip((t(x) - center) / scale, -clip, clip), or `missing` where x is NaN.

    t is one of `TRANSFORMS`: x itself, sign(x) log(1 + |x|), or the logit of x kept within
    `LOGIT_MARGIN` of 0 and 1.
    """

    column: str
    weight: float
    center: float = 0.0
    scale: float = 1.0
    transform: str = "identity"
    clip: float = 1e6
    missing: float = 0.0


@dataclass(frozen=True)
class CodeTerm:
    """values[i] where x == codes[i], `missing` where x is NaN, else `other`."""

    column: str
    codes: tuple[float, ...]
    values: tuple[float, ...]
    other: float = 0.0
    missing: float = 0.0


@dataclass(frozen=True)
class BinTerm:
    """values[number of edges <= x], or `missing` where x is NaN; len(values) = len(edges) + 1."""

    column: str
    edges: tuple[float, ...]
    values: tuple[float, ...]
    missing: float = 0.0


@dataclass(frozen=True)
class ChanceTerm:
    """weight * logit(sum of shares[i] * p_i) of several columns of probabilities.

    A missing p counts as `usual`; the sum is kept within `LOGIT_MARGIN` of 0 and 1. Shares sum to
    one.
    """

    columns: tuple[str, ...]
    shares: tuple[float, ...]
    usual: tuple[float, ...]
    weight: float = 1.0


ColumnTerm = NumberTerm | CodeTerm | BinTerm
Term = ColumnTerm | ChanceTerm


def chance_term(table: FeatureTable, weights: Mapping[str, float]) -> ChanceTerm:
    """Columns of probabilities in units of their spread over the rows of a table, weighted."""
    p = table.matrix(tuple(weights)).astype(np.float64)
    seen = ~np.isnan(p)
    count = np.maximum(seen.sum(axis=0), 1)
    usual = np.where(seen, p, 0.0).sum(axis=0) / count
    spread = np.sqrt(np.where(seen, (p - usual) ** 2, 0.0).sum(axis=0) / count)
    given = np.array(list(weights.values()))
    # What never varies says nothing of anybody; where nothing does, each has its plain weight.
    share = given / np.where(spread > LEAST_SPREAD, spread, np.inf)
    share = share if share.any() else given
    return ChanceTerm(
        tuple(weights),
        tuple((share / share.sum()).tolist()),
        tuple(np.where(seen.any(axis=0), usual, 0.5).tolist()),
    )


@dataclass(frozen=True)
class LinearHead:
    """A sum of terms in float32, in numpy and as an ONNX graph."""

    terms: tuple[Term, ...]
    intercept: float = 0.0

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns read, each once, in order of first use; at least one."""
        read = [t.columns if isinstance(t, ChanceTerm) else (t.column,) for t in self.terms]
        return tuple(dict.fromkeys(column for columns in read for column in columns))

    def logit(self, table: FeatureTable) -> np.ndarray:
        """[S] float64 logits of a table."""
        return self.apply(table.matrix(self.columns))

    def apply(self, x: np.ndarray) -> np.ndarray:
        """The graph in numpy: [B, f] float32 in the order of `columns` to [B] float64."""
        c = _constants(self)
        x = x.astype(np.float32, copy=False)
        gone = np.isnan(x)
        total = (gone * c.missing).sum(axis=1, dtype=np.float32) + c.intercept
        if len(c.number_at):
            v = x[:, c.number_at]
            with np.errstate(invalid="ignore"):
                v = transformed(v, c.log, c.logit)
                z = np.clip((v - c.center) * c.inverse, -c.clip, c.clip)
            z = np.where(gone[:, c.number_at], np.float32(0.0), z)
            total = total + (z * c.weight).sum(axis=1, dtype=np.float32)
        if len(c.code_at):
            hit = (x[:, c.code_at] == c.code).astype(np.float32)
            total = total + (hit * c.code_weight).sum(axis=1, dtype=np.float32)
        if len(c.edge_at):
            hit = (x[:, c.edge_at] >= c.edge).astype(np.float32)
            total = total + (hit * c.edge_weight).sum(axis=1, dtype=np.float32)
        for at, share, usual, weight in c.chances:
            p = np.where(gone[:, at], usual, x[:, at])
            mean = (p * share).sum(axis=1, dtype=np.float32)[:, None]
            every = np.ones(1, bool)
            total = total + weight * transformed(mean, ~every, every)[:, 0]
        return total.astype(np.float64)

    def scaled(self, slope: float, intercept: float) -> LinearHead:
        """slope * logit + intercept as a head of its own."""
        terms = tuple(_scaled_term(t, slope) for t in self.terms)
        return LinearHead(terms, self.intercept * slope + intercept)

    def plus(self, other: LinearHead) -> LinearHead:
        """The sum of two heads as one."""
        return LinearHead(self.terms + other.terms, self.intercept + other.intercept)

    def head(self, name: str, weight: float = 1.0) -> Head:
        """As an ONNX head."""
        return Head(name, self.columns, linear_model(self, name), weight)


def transformed(x: np.ndarray, log: np.ndarray, logit: np.ndarray) -> np.ndarray:
    """[B, m] values, transformed in the columns that `log` and `logit` ([m] bool) mark."""
    one = x.dtype.type(1.0)
    if log.any():
        x = np.where(log, np.sign(x) * np.log(one + np.abs(x)), x)
    if logit.any():
        p = np.clip(x, x.dtype.type(LOGIT_MARGIN), x.dtype.type(1.0 - LOGIT_MARGIN))
        x = np.where(logit, np.log(p) - np.log(one - p), x)
    return x


@dataclass
class _Constants:
    """Tensors of a linear head; positions count the head's own columns."""

    intercept: np.float32
    missing: np.ndarray
    number_at: np.ndarray
    log: np.ndarray
    logit: np.ndarray
    center: np.ndarray
    inverse: np.ndarray
    clip: np.ndarray
    weight: np.ndarray
    code_at: np.ndarray
    code: np.ndarray
    code_weight: np.ndarray
    edge_at: np.ndarray
    edge: np.ndarray
    edge_weight: np.ndarray
    chances: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.float32]]


def _constants(head: LinearHead) -> _Constants:
    """Fold every term into sums: what applies to all rows goes into the intercept."""
    at = {name: i for i, name in enumerate(head.columns)}
    numbers = [t for t in head.terms if isinstance(t, NumberTerm)]
    codes = [t for t in head.terms if isinstance(t, CodeTerm)]
    bins = [t for t in head.terms if isinstance(t, BinTerm)]
    intercept = head.intercept + sum(t.other for t in codes) + sum(t.values[0] for t in bins)
    missing = np.zeros(max(len(at), 1))
    for number in numbers:
        missing[at[number.column]] += number.missing
    for code in codes:
        missing[at[code.column]] += code.missing - code.other
    for binned in bins:
        missing[at[binned.column]] += binned.missing - binned.values[0]
    code_rows = [
        (at[t.column], c, v - t.other)
        for t in codes
        for c, v in zip(t.codes, t.values, strict=True)
    ]
    edge_rows = [
        (at[t.column], e, step)
        for t in bins
        for e, step in zip(t.edges, np.diff(t.values), strict=True)
    ]

    def single(values: Sequence[float] | np.ndarray) -> np.ndarray:
        return np.asarray(values, dtype=np.float32)

    def positions(values: Sequence[int]) -> np.ndarray:
        return np.asarray(values, dtype=np.int64)

    return _Constants(
        intercept=np.float32(intercept),
        missing=single(missing),
        number_at=positions([at[t.column] for t in numbers]),
        log=np.asarray([t.transform == "log" for t in numbers], dtype=bool),
        logit=np.asarray([t.transform == "logit" for t in numbers], dtype=bool),
        center=single([t.center for t in numbers]),
        inverse=single([1.0 / t.scale for t in numbers]),
        clip=single([t.clip for t in numbers]),
        weight=single([t.weight for t in numbers]),
        code_at=positions([r[0] for r in code_rows]),
        code=single([r[1] for r in code_rows]),
        code_weight=single([r[2] for r in code_rows]),
        edge_at=positions([r[0] for r in edge_rows]),
        edge=single([r[1] for r in edge_rows]),
        edge_weight=single([r[2] for r in edge_rows]),
        chances=[
            (
                positions([at[column] for column in t.columns]),
                single(t.shares),
                single(t.usual),
                np.float32(t.weight),
            )
            for t in head.terms
            if isinstance(t, ChanceTerm)
        ],
    )


def _scaled_term(term: Term, slope: float) -> Term:
    if isinstance(term, ChanceTerm):
        return replace(term, weight=term.weight * slope)
    if isinstance(term, NumberTerm):
        return NumberTerm(
            term.column,
            term.weight * slope,
            term.center,
            term.scale,
            term.transform,
            term.clip,
            term.missing * slope,
        )
    values = tuple(v * slope for v in term.values)
    if isinstance(term, CodeTerm):
        return CodeTerm(term.column, term.codes, values, term.other * slope, term.missing * slope)
    return BinTerm(term.column, term.edges, values, term.missing * slope)


@dataclass
class GraphParts:
    """Nodes and constants of a graph under construction."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    count: int = 0

    def constant(self, value: np.ndarray | np.floating) -> str:
        """Name of a constant tensor."""
        self.count += 1
        name = f"c{self.count}"
        self.constants.append(numpy_helper.from_array(np.array(value, order="C"), name))
        return name

    def op(self, kind: str, *inputs: str, output: str = "", **attributes: object) -> str:
        """Name of the output of a new node."""
        self.count += 1
        name = output or f"t{self.count}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def row_sum(self, terms: str, weights: np.ndarray) -> str:
        """[B] sum of terms [B, m] times weights [m]."""
        product = self.op("Mul", terms, self.constant(weights.astype(np.float32)))
        return self.op("ReduceSum", product, self.constant(np.array([1], np.int64)), keepdims=0)

    def model(self, name: str, width: int, opsets: dict[str, int] | None = None) -> onnx.ModelProto:
        """The checked graph `x [B, width]` to `logit [B]`."""
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", width])],
            [helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["B"])],
            self.constants,
        )
        versions = {"": OPSET} | (opsets or {})
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(d, v) for d, v in versions.items()],
            ir_version=IR_VERSION,
            producer_name="riskfm",
        )
        onnx.checker.check_model(model)
        return model


def linear_model(head: LinearHead, name: str = "linear") -> onnx.ModelProto:
    """A linear head as an ONNX graph; `LinearHead.apply` is its reference."""
    c = _constants(head)
    g = GraphParts()
    gone = g.op("Cast", g.op("IsNaN", "x"), to=TensorProto.FLOAT)
    total = g.op("Add", g.row_sum(gone, c.missing), g.constant(c.intercept))
    if len(c.number_at):
        v = g.op("Gather", "x", g.constant(c.number_at), axis=1)
        absent = g.op("IsNaN", v)
        if c.log.any():
            size = g.op("Log", g.op("Add", g.op("Abs", v), g.constant(np.float32(1.0))))
            v = g.op("Where", g.constant(c.log), g.op("Mul", g.op("Sign", v), size), v)
        if c.logit.any():
            v = g.op("Where", g.constant(c.logit), _logit(g, v), v)
        z = g.op("Mul", g.op("Sub", v, g.constant(c.center)), g.constant(c.inverse))
        z = g.op("Max", g.op("Min", z, g.constant(c.clip)), g.constant(-c.clip))
        z = g.op("Where", absent, g.constant(np.float32(0.0)), z)
        total = g.op("Add", total, g.row_sum(z, c.weight))
    for kind, at, bound, weight in (
        ("Equal", c.code_at, c.code, c.code_weight),
        ("GreaterOrEqual", c.edge_at, c.edge, c.edge_weight),
    ):
        if len(at):
            v = g.op("Gather", "x", g.constant(at), axis=1)
            hit = g.op("Cast", g.op(kind, v, g.constant(bound)), to=TensorProto.FLOAT)
            total = g.op("Add", total, g.row_sum(hit, weight))
    for at, share, usual, slope in c.chances:
        v = g.op("Gather", "x", g.constant(at), axis=1)
        p = g.op("Where", g.op("IsNaN", v), g.constant(usual), v)
        odds = g.op("Mul", _logit(g, g.row_sum(p, share)), g.constant(slope))
        total = g.op("Add", total, odds)
    g.op("Identity", total, output="logit")
    return g.model(name, len(head.columns))


def _logit(g: GraphParts, v: str) -> str:
    p = g.op(
        "Max",
        g.op("Min", v, g.constant(np.float32(1.0 - LOGIT_MARGIN))),
        g.constant(np.float32(LOGIT_MARGIN)),
    )
    return g.op("Sub", g.op("Log", p), g.op("Log", g.op("Sub", g.constant(np.float32(1.0)), p)))
