"""Numbers of a back-test, from its rows: figures, paired tests, stability, swap sets and value.

A slice is a part of the rows: all, one month, one channel. Every interval of a slice comes from
one set of bootstrap draws (stratified by label; by customer where customers repeat), so that
differences between models are paired. AUC differences of unweighted rows of different customers
are tested with DeLong's method instead.

Shapes: S rows, W sets of row weights, D draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from finetune import metrics
from finetune.backtest_rows import SCORE, FrozenBins, ScoredRows
from finetune.bootstrap import delong, interval_ends, resamples
from finetune.costs import CostMatrix, ValueCurve, value_below, worth
from finetune.report_evaluation import basis, wilson
from finetune.swap_set import CELLS, Curve, Ranking, swap_cells, swap_record

LEAST_CLASS = 10  # fewer bads or goods say nothing about a ranking
APPROVALS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
TAILS = (0.025, 0.975)
CURVE_POINTS = 60
Drawn = dict[str, np.ndarray]


@dataclass(frozen=True)
class Part:
    """The rows of one slice that every model has scored.

    Attributes:
        groups: [S] equal for rows of one customer; None where no customer repeats.
        exposure: [S] or None.
    """

    y: np.ndarray
    weight: np.ndarray
    groups: np.ndarray | None
    scores: dict[str, np.ndarray]
    exposure: np.ndarray | None

    @classmethod
    def of(cls, frame: pl.DataFrame, names: Sequence[str]) -> Part:
        """Rows of `ScoredRows.frame` that have a score of every model in `names`."""
        frame = frame.drop_nulls([f"{SCORE}{n}" for n in names])
        people = frame["entity_id"].rank("dense").cast(pl.Int64).to_numpy()
        exposure = frame["exposure"]
        return cls(
            y=frame["label"].cast(pl.Float64).to_numpy(),
            weight=frame["weight"].to_numpy(),
            groups=people if len(np.unique(people)) < len(people) else None,
            scores={n: frame[f"{SCORE}{n}"].to_numpy() for n in names},
            exposure=None if exposure.null_count() else exposure.to_numpy(),
        )

    @property
    def judged(self) -> bool:
        """Whether a ranking can be measured at all."""
        return 0 < self.y.sum() < len(self.y)

    @property
    def least(self) -> int:
        """Rows of the rarer label."""
        return int(min(self.y.sum(), len(self.y) - self.y.sum()))

    @property
    def plain(self) -> bool:
        """Equal weights and no customer twice."""
        return self.groups is None and self.weight.min() == self.weight.max()


@dataclass(frozen=True)
class Terms:
    """How to compare.

    Attributes:
        approval: share that the opponent approves at present.
    """

    approval: float = 0.7
    draws: int = 500
    seed: int = 0
    costs: CostMatrix | None = None


def drawn_values(
    part: Part, measure: Callable[[np.ndarray], Drawn], terms: Terms
) -> tuple[Drawn, Drawn]:
    """A measure on the rows as they are (each value [1]) and over bootstrap draws (each [D])."""
    real = measure(part.weight[None])
    parts = [
        measure(counts * part.weight)
        for counts in resamples(part.y, terms.draws, terms.seed, part.groups)
    ]
    return real, {k: np.concatenate([p[k] for p in parts]) for k in real}


def span(values: np.ndarray) -> dict[str, float]:
    """The 95 % percentile interval of draws."""
    low, high = np.quantile(values, TAILS)
    return {"low": float(low), "high": float(high)}


def gap(real: Drawn, drawn: Drawn, first: str, second: str) -> dict[str, float]:
    """A paired difference with its interval and a two-sided bootstrap p-value."""
    value = float(real[first][0] - real[second][0])
    gaps = drawn[first] - drawn[second]
    side = min(float((gaps <= 0).mean()), float((gaps >= 0).mean()))
    return {
        "ours": float(real[first][0]),
        "theirs": float(real[second][0]),
        "difference": value,
        **span(gaps),
        "p_value": min(1.0, 2 * max(side, 1 / len(gaps))),
    }


def model_figures(
    part: Part, name: str, probability: bool, terms: Terms, full: bool = True
) -> dict[str, Any]:
    """KS and AUC with intervals and, of a probability, calibration; None where not measurable."""
    y, score, weight = part.y, part.scores[name], part.weight
    out: dict[str, Any] = dict.fromkeys(
        ("ks", "ks_low", "ks_high", "auc", "auc_low", "auc_high", "brier", "ece", "expected",
         "observed", "observed_to_expected")
    )  # fmt: skip
    out["n"] = len(y)
    if not len(y):
        return out
    if part.judged:
        ranking = Ranking.of(score)

        def measure(weights: np.ndarray) -> Drawn:
            curve = Curve.of(ranking, y, weights)
            return {"ks": curve.ks(), "auc": curve.auc()}

        real, drawn = drawn_values(part, measure, terms)
        for key in ("ks", "auc"):
            value = float(real[key][0])
            low, high = interval_ends(drawn[key], value, key)
            out |= {key: value, f"{key}_low": low, f"{key}_high": high}
    if probability:
        expected = float(np.average(score, weights=weight))
        observed = float(np.average(y, weights=weight))
        out |= {
            "brier": metrics.brier(y, score, weight),
            "ece": metrics.ece(y, score, weight),
            "expected": expected,
            "observed": observed,
            "observed_to_expected": observed / expected if expected else None,
        }
        if full:
            out["deciles"] = decile_rows(y, score, weight)
    return out


def decile_rows(y: np.ndarray, score: np.ndarray, weight: np.ndarray) -> list[dict[str, Any]]:
    """Observed against expected bad rate by tenth of the score, safest first; ties together.

    The Wilson interval counts rows, whatever their weight.
    """
    curve = metrics.calibration_curve(y, score, weight)
    low, high = wilson(curve["observed"] * curve["count"], curve["count"])
    return [
        {
            "n": int(n),
            "expected": float(p),
            "observed": float(o),
            "low": float(a),
            "high": float(b),
            "ratio": float(o / p) if p else None,
        }
        for n, p, o, a, b in zip(
            curve["count"], curve["predicted"], curve["observed"], low, high, strict=True
        )
    ]


def compare(part: Part, subject: str, opponent: str, terms: Terms, full: bool) -> dict[str, Any]:
    """The subject against one opponent on the same rows; None where a label is too rare."""
    out: dict[str, Any] = {
        "n": len(part.y), "bads": int(part.y.sum()), "share": terms.approval,
    }  # fmt: skip
    out |= dict.fromkeys(("auc", "ks", "approval", "bad_rate", "swap", "swap_same_risk", "value"))
    if not part.judged or part.least < 2:
        return out
    y = part.y
    ours, theirs = (Ranking.of(part.scores[n]) for n in (subject, opponent))
    gain = None
    if terms.costs is not None and part.exposure is not None:
        gain = worth(terms.costs, y, part.exposure)
    shares = [terms.approval, *(APPROVALS if full else ())]

    def measure(weights: np.ndarray) -> Drawn:
        a, b = Curve.of(ours, y, weights), Curve.of(theirs, y, weights)
        found: Drawn = {"ks": a.ks(), "ks_": b.ks(), "auc": a.auc(), "auc_": b.auc()}
        for i, each in enumerate(shares):
            share = np.full(len(weights), each)
            allowed = b.bad_rate_at(share)
            found |= {
                f"rate{i}": a.bad_rate_at(share),
                f"rate_{i}": allowed,
                f"approve{i}": a.approval_at(allowed),
                f"approve_{i}": b.approval_at(allowed),
            }
        share = np.full(len(weights), terms.approval)
        old = b.fractions(share)[:, theirs.group]
        for kind, at in (("swap", share), ("risk", found["approve0"])):
            new = a.fractions(at)[:, ours.group]
            for cell, (mass, bads) in swap_cells(y, weights, new, old).items():
                found |= {f"{kind}.{cell}.n": mass, f"{kind}.{cell}.bads": bads}
            if gain is not None:
                total = weights.sum(axis=1)
                found[f"{kind}.value"] = (weights * new * gain).sum(axis=1) / total
                found["old.value"] = (weights * old * gain).sum(axis=1) / total
        if gain is not None:
            for end, ranking in (("", ours), ("_", theirs)):
                _, approved, value = ValueCurve.of(ranking, gain, weights).best()
                found |= {f"best{end}": value, f"best_approval{end}": approved}
        return found

    real, drawn = drawn_values(part, measure, terms)
    out["ks"] = gap(real, drawn, "ks", "ks_") | {"method": "paired bootstrap"}
    out["auc"] = gap(real, drawn, "auc", "auc_") | {"method": "paired bootstrap"}
    if part.plain:
        tested = delong(y, part.scores[subject], part.scores[opponent])
        out["auc"] |= {
            "low": tested.low, "high": tested.high, "p_value": tested.p_value, "method": "DeLong",
        }  # fmt: skip
    rows = [
        {
            "share": share,
            "approval": gap(real, drawn, f"approve{i}", f"approve_{i}"),
            "bad_rate": gap(real, drawn, f"rate{i}", f"rate_{i}"),
        }
        for i, share in enumerate(shares)
    ]
    out |= rows[0]
    if full:
        out["approvals"] = rows[1:]
        out["curve"] = _rate_curves(part, ours, theirs)
    for kind, name in (("swap", "swap"), ("risk", "swap_same_risk")):
        out[name] = swap_record(_cells(real, kind), _cells(drawn, kind))
    if gain is not None:
        out["value"] = {
            "best": gap(real, drawn, "best", "best_"),
            "best_approval": {
                "ours": float(real["best_approval"][0]), "theirs": float(real["best_approval_"][0]),
            },
            "same_approval": gap(real, drawn, "swap.value", "old.value"),
            "same_risk": gap(real, drawn, "risk.value", "old.value"),
        }  # fmt: skip
    return out


def _cells(values: Drawn, kind: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {c: (values[f"{kind}.{c}.n"], values[f"{kind}.{c}.bads"]) for c in CELLS}


def _rate_curves(part: Part, ours: Ranking, theirs: Ranking) -> dict[str, list[float]]:
    """Bad rate among the approved at every approval rate, for the picture."""
    grid = np.linspace(0.05, 1.0, CURVE_POINTS)
    weights = np.repeat(part.weight[None], len(grid), axis=0)
    found = {"approval": grid.tolist()}
    for name, ranking in (("ours", ours), ("theirs", theirs)):
        found[name] = Curve.of(ranking, part.y, weights).bad_rate_at(grid).tolist()
    return found


def model_value(part: Part, name: str, probability: bool, terms: Terms) -> dict[str, Any] | None:
    """Value of a model's cut-offs per applicant: the best one, and the break-even one."""
    if terms.costs is None or part.exposure is None or not part.judged:
        return None
    score = part.scores[name]
    gain = worth(terms.costs, part.y, part.exposure)
    ranking = Ranking.of(score)
    curve = ValueCurve.of(ranking, gain, part.weight[None])
    at, approval, value = curve.best()

    def measure(weights: np.ndarray) -> Drawn:
        found = {"best": ValueCurve.of(ranking, gain, weights).best()[2]}
        if probability and terms.costs is not None:
            found["even"] = value_below(score, gain, weights, terms.costs.break_even)[1]
        return found

    real, drawn = drawn_values(part, measure, terms)
    shares = curve.every[0] / curve.every[0, -1]
    keep = np.unique(np.linspace(0, len(shares) - 1, min(len(shares), 200)).round().astype(int))
    out: dict[str, Any] = {
        "best": {
            "cut": float(ranking.values[at[0] - 1]) if at[0] else None,
            "approval": float(approval[0]),
            "value": float(value[0]),
            **span(drawn["best"]),
        },
        "everybody": float(curve.per_applicant()[0, -1]),
        "break_even": None,
        "curve": {
            "approval": shares[keep].tolist(),
            "value": curve.per_applicant()[0, keep].tolist(),
        },
    }
    if probability:
        cut = terms.costs.break_even
        share, _ = value_below(score, gain, part.weight[None], cut)
        out["break_even"] = {
            "cut": cut,
            "approval": float(share[0]),
            "value": float(real["even"][0]),
            **span(drawn["even"]),
        }
    return out


