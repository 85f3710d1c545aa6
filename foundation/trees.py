"""LightGBM boosters as one ONNX tree ensemble, and thresholds that float32 inputs cannot miss.

LightGBM compares in float64, ONNX Runtime in float32. `float32_thresholds` moves every split
threshold to the largest float32 not above it: no float32 input changes sides, and both runtimes
route every row alike. `boosters_to_onnx` then writes the boosters of all targets into a single
ai.onnx.ml TreeEnsembleRegressor. onnxmltools converts one booster at a time and cannot merge
several into the targets of one node, hence this writer.

Routing of missing values follows LightGBM's Tree::NumericalDecision: with missing type NaN a NaN
takes the default side, with missing type None it counts as zero. LightGBM also reads magnitudes
up to 1e-35 as zero, ONNX Runtime does not: inputs must be zero or larger than that, as aggregates
are.

Shapes: B rows, F features, T targets, m inner nodes of one tree, m + 1 leaves.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import lightgbm as lgb
import numpy as np
import onnx
from onnx import TensorProto, helper

from foundation.errors import InternalError

_CATEGORICAL, _DEFAULT_LEFT = 1, 2
_MISSING_ZERO, _MISSING_NAN = 1, 2


@dataclass(frozen=True)
class Tree:
    """One tree as LightGBM writes it; a child c >= 0 is an inner node, c < 0 the leaf ~c.

    Attributes:
        feature, left, right: [m] int64.
        threshold: [m] float64; a row goes left when its value is at most the threshold.
        missing_left: [m] bool: whether NaN goes left.
        leaf: [m + 1] float64.
    """

    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    missing_left: np.ndarray
    leaf: np.ndarray


def floor_float32(values: np.ndarray) -> np.ndarray:
    """[n] float64: the largest float32 at most as large as each value."""
    values = np.asarray(values, dtype=np.float64)
    near = np.clip(values, np.finfo(np.float32).min, np.finfo(np.float32).max).astype(np.float32)
    below = np.nextafter(near, np.float32(-np.inf))
    return np.where(near.astype(np.float64) > values, below, near).astype(np.float64)


def float32_thresholds(booster: lgb.Booster) -> lgb.Booster:
    """The same booster with thresholds that are float32 numbers.

    Predictions for float32 inputs stay as they were.
    """
    return lgb.Booster(model_str=round_thresholds(booster.model_to_string(num_iteration=-1)))


def round_thresholds(text: str) -> str:
    """Rewrite the `threshold=` lines of a LightGBM model text.

    The header's tree sizes, which guide LightGBM's parallel reader, are left out; it then reads
    the trees one after another.
    """

    def rounded(match: re.Match[str]) -> str:
        values = floor_float32(np.array(match.group(1).split(), dtype=np.float64))
        return "threshold=" + " ".join(repr(float(v)) for v in values)

    text = re.sub(r"^threshold=(.*)$", rounded, text, flags=re.MULTILINE)
    return re.sub(r"^tree_sizes=.*\n", "", text, flags=re.MULTILINE)


def read_trees(booster: lgb.Booster) -> list[Tree]:
    """The trees of a booster.

    Raises:
        InternalError: categorical splits, linear leaves or zeros as missing, which are not used.
    """
    text = booster.model_to_string(num_iteration=-1)
    body = text.split("end of trees")[0]
    return [_read_tree(part) for part in re.split(r"^Tree=\d+\n", body, flags=re.MULTILINE)[1:]]


def _read_tree(text: str) -> Tree:
    lines = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    leaf = np.array(lines["leaf_value"].split(), dtype=np.float64)
    if lines.get("is_linear", "0") != "0" or int(lines.get("num_cat", "0")):
        raise InternalError("trees: linear leaves and categorical splits are not supported")
    if len(leaf) == 1:
        none = np.zeros(0, dtype=np.int64)
        return Tree(none, none.astype(np.float64), none, none, none.astype(bool), leaf)
    kind = np.array(lines["decision_type"].split(), dtype=np.int64)
    missing = (kind >> 2) & 3
    if (kind & _CATEGORICAL).any() or (missing == _MISSING_ZERO).any():
        raise InternalError("trees: categorical splits and zeros as missing are not supported")
    threshold = np.array(lines["threshold"].split(), dtype=np.float64)
    default_left = (kind & _DEFAULT_LEFT) > 0
    return Tree(
        feature=np.array(lines["split_feature"].split(), dtype=np.int64),
        threshold=threshold,
        left=np.array(lines["left_child"].split(), dtype=np.int64),
        right=np.array(lines["right_child"].split(), dtype=np.int64),
        missing_left=np.where(missing == _MISSING_NAN, default_left, threshold >= 0.0),
        leaf=leaf,
    )


def boosters_to_onnx(
    models: Sequence[Sequence[lgb.Booster]],
    n_features: int,
    output: Literal["margin", "probability"] = "probability",
) -> onnx.ModelProto:
    """One graph for several targets, each the mean margin of its boosters.

    Args:
        models: per target its boosters; their thresholds must be float32 (`float32_thresholds`).
        output: raw margins, or their logistic.
    Returns:
        Model with input `x` [B, F] float32 and output `y` [B, T] float32; its metadata lists the
        features that are read as `features`.
    Raises:
        InternalError: no target, a target without boosters, or a threshold beyond float32.
    """
    if not models or not all(models):
        raise InternalError("trees: every target needs at least one booster")
    nodes = _Nodes()
    for target, boosters in enumerate(models):
        for booster in boosters:
            for tree in read_trees(booster):
                nodes.add(tree, target, 1.0 / len(boosters))
    ensemble = helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["margin"],
        domain="ai.onnx.ml",
        n_targets=len(models),
        aggregate_function="SUM",
        post_transform="NONE",
        **nodes.attributes(),
    )
    last = "Identity" if output == "margin" else "Sigmoid"
    graph = helper.make_graph(
        [ensemble, helper.make_node(last, ["margin"], ["y"])],
        "forecasters",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", n_features])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", len(models)])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9, producer_name="riskfm")
    # What the trees split on, so that a runtime without onnx knows which inputs may stay empty.
    helper.set_model_props(model, {"features": " ".join(map(str, sorted(nodes.features)))})
    return model


class _Nodes:
    """Attribute arrays of the ensemble, tree after tree: inner nodes first, then leaves."""

    def __init__(self) -> None:
        self.trees = 0
        self.parts: dict[str, list[np.ndarray]] = {}
        self.features: set[int] = set()

    def add(self, tree: Tree, target: int, weight: float) -> None:
        inner, leaves = len(tree.feature), len(tree.leaf)
        self.features.update(tree.feature.tolist())
        size = inner + leaves
        if (floor_float32(tree.threshold) != tree.threshold).any():
            raise InternalError("trees: thresholds must be float32; call float32_thresholds first")

        def child(index: np.ndarray) -> np.ndarray:
            return np.where(index >= 0, index, inner + ~index)

        def padded(values: np.ndarray) -> np.ndarray:
            return np.concatenate([values, np.zeros(leaves, dtype=values.dtype)])

        self._put("nodes_treeids", np.full(size, self.trees))
        self._put("nodes_nodeids", np.arange(size))
        self._put("nodes_featureids", padded(tree.feature))
        self._put("nodes_values", padded(tree.threshold))
        self._put("nodes_hitrates", np.ones(size))
        self._put("nodes_truenodeids", padded(child(tree.left)))
        self._put("nodes_falsenodeids", padded(child(tree.right)))
        self._put("nodes_missing_value_tracks_true", padded(tree.missing_left.astype(np.int64)))
        self._put("nodes_modes", np.repeat(["BRANCH_LEQ", "LEAF"], [inner, leaves]))
        self._put("target_treeids", np.full(leaves, self.trees))
        self._put("target_nodeids", inner + np.arange(leaves))
        self._put("target_ids", np.full(leaves, target))
        self._put("target_weights", tree.leaf * weight)
        self.trees += 1

    def _put(self, name: str, values: np.ndarray) -> None:
        self.parts.setdefault(name, []).append(values)

    def attributes(self) -> dict[str, list]:
        return {name: np.concatenate(values).tolist() for name, values in self.parts.items()}
