"""The numbers of a report: every one recomputable from the arrays it was made of."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune import metrics
from finetune.bootstrap import bootstrap_difference, bootstrap_intervals
from finetune.report import ExampleFacts
from finetune.report_evaluation import bad_rate_at, by_month, wilson
from finetune.report_numbers import report_numbers
from foundation.errors import SampleError
from tests.finetune.small_reports import full_content, moments, small_content


@pytest.fixture(scope="module")
def numbers() -> dict:
    return report_numbers(full_content())


def test_numbers_recompute(numbers):
    content = full_content()
    facts, found = content.evaluation, numbers["evaluation"]
    y, score, base = facts.y, facts.score, facts.baseline
    by_name = {row["name"]: row for row in found["metrics"]}
    assert by_name["auc"]["value"] == pytest.approx(metrics.auc(y, score), abs=1e-12)
    assert by_name["ks"]["value"] == pytest.approx(metrics.ks(y, score), abs=1e-12)
    assert by_name["brier"]["value"] == pytest.approx(np.mean((y - score) ** 2), abs=1e-12)
    for row in found["metrics"][:5]:
        assert row["low"] < row["value"] < row["high"]
    spans = bootstrap_intervals(y, score, ("auc", "ks", "brier"), draws=40, seed=content.seed)
    for name, span in spans.items():
        assert (by_name[name]["low"], by_name[name]["high"]) == (span.low, span.high)
    curve = found["ks_curve"]
    assert curve["ks"] == pytest.approx(abs(curve["at_bad"] - curve["at_good"]), abs=1e-12)
    assert curve["ks"] == pytest.approx(
        np.abs(np.subtract(curve["bad"], curve["good"])).max(), abs=1e-12
    )
    refused = score >= curve["at_score"]
    assert curve["at_bad"] == pytest.approx(refused[y == 1].mean())
    assert curve["at_share"] == pytest.approx(refused.mean())
    paired = {row["name"]: row for row in found["comparison"]["metrics"]}
    expected = metrics.auc(y, score) - metrics.auc(y, base)
    assert paired["auc"]["difference"] == pytest.approx(expected, abs=1e-12)
    assert paired["auc"]["low"] < expected < paired["auc"]["high"]
    again = bootstrap_difference(y, score, base, "ks", draws=40, seed=content.seed)
    span = (paired["ks"]["low"], paired["ks"]["high"])
    assert span == pytest.approx((again.low, again.high), abs=1e-12)
    assert found["basis"]["n"] == 600 and found["basis"]["n_bad"] == int(y.sum())
    assert sum(d["n"] for d in found["deciles"]) == 600
    assert sum(d["n_bad"] for d in found["deciles"]) == int(y.sum())
    assert found["deciles"][-1]["captured"] == pytest.approx(1)
    assert sum(b["n"] for b in found["calibration"]) == 600
    assert sum(b["n"] * b["bad_rate"] for b in found["calibration"]) == pytest.approx(y.sum())
    assert sum(found["distribution"]["bad"]) == pytest.approx(1)
    december = facts.as_of_us >= np.datetime64("2017-12-01", "us").astype(np.int64)
    month = found["stability"]["months"][-1]
    assert month["month"] == "2017-12" and month["n"] == december.sum()
    assert month["psi"] == pytest.approx(metrics.psi(facts.reference_score, score[december]))
    assert month["ks"] == pytest.approx(metrics.ks(y[december], score[december]))


def test_sample_and_forecast_numbers_recompute(numbers):
    content = full_content()
    sample = numbers["sample"]
    assert sample["basis"]["n"] == 237 and sample["basis"]["n_unknown"] == 3
    assert sample["basis"]["bad_rate"] == pytest.approx(np.nanmean(content.sample.y))
    assert sum(row["n"] for row in sample["months"]) == 240
    assert sample["thin"]["n"] == 30
    assert {c["channel"]: c["n"] for c in sample["channels"]}["b"] == 158
    late = next(f for f in numbers["forecasts"]["rows"] if f["name"] == "late_31d")
    facts = content.forecasts[0]
    known = ~np.isnan(facts.realised)
    assert late["realised"] == pytest.approx(facts.realised[known].mean())
    assert late["mean_on_realised"] == pytest.approx(facts.values[known].mean())
    assert late["auc"] == pytest.approx(metrics.auc(content.forecast_y, facts.values))
    assert late["realised_low"] < late["realised"] < late["realised_high"]


def test_approval_at_the_same_bad_rate_matches_brute_force(numbers):
    facts, found = full_content().evaluation, numbers["evaluation"]["comparison"]
    y, score = facts.y, facts.score
    for row in found["approval"]:
        best = 0.0
        for threshold in np.unique(score):
            approved = score <= threshold
            if y[approved].mean() <= row["baseline_bad_rate"] + 1e-12:
                best = max(best, approved.mean())
        assert row["chosen_approval"] == pytest.approx(best)
        lowest = np.sort(score)[: round(600 * row["approval"])]
        approved = score <= lowest[-1]
        assert row["chosen_bad_rate"] == pytest.approx(y[approved].mean())


def test_the_chosen_baseline_is_not_compared_with_itself():
    content = replace(full_content(), recipe="gbdt")
    assert report_numbers(content)["evaluation"]["comparison"] is None


def test_forecasts_missing_for_thin_files_are_left_out():
    content = full_content()
    values = content.forecasts[0].values.copy()
    values[:100] = np.nan
    changed = replace(content.forecasts[0], values=values)
    row = report_numbers(replace(content, forecasts=[changed]))["forecasts"]["rows"][0]
    assert row["n"] == 500 and row["mean"] == pytest.approx(values[100:].mean())
    assert row["auc"] == pytest.approx(metrics.auc(content.forecast_y[100:], values[100:]))


def test_naive_time_and_unknown_band_are_refused():
    with pytest.raises(SampleError, match="time zone"):
        report_numbers(replace(small_content(), created_at=datetime(2020, 1, 1)))
    bad = ExampleFacts(band="maybe", score=0.1, reasons=[])
    with pytest.raises(SampleError, match="'maybe' is none of"):
        report_numbers(replace(small_content(), examples=[bad]))


def test_limits_follow_from_the_numbers():
    found = [limit["text"] for limit in report_numbers(full_content())["limits"]["derived"]]
    assert any("approved customers only" in text for text in found)
    assert any("thin files" in text for text in found)
    assert not any("not out of time" in text for text in found)
    again = [x["text"] for x in report_numbers(small_content(bads=8))["limits"]["derived"]]
    assert any("fewer than ten" in text for text in again)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5000), st.floats(0, 1))
def test_wilson_holds_the_rate(n: int, share: float):
    bad = round(share * n)
    low, high = wilson(np.array([bad]), np.array([n]))
    assert 0 <= low[0] <= bad / n + 1e-12 and bad / n - 1e-12 <= high[0] <= 1


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(10, 80))
def test_everyone_approved_has_the_bad_rate_of_all(seed: int, n: int):
    rng = np.random.default_rng(seed)
    y = np.append(rng.integers(0, 2, n - 2), [0, 1]).astype(float)
    score = rng.integers(0, 5, n) / 5
    assert bad_rate_at(y, score, np.array([1.0]))[0] == pytest.approx(y.mean())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 200))
def test_months_add_up(seed: int, n: int):
    rng = np.random.default_rng(seed)
    y = rng.choice([0.0, 1.0, np.nan], n)
    rows = by_month(y, moments(n, "2019-12-15", 400, seed))
    assert sum(r["n"] for r in rows) == n
    assert sum(r["n_bad"] for r in rows) == np.nansum(y)
    assert [r["month"] for r in rows] == sorted({r["month"] for r in rows})
