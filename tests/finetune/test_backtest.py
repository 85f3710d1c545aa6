"""Numbers of a back-test recomputed from its files, its verdict, its page."""

from __future__ import annotations

import datetime as dt
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import ks_2samp
from sklearn.metrics import brier_score_loss, roc_auc_score

from finetune.backtest import finish, terms_of
from finetune.backtest_compare import Terms, compare_rows
from finetune.backtest_rows import ModelFacts
from finetune.backtest_verdict import VERDICTS, BacktestResult, judge, paired_verdict
from finetune.costs import CostMatrix
from finetune.report_page import TEMPLATES
from finetune.report_words import WORDS
from foundation.errors import UserError
from tests.finetune.small_backtests import scored_rows

FACTS: dict[str, Any] = {
    "kind": "fixed",
    "title": "shop: back-test",
    "channel": "shop",
    "package": {"id": "p-1", "digest": "d", "recipe": "gbdt", "trained_until": "2023-12-01"},
    "development": {"ks": 0.5, "auc": 0.8, "n": 300, "bads": 60, "measured": "cross-validation"},
    "out_of_time": True,
    "trained_on": None,
    "left_out": [{"reason": "decided up to 2023-12-01, inside the training window", "n": 4}],
    "origins": [],
    "lineage": {"store version": "1"},
}
COSTS = CostMatrix(bad_approved=0.6, good_approved=0.12, exposure="amount", currency="EUR")
TERMS = Terms(0.7, 200, 0, COSTS)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BacktestResult]:
    out = tmp_path_factory.mktemp("backtest")
    return out, finish(scored_rows(), TERMS, FACTS, ["a note <b>"], out)


def test_figures_recompute_from_the_rows(written: tuple[Path, BacktestResult]) -> None:
    out, result = written
    numbers = json.loads((out / "backtest.json").read_text(encoding="utf-8"))
    assert numbers == json.loads(json.dumps(result.numbers))
    rows = pl.read_parquet(out / "rows.parquet")
    slices = [(numbers["overall"], rows)]
    slices += [(m, rows.filter(pl.col("month") == m["month"])) for m in numbers["months"]]
    slices += [(c, rows.filter(pl.col("channel") == c["channel"])) for c in numbers["channels"]]
    assert len(slices) == 1 + 6 + 2
    bins = numbers["frozen_bins"]["development"]
    for part, frame in slices:
        y = frame["label"].to_numpy()
        assert (part["n"], part["bads"]) == (len(y), y.sum())
        for name, figures in part["models"].items():
            score = frame[f"score.{name}"].to_numpy()
            assert figures["ks"] == pytest.approx(ks_2samp(score[y == 1], score[y == 0]).statistic)
            assert figures["auc"] == pytest.approx(roc_auc_score(y, score))
            assert figures["brier"] == pytest.approx(brier_score_loss(y, score))
            assert figures["expected"] == pytest.approx(score.mean())
            assert figures["ks_low"] < figures["ks_high"]
        score = frame["score.package"].to_numpy()
        counts = np.histogram(score, [-np.inf, *bins["edges"], np.inf])[0] / len(y)
        e, a = (np.maximum(v, 1e-4) for v in (np.array(bins["shares"])[:-1], counts))
        assert part["psi"] == pytest.approx(((a - e) * np.log(a / e)).sum(), abs=1e-6)
        both = part["against"]["incumbent"]
        first, second = (part["models"][m]["auc"] for m in ("package", "incumbent"))
        assert both["auc"]["difference"] == pytest.approx(first - second)
        assert both["auc"]["low"] < both["auc"]["difference"] < both["auc"]["high"]
        assert both["auc"]["method"] == "DeLong"
    deciles = numbers["overall"]["models"]["package"]["deciles"]
    assert sum(d["n"] for d in deciles) == 600
    ranked = rows.sort("score.package")
    assert deciles[0]["observed"] == pytest.approx(ranked["label"][:60].mean())
    assert deciles[-1]["expected"] == pytest.approx(ranked["score.package"][-60:].mean())


