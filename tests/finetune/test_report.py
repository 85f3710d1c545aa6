"""The report: offline, escaped, and every number recomputable from the arrays it was made of."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune import metrics, report_limits
from finetune.bootstrap import bootstrap_difference, bootstrap_intervals
from finetune.reasons import Reason
from finetune.report import (
    EvaluationFacts,
    ExampleFacts,
    ForecastFacts,
    LadderRow,
    ReasonGroupFacts,
    ReportContent,
    SampleFacts,
    VariableFacts,
    WindowFacts,
    write_report,
)
from finetune.report_evaluation import bad_rate_at, by_month, wilson
from finetune.report_figures import figures, label
from finetune.report_numbers import report_numbers
from finetune.report_page import TEMPLATES, both, render_page
from finetune.report_words import FIGURE_WORDS, WORDS
from foundation.errors import SampleError

DAY = 86_400_000_000
EVIL = "<script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>\"'{{ 7*7 }}"


def moments(n: int, start: str, days: int, seed: int = 0) -> np.ndarray:
    first = np.datetime64(start, "us").astype(np.int64)
    return first + np.random.default_rng(seed).integers(0, days, n) * DAY


def scored(n: int, noise: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, a good score and a worse one on the same rows."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=n)
    y = (rng.random(n) < 1 / (1 + np.exp(1.3 - 1.4 * z))).astype(float)
    first, second = (1 / (1 + np.exp(1.3 - z - k * noise * rng.normal(size=n))) for k in (0.5, 2))
    return y, first, second


def full_content() -> ReportContent:
    y0, dev, _ = scored(240, seed=1)
    y0[:3] = np.nan
    y, good, poor = scored(600, seed=2)
    t = moments(600, "2017-09-01", 119, 3)
    realised = (np.random.default_rng(5).random(600) < good).astype(float)
    realised[::3] = np.nan
    return ReportContent(
        title="Loan default",
        channel="app",
        package_id="app-1",
        recipe="forecast",
        created_at=datetime(2018, 1, 2, 3, 4, tzinfo=UTC),
        why="Lowest variance of the best.",
        sample=SampleFacts(
            y=y0,
            as_of_us=moments(240, "2017-03-01", 150, 4),
            channel=["a", "b", "b"] * 80,
            thin=np.arange(240) % 8 == 0,
            dropped={"duplicate": 3},
            ignored_columns=["note"],
            approved_only=True,
        ),
        label_meaning="late by 30 days",
        windows=[WindowFacts(name="test", start="2017-09-01", end="2017-12-31")],
        ladder=[
            LadderRow(
                name="gbdt",
                cv_log_loss=0.5,
                gap=0.01,
                gap_se=0.004,
                auc=0.7,
                auc_low=0.6,
                auc_high=0.8,
                ks=0.3,
                ks_low=0.2,
                ks_high=0.4,
                test_auc=0.71,
                test_ks=0.31,
            ),
            LadderRow(
                name="forecast",
                cv_log_loss=0.49,
                auc=0.72,
                auc_low=0.6,
                auc_high=0.8,
                ks=0.33,
                ks_low=0.2,
                ks_high=0.4,
                test_auc=0.74,
                test_ks=0.33,
            ),
            LadderRow(name="lora", status="skipped", reason="too few bads"),
        ],
        ladder_basis="pooled out-of-fold, n = 237",
        evaluation=EvaluationFacts(
            name="test file",
            kind="test",
            y=y,
            as_of_us=t,
            score=good,
            baseline=poor,
            out_of_time=True,
            reference_score=dev,
        ),
        forecasts=[
            ForecastFacts(
                name="late_31d", title="late within 31 days", values=good, realised=realised
            ),
            ForecastFacts(name="silence_31d", title="silence within 31 days", values=poor),
        ],
        forecast_basis="test file",
        forecast_y=y,
        variables=[
            VariableFacts(
                name="statement.status", block="aggregate", missing=0.1, iv=0.4, ks=0.3, psi=0.02
            ),
            VariableFacts(name="age", iv=None),
        ],
        reasons=[
            ReasonGroupFacts(title="late within 31 days", importance=0.6),
            ReasonGroupFacts(title="age", importance=0.2),
        ],
        examples=[
            ExampleFacts(
                band=b,
                score=s,
                points=600,
                reasons=[Reason("forecast.late_31d", "late within 31 days", "41 %", e)],
            )
            for b, s, e in (("approved", 0.05, -0.7), ("middle", 0.2, 0.1), ("refused", 0.7, 1.1))
        ],
        limits=["A limit of our own."],
        lineage={"store version": "12", "seeds": "7"},
        resamples=40,
    )


def small_content(bads: int = 12, n: int = 60) -> ReportContent:
    """One month, no test, no forecasts, no ladder."""
    y = np.zeros(n)
    y[:bads] = 1
    score = np.clip(0.15 + 0.2 * y + 0.1 * np.random.default_rng(0).random(n), 0, 1)
    t = moments(n, "2020-02-01", 20)
    return ReportContent(
        title="Small",
        channel="c",
        package_id="p",
        created_at=datetime(2020, 3, 1, tzinfo=UTC),
        recipe="query",
        why="Few bads.",
        sample=SampleFacts(y=y, as_of_us=t),
        resamples=40,
        evaluation=EvaluationFacts(
            name="out-of-fold predictions", kind="out-of-fold", y=y, as_of_us=t, score=score
        ),
    )


class Page(HTMLParser):
    """Tags, addresses and visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.words: list[str] = []
        self.plots: list[str] = []
        self._raw = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._raw = tag if tag in ("script", "style") else ""
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action", "poster"):
                self.addresses.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)
            if name == "data-figure":
                self.plots.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        self._raw = ""

    def handle_data(self, data: str) -> None:
        if not self._raw:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str, str, Path]:
    out = tmp_path_factory.mktemp("report")
    numbers = write_report(full_content(), out / "report.html", out / "report.json")
    return (
        numbers,
        (out / "report.html").read_text(encoding="utf-8"),
        (out / "report.json").read_text(encoding="utf-8"),
        out,
    )


