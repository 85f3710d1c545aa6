"""Pages of daily and monthly reports and of an impact report: offline HTML, small, two languages.

Lines over days are drawn as SVG here: a page a day must stay small enough to mail.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, FileSystemLoader
from markupsafe import Markup, escape

from finetune.report_page import environment
from finetune.report_words import WORDS
from serving.daily_words import DAILY_WORDS

TEMPLATES = Path(__file__).parent / "templates"
WIDTH, HEIGHT, LEFT, BOTTOM = 460, 150, 44, 20


def render(template: str, numbers: dict[str, Any]) -> str:
    """A page as text, complete and offline."""
    return _environment().get_template(template).render(r=numbers)


@cache
def _environment() -> Environment:
    env = environment()
    assert env.loader is not None
    env.loader = ChoiceLoader([FileSystemLoader(TEMPLATES), env.loader])
    env.globals |= {"t": said, "line": line}
    return env


def said(text: str, **values: Any) -> Markup:
    """A sentence in English and Chinese; `{name}` takes the value of that name, escaped."""
    english = Markup(escape(text)).format(**values)
    chinese = DAILY_WORDS.get(text, WORDS.get(text))
    if chinese is None:
        return english
    return Markup('<span class="en">{}</span><span class="zh" lang="zh-CN">{}</span>').format(
        english, Markup(escape(chinese)).format(**values)
    )


def line(
    rows: list[dict[str, Any]], keys: dict[str, str], digits: int = 2, bound: float | None = None
) -> Markup:
    """Figures over days as an SVG picture; days without a figure leave a gap.

    Args:
        rows: one a day, oldest first, with `date`.
        keys: figure -> colour of the page, such as `accent`.
        bound: drawn as a dashed line.
    """
    values = [r[k] for r in rows for k in keys if r.get(k) is not None]
    if len(rows) < 2 or not values:
        return Markup("")
    top = max([*values, *([bound] if bound is not None else []), 1e-9]) * 1.08
    low = min(0.0, *values)
    across = (WIDTH - LEFT - 8) / (len(rows) - 1)
    tall = HEIGHT - BOTTOM - 8

    def x(at: int) -> float:
        return LEFT + at * across

    def y(value: float) -> float:
        return 8 + tall * (top - value) / (top - low)

    parts = []
    for tick in (low, (low + top) / 2, top):
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - 8}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" '
            'stroke="var(--line)"/>'
            f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.{digits}f}</text>'
        )
    if bound is not None:
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - 8}" y1="{y(bound):.1f}" y2="{y(bound):.1f}" '
            'stroke="var(--bad)" stroke-dasharray="4 4"/>'
        )
    for key, colour in keys.items():
        parts += [
            f'<polyline points="{points}" fill="none" stroke="var(--{colour})" stroke-width="2"/>'
            for points in _stretches([r.get(key) for r in rows], x, y)
        ]
    for at, anchor in ((0, "start"), (len(rows) - 1, "end")):
        parts.append(
            f'<text x="{x(at):.1f}" y="{HEIGHT - 4}" text-anchor="{anchor}">'
            f"{escape(rows[at]['date'])}</text>"
        )
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-size="11" fill="var(--muted)">'
        f"{''.join(parts)}</svg>"
    )


def _stretches(values: list[float | None], x: Any, y: Any) -> list[str]:
    """Points of each unbroken stretch of figures; a single one becomes a short dash."""
    out: list[list[str]] = [[]]
    for at, value in enumerate(values):
        if value is None:
            out.append([])
        else:
            out[-1].append(f"{x(at):.1f},{y(value):.1f}")
            if at and values[at - 1] is None and (at + 1 == len(values) or values[at + 1] is None):
                out[-1].insert(0, f"{x(at) - 3:.1f},{y(value):.1f}")
    return [" ".join(points) for points in out if len(points) > 1]
