"""Plotly figures of a report as plain JSON, built from the document of numbers alone.

Colours are names such as `@accent` which the page replaces by its light or dark palette; English
words are replaced by the page when the language changes. Text of users is escaped, because plotly
reads a little HTML in labels. A part without numbers gives no figure.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

Figure = dict[str, Any]


def figures(numbers: dict[str, Any]) -> dict[str, Figure]:
    """All figures that the numbers allow, by name."""
    evaluation = numbers["evaluation"] or {}
    found = {
        "months": months_figure(numbers["sample"]["months"]),
        "ladder": _ladder(numbers["ladder"]),
        "ks": _ks(evaluation.get("ks_curve")),
        "roc": _roc(evaluation),
        "calibration": _calibration(evaluation.get("calibration")),
        "lift": _lift(evaluation),
        "distribution": _distribution(evaluation),
        "tradeoff": _tradeoff(evaluation.get("comparison"), numbers["recipe"]),
        "stability": _stability(evaluation.get("stability")),
        "forecasts": _forecasts(numbers["forecasts"]["rows"]),
        "reasons": _reasons(numbers["reasons"]["rows"]),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def label(text: str, limit: int = 46) -> str:
    """User text for a plotly label: no markup, shortened."""
    short = text if len(text) <= limit else text[: limit - 1] + "…"
    return short.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def figure_layout(x: str, y: str, height: int = 300, **extra: Any) -> dict[str, Any]:
    layout: dict[str, Any] = {
        "height": height,
        "margin": {"l": 62, "r": 26, "t": 12, "b": 50},
        "xaxis": figure_axis(x),
        "yaxis": figure_axis(y),
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hovermode": "closest",
        "bargap": 0.28,
    }
    for key, value in extra.items():
        layout[key] = layout[key] | value if isinstance(layout.get(key), dict) else value
    return layout


def figure_axis(title: str, **extra: Any) -> dict[str, Any]:
    return {
        "title": {"text": title, "standoff": 8},
        "automargin": True,
        "zeroline": False,
        "gridcolor": "@line",
        "linecolor": "@line",
        "fixedrange": True,
    } | extra


def percent_axis(title: str, **extra: Any) -> dict[str, Any]:
    return figure_axis(title, tickformat=".0%", **extra)


def figure_line(
    x: list[Any], y: list[float], name: str, color: str, dash: str = "solid", **extra: Any
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "y": y,
        "name": name,
        "line": {"color": color, "width": 2, "dash": dash},
    } | extra


def _spread(values: list[float], low: list[float], high: list[float], color: str) -> dict[str, Any]:
    """Asymmetric error bars from interval ends."""
    return {
        "type": "data",
        "symmetric": False,
        "color": color,
        "thickness": 1.4,
        "width": 3,
        "array": [h - v for v, h in zip(values, high, strict=True)],
        "arrayminus": [v - b for v, b in zip(values, low, strict=True)],
    }


def months_figure(rows: list[dict[str, Any]]) -> Figure | None:
    """Customers and bad rate by month of decision."""
    rows = [row for row in rows if row["bad_rate"] is not None]
    if len(rows) < 2:
        return None
    month = [row["month"] for row in rows]
    rate = [row["bad_rate"] for row in rows]
    low, high = [row["bad_rate_low"] for row in rows], [row["bad_rate_high"] for row in rows]
    data = [
        {
            "type": "bar",
            "x": month,
            "y": [row["n"] for row in rows],
            "name": "customers",
            "marker": {"color": "@soft"},
        },
        {
            "type": "scatter",
            "mode": "lines+markers",
            "x": month,
            "y": rate,
            "name": "bad rate",
            "yaxis": "y2",
            "line": {"color": "@bad", "width": 2},
            "marker": {"color": "@bad", "size": 7},
            "error_y": _spread(rate, low, high, "@bad"),
            "hovertemplate": "%{x}: %{y:.1%}<extra></extra>",
        },
    ]
    right = percent_axis(
        "bad rate",
        overlaying="y",
        side="right",
        showgrid=False,
        rangemode="tozero",
        tickmode="auto",
        nticks=6,
    )
    return {
        "data": data,
        "layout": figure_layout(
            "month of decision",
            "customers",
            270,
            xaxis={"type": "category"},
            yaxis2=right,
            margin={"r": 62},
        ),
    }


def _ladder(ladder: dict[str, Any]) -> Figure | None:
    rows = [row for row in ladder["rows"] if row["status"] == "ok"][::-1]
    series = [
        ("auc", "x", "cross-validation", "@muted", "circle-open", -0.13),
        ("ks", "x2", "cross-validation", "@muted", "circle-open", -0.13),
        ("test_auc", "x", "test sample", "@ink", "circle", 0.13),
        ("test_ks", "x2", "test sample", "@ink", "circle", 0.13),
    ]
    data, shown = [], set()
    both = any(r["test_auc"] is not None for r in rows)
    for key, axis, name, color, symbol, shift in series:
        here = [(i, r) for i, r in enumerate(rows) if r[key] is not None]
        if not here:
            continue
        value = [r[key] for _, r in here]
        trace = {
            "type": "scatter",
            "mode": "markers",
            "x": value,
            "xaxis": axis,
            "name": name,
            "y": [i + (shift if both else 0) for i, _ in here],
            "legendgroup": name,
            "showlegend": both and name not in shown,
            "marker": {
                "size": 9,
                "symbol": symbol,
                "color": ["@accent" if r["chosen"] else color for _, r in here],
            },
            "customdata": [label(r["name"]) for _, r in here],
            "hovertemplate": "%{customdata}: %{x:.3f}<extra></extra>",
        }
        if all(r[f"{key}_low"] is not None and r[f"{key}_high"] is not None for _, r in here):
            low, high = [r[f"{key}_low"] for _, r in here], [r[f"{key}_high"] for _, r in here]
            trace["error_x"] = _spread(value, low, high, color)
        shown.add(name)
        data.append(trace)
    if not data:
        return None
    ticks = [f"<b>{label(r['name'])}</b>" if r["chosen"] else label(r["name"]) for r in rows]
    layout = figure_layout(
        "AUC",
        "",
        90 + 40 * len(rows),
        xaxis={"domain": [0, 0.47]},
        yaxis={
            "tickvals": list(range(len(rows))),
            "ticktext": ticks,
            "range": [-0.6, len(rows) - 0.4],
            "gridcolor": "@line",
        },
    )
    layout["xaxis2"] = figure_axis("KS", domain=[0.53, 1], anchor="y")
    return {"data": data, "layout": layout}


def _ks(curve: dict[str, Any] | None) -> Figure | None:
    if curve is None:
        return None
    at, high, low = curve["at_share"], curve["at_bad"], curve["at_good"]
    data = [
        figure_line(curve["share"], curve["bad"], "bads found", "@bad"),
        figure_line(curve["share"], curve["good"], "goods found", "@good"),
        {
            "type": "scatter",
            "mode": "lines+text",
            "x": [at, at],
            "y": [low, high],
            "text": ["", f"KS {curve['ks']:.3f}"],
            "textposition": "top left",
            "showlegend": False,
            "line": {"color": "@ink", "width": 1.5, "dash": "dot"},
            "hoverinfo": "skip",
        },
    ]
    return {
        "data": data,
        "layout": figure_layout(
            "share of customers, riskiest first",
            "share found",
            xaxis=percent_axis("share of customers, riskiest first", range=[0, 1], dtick=0.25),
            yaxis=percent_axis("share found", range=[0, 1.04], dtick=0.25),
        ),
    }


def _roc(evaluation: dict[str, Any]) -> Figure | None:
    roc = evaluation.get("roc")
    if roc is None:
        return None
    data = [figure_line([0, 1], [0, 1], "chance", "@muted", "dot", hoverinfo="skip")]
    if "baseline" in roc:
        name = label(evaluation["baseline_name"])
        data.append(figure_line(roc["baseline"]["fpr"], roc["baseline"]["tpr"], name, "@muted"))
    data.append(figure_line(roc["chosen"]["fpr"], roc["chosen"]["tpr"], "chosen model", "@accent"))
    return {
        "data": data,
        "layout": figure_layout(
            "",
            "",
            xaxis=percent_axis("goods refused", range=[0, 1], dtick=0.25),
            yaxis=percent_axis("bads refused", range=[0, 1.04], dtick=0.25),
        ),
    }


def _calibration(bins: list[dict[str, Any]] | None) -> Figure | None:
    if not bins:
        return None
    score, rate = [b["mean_score"] for b in bins], [b["bad_rate"] for b in bins]
    low, high = [b["bad_rate_low"] for b in bins], [b["bad_rate_high"] for b in bins]
    top = max(max(high), max(score)) * 1.05
    data = [
        figure_line([0, top], [0, top], "perfect", "@muted", "dot", hoverinfo="skip"),
        {
            "type": "scatter",
            "mode": "lines+markers",
            "x": score,
            "y": rate,
            "name": "realised",
            "line": {"color": "@accent", "width": 1.5},
            "marker": {"color": "@accent", "size": 8},
            "error_y": _spread(rate, low, high, "@accent"),
            "customdata": [b["n"] for b in bins],
            "hovertemplate": "%{x:.1%} → %{y:.1%}, n = %{customdata}<extra></extra>",
        },
    ]
    return {
        "data": data,
        "layout": figure_layout(
            "",
            "",
            xaxis=percent_axis("mean score", rangemode="tozero"),
            yaxis=percent_axis("realised bad rate", rangemode="tozero"),
        ),
    }


def _lift(evaluation: dict[str, Any]) -> Figure | None:
    rows = evaluation.get("deciles")
    if not rows:
        return None
    rate = [r["bad_rate"] for r in rows]
    low, high = [r["bad_rate_low"] for r in rows], [r["bad_rate_high"] for r in rows]
    number = [str(r["tenth"]) for r in rows]
    mean = evaluation["basis"]["bad_rate"]
    data = [
        {
            "type": "bar",
            "x": number,
            "y": rate,
            "name": "bad rate",
            "marker": {"color": "@soft"},
            "error_y": _spread(rate, low, high, "@muted"),
            "hovertemplate": "%{x}: %{y:.1%}<extra></extra>",
        },
        figure_line([number[0], number[-1]], [mean, mean], "whole sample", "@bad", "dot"),
    ]
    return {
        "data": data,
        "layout": figure_layout(
            "",
            "",
            xaxis=figure_axis("band, riskiest first", type="category"),
            yaxis=percent_axis("realised bad rate", rangemode="tozero"),
        ),
    }


def _distribution(evaluation: dict[str, Any]) -> Figure | None:
    shares = evaluation.get("distribution")
    if not shares or len(shares["edges"]) < 2:
        return None
    edges = shares["edges"]
    middle = [(a + b) / 2 for a, b in pairwise(edges)]
    data = [
        {
            "type": "bar",
            "x": middle,
            "y": shares[key],
            "name": name,
            "opacity": 0.62,
            "marker": {"color": color},
            "hovertemplate": "%{x:.1%}: %{y:.1%}<extra></extra>",
        }
        for key, name, color in (("good", "goods", "@good"), ("bad", "bads", "@bad"))
        if any(shares[key])
    ]
    return {
        "data": data,
        "layout": figure_layout(
            "",
            "",
            barmode="overlay",
            bargap=0.04,
            xaxis=percent_axis("score: probability of bad"),
            yaxis=percent_axis("share of each group"),
        ),
    }


def _tradeoff(comparison: dict[str, Any] | None, recipe: str) -> Figure | None:
    if comparison is None:
        return None
    data = [
        figure_line(
            comparison["curve"]["approval"],
            comparison["curve"]["baseline"],
            label(comparison["baseline"]),
            "@muted",
        ),
        figure_line(
            comparison["curve"]["approval"], comparison["curve"]["chosen"], label(recipe), "@accent"
        ),
    ]
    return {
        "data": data,
        "layout": figure_layout(
            "",
            "",
            xaxis=percent_axis("approval rate"),
            yaxis=figure_axis("bad rate among approved", tickformat=".1%", rangemode="tozero"),
        ),
    }


def _stability(stability: dict[str, Any] | None) -> Figure | None:
    if stability is None:
        return None
    rows = stability["months"]
    month = [row["month"] for row in rows]
    data: list[dict[str, Any]] = [
        {
            "type": "bar",
            "x": month,
            "y": [row["psi"] for row in rows],
            "name": "PSI of the score",
            "marker": {"color": "@soft"},
            "hovertemplate": "%{x}: PSI %{y:.3f}<extra></extra>",
        },
    ]
    known = [row for row in rows if row["ks"] is not None]
    if known:
        ks = [row["ks"] for row in known]
        low, high = [row["ks_low"] for row in known], [row["ks_high"] for row in known]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": [row["month"] for row in known],
                "y": ks,
                "name": "KS",
                "yaxis": "y2",
                "line": {"color": "@accent", "width": 2},
                "marker": {"color": "@accent", "size": 8},
                "error_y": _spread(ks, low, high, "@accent"),
                "hovertemplate": "%{x}: KS %{y:.3f}<extra></extra>",
            }
        )
    top = max([0.3, *(row["psi"] for row in rows if row["psi"] is not None)]) * 1.1
    left = figure_axis(
        "KS", overlaying="y", side="left", rangemode="tozero", tickmode="auto", nticks=6
    )
    layout = figure_layout(
        "month of decision",
        "PSI of the score",
        290,
        xaxis={"type": "category"},
        yaxis2=left,
        yaxis={"side": "right", "range": [0, top], "showgrid": False},
        margin={"r": 62},
    )
    return {"data": data, "layout": layout}


def _forecasts(rows: list[dict[str, Any]]) -> Figure | None:
    rows = [row for row in rows if row["auc"] is not None][:16][::-1]
    if not rows:
        return None
    auc = [row["auc"] for row in rows]
    low, high = [row["auc_low"] for row in rows], [row["auc_high"] for row in rows]
    titles = [label(row["title"]) for row in rows]
    place = list(range(len(rows)))
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": auc,
            "y": place,
            "showlegend": False,
            "marker": {"color": "@accent", "size": 9},
            "error_x": _spread(auc, low, high, "@muted"),
            "customdata": titles,
            "hovertemplate": "%{customdata}: %{x:.3f}<extra></extra>",
        }
    ]
    edge = {
        "type": "line",
        "x0": 0.5,
        "x1": 0.5,
        "y0": 0,
        "y1": 1,
        "yref": "paper",
        "line": {"color": "@muted", "width": 1, "dash": "dot"},
    }
    return {
        "data": data,
        "layout": figure_layout(
            "AUC of the forecast alone against the label",
            "",
            80 + 30 * len(rows),
            shapes=[edge],
            yaxis={"tickvals": place, "ticktext": titles, "range": [-0.7, len(rows) - 0.3]},
        ),
    }


def _reasons(rows: list[dict[str, Any]]) -> Figure | None:
    rows = rows[:14][::-1]
    if not rows:
        return None
    place = list(range(len(rows)))
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "x": [row["share"] for row in rows],
            "y": place,
            "marker": {"color": "@accent"},
            "showlegend": False,
            "hovertemplate": "%{x:.1%}<extra></extra>",
        }
    ]
    return {
        "data": data,
        "layout": figure_layout(
            "",
            "",
            80 + 27 * len(rows),
            xaxis=percent_axis("share of all effects", rangemode="tozero"),
            yaxis={"tickvals": place, "ticktext": [label(row["title"]) for row in rows]},
        ),
    }