def test_page_is_offline(written):
    _, html, _, _ = written
    page = Page(html)
    assert all(address.startswith("#") for address in page.addresses)
    assert not {"link", "img", "iframe", "object", "base"} & set(page.tags)
    assert "default-src 'none'" in html
    css = re.search(r"<style>(.*?)</style>", html, re.S).group(1)
    assert "url(" not in css and "@import" not in css and "http" not in css
    assert html.count("* plotly.js v") == 1
    assert not page.handlers


def test_no_file_is_left_half_written(written):
    out = written[3]
    assert sorted(p.name for p in out.iterdir()) == ["report.html", "report.json"]


def test_json_is_what_the_page_shows(written):
    numbers, html, text, _ = written
    assert json.loads(text) == json.loads(json.dumps(numbers))
    page = Page(html)
    for row in numbers["evaluation"]["metrics"][:3]:
        assert f"{row['value']:.3f}" in page.text
        assert f"{row['low']:.3f} … {row['high']:.3f}" in page.text
    assert set(page.plots) == set(figures(numbers))
    assert "A limit of our own." in page.text


def test_numbers_recompute(written):
    numbers, content = written[0], full_content()
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
    assert (paired["ks"]["low"], paired["ks"]["high"]) == (again.low, again.high)
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


def test_sample_and_forecast_numbers_recompute(written):
    numbers, content = written[0], full_content()
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


def test_approval_at_the_same_bad_rate_matches_brute_force(written):
    facts, found = full_content().evaluation, written[0]["evaluation"]["comparison"]
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


def test_a_model_against_itself_differs_by_nothing():
    content = full_content()
    facts = replace(content.evaluation, baseline=content.evaluation.score)
    found = report_numbers(replace(content, evaluation=facts))["evaluation"]["comparison"]
    assert all(r["difference"] == r["low"] == r["high"] == 0 for r in found["metrics"])
    assert found["approval_gain"]["difference"] == 0
    assert (
        "No proven difference"
        in Page(render_page(report_numbers(replace(content, evaluation=facts)))).text
    )


def test_the_chosen_baseline_is_not_compared_with_itself():
    content = replace(full_content(), recipe="gbdt")
    assert report_numbers(content)["evaluation"]["comparison"] is None


def test_user_text_is_escaped():
    content = full_content()
    content = replace(
        content,
        title=EVIL,
        channel=EVIL,
        package_id=EVIL,
        why=EVIL,
        label_meaning=EVIL,
        ladder=[replace(content.ladder[0], name=EVIL, reason=EVIL)],
        recipe=EVIL,
        sample=replace(
            content.sample, dropped={EVIL: 2}, ignored_columns=[EVIL], channel=[EVIL, "b"] * 120
        ),
        evaluation=replace(content.evaluation, name=EVIL, baseline_name=EVIL + "2"),
        forecasts=[replace(f, name=EVIL, title=EVIL) for f in content.forecasts],
        forecast_basis=EVIL,
        variables=[VariableFacts(name=EVIL, title=EVIL, block=EVIL, iv=0.1)],
        variables_note=EVIL,
        reasons=[ReasonGroupFacts(title=EVIL, importance=1.0)],
        reasons_note=EVIL,
        limits=[EVIL],
        lineage={EVIL: EVIL},
        windows=[WindowFacts(name=EVIL, start="2020-01-01", end=EVIL, note=EVIL)],
        examples=[
            ExampleFacts(
                band="middle",
                score=0.2,
                label=EVIL,
                as_of=EVIL,
                reasons=[Reason(EVIL, EVIL, EVIL, 0.3)],
            )
        ],
    )
    html = render_page(report_numbers(content))
    page, clean = Page(html), Page(render_page(report_numbers(full_content())))
    assert page.tags.count("script") == clean.tags.count("script")
    assert "img" not in page.tags and not page.handlers
    ours = html.split("* plotly.js v")[0]
    assert "<script>alert" not in html and "<img" not in ours
    assert "{{ 7*7 }}" in page.text
    for figure in figures(report_numbers(content)).values():
        assert "<script" not in json.dumps(figure)


