"""The page of a report: offline, escaped, in both languages, and the same as its JSON."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finetune import report_limits
from finetune.reasons import Reason
from finetune.report import (
    ExampleFacts,
    ReasonGroupFacts,
    VariableFacts,
    WindowFacts,
    write_report,
)
from finetune.report_figures import figures, label
from finetune.report_numbers import report_numbers
from finetune.report_page import TEMPLATES, both, render_page
from finetune.report_words import FIGURE_WORDS, WORDS
from foundation.errors import SampleError
from tests.finetune.small_reports import Page, full_content, small_content

EVIL = "<script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>\"'{{ 7*7 }}"


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


def test_same_content_same_bytes():
    first, second = (render_page(report_numbers(small_content())) for _ in range(2))
    assert first == second


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
