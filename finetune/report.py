"""The report of an adaptation: one HTML file that opens offline, and the same numbers as JSON.

`write_report` turns `ReportContent` into one document of numbers (`finetune.report_numbers`),
writes that as JSON and shows exactly that document as HTML, so that the page cannot say anything
the JSON does not hold. The page holds plotly.js once, inline, and forbids every network load by a
content security policy. All text is escaped (jinja2 with autoescape).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from finetune.report_content import (
    EvaluationFacts,
    ExampleFacts,
    ForecastFacts,
    LadderRow,
    ReasonGroupFacts,
    ReportContent,
    SampleFacts,
    VariableFacts,
    WindowFacts,
)
from finetune.report_numbers import report_numbers
from finetune.report_page import render_page

__all__ = [
    "EvaluationFacts",
    "ExampleFacts",
    "ForecastFacts",
    "LadderRow",
    "ReasonGroupFacts",
    "ReportContent",
    "SampleFacts",
    "VariableFacts",
    "WindowFacts",
    "write_report",
]


def write_report(
    content: ReportContent, html_path: str | Path, json_path: str | Path
) -> dict[str, Any]:
    """Write the HTML page and the JSON document of its numbers.

    Both files appear whole or not at all (written beside and renamed).

    Returns:
        the document of numbers, as written to `json_path`.
    Raises:
        SampleError: labels, times and scores of unequal length, labels other than 0, 1 and NaN, or
            scores outside [0, 1].
    """
    numbers = report_numbers(content)
    text = json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False)
    _write(Path(json_path), text + "\n")
    _write(Path(html_path), render_page(numbers))
    return numbers


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