def test_plotly_labels_hold_no_markup():
    assert label("<a href='x'>&") == "&lt;a href='x'&gt;&amp;"
    assert len(label("x" * 200)) == 46


def test_twelve_bads_one_month_nothing_else(tmp_path: Path):
    numbers = write_report(small_content(), tmp_path / "a" / "r.html", tmp_path / "a" / "r.json")
    page = Page((tmp_path / "a" / "r.html").read_text(encoding="utf-8"))
    assert numbers["evaluation"]["stability"] is None
    assert len(numbers["evaluation"]["calibration"]) == 2
    assert set(page.plots) == {"ks", "roc", "calibration", "distribution", "lift"}
    for sentence in (
        "The evaluation covers one month",
        "This model has no forecasts",
        "No recipes were compared",
        "There is no other model to compare with",
        "All decisions fall into one month (2020-02)",
        "No analysis of single variables",
        "There is no separate test sample",
        "Only 12 bads among 60 customers",
    ):
        assert sentence in page.text


def test_no_evaluation_at_all():
    numbers = report_numbers(replace(small_content(), evaluation=None))
    page = Page(render_page(numbers))
    assert numbers["evaluation"] is None and page.plots == []
    assert "does not prove the model's quality" in page.text


@pytest.mark.parametrize("bads", [0, 1, 60])
def test_one_class_or_a_single_bad(bads: int):
    numbers = report_numbers(small_content(bads=bads))
    page = Page(render_page(numbers))
    assert (numbers["evaluation"]["metrics"] is None) == (bads in (0, 60))
    assert ("Only one class of labels" in page.text) == (bads in (0, 60))


def test_a_sample_without_any_label():
    content = small_content()
    unknown = np.full(60, np.nan)
    numbers = report_numbers(
        replace(content, evaluation=None, sample=replace(content.sample, y=unknown))
    )
    assert numbers["sample"]["basis"]["bad_rate"] is None
    assert "60 further rows have no label yet" in Page(render_page(numbers)).text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.zeros(3)}, "3 labels but 60 of 'as_of'"),
        ({"y": np.full(60, 2.0)}, "labels must be 0, 1 or missing"),
        ({"score": np.full(60, np.nan)}, r"'score' must lie in \[0, 1\]"),
        ({"score": np.full(60, 1.5)}, r"'score' must lie in \[0, 1\]"),
        ({"baseline": np.zeros(4)}, "60 labels but 4 of 'baseline'"),
    ],
)
def test_bad_arrays_are_refused(change: dict, message: str, tmp_path: Path):
    content = small_content()
    content = replace(content, evaluation=replace(content.evaluation, **change))
    with pytest.raises(SampleError, match=message):
        write_report(content, tmp_path / "r.html", tmp_path / "r.json")
    assert not list(tmp_path.iterdir())


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


def test_same_content_same_bytes():
    first, second = (render_page(report_numbers(small_content())) for _ in range(2))
    assert first == second


def test_limits_follow_from_the_numbers():
    found = [limit["text"] for limit in report_numbers(full_content())["limits"]["derived"]]
    assert any("approved customers only" in text for text in found)
    assert any("thin files" in text for text in found)
    assert not any("not out of time" in text for text in found)
    again = [x["text"] for x in report_numbers(small_content(bads=8))["limits"]["derived"]]
    assert any("fewer than ten" in text for text in again)


def test_every_standing_sentence_has_its_translation():
    template = (TEMPLATES / "report.html.j2").read_text(encoding="utf-8")
    said = set(re.findall(r'\bt\("((?:[^"\\]|\\.)*)"', template))
    source = Path(report_limits.__file__).read_text(encoding="utf-8")
    for call in re.findall(r'say\(((?:\s*"[^"]*")+)', source):
        said.add("".join(re.findall(r'"([^"]*)"', call)))
    assert len(said) > 90
    assert sorted(said - set(WORDS)) == []
    for english, chinese in WORDS.items():
        places = re.findall(r"\{\w+\}", english)
        assert sorted(places) == sorted(re.findall(r"\{\w+\}", chinese)), english


def test_figure_titles_are_translated(written):
    for figure in figures(written[0]).values():
        axes = [v for k, v in figure["layout"].items() if k[1:5] == "axis"]
        for title in filter(None, (axis["title"]["text"] for axis in axes)):
            assert title in FIGURE_WORDS or title in ("AUC", "KS")
        for trace in figure["data"]:
            name = trace.get("name", "KS")
            assert name in FIGURE_WORDS or name in ("KS", "gbdt", "forecast")


def test_both_languages_escape_values():
    text = both("Approved at the same bad rate")
    assert 'class="zh"' in text
    assert "&lt;b&gt;" in both("{n} points", n="<b>")


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