def slice_numbers(
    rows: ScoredRows, frame: pl.DataFrame, terms: Terms, full: bool = False
) -> dict[str, Any]:
    """Everything about some of the rows; `full` for the overall part with curves and deciles."""
    subject, *opponents = rows.models
    compared = opponents if full else opponents[:1]
    part = Part.of(frame, [subject.name])
    as_of_us = frame["as_of"].cast(pl.Int64).to_numpy()
    out: dict[str, Any] = basis("", part.y, as_of_us) | {
        "bads": int(part.y.sum()),
        "psi": psi_of(rows, frame),
        "psi_by_chance": psi_by_chance(rows, frame),
        "models": {},
        "against": {},
    }
    small = terms if full else Terms(
        terms.approval, min(terms.draws, 300), terms.seed, terms.costs
    )  # fmt: skip
    out["models"][subject.name] = model_figures(
        part, subject.name, subject.probability, small, full
    )
    if full:
        out["models"][subject.name]["value"] = model_value(
            part, subject.name, subject.probability, small
        )
    for facts in compared:
        both = Part.of(frame, [subject.name, facts.name])
        out["models"][facts.name] = model_figures(both, facts.name, facts.probability, small, full)
        if full:
            out["models"][facts.name]["value"] = model_value(
                both, facts.name, facts.probability, small
            )
        out["against"][facts.name] = compare(both, subject.name, facts.name, small, full)
        fewer = len(both.y) < len(part.y)
        out["against"][facts.name]["without_score"] = (
            _without(frame, subject.name, facts.name) if fewer else None
        )
    del out["name"], out["n_bad"], out["n_unknown"]
    return out


