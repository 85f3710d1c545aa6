"""The backbone's graphs with products of 8-bit integers in their blocks.

Weights have one scale a column, activations one scale a row, found as the row comes: a token is
rounded the same whatever else is in its batch, where one scale a tensor, which ONNX Runtime's own
dynamic quantisation takes, made a score depend on its neighbours. Sums are exact in 32 bits.
Attention, norms and the encoding of events and queries stay in float32: the encoding is a thirtieth
of the work and a third of the rounding.

Processors without VNNI add two products in 16 bits, saturating, and would score otherwise than
those with it: `exact_here` tells, and such machines must take the float32 graph. Unsigned weights
are exact everywhere, but four times slower where integers are fast.

A rounded value jumps: where float32's last bit differs before it lies on the edge between two
steps, states differ by a hundredth behind it. So histories of equal length alone share a run
(`FeatureBuilder.precision`), rows are summed in one order (`Writer.same_sums`), and a history has
the same states, to the bit, alone and in any batch. A kept state (`finetune.incremental`) goes on
in other shapes: mostly within float32's rounding of the whole history, within `KEPT_TOLERANCE`
where a value has jumped (`small` on 61 histories: 14 jumped, by .019 at most, scores by 1.3e-4).

`scripts/bench/engine.py` measures speed, and beside it the ways not taken: `MatMulNBits` (weights
of 8 bits in blocks, activations rounded by block) is slower than float32 on this kind of machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from finetune.features import open_session
from finetune.graph_writer import UINT8, Product, Writer
from foundation.errors import ArtifactError
from foundation.tokenizer import Tokenizer

if TYPE_CHECKING:
    from foundation.backbone import RiskBackbone

# Largest difference allowed to torch in states (of size one) and log-odds of untrained probes.
TOLERANCE = 0.25
# Largest difference allowed to states of kept histories, measured: 0.02.
KEPT_TOLERANCE = 0.1
STEPS, _ZERO = 127, 128


def int8_products(w: Writer, x: str, matrices: Sequence[np.ndarray]) -> list[Product]:
    """Products of rows rounded to 8 bits with matrices rounded to 8 bits, in float32.

    Their graph sums rows in one order: a difference of float32's last bit, before a value on the
    edge between two steps, is one of a hundredth behind it.
    """
    w.same_sums = True
    largest = w.op("ReduceMax", w.op("Abs", x), w.ints(-1), keepdims=1)
    largest = w.op("Max", largest, w.number(1e-10))
    scaled = w.op("Mul", x, w.op("Div", w.number(STEPS), largest))
    zero = w.constant(np.array(_ZERO, dtype=np.uint8))
    rounded = w.op("QuantizeLinear", scaled, w.number(1.0), zero)
    found = []
    for matrix in matrices:
        steps, size = quantised(matrix)
        product = _integer_product(w, rounded, steps, size / np.float32(STEPS))
        found.append(Product(product, largest))
    return found


def quantised(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A matrix [in, out] as int8 steps and the size of a step for every column [out]."""
    size = np.maximum(np.abs(matrix).max(axis=0), 1e-12) / STEPS
    return np.rint(matrix / size).astype(np.int8), size.astype(np.float32)


@lru_cache(maxsize=1)
def exact_here() -> bool:
    """Whether this machine's 8-bit products are exact at their largest."""
    w, inner = Writer(), 64
    x = w.input("x", UINT8, ["S", inner])
    steps = np.full((inner, 16), STEPS, dtype=np.int8)
    w.output("y", _integer_product(w, x, steps, np.ones(16, np.float32)), ["S", 16])
    session = open_session(w.finish("largest").SerializeToString())
    most = np.full((9, inner), 255, dtype=np.uint8)
    return bool((session.run(None, {"x": most})[0] == inner * (255 - _ZERO) * STEPS).all())


def require_exact(what: str) -> None:
    """Refuse what would be scored otherwise here than where it was made.

    Raises:
        ArtifactError: 8-bit products are not exact on this machine.
    """
    if not exact_here():
        raise ArtifactError(
            f"{what} needs a processor that adds 8-bit products exactly (VNNI or AMX) and this one "
            "does not; make the package with --precision float32"
        )


def export_quantised(
    model: RiskBackbone, tokenizer: Tokenizer, path: str | Path, tolerance: float = TOLERANCE
) -> float:
    """Write the history graph of a backbone with 8-bit products; inputs and outputs are the same.

    The incremental graph has them by `export_incremental(..., products=int8_products,
    tolerance=TOLERANCE)`.

    Returns:
        Largest absolute difference to torch over the probes.

    Raises:
        ArtifactError: the backbone is bidirectional.
        ParityError: the graph differs from torch by more than `tolerance`.
    """
    from finetune.causal_graph import history_graph
    from finetune.history_graph import OUTPUTS, HistoryGraph, frozen, prove

    if model.config.bidirectional:
        raise ArtifactError("a bidirectional backbone has no 8-bit graph; score with float32")
    with frozen(model.bind(tokenizer)):
        graph = history_graph(model, int8_products)
        worst = prove(graph, HistoryGraph(model).eval(), model, OUTPUTS, tolerance)
    partial = Path(path).with_name(Path(path).name + ".partial")
    onnx.save(graph, str(partial))
    partial.replace(path)
    return worst


def _integer_product(w: Writer, rounded: str, steps: np.ndarray, size: np.ndarray) -> str:
    """Rows of uint8 around `_ZERO` times int8 columns, in float32 and in units of the columns."""
    return w.contrib(
        "MatMulIntegerToFloat",
        rounded,
        w.constant(steps),
        w.number(1.0),
        w.constant(size),
        w.constant(np.array(_ZERO, dtype=np.uint8)),
        w.constant(np.array(0, dtype=np.int8)),
    )
