"""Reject inference: what the refused are given, and what must not move."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from finetune.crossval import repeated_splits
from finetune.linear import LinearRecipe
from finetune.modelling import AdaptSettings
from finetune.query import QueryRecipe
from finetune.refused import second_model, shared_groups
from finetune.reject_inference import (
    Refused,
    RejectSettings,
    Training,
    augmented,
    infer_rejects,
    inference_lines,
    inference_record,
    inferred_bads,
)
from finetune.samples import Samples, check_samples
from finetune.table import FeatureTable
from foundation.errors import SampleError, UserError
from foundation.schema import schema_from_dict
from tests.finetune.small_tables import small_table


def selected(rows: int = 700, share: float = 0.5) -> tuple[Training, Refused, np.ndarray]:
    """Those with a low first aggregate were approved; and the true labels of the refused."""
    table, y = small_table(rows, seed=4, embedding=0)
    z = table.values[:, 1]
    cut = np.quantile(z, share)
    taken, left = np.flatnonzero(z < cut), np.flatnonzero(z >= cut)
    training = Training(table.take(taken), y[taken], np.ones(len(taken)), np.arange(len(taken)))
    refused = Refused(table.take(left), np.ones(len(left)), len(taken) + np.arange(len(left)))
    return training, refused, y[left]


def splits(training: Training):
    return repeated_splits(training.y, training.groups, 4, 1, 0)


@pytest.mark.parametrize("method", ["fuzzy", "parcelling"])
def test_refused_are_inferred_worse_than_approved(method: str):
    training, refused, truth = selected()
    found = infer_rejects(
        LinearRecipe(), training, refused, splits(training), RejectSettings(method)
    )
    assert truth.mean() > training.y.mean() + 0.05
    assert found.bad_rate > training.y.mean()
    record = inference_record(found, training)
    assert record["refused"] == len(truth) and record["labelled"] == len(training.y)
    assert abs(record["cv_difference"]["auc"]["value"]) < 0.1
    assert record["same_order_on_refused"] > 0.5
    assert "cannot say whether the inference is right" in "\n".join(inference_lines(record))
    again = infer_rejects(
        LinearRecipe(), training, refused, splits(training), RejectSettings(method)
    )
    assert np.array_equal(again.logit, found.logit)
    assert np.array_equal(again.refused_bad, found.refused_bad)


def test_the_plain_model_does_not_know_of_the_refused():
    training, refused, _ = selected()
    found = infer_rejects(
        LinearRecipe(), training, refused, splits(training), RejectSettings("fuzzy", 4.0)
    )
    t = training
    alone = LinearRecipe().fit(t.table, t.y, t.weight, t.groups, 0)
    assert np.array_equal(found.plain.logit(t.table), alone.logit(t.table))
    for split in splits(training):
        part = training.take(split.train)
        fitted = LinearRecipe().fit(part.table, part.y, part.weight, part.groups, 0)
        assert np.array_equal(found.plain_logit[split.test], fitted.logit(t.table.take(split.test)))


def test_a_refused_row_of_a_tested_customer_stays_out_of_that_fold():
    """Leak test: with every refused row of a fold's own customers, that fold stays as it was."""
    training, refused, _ = selected(400)
    parts = splits(training)
    held = parts[0].test
    # the first refused rows belong to customers judged in fold 0; their features are absurd
    groups = refused.groups.copy()
    count = min(len(held), len(groups))
    groups[:count] = training.groups[held[:count]]
    values = refused.table.values.copy()
    values[:count] = 1e6
    absurd = Refused(FeatureTable(refused.table.columns, values), refused.weight, groups)
    usual = refused.take(np.arange(count, len(groups)))
    settings = RejectSettings("fuzzy")
    with_them = infer_rejects(LinearRecipe(), training, absurd, parts[:1], settings)
    without = infer_rejects(LinearRecipe(), training, usual, parts[:1], settings)
    assert np.array_equal(with_them.logit[held], without.logit[held])


@given(
    bad=st.lists(st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.01, 0.99)), min_size=1,
                 max_size=40),
    scale=st.floats(0.1, 10),
)  # fmt: skip
@limits(deadline=None, max_examples=25)
def test_augmentation_keeps_weight_and_shares(bad: list[float], scale: float):
    share = np.array(bad)
    table, y = small_table(50)
    training = Training(table, y, np.ones(50), np.arange(50))
    rows = np.arange(len(share)) % 50
    weight = scale * (1 + np.arange(len(share)))
    refused = Refused(table.take(rows), weight, 50 + np.arange(len(share)))
    wide, label, heavy, groups = augmented(training, refused, share)
    assert len(wide) == len(label) == len(heavy) == len(groups)
    assert (heavy > 0).all()
    assert np.isclose(heavy[50:].sum(), weight.sum())
    assert np.isclose(heavy[50:] @ label[50:], weight @ share)
    assert np.array_equal(label[:50], y) and np.array_equal(heavy[:50], np.ones(50))
    for g in np.unique(groups[50:]):
        own = np.flatnonzero(groups == g)
        assert np.isclose(heavy[own].sum(), weight[g - 50])


