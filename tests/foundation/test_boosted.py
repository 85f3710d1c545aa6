"""Forecasters: they learn, never from a held-out entity, never from what came later."""

from __future__ import annotations

import datetime as dt

import msgspec
import numpy as np
import onnxruntime as ort
import polars as pl
import pytest

from foundation.aggregates import AggregateSpec
from foundation.boosted import (
    BoostSettings,
    Forecasters,
    TargetCard,
    anchored_share,
    fit_forecasters,
    fold_of,
    train,
)
from foundation.decisions import decision_sources
from foundation.errors import ArtifactError
from foundation.history import build_timeline, cut
from foundation.schema import schema_from_dict
from foundation.trees import boosters_to_onnx

SCHEMA = schema_from_dict(
    {
        "sources": {
            "bill": {"fields": {"status": {"kind": "category"}, "amount": {"kind": "money"}}}
        },
        "outcomes": {
            "late": "bill.status in ('2', '3') within 31d",
            "never": "bill.status in ('9') within 31d",
        },
        "windows_days": [31, 93],
    }
)
QUICK = BoostSettings(folds=3, rounds=15, min_leaf=10, threads=1)
UNTIL = dt.datetime(2024, 11, 1)
UNTIL_US = int(pl.Series([UNTIL]).to_physical()[0])


def make_frame(seed: int = 0, entities: int = 120, after: int | None = None) -> pl.DataFrame:
    """Monthly bills; some customers are late more often. `after` redraws what is known late."""
    rng = np.random.default_rng(seed)
    tendency = rng.beta(0.5, 1.0, entities)
    month = np.tile(np.arange(12), entities)
    status = np.where(rng.random(12 * entities) < np.repeat(tendency, 12), 2, 0)
    amount = rng.gamma(2.0, 50.0, 12 * entities)
    if after is not None:
        other = np.random.default_rng(after)
        late = month >= 10
        status = np.where(late, other.integers(0, 4, len(status)), status)
        amount = np.where(late, other.gamma(2.0, 500.0, len(status)), amount)
    ends = [dt.datetime(2024, k + 1, 28) for k in range(12)]
    times = pl.Series([ends[k] for k in month], dtype=pl.Datetime("us"))
    return pl.DataFrame(
        {
            "entity_id": [f"c{k:03d}" for k in np.repeat(np.arange(entities), 12)],
            "event_time": times,
            "known_at": times,
            "status": [str(v) for v in status],
            "amount": amount,
        }
    )


@pytest.fixture(scope="module")
def fitted():
    timeline = build_timeline(SCHEMA, {"bill": make_frame()})
    spec = AggregateSpec.fit(SCHEMA, timeline, None, None, UNTIL_US)
    return timeline, spec, fit_forecasters(SCHEMA, timeline, None, spec, UNTIL_US, 0, QUICK)


def features(spec, timeline):
    ids = timeline.entity_ids
    return spec.compute(timeline, cut(timeline, ids, np.full(len(ids), UNTIL_US)), None, ids)


def test_forecasts_come_true_more_often_where_they_are_high(fitted):
    timeline, spec, model = fitted
    assert model.names == ("late_31d",) and model.titles == ("late within 31 days",)
    assert model.cards[0].auc > 0.6
    assert model.skipped[0].name == "never_31d" and "0 of" in model.skipped[0].reason
    p = model.predict(features(spec, timeline))
    assert p.dtype == np.float32 and ((p > 0) & (p < 1)).all()
    later = make_frame().filter(pl.col("event_time") == dt.datetime(2024, 11, 28))
    late = later.sort("entity_id")["status"].to_numpy() == "2"
    assert p[late, 0].mean() > p[~late, 0].mean() + 0.1


def test_cross_fitted_forecasts_never_saw_the_entity():
    rng = np.random.default_rng(0)
    ids = pl.Series([f"e{k}" for k in range(300)])
    fold = fold_of(ids, 3)
    x = rng.normal(size=(300, 4)).astype(np.float32)
    y = (rng.random((300, 1)) < 0.4).astype(np.float32)
    cards = (TargetCard(name="t", title="t"),)
    before = train(x, y, fold, np.arange(300), cards, ("a", "b", "c", "d"), QUICK, 0)
    changed = y.copy()
    changed[fold == 1] = 1 - changed[fold == 1]
    after = train(x, changed, fold, np.arange(300), cards, ("a", "b", "c", "d"), QUICK, 0)
    a, b = (m.predict(x, ids, cross_fitted=True) for m in (before, after))
    assert (a[fold == 1] == b[fold == 1]).all()
    assert (a[fold == 0] != b[fold == 0]).any()
    with pytest.raises(ValueError, match="entity"):
        before.predict(x, cross_fitted=True)


