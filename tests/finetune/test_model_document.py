"""The model document: every number can be looked up, Chinese is Chinese, gaps are named."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from finetune.document_facts import CONVENTIONS
from finetune.document_parts import Sentence, Table, Word
from finetune.document_words import DOCUMENT_WORDS
from finetune.model_document import SECTIONS, translator, write_documents
from finetune.report_content import ReportContent
from finetune.report_numbers import report_numbers
from finetune.report_words import WORDS
from foundation.errors import ArtifactError, UserError
from serving.cli import cli
from tests.finetune.small_reports import Page, full_content, small_content

NUMBER = re.compile(r"[-+−]?\d[\d,.]*\d|[-+−]?\d")
FORMS = {"count", "fixed2", "fixed3", "fixed4", "signed3", "percent", "percent0", "general", "tiny",
         "day", "moment", "text", "size", "name", "tally"}  # fmt: skip
APPROVED = [
    {"by": "Li Wei", "role": "risk officer", "decision": "approved", "at": "2018-02-03T10:20:30Z"}
]


def figures(seed: float) -> dict[str, Any]:
    out: dict[str, Any] = {"status": "ok", "reason": "", "cv_log_loss": 0.43217 + seed}
    for measure, at in (("cv_auc", 0.7123), ("cv_ks", 0.3456), ("auc", 0.7345), ("ks", 0.3678)):
        out |= {measure: at + seed, f"{measure}_low": at - 0.0512, f"{measure}_high": at + 0.0634}
    return out


def manifest() -> dict[str, Any]:
    note = {"by": "consent form 7", "use": "credit scoring", "until": "2031-12-30"}
    return {
        "id": "app-1a2b3c4d", "digest": "1a2b" * 16, "format": 2, "channel": "app",
        "recipe": "forecast", "created_at": "2018-01-02T03:04:05+00:00",
        "label": {"rows": 240, "as_of_first": "2017-03-01T00:00:00Z",
                  "as_of_last": "2017-07-28T00:00:00Z", "known_last": "2017-08-30T00:00:00Z"},
        "authorizations": {"bill": note},
        "schema": {
            "name": "lender",
            "sources": {
                "bill": {"fields": {
                    "amount": {"kind": "money"},
                    "device_2": {"kind": "identifier", "grade": "secret"},
                }},
                "login": {"fields": {"place": {"kind": "category"}}},
            },
            "profile": {"fields": {"age": {"kind": "number", "grade": "personal"}}},
            "context": {"term": {"kind": "number"}},
            "outcomes": {"late_31": "bill.amount > 5000 within 31d"},
        },
        "columns": [{"block": "aggregate"}] * 17 + [{"block": "forecast"}] * 3,
        "heads": [{"name": "00_forecast", "columns": ["a", "b"], "weight": 0.98765}],
        "calibration": {"method": "platt"},
        "points": {"base": 600.0, "pdo": 20.0, "odds": 50.0},
        "bands": [{"name": "approve", "below": 0.1234}, {"name": "refuse", "below": 1.0}],
        "schema_fingerprint": "f72743d85b10f707", "tokenizer_fingerprint": "bdf7",
        "backbone_fingerprint": "b8b9", "backbone_until": "2017-03-01T00:00:00+00:00",
        "store_version": 12, "code_version": "0.1.0", "seed": 7,
        "precision": "int8", "graph_parity": {
            "float32": {"history": 3.1e-06, "tolerance": 1e-05},
            "int8": {"history": 0.08765, "tolerance": 0.25},
        },
        "files": {"heads.onnx": "9f" * 32, "tokenizer.json": "8e" * 32},
    }  # fmt: skip


def metrics() -> dict[str, Any]:
    return {
        "chosen": "forecast", "why": "lowest variance of those within 0.0123 of the best",
        "labels": {"n": 240, "bads": 53},
        "recipes": {
            "gbdt": figures(-0.0311), "forecast": figures(0.0077),
            "lora": {"status": "skipped", "reason": "fewer than 10 bads"},
        },
        "against_gbdt": {"auc": {"difference": 0.0388, "low": -0.0123, "high": 0.0876,
                                 "p_value": 0.1357}},
        "notes": ["3 rows were dropped"], "label_power": {"sentences": ["KS .37 ± .12"]},
        "reject_inference": None, "parity": {"rows": 16, "alone": 1.4e-08, "batch": 2.86e-08},
    }  # fmt: skip


def backtest(digest: str) -> dict[str, Any]:
    model = {k: v for k, v in figures(0.01).items() if k.startswith(("ks", "auc"))}
    rows = {"n": 1098, "bads": 203, "bad_rate": 0.18488, "start": "2018-03-01", "end": "2018-06-30"}
    rows |= {"psi": 0.0384, "models": {"package": model, "gbdt": {**model, "auc": 0.6904}}}
    return {
        "package": {"id": "app-1a2b3c4d", "digest": digest}, "subject": "package",
        "verdict": "not worse", "reasons": ["KS 0.299 against 0.305"], "warnings": [],
        "notes": ["nothing shared"], "overall": rows,
        "months": [{"month": "2018-03", **rows}, {"month": "2018-04", **rows, "psi": 0.2718}],
    }  # fmt: skip


def grouped_content() -> ReportContent:
    content = full_content()
    assert content.evaluation is not None
    sex = np.where(np.arange(len(content.evaluation.y)) % 3 == 0, "female", "male")
    return replace(content, evaluation=replace(content.evaluation, groups={"sex": sex}))


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hand-made adaptation and back-test beside it."""
    root = tmp_path_factory.mktemp("artefacts")
    made = manifest()
    for name, content in {
        "model/metrics.json": metrics(),
        "model/report.json": report_numbers(grouped_content()),
        "model/package/manifest.json": made,
        "backtest/backtest.json": backtest(made["digest"]),
        "bare/metrics.json": {"chosen": "query", "why": "no labels", "recipes": {}, "notes": [],
                              "labels": {"n": 60, "bads": None}},
        "bare/report.json": report_numbers(small_content()) | {"evaluation": None},
        "bare/package/manifest.json": {
            **{k: made[k] for k in ("id", "digest", "channel", "recipe", "created_at", "label")},
            "schema": {"name": "plain"}, "bands": [], "files": {},
        },
    }.items():  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(content), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def written(artefacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("documents")
    write_documents(
        artefacts / "model", out, backtest_dir=artefacts / "backtest", approvals=APPROVED
    )
    return out


def source(root: Path, name: str) -> Any:
    if name == "rules":
        return CONVENTIONS
    if name == "approvals":
        return APPROVED
    place = {
        "manifest.json": "model/package/manifest.json",
        "backtest.json": "backtest/backtest.json",
    }
    return json.loads((root / place.get(name, f"model/{name}")).read_text(encoding="utf-8"))


def recomputed(row: dict[str, Any], content: Any) -> str:
    """What a row of numbers.json must show, by a second implementation."""
    for step in row["path"][:-1] if row["form"] == "name" else row["path"]:
        content = content[step]
    form = row["form"]
    if form == "name":
        assert row["path"][-1] in content
        return str(row["path"][-1])
    if form == "tally":
        return format(len([r for r in content if r[row["key"]] == row["value"]]), ",d")
    if form in ("text", "day"):
        return str(content) if form == "text" else str(content)[:10]
    if form == "moment":
        return re.sub(r"^(\S{10})T(\d\d:\d\d).*$", r"\1 \2 UTC", content)
    if form == "size":
        return format(len(content), ",d")
    patterns = {
        "count": "{:,.0f}", "fixed2": "{:.2f}", "fixed3": "{:.3f}", "fixed4": "{:.4f}",
        "signed3": "{:+.3f}", "percent": "{:.1%}", "percent0": "{:.0%}", "tiny": "{:.1e}",
        "general": "{:g}",
    }  # fmt: skip
    return patterns[form].format(content).replace("%", " %")


def test_every_noted_value_is_recomputed_from_the_artefacts(artefacts: Path, written: Path) -> None:
    rows = json.loads((written / "numbers.json").read_text(encoding="utf-8"))
    assert len(rows) > 150
    assert {row["form"] for row in rows} <= FORMS
    for row in rows:
        assert recomputed(row, source(artefacts, row["file"])) == row["shown"], row


@pytest.mark.parametrize("name", ["model_document.en.md", "model_document.zh.md", "card.md"])
def test_every_number_of_a_document_is_one_of_them(written: Path, name: str) -> None:
    rows = json.loads((written / "numbers.json").read_text(encoding="utf-8"))
    known = {token for row in rows for token in NUMBER.findall(row["shown"])}
    text = (written / name).read_text(encoding="utf-8")
    # "label 1" is what the label is called, no measurement
    text = text.replace("label 1", "label").replace("标签 1", "标签")
    found = NUMBER.findall(text)
    assert len(found) > (5 if name == "card.md" else 150)
    assert set(found) <= known, sorted(set(found) - known)


def test_pages_show_what_the_markdown_shows(written: Path) -> None:
    for language in ("en", "zh"):
        text = (written / f"model_document.{language}.md").read_text(encoding="utf-8")
        html = (written / f"model_document.{language}.html").read_text(encoding="utf-8")
        page = Page(html)
        assert sorted(NUMBER.findall(page.text)) != []
        counted = [sorted(NUMBER.findall(t)) for t in (text, page.text)]
        title = NUMBER.findall(text.splitlines()[0])  # the page has it twice, as title and heading
        assert sorted(counted[0] + title) == counted[1]
        assert "script" not in page.tags
        assert all(a.startswith("#") for a in page.addresses)


def test_a_changed_figure_changes_the_document(artefacts: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "package").mkdir(parents=True)
    for name in ("metrics.json", "package/manifest.json"):
        (model / name).write_bytes((artefacts / "model" / name).read_bytes())
    report = json.loads((artefacts / "model" / "report.json").read_text(encoding="utf-8"))
    assert report["evaluation"]["metrics"][0]["name"] == "ks"
    report["evaluation"]["metrics"][0]["low"] = 0.11119
    (model / "report.json").write_text(json.dumps(report), encoding="utf-8")
    write_documents(model, tmp_path / "out")
    text = (tmp_path / "out" / "model_document.en.md").read_text(encoding="utf-8")
    assert text.count("0.111") == 2  # the interval of KS, and the bound of the monitoring plan


def test_same_artefacts_same_bytes(artefacts: Path, written: Path, tmp_path: Path) -> None:
    again = write_documents(
        artefacts / "model", tmp_path, backtest_dir=artefacts / "backtest", approvals=APPROVED
    )
    assert {p.name for p in again} == {p.name for p in written.iterdir()}
    for path in again:
        assert path.read_bytes() == (written / path.name).read_bytes()


# ------------------------------------------------------------------------------------ language


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ (.+)$", text, re.M)


def test_headings_are_chinese_in_chinese(written: Path) -> None:
    english = (written / "model_document.en.md").read_text(encoding="utf-8")
    chinese = (written / "model_document.zh.md").read_text(encoding="utf-8")
    assert len(headings(english)) == len(headings(chinese)) == len(SECTIONS) + 1
    for heading in headings(english)[1:]:
        assert heading not in headings(chinese)
    for heading in headings(chinese):
        assert re.search(r"[\u4e00-\u9fff]", heading), heading
    heads = re.findall(r"^\| (.+) \|\n\| ---", chinese, re.M)
    words = {word for row in heads for word in row.split(" | ")}
    allowed = {"IV", "KS", "AUC", "PSI", "auc"}  # the last names a figure of the groups
    assert not [w for w in words - allowed if not re.search(r"[\u4e00-\u9fff]", w)]


def test_every_sentence_has_a_translation(artefacts: Path) -> None:
    from finetune.document_facts import read_facts

    known = {**WORDS, **DOCUMENT_WORDS}
    for name, tested in (("model", artefacts / "backtest"), ("bare", None)):
        facts = read_facts(artefacts / name, tested, [])
        for section in (make(facts) for make in SECTIONS):
            texts = [section.title]
            for block in section.blocks:
                if isinstance(block, Sentence):
                    texts.append(block.template)
                    cells = list(block.values.values())
                else:
                    assert isinstance(block, Table)
                    texts += [h for h in block.head if h != "auc"]
                    cells = [cell for row in block.rows for cell in row]
                texts += [cell.text for cell in cells if isinstance(cell, Word)]
            assert [t for t in texts if t not in known] == []


def test_translations_keep_the_values() -> None:
    for english, chinese in DOCUMENT_WORDS.items():
        names = sorted(re.findall(r"\{(\w+)\}", english))
        assert sorted(re.findall(r"\{(\w+)\}", chinese)) == names, english
    assert translator("zh")("Purpose") == "用途"


# ------------------------------------------------------------------------------ what is missing


def test_what_is_missing_is_said(artefacts: Path, tmp_path: Path) -> None:
    write_documents(artefacts / "bare", tmp_path, languages=("en",))
    text = (tmp_path / "model_document.en.md").read_text(encoding="utf-8")
    for sentence in (
        "Nobody stated in words what label 1 means",
        "The schema declares no source",
        "No labels were used",
        "No recipes were compared",
        "nothing proves the model's quality",
        "Back-test: none was handed in",
        "stability cannot be judged",
        "No groups were declared",
        "No approval was recorded",
        "No proof that the exported package",
    ):
        assert sentence in text, sentence
    assert "Not validated on labels" in (tmp_path / "card.md").read_text(encoding="utf-8")


def test_sources_show_authorisation_and_grades(artefacts: Path, written: Path) -> None:
    text = (written / "model_document.en.md").read_text(encoding="utf-8")
    assert "| bill | 2 | consent form 7 | credit scoring | 2031-12-30 |" in text
    assert "The package holds no authorisation note for: login, profile." in text
    assert "| secret | bill.device_2 |" in text
    assert "| personal | profile.age |" in text
    assert "Li Wei | risk officer | approved | 2018-02-03 10:20 UTC" in text
    group = json.loads((artefacts / "model/report.json").read_text())["evaluation"]["groups"][0]
    female = next(row for row in group["rows"] if row["group"] == "female")
    assert "By sex:" in text and group["note"] in text
    assert f"| female | {female['n']} | {100 * female['bad_rate']:.1f} % |" in text


def test_names_of_users_cannot_break_the_page(artefacts: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "package").mkdir(parents=True)
    for name in ("metrics.json", "report.json"):
        (model / name).write_bytes((artefacts / "model" / name).read_bytes())
    evil = manifest() | {"channel": "<script>x</script> | y {z}"}
    (model / "package" / "manifest.json").write_text(json.dumps(evil), encoding="utf-8")
    write_documents(model, tmp_path / "out")
    page = Page((tmp_path / "out" / "model_document.zh.html").read_text(encoding="utf-8"))
    assert isinstance(page, HTMLParser)
    assert "script" not in page.tags
    assert "<script>x</script> | y {z}" in page.text


def test_user_errors(artefacts: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no language 'cn'"):
        write_documents(artefacts / "model", tmp_path, languages=("cn",))
    with pytest.raises(ArtifactError, match="riskfm adapt"):
        write_documents(tmp_path, tmp_path / "out")
    (tmp_path / "bt").mkdir()
    other = json.dumps(backtest("0000"))
    (tmp_path / "bt" / "backtest.json").write_text(other, encoding="utf-8")
    with pytest.raises(ArtifactError, match="judged package"):
        write_documents(artefacts / "model", tmp_path / "out", backtest_dir=tmp_path / "bt")
    assert not (tmp_path / "out").exists()


def test_command(artefacts: Path, tmp_path: Path) -> None:
    args = ["document", str(artefacts / "model"), "-o", str(tmp_path / "out"), "--language", "zh"]
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "card.md", "model_document.zh.html", "model_document.zh.md", "numbers.json",
    ]  # fmt: skip
