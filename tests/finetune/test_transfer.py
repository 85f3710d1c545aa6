"""Recipe `transfer`: near its sources with few labels, away from them with many."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import polars as pl
import pytest

from finetune.channels import (
    BITS_PER_ENTITY,
    Source,
    entity_trace,
    label_record,
    shared_entities,
    source_notes,
)
from finetune.linear import ForecastRecipe, LinearRecipe
from finetune.metrics import auc
from finetune.recipes import Recipe
from finetune.samples import Samples
from finetune.table import FeatureTable
from finetune.transfer import TransferRecipe
from foundation.errors import SampleError
from tests.finetune.small_tables import settings, small_table
from tests.finetune.test_heads import Exported

LABEL: dict[str, Any] = {"package": "card-12345678", "channel": "card", "as_of_last": "2020"}


def source(
    seed: int = 50, recipe: Recipe | None = None, rows: int = 1500, turned: bool = False
) -> Source:
    """A channel adapted on many labels of the same kind of customers, or of the opposite kind."""
    table, y = small_table(rows, seed=seed)
    y = 1 - y if turned else y
    fitted = (recipe or LinearRecipe()).fit(table, y, *settings(rows), 0)
    return Source("card", fitted.heads(), fitted.offset, 1.0, 0.0, {**LABEL})


def odds_moved(seed: int, rows: int, shift: float = -1.0) -> tuple[FeatureTable, np.ndarray]:
    """Another channel: the same risk, other odds (bads turned good at random)."""
    table, y = small_table(rows, seed=seed)
    random = np.random.default_rng(seed)
    return table, np.where((y == 1) & (random.random(rows) > np.exp(shift)), 0.0, y)


def test_few_labels_stay_with_the_source_and_learn_the_odds() -> None:
    card = source()
    better, worse = [], []
    for seed in range(3):
        table, y = odds_moved(seed, 80)
        fresh, truth = odds_moved(seed + 70, 2000)
        fitted = TransferRecipe((card,)).fit(table, y, *settings(80), 0)
        assert fitted.weights[0] == pytest.approx(1.0, abs=0.6)
        alone = LinearRecipe().fit(table, y, *settings(80), 0)
        better.append(auc(truth, fitted.logit(fresh)))
        worse.append(auc(truth, alone.logit(fresh)))
        rate = 1 / (1 + np.exp(-fitted.logit(fresh)))
        assert rate.mean() == pytest.approx(truth.mean(), abs=0.08)
    assert np.mean(better) > np.mean(worse) + 0.01


def test_many_labels_leave_a_source_that_is_wrong() -> None:
    table, y = small_table(1500, seed=1)
    fresh, truth = small_table(2000, seed=2)
    wrong = source(turned=True)
    assert auc(truth, wrong.logit(fresh)) < 0.4
    fitted = TransferRecipe((wrong,)).fit(table, y, *settings(1500), 0)
    assert fitted.weights[0] < 0.2
    assert auc(truth, fitted.logit(fresh)) > 0.75


def test_the_better_of_two_sources_gains_weight() -> None:
    table, y = small_table(600, seed=3)
    good = source(recipe=ForecastRecipe())
    noise = source(rows=40)
    noise.offset, noise.slope = 0.3, -1.0
    fitted = TransferRecipe((good, noise)).fit(table, y, *settings(600), 0)
    assert fitted.weights[0] > fitted.weights[1]
    assert set(fitted.detail["reads"]) <= {"forecast", "embedding"}


def test_the_package_needs_no_source() -> None:
    """Exported graphs hold the sources' heads, slope and constant included."""
    card = source()
    card.slope, card.intercept = 0.7, -0.4
    table, y = small_table(150, seed=4)
    fitted = TransferRecipe((card, source(51, ForecastRecipe()))).fit(table, y, *settings(150), 0)
    fresh, _ = small_table(40, seed=5)
    fresh.values[0] = np.nan
    np.testing.assert_allclose(Exported(fitted).logit(fresh), fitted.logit(fresh), atol=1e-5)
    names = [h.name for h in fitted.heads()]
    assert len(set(names)) == len(names)


