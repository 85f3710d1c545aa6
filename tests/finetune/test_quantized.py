"""Graphs of 8-bit products: close to float32, and the same whatever else is in the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.features import open_session
from finetune.graph_writer import FLOAT, INT64, Writer
from finetune.history_graph import OUTPUTS, export_history, probe_inputs
from finetune.incremental_graph import export_incremental
from finetune.quantized import (
    KEPT_TOLERANCE,
    STEPS,
    TOLERANCE,
    exact_here,
    export_quantised,
    int8_products,
    quantised,
)
from foundation.backbone import RiskBackbone, RiskBackboneConfig
from foundation.errors import ArtifactError, ParityError
from foundation.tokenizer import Tokenizer
from tests.finetune.test_history_graph import SIZES
from tests.foundation.small_lender import small_lender

WIDE, NARROW = 40, 12


@pytest.fixture(scope="module")
def bound() -> tuple[RiskBackbone, Tokenizer]:
    schema, timeline, profile = small_lender(10)
    tokenizer = Tokenizer.fit(schema, timeline, profile)
    torch.manual_seed(0)
    model = RiskBackbone(RiskBackboneConfig(**SIZES | {"layers": 2, "width": 32}))
    return model.bind(tokenizer), tokenizer


@pytest.fixture(scope="module")
def rounded(bound: tuple, tmp_path_factory: pytest.TempPathFactory) -> ort.InferenceSession:
    path = tmp_path_factory.mktemp("rounded") / "history.onnx"
    export_quantised(*bound, path)
    return open_session(str(path))


@pytest.fixture(scope="module")
def product() -> tuple:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(WIDE, NARROW)).astype(np.float32)
    w = Writer()
    (found,) = int8_products(w, w.input("x", FLOAT, ["S", "B", WIDE]), [matrix])
    w.output("y", found.settle(w), ["S", "B", NARROW])
    return matrix, open_session(w.finish("product").SerializeToString())


@settings(deadline=None, max_examples=25)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 3)),
    scale=st.sampled_from([0.0, 1e-8, 1.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_a_product(product: tuple, shape: tuple[int, int], scale: float, seed: int) -> None:
    matrix, session = product
    x = np.random.default_rng(seed).normal(size=(*shape, WIDE)).astype(np.float32)
    x *= np.float32(scale)
    found = session.run(None, {"x": x})[0]
    # Half a step of every activation times its weight, half a step of every weight.
    largest = np.abs(x).max(-1, keepdims=True)
    step = np.abs(matrix).max(0) / STEPS
    allowed = largest / 127 / 2 * np.abs(matrix).sum(0) + step * np.abs(x).sum(-1, keepdims=True)
    assert (np.abs(found - x @ matrix) <= allowed * 1.01 + 1e-9).all()
    # A row is the same to the bit alone and among others, of whatever size these are.
    row = seed % shape[0]
    alone = session.run(None, {"x": x[row : row + 1, :1]})[0]
    np.testing.assert_array_equal(alone[0, 0], found[row, 0])


def test_steps_of_a_matrix() -> None:
    matrix = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    matrix[:, 3] = 0.0
    steps, size = quantised(matrix)
    assert steps.dtype == np.int8
    assert np.abs(steps).max() == STEPS
    np.testing.assert_allclose(steps * size, matrix, atol=float(size.max()) * 0.501)


def test_whether_sums_saturate_is_seen() -> None:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if "vnni" not in flags:
        pytest.skip("this processor is not known to add 8-bit products exactly")
    assert exact_here()


def test_rows_are_summed_alike_alone_and_among_others() -> None:
    rng = np.random.default_rng(0)
    table, moved = rng.normal(size=(9, 32)).astype(np.float32), rng.normal(size=(7, 32))
    w = Writer()
    w.same_sums = True
    x = w.op("Gather", w.constant(table), w.input("code", INT64, ["N", 7]))
    w.output("gathered", w.op("ReduceSum", x, w.ints(1), keepdims=0), ["N", 32])
    y = w.op("Mul", x, w.constant(moved.astype(np.float32)))
    w.output("made", w.op("ReduceSum", y, w.ints(1), keepdims=0), ["N", 32])
    session = open_session(w.finish("sums").SerializeToString())
    code = rng.integers(0, 9, (40, 7))
    found = session.run(None, {"code": code})
    np.testing.assert_allclose(found[0], table[code].sum(1), atol=1e-5)
    np.testing.assert_allclose(found[1], (table[code] * moved).sum(1), atol=1e-5)
    for row in range(40):
        for whole, alone in zip(
            found, session.run(None, {"code": code[row : row + 1]}), strict=True
        ):
            np.testing.assert_array_equal(alone[0], whole[row])


def test_quantised_history(bound: tuple, tmp_path: Path) -> None:
    assert 0 < export_quantised(*bound, tmp_path / "int8.onnx") <= TOLERANCE
    export_history(*bound, tmp_path / "plain.onnx")
    found, wanted = (open_session(str(tmp_path / f"{name}.onnx")) for name in ("int8", "plain"))
    inputs = probe_inputs(bound[0], 6, 24)
    feed = {i.name: inputs[i.name] for i in wanted.get_inputs()}
    assert {i.name for i in found.get_inputs()} == set(feed)
    together = found.run(list(OUTPUTS), feed)
    for a, b in zip(together, wanted.run(list(OUTPUTS), feed), strict=True):
        assert np.abs(a - b).max() < 0.15
    for row in range(6):
        count = max(int(inputs["query_position"][row, 0]), 1)
        alone = {
            n: a[row : row + 1] if n.startswith("query") else a[row : row + 1, :count]
            for n, a in feed.items()
        }
        for a, b in zip(found.run(list(OUTPUTS), alone), together, strict=True):
            np.testing.assert_allclose(a[0], b[row], atol=KEPT_TOLERANCE)


@settings(deadline=None, max_examples=25)
@given(
    batch=st.integers(1, 9), length=st.integers(1, 40), count=st.integers(0, 40), seed=st.integers()
)
def test_histories_of_one_length_are_the_same_to_the_bit(
    bound: tuple, rounded: ort.InferenceSession, batch: int, length: int, count: int, seed: int
) -> None:
    inputs = probe_inputs(bound[0], batch, length, seed % 2**32)
    inputs["query_position"][:] = min(count, length)
    feed = {i.name: inputs[i.name] for i in rounded.get_inputs()}
    together = rounded.run(list(OUTPUTS), feed)
    row = seed % batch
    alone = rounded.run(list(OUTPUTS), {n: a[row : row + 1] for n, a in feed.items()})
    for name, a, b in zip(OUTPUTS, alone, together, strict=True):
        np.testing.assert_array_equal(a[0], b[row], err_msg=name)


def test_quantised_incremental(bound: tuple, tmp_path: Path) -> None:
    worst = export_incremental(*bound, tmp_path / "i.onnx", int8_products, TOLERANCE)
    assert 1e-4 < worst <= TOLERANCE
    with pytest.raises(ParityError, match="differs"):
        export_incremental(*bound, tmp_path / "wrong.onnx", int8_products)


def test_what_is_refused(bound: tuple, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="differs"):
        export_quantised(*bound, tmp_path / "wrong.onnx", tolerance=1e-6)
    model = RiskBackbone(RiskBackboneConfig(**SIZES | {"bidirectional": True}))
    with pytest.raises(ArtifactError, match="bidirectional"):
        export_quantised(model, bound[1], tmp_path / "wrong.onnx")
    assert list(tmp_path.iterdir()) == []