def test_swap_set_and_value_recompute_from_the_rows(
    written: tuple[Path, BacktestResult],
) -> None:
    out, result = written
    rows = pl.read_parquet(out / "rows.parquet")
    y, exposure = rows["label"].to_numpy(), rows["exposure"].to_numpy()
    part = {}
    for name in ("package", "incumbent"):
        score = rows[f"score.{name}"].to_numpy()
        left, fraction = 0.7 * len(y), np.zeros(len(y))
        for value in np.unique(score):
            here = score == value
            fraction[here] = min(1.0, max(0.0, left / here.sum()))
            left -= fraction[here].sum()
        part[name] = fraction
    new, old = part["package"], part["incumbent"]
    against = result.numbers["overall"]["against"]["incumbent"]
    swap = against["swap"]
    assert swap["swapped_in"]["n"] == pytest.approx((new * (1 - old)).sum())
    assert swap["swapped_out"]["bads"] == pytest.approx((old * (1 - new) * y).sum())
    assert swap["swapped_in"]["n"] == pytest.approx(swap["swapped_out"]["n"])
    assert swap["bad_rate_gap"]["low"] < swap["bad_rate_gap"]["value"]
    gain = exposure * np.where(y == 1, -0.6, 0.12)
    value = against["value"]["same_approval"]
    assert value["ours"] == pytest.approx((new * gain).mean())
    assert value["difference"] == pytest.approx(((new - old) * gain).mean())
    assert value["low"] < value["difference"] < value["high"]
    score = rows["score.package"].to_numpy()
    best = max(gain[score <= cut].sum() / len(y) for cut in np.unique(score))
    found = result.numbers["overall"]["models"]["package"]["value"]
    assert found["best"]["value"] == pytest.approx(best)
    assert found["break_even"]["cut"] == pytest.approx(0.12 / 0.72)
    assert found["break_even"]["value"] == pytest.approx(gain[score < 0.12 / 0.72].sum() / len(y))
    allowed = (old * y).sum() / old.sum()
    order = np.argsort(score)
    rate = np.cumsum(y[order]) / np.arange(1, len(y) + 1)
    share = np.arange(1, len(y) + 1)[rate <= allowed].max() / len(y)
    assert against["approval"]["ours"] == pytest.approx(share, abs=1 / len(y))


def test_result_carries_what_gates_ask_for(written: tuple[Path, BacktestResult]) -> None:
    _, result = written
    numbers = result.numbers
    assert result.verdict == "better"  # noise 0.7 against 1.4 on 600 rows
    assert result.opponent == "incumbent"
    assert result.ks == numbers["overall"]["models"]["package"]["ks"]
    assert result.psi_max == max(m["psi"] for m in numbers["months"] if m["n"] >= 50)
    assert result.oot_drop == pytest.approx(0.5 - result.ks)
    assert result.paired_gain_lower == numbers["overall"]["against"]["incumbent"]["ks"]["low"]
    text = "\n".join(result.lines())
    assert "verdict: better (against incumbent)" in text
    assert f"{result.ks:.3f}" in text


def test_page_is_offline_escaped_and_translated(written: tuple[Path, BacktestResult]) -> None:
    out, result = written
    page = (out / "backtest.html").read_text(encoding="utf-8")
    assert "a note &lt;b&gt;" in page.lower()
    assert "default-src 'none'" in page
    body = page[: page.index("* plotly.js v")]
    assert not re.findall(r'(?:src|href)="(?!#)', body)
    assert f"{result.ks:.3f}" in page
    assert list(out.glob(".*")) == []
    template = (TEMPLATES / "backtest.html.j2").read_text(encoding="utf-8")
    said = set(re.findall(r'\bt\("((?:[^"\\]|\\.)*)"', template))
    assert sorted(said - set(WORDS)) == []
    assert {v.capitalize() for v in VERDICTS} <= set(WORDS)