def _without(frame: pl.DataFrame, subject: str, opponent: str) -> dict[str, Any]:
    """The rows an opponent has no score for: counts, bad rate and the subject's ranking."""
    part = Part.of(frame.filter(pl.col(f"{SCORE}{opponent}").is_null()), [subject])
    measured = part.judged and part.least >= LEAST_CLASS
    return {
        "n": len(part.y),
        "bads": int(part.y.sum()),
        "ks": metrics.ks(part.y, part.scores[subject], part.weight) if measured else None,
    }


def psi_of(rows: ScoredRows, frame: pl.DataFrame) -> float | None:
    """PSI of the subject's score against frozen development bins, averaged over origins."""
    found, mass = 0.0, 0.0
    for bins, part in _by_origin(rows, frame):
        weight = part["weight"].to_numpy()
        shares = metrics.bin_shares(part[_column(rows)].to_numpy(), bins.edges, weight)
        found += weight.sum() * metrics.psi_of_shares(bins.shares, shares)
        mass += weight.sum()
    return float(found / mass) if mass else None


def psi_by_chance(rows: ScoredRows, frame: pl.DataFrame) -> float | None:
    """PSI to be expected where nothing moved: (bins - 1)(1 / n + 1 / development n).

    Yurdakul and Naranjo (2020), Journal of Risk Model Validation 14(4).
    """
    found, mass = 0.0, 0
    for bins, part in _by_origin(rows, frame):
        found += len(part) * len(bins.edges) * (1 / len(part) + 1 / max(bins.n, 1))
        mass += len(part)
    return found / mass if mass else None


