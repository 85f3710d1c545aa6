"""Variables that may know the outcome: too good, filled by it, dated later, or gone out of time.

The as-of cut keeps events known at or after as_of out. What it cannot judge: profiles without
dates, context columns, and sources whose known_at is when things happened. Those are named.

Shapes: S samples, F variables.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from finetune.table import Column
from finetune.variable_measures import Ranking
from foundation.schema import Schema

TOO_GOOD, TOO_GOOD_LOW = 0.9, 0.8
FILLED = 0.8
STRONG_IV = 0.3
DROP, DROP_Z = 0.1, 3.0
LATER_SHARE = 0.01
LEAST_OF_A_CLASS = 10
UNDATED = (
    f"IV above {STRONG_IV} from a profile without valid_time: what was written after as_of knows "
    "the outcome; declare valid_time, or ask when it was written"
)
Add = Callable[[int, str, bool, str], None]


@dataclass(frozen=True)
class Suspect:
    """One reason to look at one variable.

    Attributes:
        kind: `too good`, `filled by outcome`, `later than as_of`, `undated` or `collapses`.
        grave: to be cleared before the model is used; otherwise worth a look.
        sentence: what was found and what to check, without the variable's name.
    """

    variable: str
    title: str
    kind: str
    grave: bool
    sentence: str


def suspects(
    columns: tuple[Column, ...],
    values: np.ndarray,
    y: np.ndarray,
    development: Ranking,
    test: Ranking | None,
    iv: np.ndarray,
    iv_chance: np.ndarray,
    schema: Schema,
) -> list[Suspect]:
    """Suspects, grave ones first, then by falling AUC.

    Args:
        values: [S, F] of the development rows; y: [S] their labels.
        test: of the test rows, or None.
        iv, iv_chance: [F].
    """
    undated = schema.profile is not None and not schema.profile.valid_time
    found: list[tuple[float, Suspect]] = []

    def add(f: int, kind: str, grave: bool, sentence: str) -> None:
        column = columns[f]
        rank = abs(development.auc[f] - 0.5) if np.isfinite(development.auc[f]) else 0.0
        found.append((rank, Suspect(column.name, column.title, kind, grave, sentence)))

    power = np.abs(development.auc - 0.5) + 0.5
    low = power - 1.96 * development.error
    few = np.minimum(development.bads, development.goods) < LEAST_OF_A_CLASS - 1e-6
    good = (power >= TOO_GOOD) & (low >= TOO_GOOD_LOW) & ~few
    enough = min((y == 1).sum(), (y == 0).sum()) >= LEAST_OF_A_CLASS
    for f in np.flatnonzero(good).tolist():
        text = f"AUC {power[f]:.3f} alone is better than behaviour usually is; "
        add(f, "too good", True, text + _check(columns[f], schema))
    for f, share, auc in _filled(values, y) if enough else []:
        text = (
            f"missing in {100 * share[0]:.0f} % of the goods and {100 * share[1]:.0f} % of the "
            f"bads (AUC {auc:.3f} by that alone): is it filled in after the outcome?"
        )
        add(f, "filled by outcome", True, text)
    for f, column in enumerate(columns):
        if column.block not in ("profile", "context"):
            continue
        if column.name.endswith(".days"):
            _later(f, values[:, f], undated and column.block == "profile", add)
        strong = iv[f] > max(STRONG_IV, iv_chance[f])
        if column.block == "profile" and undated and strong and not good[f]:
            add(f, "undated", False, UNDATED)
    if test is not None:
        _collapsed(development, test, add)
    order = sorted(range(len(found)), key=lambda i: (not found[i][1].grave, -found[i][0], i))
    return [found[i][1] for i in order]


def schema_notes(schema: Schema) -> list[str]:
    """What the cut takes on trust, one sentence each."""
    notes = []
    trusted = [n for n, s in schema.sources.items() if not s.known_at and _no_delay(s.delay)]
    if trusted:
        notes.append(
            f"source{'s' if len(trusted) > 1 else ''} {', '.join(trusted)}: neither known_at nor "
            "delay declared, events count as known the moment they happened"
        )
    if schema.profile is not None and not schema.profile.valid_time:
        notes.append("profile: no valid_time declared, its values count as known from the start")
    if schema.context:
        notes.append(
            f"context ({', '.join(schema.context)}): known at as_of by definition, nothing can "
            "check that"
        )
    return notes


def _no_delay(delay: str) -> bool:
    return not any(digit in delay for digit in "123456789")


def _check(column: Column, schema: Schema) -> str:
    if column.block == "context":
        return (
            "context is taken as known at as_of: was this column written before the decision, or "
            "with the outcome?"
        )
    if column.block == "profile":
        if schema.profile is not None and not schema.profile.valid_time:
            return "the profile has no valid_time, so it may have been written after the outcome"
        return "is valid_time when the value could be read, or when it became true?"
    return "is known_at of its source when the event could be read, and not when it happened?"


def _filled(values: np.ndarray, y: np.ndarray) -> list[tuple[int, tuple[float, float], float]]:
    """Variables whose being missing ranks the label: place, share of goods and bads, AUC."""
    missing = np.isnan(values)
    goods, bads = missing[y == 0].mean(axis=0), missing[y == 1].mean(axis=0)
    auc = 0.5 + np.abs(bads - goods) / 2
    return [
        (int(f), (float(goods[f]), float(bads[f])), float(auc[f]))
        for f in np.flatnonzero(auc >= FILLED)
    ]


def _later(f: int, days: np.ndarray, undated: bool, add: Add) -> None:
    """Dates after as_of: a day count below zero."""
    seen = days[~np.isnan(days)]
    share = float((seen < 0).mean()) if len(seen) else 0.0
    if share < LATER_SHARE:
        return
    text = (
        f"lies after as_of in {100 * share:.0f} % of the samples that have it: fine for a date "
        "agreed in advance, a leak for one that happens"
    )
    if undated:
        text += "; the profile has no valid_time, so it may have been written later"
    add(f, "later than as_of", False, text)


def _collapsed(development: Ranking, test: Ranking, add: Add) -> None:
    """Variables that ranked well on development and do not on the test rows, beyond chance."""
    side = np.where(development.auc >= 0.5, 1.0, -1.0)
    before = side * (development.auc - 0.5)
    after = side * (test.auc - 0.5)
    error = np.sqrt(development.error**2 + test.error**2)
    few = np.minimum(development.bads, development.goods) < LEAST_OF_A_CLASS - 1e-6
    with np.errstate(invalid="ignore", divide="ignore"):
        gone = (before - after >= DROP) & ((before - after) / error >= DROP_Z) & ~few
    for f in np.flatnonzero(gone):
        text = (
            f"AUC {0.5 + before[f]:.3f} on development, {0.5 + after[f]:.3f} in the same direction "
            "on the test sample: what it knew there it does not know here"
        )
        add(int(f), "collapses", True, text)
