"""Linear and tree heads: ONNX equals numpy, alone and in a batch."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.blend import BlendRecipe
from finetune.gbdt import GbdtRecipe
from finetune.heads import BinTerm, ChanceTerm, CodeTerm, Head, LinearHead, NumberTerm
from finetune.recipes import FittedRecipe, standard_recipes
from finetune.table import FeatureTable
from tests.finetune.small_tables import settings, small_table


def opened(head: Head) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(
        head.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(head: Head | ort.InferenceSession, x: np.ndarray) -> np.ndarray:
    session = opened(head) if isinstance(head, Head) else head
    return session.run(None, {"x": x.astype(np.float32)})[0]


class Exported:
    """All heads of a fitted recipe, opened once."""

    def __init__(self, fitted: FittedRecipe) -> None:
        self.offset = fitted.offset
        self.heads = [(opened(h), h.columns, h.weight) for h in fitted.heads()]

    def logit(self, table: FeatureTable) -> np.ndarray:
        out = np.full(len(table), self.offset)
        for session, columns, weight in self.heads:
            out += weight * run(session, np.ascontiguousarray(table.matrix(columns)))
        return out


EVERY_TERM = LinearHead(
    (
        NumberTerm("n", 0.7, center=2.0, scale=3.0, clip=3.0, missing=0.3),
        NumberTerm("w", -0.5, center=1.0, scale=2.0, transform="log", clip=3.0),
        NumberTerm("p", 1.1, transform="logit", clip=20.0, missing=-0.4),
        CodeTerm("c", (0.0, 2.0), (0.5, -0.25), other=0.1, missing=0.9),
        BinTerm("b", (-1.0, 0.0, 2.5), (0.1, 0.2, -0.3, 0.6), missing=-0.7),
        BinTerm("n", (5.0,), (0.0, 1.0), missing=0.05),
        ChanceTerm(("p", "b"), (0.6, 0.4), (0.2, 0.3), weight=-0.8),
    ),
    intercept=-0.2,
)
EVERY_SESSION = opened(EVERY_TERM.head("every"))
VALUE = st.one_of(
    st.just(float("nan")),
    st.sampled_from([0.0, -1.0, 1.0, 2.0, 2.5, 5.0]),
    st.floats(-1e6, 1e6, width=32),
)


def by_hand(row: dict[str, float]) -> float:
    """The definition of the terms, one at a time, in float64."""
    out = -0.2
    n, w, p, c, b = (row[k] for k in "nwpcb")
    out += 0.3 if np.isnan(n) else 0.7 * np.clip((n - 2) / 3, -3, 3)
    out += 0.0 if np.isnan(w) else -0.5 * np.clip((np.sign(w) * np.log1p(abs(w)) - 1) / 2, -3, 3)
    q = np.clip(p, 1e-4, 1 - 1e-4)
    out += -0.4 if np.isnan(p) else 1.1 * np.log(q / (1 - q))
    out += 0.9 if np.isnan(c) else {0.0: 0.5, 2.0: -0.25}.get(c, 0.1)
    chance = 0.6 * (0.2 if np.isnan(p) else p) + 0.4 * (0.3 if np.isnan(b) else b)
    chance = np.clip(chance, 1e-4, 1 - 1e-4)
    out -= 0.8 * np.log(chance / (1 - chance))
    bins = (0.1, 0.2, -0.3, 0.6)
    out += -0.7 if np.isnan(b) else bins[int(b >= -1) + int(b >= 0) + int(b >= 2.5)]
    return out + (0.05 if np.isnan(n) else float(n >= 5))


@given(st.lists(st.tuples(*[VALUE] * 5), min_size=1, max_size=6))
def test_linear_head_equals_its_definition_in_numpy_and_onnx(rows: list[tuple[float, ...]]) -> None:
    assert EVERY_TERM.columns == ("n", "w", "p", "c", "b")
    x = np.array(rows, dtype=np.float32)
    expected = [by_hand(dict(zip("nwpcb", map(float, r), strict=True))) for r in x]
    # float32 leaves 1 - p three digits where p is held at its margin.
    np.testing.assert_allclose(EVERY_TERM.apply(x), expected, atol=1e-3)
    np.testing.assert_allclose(run(EVERY_SESSION, x), EVERY_TERM.apply(x), atol=1e-5)


def test_infinite_values_are_clipped() -> None:
    x = np.array([[np.inf, -np.inf, np.inf, 1.0, np.inf]], dtype=np.float32)
    assert np.isfinite(EVERY_TERM.apply(x)).all()
    np.testing.assert_allclose(run(EVERY_TERM.head("h"), x), EVERY_TERM.apply(x), atol=1e-5)


def test_scaled_head_is_the_scaled_logit() -> None:
    x = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
    x[::7] = np.nan
    scaled = EVERY_TERM.scaled(2.5, -1.0)
    np.testing.assert_allclose(scaled.apply(x), 2.5 * EVERY_TERM.apply(x) - 1.0, atol=1e-5)


MEMBERS = standard_recipes(readout={"e0": -0.8, "e2": 0.5})[:-1]
BLEND = BlendRecipe(tuple(MEMBERS), {"query": 0.2, "linear": 0.5, "gbdt": 0.3})


@pytest.mark.parametrize("recipe", [*MEMBERS, BLEND], ids=lambda r: r.name)
def test_every_recipe_exports_what_it_learnt(recipe) -> None:  # type: ignore[no-untyped-def]
    table, y = small_table(150, seed=3)
    fitted = recipe.fit(table, y, *settings(150), 0)
    fresh, _ = small_table(64, seed=4)
    fresh.values[0] = np.nan
    expected = fitted.logit(fresh)
    exported = Exported(fitted)
    np.testing.assert_allclose(exported.logit(fresh), expected, atol=1e-5)
    alone = [exported.logit(fresh.take(np.array([i])))[0] for i in range(6)]
    np.testing.assert_allclose(alone, expected[:6], atol=1e-5)


def test_rows_do_not_depend_on_their_batch_by_a_bit() -> None:
    table, y = small_table(150, seed=3)
    fitted = standard_recipes()[2].fit(table, y, *settings(150), 0)
    head = fitted.heads()[0]
    x = np.ascontiguousarray(table.matrix(head.columns))
    alone = np.concatenate([run(head, x[i : i + 1]) for i in range(10)])
    assert (alone == run(head, x)[:10]).all()


def test_trees_do_not_flip_on_thresholds() -> None:
    """Rows that stand exactly on float32 neighbours of thresholds route alike."""
    table, y = small_table(150, seed=5)
    fitted = GbdtRecipe().fit(table, y, *settings(150), 0)
    text = fitted.boosters[0].model_to_string()
    cuts = [
        float(v)
        for line in text.splitlines()
        if line.startswith("threshold=")
        for v in line.split("=")[1].split()
    ][:40]
    near = np.array(cuts, dtype=np.float32)
    edges = np.concatenate([near, np.nextafter(near, np.float32(9e9)), np.nextafter(near, -near)])
    values = np.repeat(edges[:, None], len(table.columns), axis=1)
    on_edges = FeatureTable(table.columns, values)
    np.testing.assert_allclose(Exported(fitted).logit(on_edges), fitted.logit(on_edges), atol=1e-5)