def _by_origin(rows: ScoredRows, frame: pl.DataFrame) -> list[tuple[FrozenBins, pl.DataFrame]]:
    out = []
    for name, bins in rows.frozen.items():
        own = pl.col("origin").fill_null("development") == name
        part = frame.filter(own & pl.col(_column(rows)).is_not_null())
        if len(part):
            out.append((bins, part))
    return out


def _column(rows: ScoredRows) -> str:
    return f"{SCORE}{rows.subject.name}"


def compare_rows(rows: ScoredRows, terms: Terms) -> dict[str, Any]:
    """All numbers of a back-test that come from its rows: overall, by month, by channel."""
    frame = rows.frame
    return {
        "subject": rows.subject.name,
        "opponent": rows.models[1].name if len(rows.models) > 1 else None,
        "models": [
            {"name": m.name, "title": m.title, "probability": m.probability} for m in rows.models
        ],
        "frozen_bins": {name: bins.to_dict() for name, bins in rows.frozen.items()},
        "overall": slice_numbers(rows, frame, terms, full=True),
        "months": _slices(rows, frame, "month", terms),
        "channels": _slices(rows, frame, "channel", terms),
        "seen": _slices(rows, frame, "seen", terms),
    }


def _slices(
    rows: ScoredRows, frame: pl.DataFrame, column: str, terms: Terms
) -> list[dict[str, Any]]:
    """One slice for each value; channels and seen customers only where there are two kinds."""
    values = frame[column].unique().sort()
    if not len(values.drop_nulls()) or (column != "month" and len(values) < 2):
        return []
    return [
        {column: v} | slice_numbers(rows, frame.filter(pl.col(column).eq_missing(pl.lit(v))), terms)
        for v in values.to_list()
    ]