def test_same_inputs_same_bytes(tmp_path: Path) -> None:
    moment = dt.datetime(2024, 8, 1, tzinfo=dt.UTC)
    for name in ("one", "two"):
        finish(scored_rows(200), Terms(draws=100), FACTS, [], tmp_path / name, moment)
    for file in ("backtest.json", "backtest.html", "rows.parquet"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize(
    ("ks", "auc", "word"),
    [
        ((0.01, 0.08), (0.01, 0.05), "better"),
        ((-0.01, 0.08), (0.01, 0.05), "better"),
        ((0.01, 0.08), (-0.02, 0.05), "cannot tell"),  # a loss of AUC is not excluded
        ((-0.05, 0.08), (0.01, 0.05), "cannot tell"),
        ((-0.01, 0.02), (-0.005, 0.01), "not worse"),
        ((-0.05, 0.04), (-0.02, 0.02), "cannot tell"),
        ((-0.09, -0.01), (-0.04, 0.01), "worse"),
        ((-0.09, 0.03), (-0.04, -0.01), "worse"),
        ((0.01, 0.05), (-0.04, -0.01), "cannot tell"),  # they contradict each other
    ],
)
def test_verdict_table(ks: tuple, auc: tuple, word: str) -> None:
    found, why = paired_verdict(*({"low": low, "high": high} for low, high in (ks, auc)))
    assert found == word
    assert why


def test_a_gain_of_one_month_is_no_gain() -> None:
    rows = scored_rows(2400, noise=(0.2, 3.0))
    steady = judge({**FACTS, "notes": [], "costs": None, **compare_rows(rows, Terms(draws=100))})
    assert steady.verdict == "better"
    old = pl.col("score.incumbent")
    first = pl.when(pl.col("month") == "2024-01").then(pl.col("score.package")).otherwise(old)
    once = replace(rows, frame=rows.frame.with_columns(first.alias("score.package")))
    numbers = compare_rows(once, Terms(draws=100))
    assert numbers["overall"]["against"]["incumbent"]["ks"]["low"] > 0
    result = judge({**FACTS, "notes": [], "costs": None, **numbers})
    assert result.verdict == "cannot tell"
    assert "rests on 2024-01" in result.reasons[0] and "0% of it is left" in result.reasons[0]


def test_verdict_where_nothing_can_be_said() -> None:
    rows = scored_rows(noise=(0.7, 0.7))
    alone = scored_rows()
    alone.models = alone.models[:1]
    result = judge({**FACTS, "notes": [], "costs": None, **compare_rows(alone, Terms(draws=100))})
    assert (result.verdict, result.paired_gain_lower) == ("cannot tell", None)
    assert "nothing to compare with" in result.reasons[0]
    few = scored_rows(60)
    bads = few.frame.filter(pl.col("label") == 1)[:6]
    few.frame = pl.concat([bads, few.frame.filter(pl.col("label") == 0)]).sort("row")
    result = judge({**FACTS, "notes": [], "costs": None, **compare_rows(few, Terms(draws=100))})
    assert result.verdict == "cannot tell"
    assert "with 6 bads" in result.reasons[0]
    assert any("fewer than ten bads or goods in 2024-01" in w for w in result.warnings)
    known = FACTS | {"trained_on": "the model learnt from these outcomes", "out_of_time": False}
    result = judge({**known, "notes": [], "costs": None, **compare_rows(rows, Terms(draws=100))})
    assert result.verdict == "cannot tell"
    assert result.oot_drop is None
    assert result.reasons[0] == "the model learnt from these outcomes"


def test_a_score_against_itself_differs_by_nothing() -> None:
    rows = scored_rows(300)
    rows.frame = rows.frame.with_columns(pl.col("score.package").alias("score.incumbent"))
    against = compare_rows(rows, TERMS)["overall"]["against"]["incumbent"]
    for measure in ("ks", "auc", "approval", "bad_rate"):
        found = [against[measure][k] for k in ("difference", "low", "high")]
        np.testing.assert_allclose(found, 0, atol=1e-12)
    # The part of the tied group at the cut apart, nobody is swapped.
    assert against["swap"]["swapped_in"]["n"] < 1


def test_rows_without_an_incumbents_score_are_told_apart() -> None:
    rows = scored_rows()
    rows.frame = rows.frame.with_columns(
        pl.when(pl.col("row") > 100).then(pl.col("score.incumbent")).alias("score.incumbent")
    )
    overall = compare_rows(rows, Terms(draws=100))["overall"]
    against = overall["against"]["incumbent"]
    assert (overall["n"], against["n"], against["without_score"]["n"]) == (600, 500, 100)
    y = rows.frame["label"][100:].to_numpy()
    score = rows.frame["score.package"][100:].to_numpy()
    assert against["ks"]["ours"] == pytest.approx(ks_2samp(score[y == 1], score[y == 0]).statistic)


def test_weights_and_repeated_customers_change_the_test() -> None:
    plain = compare_rows(scored_rows(), Terms(draws=150))["overall"]
    twice = compare_rows(scored_rows(repeats=True), Terms(draws=150))["overall"]
    assert twice["against"]["incumbent"]["auc"]["method"] == "paired bootstrap"
    assert twice["models"]["package"]["auc"] == plain["models"]["package"]["auc"]
    rows = scored_rows()
    copies = pl.concat([rows.frame, rows.frame.filter(pl.col("label") == 1)])
    weighted = scored_rows()
    weighted.frame = weighted.frame.with_columns(weight=1.0 + pl.col("label"))
    rows.frame = copies
    first, second = (compare_rows(r, Terms(draws=100))["overall"] for r in (rows, weighted))
    for key in ("ks", "auc", "brier", "expected"):
        ours, theirs = (o["models"]["package"][key] for o in (first, second))
        assert ours == pytest.approx(theirs)
    ours, theirs = (o["against"]["incumbent"]["approval"]["ours"] for o in (first, second))
    assert ours == pytest.approx(theirs)


def test_a_scale_of_its_own_is_not_judged_as_a_probability() -> None:
    rows = scored_rows()
    rows.frame = rows.frame.with_columns(pl.col("score.incumbent") * 900 - 50)
    rows.models[1] = ModelFacts("incumbent", "points", False)
    figures = compare_rows(rows, Terms(draws=100))["overall"]["models"]["incumbent"]
    assert figures["brier"] is None
    assert figures["ks"] is not None


@pytest.mark.parametrize(
    ("given", "said"), [((1.0, 500), "--approval 1"), ((0.7, 20), "--draws 20")]
)
def test_impossible_terms_are_refused(given: tuple[float, int], said: str) -> None:
    with pytest.raises(UserError, match=said):
        terms_of(*given, 0, None)
