"""ONNX ensembles route and sum as LightGBM does."""

from __future__ import annotations

import lightgbm as lgb
import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.errors import InternalError
from foundation.trees import boosters_to_onnx, float32_thresholds, floor_float32, read_trees


def make_booster(seed: int, holes: float = 0.2, features: int = 5, **extra) -> lgb.Booster:
    rng = np.random.default_rng(seed)
    x = np.round(rng.normal(size=(400, features)), 1).astype(np.float32)
    y = (x[:, 0] + x[:, 1] * x[:, 2] + rng.normal(size=400) > 0).astype(float)
    x[rng.random(x.shape) < holes] = np.nan
    params = {
        "objective": "binary",
        "verbosity": -1,
        "num_threads": 1,
        "num_leaves": 8,
        "min_data_in_leaf": 5,
        "seed": seed,
        **extra,
    }
    return lgb.train(params, lgb.Dataset(x, y), num_boost_round=12)


def hard_rows(boosters: list[lgb.Booster], features: int, seed: int) -> np.ndarray:
    """Rows on, just above and just below split thresholds, with gaps."""
    rng = np.random.default_rng(seed)
    edges = np.concatenate([t.threshold for b in boosters for t in read_trees(b)])
    edges = edges.astype(np.float32)
    near = np.concatenate(
        [
            edges,
            np.nextafter(edges, np.float32(9e9)),
            np.nextafter(edges, np.float32(-9e9)),
            np.float32([0, -0.0]),
        ]
    )
    near = near[(near == 0) | (np.abs(near) > 1e-30)]
    x = rng.choice(near, size=(300, features)).astype(np.float32)
    x[rng.random(x.shape) < 0.2] = np.nan
    return x


def session(model) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options)


@pytest.mark.parametrize("holes", [0.0, 0.2])
def test_onnx_equals_lightgbm_on_thresholds_and_gaps(holes: float):
    models = [
        [float32_thresholds(make_booster(3 * t + k, holes)) for k in range(3)] for t in range(2)
    ]
    x = hard_rows([b for m in models for b in m], 5, 1)
    margin = np.stack([sum(b.predict(x, raw_score=True) for b in m) / 3 for m in models], axis=1)
    got = session(boosters_to_onnx(models, 5, "margin")).run(["y"], {"x": x})[0]
    assert got.shape == (300, 2) and got.dtype == np.float32
    assert np.abs(got - margin).max() <= 1e-6
    runner = session(boosters_to_onnx(models, 5))
    batch = runner.run(["y"], {"x": x})[0]
    assert np.abs(batch - 1 / (1 + np.exp(-margin))).max() <= 1e-6
    for rows in (slice(0, 1), slice(7, 8), slice(0, 33)):
        assert np.abs(runner.run(["y"], {"x": x[rows]})[0] - batch[rows]).max() <= 1e-6


def test_the_graph_says_what_its_trees_split_on():
    models = [[float32_thresholds(make_booster(k))] for k in range(2)]
    runner = session(boosters_to_onnx(models, 5))
    listed = runner.get_modelmeta().custom_metadata_map["features"].split()
    split = {int(f) for m in models for b in m for t in read_trees(b) for f in t.feature}
    assert [int(f) for f in listed] == sorted(split)
    x = hard_rows([b for m in models for b in m], 5, 3)
    blank = x.copy()
    blank[:, [k for k in range(5) if k not in split]] = np.nan
    assert runner.run(None, {"x": blank})[0].tobytes() == runner.run(None, {"x": x})[0].tobytes()


def test_rounding_thresholds_keeps_every_float32_prediction():
    booster = make_booster(5)
    rounded = float32_thresholds(booster)
    x = hard_rows([booster], 5, 2)
    assert (booster.predict(x, raw_score=True) == rounded.predict(x, raw_score=True)).all()
    for tree in read_trees(rounded):
        assert (tree.threshold == tree.threshold.astype(np.float32)).all()


@settings(deadline=None, max_examples=25)
@given(st.floats(-1e38, 1e38), st.floats(-(2.0**120), 2.0**120, width=32))
def test_floor_float32_separates_the_same_floats(threshold: float, x: float):
    low = floor_float32(np.array([threshold]))[0]
    assert low <= threshold and low == np.float32(low)
    assert (x <= threshold) == (x <= low)
    beside = np.nextafter(np.float32(low), np.float32(np.inf))
    assert float(beside) > threshold


def test_a_booster_without_any_split():
    x = np.zeros((60, 2), dtype=np.float32)
    y = np.arange(60) % 3 == 0
    booster = lgb.train(
        {"objective": "binary", "verbosity": -1, "num_threads": 1},
        lgb.Dataset(x, y.astype(float)),
        num_boost_round=2,
    )
    got = session(boosters_to_onnx([[booster]], 2)).run(["y"], {"x": x[:3]})[0]
    assert np.abs(got[:, 0] - booster.predict(x[:3])).max() <= 1e-6


def test_what_cannot_be_exported_is_refused():
    with pytest.raises(InternalError, match="at least one booster"):
        boosters_to_onnx([[]], 2)
    with pytest.raises(InternalError, match="float32"):
        boosters_to_onnx([[make_booster(1)]], 5)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 9, (400, 1)).astype(float)
    data = lgb.Dataset(x, np.isin(x[:, 0], [1, 5, 7]).astype(float), categorical_feature=[0])
    params = {"objective": "binary", "verbosity": -1, "min_data_per_group": 1, "cat_smooth": 0}
    with pytest.raises(InternalError, match="categorical"):
        read_trees(lgb.train(params, data, num_boost_round=1))
