"""The HTML page of a report, from its document of numbers.

jinja2 escapes all text. `t("English", ...)` says a sentence in both languages; the page shows one.
"""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from finetune.report_figures import figures
from finetune.report_words import FIGURE_WORDS, WORDS

TEMPLATES = Path(__file__).parent / "templates"
DASH = "–"


def render_page(numbers: dict[str, Any]) -> str:
    """The page as text, complete and offline; `numbers` as of `report_numbers`."""
    # plotly.js carries one address in its credits; a closing tag would end the inline script
    code = get_plotlyjs().replace("</script", "<\\/script")
    page = environment().get_template("report.html.j2")
    return page.render(
        r=numbers, figures=figures(numbers), figure_words=FIGURE_WORDS, plotly=Markup(code)
    )


def environment() -> Environment:
    """The templates of the pages, with their filters and words."""
    env = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.globals |= {"t": both}
    env.filters |= {
        "pct": percent,
        "num": number,
        "ci": span,
        "pci": percent_span,
        "count": count,
        "day": day,
        "moment": moment,
        "signed": signed,
        "opening": opening,
    }
    return env


def both(text: str, **values: Any) -> Markup:
    """A sentence in English and Chinese; `{name}` takes the value of that name, escaped.

    A text without translation is shown as it is in both languages.
    """
    filled = {k: v if isinstance(v, Markup) else escape(str(v)) for k, v in values.items()}
    english = _fill(text, filled)
    if text not in WORDS:
        return english
    chinese = _fill(WORDS[text], filled)
    return Markup('<span class="en">{}</span><span class="zh" lang="zh-CN">{}</span>').format(
        english, chinese
    )


def _fill(text: str, values: dict[str, Markup]) -> Markup:
    parts = re.split(r"\{(\w+)\}", text)
    return Markup("").join(values[part] if i % 2 else escape(part) for i, part in enumerate(parts))


def opening(text: str) -> str:
    """Text that opens a sentence."""
    return text[:1].upper() + text[1:]


def percent(value: float | None, digits: int = 1) -> str:
    """A share as per cent, or a dash."""
    return DASH if value is None else f"{100 * value:.{digits}f} %"


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash."""
    return DASH if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 3) -> str:
    """A difference with its sign, or a dash."""
    return DASH if value is None else f"{value:+.{digits}f}".replace("-", "−")


def span(low: float | None, high: float | None, digits: int = 3) -> str:
    """An interval, or nothing."""
    if low is None or high is None:
        return ""
    sign = low < 0
    show = signed if sign else number
    return f"{show(low, digits)} … {show(high, digits)}"


def percent_span(low: float | None, high: float | None, digits: int = 1) -> str:
    """An interval of shares, or nothing."""
    if low is None or high is None:
        return ""
    return f"{100 * low:.{digits}f} … {100 * high:.{digits}f} %".replace("-", "−")


def count(value: float | None) -> str:
    """A whole number with thousands separated."""
    return DASH if value is None else f"{value:,.0f}".replace(",", "\u202f")


def day(value: str | None) -> str:
    """The date of an ISO text, or a dash."""
    return DASH if not value else value[:10]


def moment(value: str) -> str:
    """An ISO moment as people read it."""
    return datetime.fromisoformat(value).strftime("%Y-%m-%d %H:%M %Z")
