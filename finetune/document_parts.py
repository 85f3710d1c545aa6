"""Parts of a model document before it has a language: sections of sentences, lists and tables.

A sentence is a template in English with values; `finetune.document_words` holds its Chinese. A
value or cell that is a `Word` is translated too, any other text is shown as it stands in the
artefacts: names, titles, and reasons that people or programs wrote.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Word:
    """Words of ours, to be translated."""

    text: str


Cell = str | Word


@dataclass(frozen=True)
class Sentence:
    """A template and its values; `kind` is `p`, `item`, `missing` or `quote`."""

    template: str
    values: dict[str, Cell] = field(default_factory=dict)
    kind: str = "p"


@dataclass(frozen=True)
class Table:
    """A table; its head is ours, its cells are texts or words."""

    head: tuple[str, ...]
    rows: list[tuple[Cell, ...]]


Block = Sentence | Table


@dataclass
class Section:
    """A heading of ours and what stands below it."""

    title: str
    blocks: list[Block] = field(default_factory=list)

    def say(self, template: str, **values: Cell) -> None:
        """A paragraph."""
        self.blocks.append(Sentence(template, values))

    def item(self, template: str, **values: Cell) -> None:
        """A point of a list."""
        self.blocks.append(Sentence(template, values, "item"))

    def missing(self, template: str, **values: Cell) -> None:
        """A paragraph that says what there is not."""
        self.blocks.append(Sentence(template, values, "missing"))

    def quote(self, text: str) -> None:
        """Words of an artefact, as they stand there."""
        self.blocks.append(Sentence("{quoted}", {"quoted": text}, "quote"))

    def table(self, head: tuple[str, ...], rows: list[tuple[Cell, ...]]) -> None:
        """A table."""
        self.blocks.append(Table(head, rows))


Translate = Callable[[str], str]


def markdown(title: str, sections: list[Section], translate: Translate) -> str:
    """The document as Markdown in the language of `translate`."""
    lines = [f"# {title}", ""]
    for section in sections:
        lines += [f"## {translate(section.title)}", ""]
        before = ""
        for block in section.blocks:
            kind = block.kind if isinstance(block, Sentence) else "table"
            if before == "item" and kind != "item":
                lines.append("")
            lines += _block(block, translate)
            before = kind
        if before == "item":
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _block(block: Block, translate: Translate) -> list[str]:
    if isinstance(block, Table):
        rows = [[translate(head) for head in block.head]]
        rows += [[shown(cell, translate) for cell in row] for row in block.rows]
        lines = ["| " + " | ".join(_cell(c) for c in row) + " |" for row in rows]
        return [lines[0], "|" + " --- |" * len(block.head), *lines[1:], ""]
    text = " ".join(filled(block, translate).split())
    if block.kind == "item":
        return [f"* {text}"]
    if block.kind == "missing":
        return [f"*{text}*", ""]
    if block.kind == "quote":
        return [f"> {text}", ""]
    return [text, ""]


def filled(sentence: Sentence, translate: Translate) -> str:
    """A sentence in a language, with its values."""
    values = {name: shown(value, translate) for name, value in sentence.values.items()}
    return translate(sentence.template).format(**values)


def shown(cell: Cell, translate: Translate) -> str:
    """A cell in a language."""
    return translate(cell.text) if isinstance(cell, Word) else cell


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
