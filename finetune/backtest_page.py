"""The page of a back-test as one offline HTML file, and its table for a terminal."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from finetune.report_figures import (
    Figure,
    figure_axis,
    figure_layout,
    figure_line,
    label,
    percent_axis,
)
from finetune.report_page import environment
from finetune.report_words import FIGURE_WORDS

PALETTE = ("@accent", "@bad", "@warn", "@good", "@muted")


def render_backtest(numbers: dict[str, Any]) -> str:
    """The page as text, complete and offline; `numbers` as of `finetune.backtest_verdict.judge`."""
    code = get_plotlyjs().replace("</script", "<\\/script")
    page = environment().get_template("backtest.html.j2")
    return page.render(
        r=numbers,
        titles=short_titles(numbers),
        figures=backtest_figures(numbers),
        figure_words=FIGURE_WORDS,
        plotly=Markup(code),
    )


def short_titles(numbers: dict[str, Any]) -> dict[str, str]:
    """Model -> a word or two for the heads of tables."""
    given = {"package": "this package", "adapted": "re-adapted", "incumbent_score": "incumbent"}
    both = {m["name"] for m in numbers["models"]} >= {"incumbent", "incumbent_score"}
    if both:
        del given["incumbent_score"]
    return {m["name"]: given.get(m["name"], m["name"]) for m in numbers["models"]}


def backtest_figures(numbers: dict[str, Any]) -> dict[str, Figure]:
    """The figures that the numbers allow, by name."""
    names = short_titles(numbers)
    subject, opponent = numbers["subject"], numbers["opponent"]
    overall = numbers["overall"]
    against = overall["against"].get(opponent) if opponent else None
    found = {
        "tradeoff": _tradeoff(against, names, subject, opponent),
        "calibration": _calibration(overall["models"], names),
        "months": _months(numbers["months"], names, subject, opponent),
        "value": _value(overall["models"], names, numbers["costs"]),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def _tradeoff(
    against: dict[str, Any] | None, names: dict[str, str], subject: str, opponent: str | None
) -> Figure | None:
    if against is None or opponent is None or not against.get("curve"):
        return None
    curve = against["curve"]
    data = [
        figure_line(curve["approval"], curve["theirs"], label(names[opponent]), "@muted"),
        figure_line(curve["approval"], curve["ours"], label(names[subject]), "@accent"),
    ]
    layout = figure_layout(
        "",
        "",
        xaxis=percent_axis("approval rate"),
        yaxis=figure_axis("bad rate among approved", tickformat=".1%", rangemode="tozero"),
    )
    return {"data": data, "layout": layout}


def _calibration(models: dict[str, Any], names: dict[str, str]) -> Figure | None:
    data: list[dict[str, Any]] = []
    top = 0.0
    for color, (name, figures) in zip(PALETTE, models.items(), strict=False):
        rows = figures.get("deciles") or []
        if not rows:
            continue
        top = max([top, *(r["expected"] for r in rows), *(r["observed"] for r in rows)])
        line = figure_line(
            [r["expected"] for r in rows], [r["observed"] for r in rows], label(names[name]), color
        )
        line |= {"mode": "lines+markers", "marker": {"color": color, "size": 7}}
        if not data:  # error bars of the judged model alone, or nothing can be read
            line["error_y"] = {
                "type": "data", "symmetric": False, "color": color, "thickness": 1.2, "width": 3,
                "array": [r["high"] - r["observed"] for r in rows],
                "arrayminus": [r["observed"] - r["low"] for r in rows],
            }  # fmt: skip
        data.append(line)
    if not data:
        return None
    data.append(figure_line([0, top], [0, top], "perfect", "@soft", "dash"))
    layout = figure_layout(
        "", "", xaxis=percent_axis("mean score", rangemode="tozero"),
        yaxis=percent_axis("realised bad rate", rangemode="tozero"),
    )  # fmt: skip
    return {"data": data, "layout": layout}


def _months(
    rows: list[dict[str, Any]], names: dict[str, str], subject: str, opponent: str | None
) -> Figure | None:
    if len(rows) < 2:
        return None
    data: list[dict[str, Any]] = [
        {
            "type": "bar", "x": [r["month"] for r in rows], "y": [r["psi"] for r in rows],
            "name": "PSI of the score", "marker": {"color": "@soft"},
            "hovertemplate": "%{x}: PSI %{y:.3f}<extra></extra>",
        },
    ]  # fmt: skip
    shown = [(opponent, "@muted"), (subject, "@accent")] if opponent else [(subject, "@accent")]
    for name, color in shown:
        known = [r for r in rows if (r["models"].get(name) or {}).get("ks") is not None]
        if not known:
            continue
        ks = [r["models"][name]["ks"] for r in known]
        line = figure_line([r["month"] for r in known], ks, f"KS, {label(names[name])}", color)
        line |= {"mode": "lines+markers", "yaxis": "y2", "marker": {"color": color, "size": 7}}
        if name == subject:
            line["error_y"] = {
                "type": "data", "symmetric": False, "color": color, "thickness": 1.2, "width": 3,
                "array": [r["models"][name]["ks_high"] - k for r, k in zip(known, ks, strict=True)],
                "arrayminus": [
                    k - r["models"][name]["ks_low"] for r, k in zip(known, ks, strict=True)
                ],
            }  # fmt: skip
        data.append(line)
    top = max([0.3, *(r["psi"] for r in rows if r["psi"] is not None)]) * 1.1
    left = figure_axis("KS", overlaying="y", side="left", rangemode="tozero", nticks=6)
    layout = figure_layout(
        "month of decision",
        "PSI of the score",
        300,
        xaxis={"type": "category"},
        yaxis2=left,
        yaxis={"side": "right", "range": [0, top], "showgrid": False},
        margin={"r": 62},
    )
    return {"data": data, "layout": layout}


def _value(
    models: dict[str, Any], names: dict[str, str], costs: dict[str, Any] | None
) -> Figure | None:
    if costs is None:
        return None
    data = [
        figure_line(
            f["value"]["curve"]["approval"],
            f["value"]["curve"]["value"],
            label(names[name]),
            color,
        )
        for color, (name, f) in zip(PALETTE, models.items(), strict=False)
        if f.get("value")
    ]
    if not data:
        return None
    layout = figure_layout("", "value per applicant", xaxis=percent_axis("approval rate"))
    return {"data": data, "layout": layout}


def terminal_lines(numbers: dict[str, Any]) -> list[str]:
    """Models on the same rows, months, verdict, reasons, warnings."""
    overall = numbers["overall"]
    names = short_titles(numbers)
    span = f"{overall['start']} to {overall['end']}"
    lines = [
        f"n = {overall['n']:,}, {overall['bads']:,} bads, "
        f"bad rate {100 * overall['bad_rate']:.1f} %, decided {span}",
        f"{'model':<14}{'n':>8}{'KS':>7}{'95 %':>17}{'AUC':>8}{'95 %':>17}{'Brier':>8}{'ECE':>8}",
    ]
    for name, f in overall["models"].items():
        lines.append(
            f"{names[name]:<14}{f['n']:>8,}{_n(f['ks'], 7)}{_span(f, 'ks')}"
            f"{_n(f['auc'], 8)}{_span(f, 'auc')}{_n(f['brier'], 8)}{_n(f['ece'], 8)}"
        )
    opponent = numbers["opponent"]
    lines.append(f"{'month':<10}{'n':>8}{'bad rate':>10}{'KS':>8}{'against':>10}{'PSI':>8}")
    for row in numbers["months"]:
        found = (row["against"].get(opponent) or {}).get("ks") if opponent else None
        gap = f"{found['difference']:+.3f}" if found else ""
        lines.append(
            f"{row['month']:<10}{row['n']:>8,}{100 * row['bad_rate']:>8.1f} %"
            f"{_n(row['models'][numbers['subject']]['ks'], 8)}{gap:>10}{_n(row['psi'], 8)}"
        )
    against = f" (against {names[opponent]})" if opponent else ""
    lines.append(f"verdict: {numbers['verdict']}{against}")
    lines += [f"  {reason}" for reason in numbers["reasons"]]
    lines += [f"warning: {text}" for text in numbers["warnings"]]
    return lines + [f"note: {text}" for text in numbers["notes"]]


def _n(value: float | None, width: int) -> str:
    return " " * (width - 1) + "-" if value is None else f"{value:>{width}.3f}"


def _span(figures: dict[str, Any], measure: str) -> str:
    low, high = figures[f"{measure}_low"], figures[f"{measure}_high"]
    return f"{f'{low:.3f} to {high:.3f}' if low is not None else '':>17}"