@pytest.mark.parametrize(("parity", "leaves"), [(True, 15), (False, 4)])
def test_deeper_trees_have_to_earn_it(parity: bool, leaves: int) -> None:
    rng = np.random.default_rng(0)
    entity = np.repeat(np.arange(600), 5)
    fold = entity % 3
    x = rng.normal(size=(len(entity), 4)).astype(np.float32)
    # An outcome that takes three columns together, or one column alone.
    margin = 2.0 * np.sign(x[:, 0] * x[:, 1] * x[:, 2]) if parity else 1.5 * np.sign(x[:, 0])
    y = (rng.random(len(x)) < 1 / (1 + np.exp(-margin))).astype(np.float32)[:, None]
    settings = msgspec.structs.replace(QUICK, folds=3, rounds=60, column_share=1.0)
    cards, names = (TargetCard(name="t", title="t"),), ("a", "b", "c", "d")
    few = train(x, y, fold, entity, cards, names, settings, 0)
    assert few.cards[0].leaves == 4  # of too few cuts to ask
    asked = msgspec.structs.replace(settings, deep_rows=1_000)
    many = train(x, y, fold, entity, cards, names, asked, 0)
    assert many.cards[0].leaves == leaves
    alone = msgspec.structs.replace(settings, leaves=leaves)
    direct = train(x, y, fold, entity, cards, names, alone, 0)
    texts = [[b.model_to_string() for b in f.models[0]] for f in (many, direct)]
    assert texts[0] == texts[1]


def test_what_becomes_known_later_changes_no_model(fitted):
    _, spec, model = fitted
    changed = build_timeline(SCHEMA, {"bill": make_frame(after=7)})
    again = fit_forecasters(SCHEMA, changed, None, spec, UNTIL_US, 0, QUICK)
    texts = [[b.model_to_string() for b in m] for m in model.models]
    assert [[b.model_to_string() for b in m] for m in again.models] == texts
    assert again.cards == model.cards


def test_saved_forecasters_predict_the_same(fitted, tmp_path):
    timeline, spec, model = fitted
    model.save(tmp_path)
    again = Forecasters.load(tmp_path, threads=1)
    x = features(spec, timeline)
    assert (again.predict(x) == model.predict(x)).all()
    ids = timeline.entity_ids
    assert (again.predict(x, ids, True) == model.predict(x, ids, True)).all()
    assert again.cards == model.cards and again.features == model.features == spec.names
    (tmp_path / "forecasters" / "late_31d.1.txt").write_text("tree\nbroken")
    with pytest.raises(ArtifactError, match="cannot be read"):
        Forecasters.load(tmp_path)


def test_onnx_gives_the_same_forecasts_alone_and_together(fitted):
    timeline, spec, model = fitted
    x = features(spec, timeline)
    graph = boosters_to_onnx(model.models, x.shape[1])
    runner = ort.InferenceSession(graph.SerializeToString())
    batch = runner.run(["y"], {"x": x})[0]
    assert np.abs(batch - model.predict(x)).max() <= 1e-6
    alone = np.concatenate([runner.run(["y"], {"x": x[k : k + 1]})[0] for k in range(5)])
    assert np.abs(alone - batch[:5]).max() <= 1e-6


def test_folds_are_stable():
    published = 0xCBF43926  # the check value of CRC-32
    assert fold_of(pl.Series(["123456789"]), 1000).tolist() == [published % 1000]


def test_nothing_to_learn_from():
    empty = build_timeline(SCHEMA, {})
    spec = AggregateSpec.fit(SCHEMA, empty, None, None)
    model = fit_forecasters(SCHEMA, empty, None, spec, UNTIL_US, 0, QUICK)
    assert model.names == () and [c.name for c in model.skipped] == ["late_31d", "never_31d"]
    assert model.predict(np.zeros((2, 0), np.float32)).shape == (2, 0)


def test_a_horizon_that_nothing_has_reached_yet(fitted):
    timeline, spec, _ = fitted
    days = int(timeline.known_us.min()) + 5 * 86_400_000_000
    model = fit_forecasters(SCHEMA, timeline, None, spec, days, 0, QUICK)
    assert model.names == ()
    assert {c.reason for c in model.skipped} == {"no moment has 31 days of known events behind it"}


def test_cuts_are_anchored_at_events_where_decisions_are_dated():
    dated = schema_from_dict({"profile": {"valid_time": "t", "fields": {"x": {"kind": "number"}}}})
    assert anchored_share(dated, BoostSettings()) == 1.0
    assert anchored_share(SCHEMA, BoostSettings()) == 0.0
    both = {"sum": {"kind": "number"}, "days": {"kind": "number"}}
    loans = schema_from_dict({"sources": {"call": {}, "loan": {"fields": both}}, "context": both})
    assert decision_sources(loans) == (1,) and decision_sources(SCHEMA) == ()
    assert anchored_share(SCHEMA, BoostSettings(anchored=0.5)) == 0.5
