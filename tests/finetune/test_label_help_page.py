"""The parts of pages about labels: every sentence translated, every number shown."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from finetune.label_power import power_record
from finetune.report_numbers import report_numbers
from finetune.report_page import TEMPLATES, render_page
from finetune.report_words import WORDS
from tests.finetune.small_reports import small_content


@pytest.mark.parametrize("name", ["label_help.html.j2", "vintages.html.j2"])
def test_every_sentence_has_its_translation(name: str):
    template = (TEMPLATES / name).read_text(encoding="utf-8")
    said = set(re.findall(r'\bt\("((?:[^"\\]|\\.)*)"', template))
    assert len(said) > 10
    assert sorted(said - set(WORDS)) == []


def record() -> dict:
    """Reject inference as `inference_record` writes it."""
    figure = {"value": 0.712, "low": 0.61, "high": 0.81}
    pair = {"auc": figure, "ks": figure | {"value": 0.345}}
    gap = {m: {"value": -0.004, "low": -0.02, "high": 0.01} for m in ("auc", "ks")}
    return {
        "method": "fuzzy", "factor": 2.0, "recipe": "linear", "labelled": 300, "refused": 1234,
        "labelled_bads": 64, "labelled_bad_rate": 0.213, "refused_bad_rate": 0.377,
        "cv": {"plain": pair, "inferred": pair}, "cv_difference": gap,
    }  # fmt: skip


def test_power_and_refused_stand_in_the_report():
    y = np.array([1.0] * 64 + [0.0] * 236)
    power = power_record(y, np.ones(300), (y, np.ones(300)))
    content = replace(small_content(), label_power=power, reject_inference=record())
    page = render_page(report_numbers(content))
    for text in ("What these labels can show", "这些标签能说明什么", "1\u202f500", "fuzzy",
                 "1\u202f234", "37.7 %", "−0.004", "纳入被拒申请人"):  # fmt: skip
        assert text in page, text
    tested = record() | {"test": record()["cv"], "test_difference": record()["cv_difference"]}
    page = render_page(report_numbers(replace(content, reject_inference=tested)))
    assert page.count("0.345") >= 4


def test_what_was_not_made_is_said_and_escaped():
    skipped = {"skipped": "reject inference was not made: <lora> was chosen"}
    page = render_page(report_numbers(replace(small_content(), reject_inference=skipped)))
    assert "Reject inference was not made: &lt;lora&gt; was chosen." in page
    assert "What these labels can show" not in render_page(report_numbers(small_content()))
