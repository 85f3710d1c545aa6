"""Boosted trees as a head: codes to one level a column, then the mean of the boosters.

Shapes: B rows, f columns read, m inputs of the trees, T boosters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from finetune.heads import GraphParts
from foundation.trees import boosters_to_onnx, float32_thresholds


@dataclass(frozen=True)
class TreeInputs:
    """Number columns, then one 0/1 column for each (code column, code)."""

    numbers: tuple[str, ...]
    codes: tuple[tuple[str, float], ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns read, each once."""
        return tuple(dict.fromkeys([*self.numbers, *(c for c, _ in self.codes)]))

    @property
    def width(self) -> int:
        """m, inputs of the trees."""
        return len(self.numbers) + len(self.codes)

    def matrix(self, x: np.ndarray) -> np.ndarray:
        """[B, m] float32 inputs of [B, f] values in the order of `columns`."""
        at = {name: i for i, name in enumerate(self.columns)}
        hits = x[:, [at[c] for c, _ in self.codes]] == np.array(
            [code for _, code in self.codes], dtype=np.float32
        )
        return np.concatenate([x[:, : len(self.numbers)], hits.astype(np.float32)], axis=1)


def mean_of_trees(
    inputs: TreeInputs, boosters: list[Any], base: float, name: str
) -> onnx.ModelProto:
    """The graph `x [B, f]` to base plus the mean raw score of the boosters, `logit [B]`.

    Thresholds are rounded to float32 here; predictions of float32 inputs stay as they are.
    """
    rounded = [float32_thresholds(b) for b in boosters]
    trees = boosters_to_onnx([rounded], inputs.width, output="margin")
    at = {column: i for i, column in enumerate(inputs.columns)}
    g = GraphParts()
    parts = []
    if inputs.numbers:
        first = np.arange(len(inputs.numbers), dtype=np.int64)
        parts.append(g.op("Gather", "x", g.constant(first), axis=1))
    if inputs.codes:
        where = np.array([at[c] for c, _ in inputs.codes], dtype=np.int64)
        level = np.array([code for _, code in inputs.codes], dtype=np.float32)
        hit = g.op("Equal", g.op("Gather", "x", g.constant(where), axis=1), g.constant(level))
        parts.append(g.op("Cast", hit, to=TensorProto.FLOAT))
    widened = g.op("Concat", *parts, axis=1)
    ensemble = next(n for n in trees.graph.node if n.op_type == "TreeEnsembleRegressor")
    ensemble.input[0], ensemble.output[0] = widened, "margin"
    g.nodes.append(ensemble)
    mean = g.op("Squeeze", "margin", g.constant(np.array([1], np.int64)))
    g.op("Add", mean, g.constant(np.float32(base)), output="logit")
    return g.model(name, len(inputs.columns), {"ai.onnx.ml": 3})
