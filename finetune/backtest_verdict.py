"""What a back-test says in one word, why, and what a reader must be warned of.

The rule reads paired 95 % intervals against the most important opponent (the incumbent where there
is one, else the baseline):

* `worse`: an interval (KS or AUC) lies below zero and the other one does not speak for us
* `better`: an interval lies above zero and the other one excludes a loss beyond the margin
* `not worse`: both intervals exclude a loss beyond the margin
* `cannot tell`: everything else, and wherever there is nothing to compare, a label is too rare, or
  the rows are those the model learnt from

What is `better` must be so in more than one month: where three quarters of a gain are gone without
one of them, the word is `cannot tell`, for the next months may be like the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.backtest_compare import LEAST_CLASS

MARGINS = {"ks": 0.02, "auc": 0.01}
LEAST_KEPT = 0.25  # of a gain, whichever month is left out
VERDICTS = ("better", "not worse", "worse", "cannot tell")
PSI_MOVED = 0.25
LEAST_ROWS = 50  # PSI of fewer rows is mostly chance
NAMES = {"ks": "KS", "auc": "AUC"}


@dataclass(frozen=True)
class BacktestResult:
    """What a back-test found.

    Attributes:
        verdict: `better`, `not worse`, `worse` or `cannot tell`.
        reasons: the sentences behind it; `warnings`: what limits it.
        numbers: the content of `backtest.json`.
        ks: of the judged model on the judged rows; None where a label is missing.
        psi_max: the largest PSI of the score in a month of at least 50 rows (all rows together
            where no month has as many), against frozen development bins; None without rows.
        oot_drop: cross-validated KS at development minus `ks`, above zero for a loss; None where
            the rows do not lie after the training window.
        paired_gain_lower: lower end of the 95 % interval of KS minus the opponent's KS.
        opponent: whom the verdict is about; None without one.
    """

    verdict: str
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    numbers: dict[str, Any]
    ks: float | None
    psi_max: float | None
    oot_drop: float | None
    paired_gain_lower: float | None
    opponent: str | None

    def lines(self) -> list[str]:
        """The table for a terminal."""
        from finetune.backtest_page import terminal_lines

        return terminal_lines(self.numbers)


def judge(numbers: dict[str, Any]) -> BacktestResult:
    """Add verdict, reasons, warnings and the four figures for gates to the numbers.

    Args:
        numbers: of `finetune.backtest_compare.compare_rows`, with `out_of_time`, `development`
            (`ks` of cross-validation or None) and `trained_on` (these rows were learnt from).
    """
    opponent = numbers["opponent"]
    overall = numbers["overall"]
    against = overall["against"].get(opponent) if opponent else None
    verdict, reasons = _verdict(numbers, against)
    figures = overall["models"][numbers["subject"]]
    ks, developed = figures["ks"], numbers["development"]["ks"]
    drop = None
    if numbers["out_of_time"] and ks is not None and developed is not None:
        drop = developed - ks
    gain = against["ks"]["low"] if against and against["ks"] else None
    found = {
        "verdict": verdict,
        "reasons": [*reasons, *_business(numbers, against)],
        "warnings": _warnings(numbers, drop),
        "ks": ks,
        "psi_max": _psi_max(numbers),
        "oot_drop": drop,
        "paired_gain_lower": gain,
    }
    numbers = numbers | found
    return BacktestResult(
        verdict=verdict,
        reasons=tuple(found["reasons"]),
        warnings=tuple(found["warnings"]),
        numbers=numbers,
        ks=ks,
        psi_max=found["psi_max"],
        oot_drop=drop,
        paired_gain_lower=gain,
        opponent=opponent,
    )


def _verdict(numbers: dict[str, Any], against: dict[str, Any] | None) -> tuple[str, list[str]]:
    if against is None:
        return "cannot tell", [
            "there is nothing to compare with: name the incumbent's package (--incumbent) or give "
            "its score in a column incumbent_score"
        ]
    name = title_of(numbers["opponent"])
    rows = f"{against['n']:,} rows with {against['bads']} bads"
    if against["ks"] is None or min(against["bads"], against["n"] - against["bads"]) < LEAST_CLASS:
        return "cannot tell", [
            f"too few of a label to compare with {name}: {rows}; ten bads and ten goods are needed"
        ]
    told = [_difference(against, m, name) for m in ("ks", "auc")]
    told[0] += f", on the same {rows}"
    if numbers.get("trained_on"):
        return "cannot tell", [numbers["trained_on"], *told]
    word, why = paired_verdict(against["ks"], against["auc"])
    resting = _rests_on(numbers) if word == "better" else None
    if resting:
        return "cannot tell", [resting, why.format(name=name), *told]
    return word, [why.format(name=name), *told]


def _rests_on(numbers: dict[str, Any]) -> str | None:
    """What to say where a gain comes from one month; None where it does not, or there is one.

    Every month counts by its rows; months with too few of a label are left out of the question.
    """
    found = [
        (m["month"], against)
        for m in numbers["months"]
        if (against := m["against"].get(numbers["opponent"])) and against["ks"]
        if min(against["bads"], against["n"] - against["bads"]) >= LEAST_CLASS
    ]
    if len(found) < 2:
        return None
    mass = np.array([against["n"] for _, against in found], dtype=np.float64)
    kept: dict[str, np.ndarray] = {}
    for measure in MARGINS:
        gain = np.array([against[measure]["difference"] for _, against in found])
        whole = float(np.average(gain, weights=mass))
        if whole <= 0:
            return None
        rest = (mass @ gain - mass * gain) / (mass.sum() - mass)
        kept[measure] = rest / whole
    lost = {m: shares for m, shares in kept.items() if shares.min() < LEAST_KEPT}
    if len(lost) < len(kept):
        return None
    shares = kept["auc"]
    month, against = found[int(shares.argmin())]
    return (
        f"the gain rests on {month} (AUC {against['auc']['difference']:+.3f} on "
        f"{against['n']:,} rows): without it {max(float(shares.min()), 0.0):.0%} of it is left"
    )


def paired_verdict(ks: dict[str, float], auc: dict[str, float]) -> tuple[str, str]:
    """The word and its sentence from two paired intervals (`low`, `high`); see the module.

    `{name}` in the sentence stands for the opponent.
    """
    both = {"ks": ks, "auc": auc}
    above = [m for m in both if both[m]["low"] > 0]
    below = [m for m in both if both[m]["high"] < 0]
    losses = [m for m in both if both[m]["low"] < -MARGINS[m]]
    if above and below:
        return "cannot tell", (
            f"{NAMES[above[0]]} speaks for the model and {NAMES[below[0]]} for {{name}}"
        )
    if below:
        return "worse", (f"ranks worse than {{name}}: the interval of {_named(below)} below zero")
    if above and not losses:
        return "better", (f"ranks better than {{name}}: the interval of {_named(above)} above zero")
    if not losses:
        return "not worse", (
            "no loss to {name} beyond the margin "
            f"({MARGINS['ks']:g} of KS, {MARGINS['auc']:g} of AUC), and no gain beyond chance"
        )
    lowest = both[losses[0]]["low"]
    return "cannot tell", (
        f"these rows cannot show it: a loss of {-lowest:.3f} of {NAMES[losses[0]]} to {{name}} is "
        f"within chance, and so is a gain of {both[losses[0]]['high']:.3f}"
    )


def title_of(opponent: str) -> str:
    """An opponent in a sentence."""
    return "the incumbent" if opponent.startswith("incumbent") else opponent


def _named(measures: list[str]) -> str:
    verb = "lies" if len(measures) == 1 else "and that of AUC lie"
    return f"{NAMES[measures[0]]} {verb}"


def _difference(against: dict[str, Any], measure: str, name: str) -> str:
    d = against[measure]
    return (
        f"{NAMES[measure]} {d['ours']:.3f} against {d['theirs']:.3f} of {name}: difference "
        f"{d['difference']:+.3f}, 95 % interval {d['low']:+.3f} to {d['high']:+.3f} "
        f"({d['method']})"
    )


def _business(numbers: dict[str, Any], against: dict[str, Any] | None) -> list[str]:
    """What approval and money say; never part of the word."""
    if against is None or against["approval"] is None:
        return []
    a, rate = against["approval"], against["bad_rate"]
    name = title_of(numbers["opponent"])
    out = [
        f"at the bad rate {name} has when it approves {against['share']:.0%} "
        f"({rate['theirs']:.1%}), the model can approve {a['ours']:.1%} and {name} "
        f"{a['theirs']:.1%}: {100 * a['difference']:+.1f} points, 95 % interval "
        f"{100 * a['low']:+.1f} to {100 * a['high']:+.1f}"
    ]
    if against.get("value"):
        v = against["value"]["same_approval"]
        unit = numbers["costs"]["currency"] or "units"
        out.append(
            f"worth {v['difference']:+.2f} {unit} an applicant at {against['share']:.0%} approved, "
            f"95 % interval {v['low']:+.2f} to {v['high']:+.2f}"
        )
    return out


def _psi_max(numbers: dict[str, Any]) -> float | None:
    found = [m["psi"] for m in numbers["months"] if m["n"] >= LEAST_ROWS and m["psi"] is not None]
    return max(found) if found else numbers["overall"]["psi"]


def _warnings(numbers: dict[str, Any], drop: float | None) -> list[str]:
    out: list[str] = []
    few = [m["month"] for m in numbers["months"] if _rare(m) < LEAST_CLASS]
    if few and len(numbers["months"]) > 1:
        out.append(
            f"fewer than ten bads or goods in {_some(few)}: figures of those months say little"
        )
    if not numbers["out_of_time"]:
        out.append("the rows do not lie after the training window: decay over time is not measured")
    moved = [
        m["month"]
        for m in numbers["months"]
        if m["n"] >= LEAST_ROWS and m["psi"] is not None and m["psi"] >= PSI_MOVED
    ]
    if moved:
        out.append(
            f"the score moved against development in {_some(moved)} (PSI of 0.25 or more): look at "
            "who applies there"
        )
    figures = numbers["overall"]["models"][numbers["subject"]]
    developed = numbers["development"]["ks"]
    if drop is not None and drop > 0 and figures["ks_high"] < developed:
        out.append(
            f"KS fell from {developed:.3f} in cross-validation to {figures['ks']:.3f}, beyond its "
            f"interval ({figures['ks_low']:.3f} to {figures['ks_high']:.3f})"
        )
    ratio = figures.get("observed_to_expected")
    if ratio is not None and not 0.8 <= ratio <= 1.25:
        out.append(
            f"the score is off in level: {figures['observed']:.1%} bads came where it expected "
            f"{figures['expected']:.1%}; calibrate it anew"
        )
    return out


def _rare(month: dict[str, Any]) -> int:
    return int(min(month["bads"], month["n"] - month["bads"]))


def _some(months: list[str], limit: int = 6) -> str:
    shown = ", ".join(months[:limit])
    return shown if len(months) <= limit else f"{shown} and {len(months) - limit} more months"
