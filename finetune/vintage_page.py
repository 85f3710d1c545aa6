"""The page of a bad definition: vintages, maturity and roll rates as one offline HTML file."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from finetune.report_figures import Figure, figure_layout, figure_line, label, percent_axis
from finetune.report_page import environment
from finetune.report_words import FIGURE_WORDS

PALETTE = ("@soft", "@accent", "@good", "@warn", "@bad")


def render_vintages(numbers: dict[str, Any]) -> str:
    """The page as text, complete and offline; `numbers` as of `vintage_report`."""
    code = get_plotlyjs().replace("</script", "<\\/script")
    page = environment().get_template("vintages.html.j2")
    return page.render(
        r=numbers,
        figures=vintage_figures(numbers),
        figure_words=FIGURE_WORDS,
        plotly=Markup(code),
    )


def vintage_figures(numbers: dict[str, Any]) -> dict[str, Figure]:
    """The figures that the numbers allow, by name."""
    found = {
        "vintages": _vintages(numbers["vintages"]),
        "maturity": _maturity(numbers["maturity"]),
        "rolls": _rolls(numbers["roll_rates"], numbers["states"]),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def _vintages(rows: list[dict[str, Any]]) -> Figure | None:
    cohorts: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        cohorts.setdefault(row["cohort"], []).append(row)
    if not cohorts:
        return None
    data = []
    for i, (name, part) in enumerate(cohorts.items()):
        # Old cohorts pale, young ones strong.
        step = i * (len(PALETTE) - 1) / max(len(cohorts) - 1, 1)
        data.append(
            figure_line(
                [r["month"] for r in part],
                [r["share"] for r in part],
                label(name),
                PALETTE[round(step)],
                customdata=[[r["bads"], r["n"], r["low"], r["high"]] for r in part],
                hovertemplate=f"{label(name)}, %{{x}}: %{{y:.2%}} (%{{customdata[2]:.2%}} … "
                "%{customdata[3]:.2%}), %{customdata[0]} of %{customdata[1]}<extra></extra>",
            )
        )
    layout = _share_layout(380, max(r["share"] for r in rows))
    layout["legend"] = {"orientation": "v", "x": 1.01, "y": 1}
    return {"data": data, "layout": layout}


def _maturity(curve: dict[str, Any] | None) -> Figure | None:
    if curve is None:
        return None
    rows = curve["months"]
    month = [r["month"] for r in rows]
    band = {
        "type": "scatter",
        "mode": "lines",
        "x": [*month, *reversed(month)],
        "y": [*(r["high"] for r in rows), *(r["low"] for r in reversed(rows))],
        "fill": "toself",
        "fillcolor": "@tint",
        "line": {"width": 0},
        "name": "95 % interval",
        "hoverinfo": "skip",
    }
    final = rows[-1]["share"] * curve["wanted"]
    data = [
        band,
        figure_line(month, [r["share"] for r in rows], "share ever bad", "@bad"),
        figure_line([1, month[-1]], [final, final], "share asked for", "@muted", "dash"),
        figure_line([curve["month"]] * 2, [0, final], "mature from", "@accent", "dot"),
    ]
    return {"data": data, "layout": _share_layout(320, rows[-1]["high"])}


def _share_layout(height: int, highest: float) -> dict[str, Any]:
    """Months against a share from zero; small shares get a digit more."""
    layout = figure_layout(
        "month since the start", "share ever bad", height, yaxis=percent_axis("share ever bad")
    )
    layout["yaxis"] |= {"rangemode": "tozero", "tickformat": ".1%" if highest < 0.08 else ".0%"}
    return layout


def _rolls(rows: list[dict[str, Any]], states: list[str]) -> Figure | None:
    if not rows:
        return None
    share = {(r["from"], r["to"]): r["share"] for r in rows}
    start = [s for s in states if any(r["from"] == s for r in rows)]
    ends = [*states, rows[-1]["to"]] if rows[-1]["to"] not in states else states
    z = [[share.get((a, b), 0.0) for b in ends] for a in start]
    data = [
        {
            "type": "heatmap",
            "x": [label(b) for b in ends],
            "y": [label(a) for a in start],
            "z": z,
            "zmin": 0,
            "zmax": 1,
            "colorscale": [[0, "@paper"], [1, "@accent"]],
            "showscale": False,
            "text": [[f"{100 * v:.1f}" for v in row] for row in z],
            "texttemplate": "%{text}",
            "hovertemplate": "%{y} → %{x}: %{z:.1%}<extra></extra>",
            "name": "roll rates",
        }
    ]
    layout = figure_layout("state one month later", "state", 90 + 34 * len(start))
    layout["xaxis"]["type"] = layout["yaxis"]["type"] = "category"
    layout["yaxis"]["autorange"] = "reversed"
    return {"data": data, "layout": layout}