def test_sources_with_a_direction_beside_them() -> None:
    table, y = small_table(200, seed=6)
    signs = dict.fromkeys(table.block("forecast").names, -1)
    fitted = TransferRecipe((source(),), directions=signs).fit(table, y, *settings(200), 0)
    if fitted.head is not None:
        weights = {t.column: t.weight for t in fitted.head.terms}
        assert all(weights.get(n, 0.0) <= 0 for n in signs)


# ------------------------------------------------------------------------------------ whose labels


def ids(start: int, count: int) -> pl.Series:
    return pl.Series("entity_id", [f"id-{i}" for i in range(start, start + count)])


def test_a_trace_counts_shared_people_and_names_nobody() -> None:
    trace = entity_trace(ids(0, 1000), "salt")
    assert "id-" not in trace
    bits = np.unpackbits(np.frombuffer(base64.b64decode(trace.split(":")[1]), np.uint8))
    assert len(bits) <= BITS_PER_ENTITY * 1000 + 7
    assert 0.18 < bits.mean() < 0.26  # a stranger looks like a member this often
    for shared in (0, 200, 1000):
        count, error = shared_entities(trace, ids(1000 - shared, 1000), "salt")
        assert abs(count - shared) < 3.5 * error
    assert shared_entities(trace, ids(0, 1000), "other")[0] < 100


def decided(day: str, start: int = 0, count: int = 300, known: str | None = None) -> Samples:
    moment = pl.lit(day).str.to_datetime(time_unit="us")
    late = pl.lit(known, dtype=pl.String).str.to_datetime(time_unit="us")
    frame = pl.DataFrame({"entity_id": ids(start, count)}).with_columns(
        as_of=moment,
        label_known_at=late,
        label=(pl.int_range(pl.len()) % 3 == 0).cast(pl.Int8),
        weight=1.0,
    )
    return Samples(frame, frame)


def channel(samples: Samples) -> Source:
    one = source(rows=60, recipe=ForecastRecipe())
    one.label = LABEL | label_record(samples, "salt")
    return one


def test_labels_of_the_same_people_at_the_same_time_are_refused() -> None:
    here = decided("2021-03-01")
    same = [channel(decided("2021-03-01"))]
    with pytest.raises(SampleError, match=r"about 300 of these people.*--allow-leak"):
        source_notes(same, here, None, "salt", allowed=False)
    assert "flatter" in source_notes(same, here, None, "salt", allowed=True)[0]
    others = [channel(decided("2021-03-01", start=5000))]
    assert "no sign" in source_notes(others, here, None, "salt", allowed=False)[0]
    test = decided("2021-06-01", start=5000)
    with pytest.raises(SampleError, match="these people"):
        source_notes(others, here, test, "salt", allowed=False)


def test_labels_known_before_the_first_decision_are_fine() -> None:
    here = decided("2021-03-01")
    known = [channel(decided("2020-06-01", known="2020-12-31"))]
    assert source_notes(known, here, None, "salt", allowed=False) == []
    silent = [channel(decided("2020-06-01"))]
    assert "do not say when" in source_notes(silent, here, None, "salt", allowed=False)[0]
    ripe_later = [channel(decided("2020-06-01", known="2021-06-01"))]
    with pytest.raises(SampleError, match="2021-06-01"):
        source_notes(ripe_later, here, None, "salt", allowed=False)


def test_a_package_that_does_not_say_whose_labels_it_has_is_told() -> None:
    old = source(rows=60, recipe=ForecastRecipe())
    old.label = {**LABEL, "as_of_last": "2021-03-01T00:00:00Z"}
    note = source_notes([old], decided("2021-03-01"), None, "salt", allowed=False)[0]
    assert "does not record whose" in note
