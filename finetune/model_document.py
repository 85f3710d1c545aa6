"""The document of a model for people who must answer for it: `write_documents`.

artefacts of `riskfm adapt` (and of a back-test) -> facts -> sections -> English and Chinese, as
Markdown and as one offline HTML page each, a short card, and the list of every number shown with
the place it was read from. The same artefacts give the same bytes: no time of writing, no path.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from finetune import document_proof, document_sections
from finetune.document_facts import MANIFEST, METRICS, REPORT, Facts, read_facts
from finetune.document_parts import Section, Translate, filled, markdown, shown
from finetune.document_words import DOCUMENT_WORDS
from finetune.report_words import WORDS
from foundation.errors import UserError, listing, nearest

LANGUAGES = ("en", "zh")
TEMPLATES = Path(__file__).parent / "templates"
SECTIONS: tuple[Callable[[Facts], Section], ...] = (
    document_sections.purpose,
    document_sections.data,
    document_sections.sample,
    document_sections.variables,
    document_sections.recipe,
    document_proof.validation,
    document_proof.stability,
    document_proof.fairness,
    document_proof.reasons,
    document_proof.limits,
    document_proof.monitoring,
    document_proof.approvals,
    document_proof.digests,
)
HTML_LANGUAGE = {"en": "en", "zh": "zh-CN"}


def write_documents(
    adaptation_dir: Path,
    out_dir: Path,
    *,
    backtest_dir: Path | None = None,
    approvals: Sequence[Mapping[str, Any]] = (),
    languages: Sequence[str] = LANGUAGES,
) -> list[Path]:
    """Write the model document of an adaptation.

    Args:
        adaptation_dir: what `riskfm adapt -o` wrote: `metrics.json`, `report.json`, `package/`.
        backtest_dir: what `riskfm backtest -o` wrote for the same package.
        approvals: records with `by`, `role`, `decision`, `at` (ISO 8601, UTC) and `note`; what a
            record lacks is shown as a dash.
        languages: of `en` and `zh`.
    Returns:
        the files: `model_document.<language>.md` and `.html`, `card.md`, `numbers.json`.
    Raises:
        UserError: another language. ArtifactError: missing or unreadable artefacts, or a back-test
            of another package.
    """
    for language in languages:
        if language not in LANGUAGES:
            raise UserError(
                f"no language '{language}'{nearest(language, LANGUAGES)}; there are: "
                f"{listing(LANGUAGES)}"
            )
    given = [dict(record) for record in approvals]
    facts = read_facts(
        Path(adaptation_dir), Path(backtest_dir) if backtest_dir is not None else None, given
    )
    sections = [make(facts) for make in SECTIONS]
    name = facts.show("text", MANIFEST, "id")
    card = _card(facts)
    out = Path(out_dir)
    written = []
    for language in languages:
        translate = translator(language)
        title = translate("Model document: {name}").format(name=name)
        text = markdown(title, sections, translate)
        written.append(_write(out / f"model_document.{language}.md", text))
        page = _page(title, sections, translate, language)
        written.append(_write(out / f"model_document.{language}.html", page))
    cards = []
    for each in languages:
        translate = translator(each)
        title = translate("Model card: {name}").format(name=name)
        cards.append(markdown(title, [card], translate))
    written.append(_write(out / "card.md", "\n".join(cards)))
    numbers = json.dumps(facts.shown, indent=1, ensure_ascii=False)
    written.append(_write(out / "numbers.json", numbers + "\n"))
    return written


def translator(language: str) -> Translate:
    """How a sentence of ours reads in a language; Chinese falls back to the words of reports."""
    if language == "en":
        return lambda text: text
    return lambda text: DOCUMENT_WORDS.get(text) or WORDS.get(text, text)


def _card(facts: Facts) -> Section:
    """The few lines that fit on a card."""
    out = Section("In short")
    out.item(
        "Channel {channel}, recipe {recipe}, made on {made}.",
        channel=facts.show("text", MANIFEST, "channel"),
        recipe=facts.show("text", MANIFEST, "recipe"),
        made=facts.show("moment", MANIFEST, "created_at"),
    )
    if facts.get(METRICS, "labels", "bads") is not None:
        out.item(
            "Learnt from {n} labels with {bads} bads.",
            n=facts.show("count", METRICS, "labels", "n"),
            bads=facts.show("count", METRICS, "labels", "bads"),
        )
    evaluation = facts.get(REPORT, "evaluation")
    if evaluation and evaluation["metrics"]:
        place = {m["name"]: i for i, m in enumerate(evaluation["metrics"])}
        at = ("evaluation", "metrics")
        out.item(
            "On {name} ({n} customers): KS {ks} ({ks_span}), AUC {auc} ({auc_span}).",
            name=facts.show("text", REPORT, "evaluation", "basis", "name"),
            n=facts.show("count", REPORT, "evaluation", "basis", "n"),
            ks=facts.show("fixed3", REPORT, *at, place["ks"], "value"),
            ks_span=facts.span("fixed3", REPORT, *at, place["ks"], low="low", high="high"),
            auc=facts.show("fixed3", REPORT, *at, place["auc"], "value"),
            auc_span=facts.span("fixed3", REPORT, *at, place["auc"], low="low", high="high"),
        )
    else:
        out.item("Not validated on labels.")
    out.item("Digest {digest}.", digest=facts.show("text", MANIFEST, "digest"))
    out.item("The model document beside this card says the rest, limits included.")
    return out


def _page(title: str, sections: list[Section], translate: Translate, language: str) -> str:
    """One HTML page that loads nothing from anywhere."""
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page: str = templates.get_template("model_document.html.j2").render(
        title=title,
        sections=sections,
        language=HTML_LANGUAGE[language],
        tr=translate,
        filled=lambda sentence: filled(sentence, translate),
        shown=lambda cell: shown(cell, translate),
    )
    return page


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
    return path