@given(factor=st.floats(0.5, 20), seed=st.integers(0, 50))
@limits(deadline=None, max_examples=25)
def test_a_higher_factor_never_infers_fewer_bads(factor: float, seed: int):
    rng = np.random.default_rng(seed)
    logit = rng.normal(-1, 1, 200)
    y = (rng.random(200) < 1 / (1 + np.exp(-logit))).astype(float)
    y[:2] = [0, 1]
    refused = rng.normal(0, 1, 80)
    for method in ("fuzzy", "parcelling"):
        rate = [
            inferred_bads(
                logit, y, np.ones(200), refused, np.ones(80), RejectSettings(method, f), seed
            )
            for f in (factor, 1.5 * factor)
        ]
        assert ((rate[0] >= 0) & (rate[0] <= 1)).all()
        assert rate[1].sum() >= rate[0].sum() - 1e-9
        if method == "parcelling":
            assert set(np.unique(rate[0])) <= {0.0, 1.0}


def test_parcelling_gives_each_band_its_share():
    logit = np.repeat(np.arange(5.0), 100)
    y = np.concatenate([(np.arange(100) < 10 * (k + 1)).astype(float) for k in range(5)])
    refused = np.repeat(np.arange(5.0), 50)
    bad = inferred_bads(logit, y, np.ones(500), refused, np.ones(250), RejectSettings("parcelling"))
    share = bad.reshape(5, 50).mean(axis=1)
    assert np.abs(share - np.array([0.1, 0.2, 0.3, 0.4, 0.5])).max() <= 0.02


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (RejectSettings("fuzy"), UserError, "did you mean 'fuzzy'"),
        (RejectSettings("fuzzy", 0.0), UserError, "cannot be meant"),
        (RejectSettings("fuzzy", float("nan")), UserError, "cannot be meant"),
    ],
)
def test_impossible_settings(settings, error, message):
    with pytest.raises(error, match=message):
        settings.check()


def test_a_choice_that_cannot_use_the_refused_is_said_not_replaced():
    none = (None,) * 6
    settings = AdaptSettings(rejects=RejectSettings("fuzzy"))
    ladder = SimpleNamespace(recipes={"query": QueryRecipe()})
    for model, words in (
        (SimpleNamespace(ladder=ladder, chosen="query"), "query was chosen"),
        (SimpleNamespace(ladder=None, chosen="query"), "there are no labels"),
    ):
        second, record = second_model(settings, model, *none)  # type: ignore[arg-type]
        assert second is None
        assert record["skipped"].startswith("reject inference was not made") and (
            words in record["skipped"]
        )


def test_one_entity_has_one_number_in_both_files():
    def people(ids: list[str]) -> Samples:
        return check_samples(
            pl.DataFrame(
                {"entity_id": ids, "as_of": [f"2020-01-0{i + 1}" for i in range(len(ids))]}
            ),
            schema_from_dict({"name": "plain"}),
            need_labels=False,
        )

    own, others = shared_groups(people(["b", "a", "b"]), people(["c", "a"]))
    assert own[0] == own[2] != own[1] == others[1]
    assert others[0] not in own


def test_what_cannot_be_inferred_is_said():
    training, refused, _ = selected(300)
    none = refused.take(np.zeros(0, dtype=np.int64))
    with pytest.raises(SampleError, match="there are none"):
        infer_rejects(LinearRecipe(), training, none, splits(training), RejectSettings("fuzzy"))
    narrow = Refused(refused.table.block("forecast"), refused.weight, refused.groups)
    with pytest.raises(SampleError, match="different columns"):
        infer_rejects(LinearRecipe(), training, narrow, splits(training), RejectSettings("fuzzy"))

    class Tuned(QueryRecipe):
        needs = frozenset({"history"})

    tuned = Tuned(needs=frozenset({"history"}))
    with pytest.raises(SampleError, match="learns through the backbone"):
        infer_rejects(tuned, training, refused, splits(training), RejectSettings("fuzzy"))
