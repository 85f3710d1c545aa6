"""Reasons for a score, for any recipe: what the score would be without each group of inputs.

Columns are grouped by the field or forecast they come from. A group's effect is the drop in
log-odds when its columns are set to their reference (the median or most frequent value of the
development sample): occlusion, as in Zeiler and Fergus 2014, applied to groups. It asks nothing of
the model but its logit, so every recipe explains itself in the same words.

Shapes: S rows, F columns, G groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from finetune.table import Column, FeatureTable


@dataclass(frozen=True)
class Reason:
    """One reason.

    Attributes:
        name: the group, such as `statement.status` or `forecast.late_31d`.
        title: words for people.
        value: what stood there, such as `41 %` or `2`.
        effect: change of the log-odds of label 1 against the reference; positive raises risk.
    """

    name: str
    title: str
    value: str
    effect: float


def reference_row(table: FeatureTable) -> np.ndarray:
    """[F] float32: median of numbers, most frequent code, NaN where a column is mostly missing."""
    out = np.full(len(table.columns), np.nan, dtype=np.float32)
    for i, column in enumerate(table.columns):
        values = table.values[:, i]
        present = values[~np.isnan(values)]
        if 2 * len(present) < len(values) or not len(present):
            continue
        if column.kind == "code":
            levels, counts = np.unique(present, return_counts=True)
            out[i] = levels[np.argmax(counts)]
        else:
            out[i] = np.sort(present)[len(present) // 2]
    return out


def group_effects(
    columns: tuple[Column, ...],
    used: frozenset[str],
    values: np.ndarray,
    reference: np.ndarray,
    logit: Callable[[np.ndarray], np.ndarray],
) -> tuple[list[str], np.ndarray]:
    """Effect of every group on every row.

    Args:
        used: names of the columns the model reads; other columns are skipped.
        values: [S, F] float32.
        reference: [F] float32.
        logit: [R, F] -> [R] log-odds.
    Returns:
        groups in order of first appearance, effects [S, G] float64.
    """
    members: dict[str, list[int]] = {}
    for i, column in enumerate(columns):
        if column.name in used:
            members.setdefault(column.group, []).append(i)
    groups = list(members)
    if not groups:
        return [], np.zeros((len(values), 0))
    base = logit(values)
    effects = np.empty((len(values), len(groups)))
    for g, name in enumerate(groups):
        changed = values.copy()
        changed[:, members[name]] = reference[members[name]]
        effects[:, g] = base - logit(changed)
    return groups, effects


def top_reasons(
    columns: tuple[Column, ...],
    used: frozenset[str],
    row: np.ndarray,
    groups: list[str],
    effects: np.ndarray,
    reference: np.ndarray,
    count: int = 4,
) -> tuple[Reason, ...]:
    """The strongest groups of one row, as reasons in words.

    The value shown is that of the group's column which stands furthest from its reference.
    """
    order = [g for g in np.argsort(-np.abs(effects)) if abs(effects[g]) > 1e-6][:count]
    out = []
    for g in order:
        members = [i for i, c in enumerate(columns) if c.group == groups[g] and c.name in used]
        shown = max(members, key=lambda i: _distance(float(row[i]), float(reference[i])))
        title = columns[shown].title if columns[shown].block != "embedding" else "behaviour pattern"
        out.append(
            Reason(groups[g], title, show_value(columns[shown], row[shown]), float(effects[g]))
        )
    return tuple(out)


def show_value(column: Column, value: float) -> str:
    """A value as people read it."""
    if np.isnan(value):
        return "missing"
    if column.block == "embedding":
        return ""
    if column.block == "forecast":
        return f"{100 * value:.0f} %"
    if column.kind == "code":
        index = int(value)
        return column.levels[index] if 0 <= index < len(column.levels) else "other"
    if float(value).is_integer() and abs(value) < 1e9:
        return f"{int(value)}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _distance(value: float, reference: float) -> float:
    if np.isnan(value) or np.isnan(reference):
        return 0.5 if np.isnan(value) != np.isnan(reference) else 0.0
    return abs(value - reference) / (1.0 + abs(reference))
