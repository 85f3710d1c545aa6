"""Figures by declared groups, and weights in the report's evaluation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune import metrics
from finetune.fairness import group_numbers, group_values
from finetune.report_evaluation import evaluation_numbers
from finetune.report_numbers import report_numbers
from finetune.report_page import render_page
from finetune.table import Column, FeatureTable
from foundation.errors import UserError
from tests.finetune.small_reports import full_content


def table() -> FeatureTable:
    columns = (
        Column("profile.region", "profile", "code", ("north", "south"), "g", "region"),
        Column("profile.age", "profile", "number", (), "g", "age"),
        Column("context.age", "context", "number", (), "g", "age"),
        Column("late_31d", "forecast", "number", (), "g", "late"),
    )
    values = np.array(
        [[0, 20, 1, 0], [1, 30, 1, 0], [-1, 40, 1, 0], [np.nan, 50, 1, 0], [0, np.nan, 1, 0]],
        np.float32,
    )
    return FeatureTable(columns, values)


def test_groups_are_categories_and_quartiles() -> None:
    found = group_values(table(), ("region", "profile.age", "context.age"))
    assert found["region"] == ["north", "south", "other", "missing", "north"]
    assert found["profile.age"][4] == "missing"
    assert len(set(found["profile.age"][:4])) == 4
    assert found["context.age"] == ["1"] * 5
    with pytest.raises(UserError, match="did you mean 'region'"):
        group_values(table(), ("regoin",))
    with pytest.raises(UserError, match=r"write profile\.NAME"):
        group_values(table(), ("age",))
    with pytest.raises(UserError, match="does not exist"):
        group_values(table(), ("late_31d",))


@given(st.integers(0, 1000))
def test_group_figures(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = (rng.random(200) < 0.4).astype(float)
    score = np.clip(0.3 * y + 0.6 * rng.random(200), 0, 1)
    weight = rng.integers(1, 4, 200).astype(float)
    names = rng.choice(["a", "b", "c"], 200, p=[0.6, 0.37, 0.03])
    (field,) = group_numbers(y, score, weight, {"g": names}, 0.5, draws=30)
    assert sum(r["n"] for r in field["rows"]) == 200
    assert [r["n"] for r in field["rows"]] == sorted((r["n"] for r in field["rows"]), reverse=True)
    for row in field["rows"]:
        i = names == row["group"]
        assert row["bads"] == y[i].sum()
        assert row["bad_rate"] == pytest.approx((y * weight)[i].sum() / weight[i].sum())
        assert row["approval"] == pytest.approx(weight[i & (score < 0.5)].sum() / weight[i].sum())
        assert row["bad_rate_low"] <= row["bad_rate"] + 1e-9
        assert row["bad_rate"] <= row["bad_rate_high"] + 1e-9
        if min(row["bads"], row["n"] - row["bads"]) < 10:
            assert row["ks"] is None
        else:
            assert row["ks"] == pytest.approx(metrics.ks(y[i], score[i], weight[i]))
    assert field["rows"][0]["approval_ratio"] == pytest.approx(1)
    assert "do not show that groups are treated alike" in field["note"]


def test_weights_count_in_every_curve() -> None:
    content = full_content()
    facts = content.evaluation
    assert facts is not None
    known = np.flatnonzero(~np.isnan(facts.y))
    weight = 1.0 + np.arange(len(facts.y)) % 3

    def numbers(rows: np.ndarray, weights: np.ndarray | None) -> dict:
        part = replace(
            facts, y=facts.y[rows], as_of_us=facts.as_of_us[rows], score=facts.score[rows],
            baseline=None if facts.baseline is None else facts.baseline[rows],
            weight=weights,
        )  # fmt: skip
        return evaluation_numbers(replace(content, evaluation=part)) or {}

    # A row of weight three is a row written three times.
    weighted = numbers(known, weight[known])
    copied = numbers(np.repeat(known, weight[known].astype(int)), None)
    plain = numbers(known, None)
    for ours, theirs in zip(weighted["metrics"], copied["metrics"], strict=True):
        if ours["name"] != "ece":  # its bins are equally filled with rows
            assert ours["value"] == pytest.approx(theirs["value"]), ours["name"]
    assert weighted["ks_curve"]["at_share"] == pytest.approx(copied["ks_curve"]["at_share"])
    for part in ("approval_gain", "swap"):
        ours, theirs = (n["comparison"][part] for n in (weighted, copied))
        if part == "swap":
            ours, theirs = ours["swapped_in"], theirs["swapped_in"]
            assert ours["n"] == pytest.approx(theirs["n"])
            assert ours["bads"] == pytest.approx(theirs["bads"])
        else:
            assert ours["chosen"] == pytest.approx(theirs["chosen"])
    assert weighted["metrics"][0]["value"] != plain["metrics"][0]["value"]
    assert plain["weighted"] is None
    y = facts.y[known]
    assert weighted["weighted"]["bad_rate"] == pytest.approx(np.average(y, weights=weight[known]))


def test_groups_and_swap_set_stand_on_the_page() -> None:
    content = full_content()
    facts = content.evaluation
    assert facts is not None
    names = np.where(np.arange(len(facts.y)) % 4 == 0, "<south>", "north")
    content = replace(
        content, evaluation=replace(facts, groups={"region": names}, approve_below=0.2)
    )
    numbers = report_numbers(content)
    page = render_page(numbers)
    assert "&lt;south&gt;" in page
    assert numbers["evaluation"]["groups"][0]["note"].split("'")[1] in ("<south>", "north")
    swap = numbers["evaluation"]["comparison"]["swap"]
    assert swap["swapped_in"]["n"] == pytest.approx(swap["swapped_out"]["n"])
    assert "swapped in: approved by the new score alone" in page
