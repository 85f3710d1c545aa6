"""Approval at a constant bad rate, and who is swapped in and out when one score replaces another.

A lender approves the best share of applicants, the low end of the score. Where a cut-off falls
into a group of tied scores, each of them counts for the same fraction: as if the lender drew
among equals, so that approval rates are met exactly and nothing hangs on the order of rows.

Shapes: S rows, G groups of tied scores (best first), W sets of row weights (one for the rows as
they are, many for bootstrap draws).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.metrics import EPS


@dataclass(frozen=True)
class Ranking:
    """The tie groups of a score, best (lowest) first.

    Attributes:
        order: [S] rows from best to worst.
        ends: [G] place in `order` of the last row of each group.
        group: [S] group of each row.
        values: [G] the scores.
    """

    order: np.ndarray
    ends: np.ndarray
    group: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, score: np.ndarray) -> Ranking:
        """Rank rows by a score [S] without missing values."""
        values, group = np.unique(np.asarray(score, np.float64), return_inverse=True)
        order = np.argsort(group, kind="stable")
        ends = np.flatnonzero(np.append(np.diff(group[order]) > 0, True))
        return cls(order, ends, group, values)

    def sums(self, weights: np.ndarray) -> np.ndarray:
        """[W, G] cumulative weight up to each group, of weights [W, S]."""
        return np.cumsum(weights[:, self.order], axis=1)[:, self.ends]


@dataclass(frozen=True)
class Curve:
    """Cumulative weight of everybody and of bads up to each group, best first: [W, G]."""

    every: np.ndarray
    bad: np.ndarray

    @classmethod
    def of(cls, ranking: Ranking, y: np.ndarray, weights: np.ndarray) -> Curve:
        """Curves of rows with labels y [S] under weights [W, S]."""
        return cls(ranking.sums(weights), ranking.sums(weights * y))

    @property
    def rates(self) -> tuple[np.ndarray, np.ndarray]:
        """[W, G] shares of the bads and of the goods up to each group."""
        good = self.every - self.bad
        return (
            self.bad / np.maximum(self.bad[:, -1:], EPS),
            good / np.maximum(good[:, -1:], EPS),
        )

    def ks(self) -> np.ndarray:
        """[W] largest distance of the two shares."""
        bad, good = self.rates
        return np.asarray(np.abs(bad - good).max(axis=1))

    def auc(self) -> np.ndarray:
        """[W] chance that a bad scores above a good, ties half."""
        bad, good = self.rates
        step = np.diff(bad, axis=1, prepend=0.0)
        before = np.concatenate([np.zeros((len(good), 1)), good[:, :-1]], axis=1)
        return np.asarray((step * (before + good) / 2).sum(axis=1))

    def fractions(self, share: np.ndarray) -> np.ndarray:
        """[W, G] part of each group that is approved when the best `share` [W] are."""
        before = np.concatenate([np.zeros((len(self.every), 1)), self.every[:, :-1]], axis=1)
        mass = self.every - before
        room = np.asarray(share)[:, None] * self.every[:, -1:] - before
        return np.clip(room / np.maximum(mass, EPS), 0.0, 1.0)

    def bad_rate_at(self, share: np.ndarray) -> np.ndarray:
        """[W] bad rate among the best `share` [W] of applicants."""
        bads = (self.fractions(share) * np.diff(self.bad, axis=1, prepend=0.0)).sum(axis=1)
        return np.asarray(bads / np.maximum(share * self.every[:, -1], EPS))

    def approval_at(self, bad_rate: np.ndarray) -> np.ndarray:
        """[W] largest share that can be approved, best first, with at most `bad_rate` [W] bads.

        Between two groups the share of bads changes evenly, so the last group may be cut.
        """
        zero = np.zeros((len(self.every), 1))
        every, bad = np.hstack([zero, self.every]), np.hstack([zero, self.bad])
        over = bad - np.asarray(bad_rate)[:, None] * every
        ahead, behind = over[:, :-1], over[:, 1:]
        fits = behind <= EPS * every[:, -1:]
        step = np.diff(every, axis=1)
        crossed = np.where(fits, 1.0, 0.0)
        enters = (ahead <= 0) & ~fits
        crossed = np.where(enters, -ahead / np.maximum(behind - ahead, EPS), crossed)
        reached = np.where(fits | enters, every[:, :-1] + crossed * step, 0.0)
        return np.asarray(reached.max(axis=1) / every[:, -1])


CELLS = ("both", "swapped_in", "swapped_out", "neither")


def swap_cells(
    y: np.ndarray, weights: np.ndarray, first: np.ndarray, second: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Weight and bads of the four cells of two decisions, under weights [W, S].

    Args:
        first, second: [W, S] or [S] fraction of each row that the new and the old score approve.
    Returns:
        `swapped_in` is approved by the first alone, `swapped_out` by the second alone; each with
        [W] weight and [W] weight of bads.
    """
    parts = (first * second, first * (1 - second), (1 - first) * second, (1 - first) * (1 - second))
    return {
        name: ((weights * part).sum(axis=1), (weights * part * y).sum(axis=1))
        for name, part in zip(CELLS, parts, strict=True)
    }


def swap_record(
    cells: dict[str, tuple[np.ndarray, np.ndarray]],
    drawn: dict[str, tuple[np.ndarray, np.ndarray]] | None = None,
) -> dict[str, Any]:
    """The swap set as plain numbers, with 95 % intervals of the bad rates where there are draws.

    Returns:
        per cell `n` (weight), `bads`, `share` of everybody, `bad_rate` (None for an empty cell),
        and `bad_rate_gap`: bad rate of those swapped in minus that of those swapped out.
    """
    total = sum(float(mass[0]) for mass, _ in cells.values())
    out: dict[str, Any] = {}
    for name, (mass, bads) in cells.items():
        n, bad = float(mass[0]), float(bads[0])
        out[name] = {
            "n": n,
            "bads": bad,
            "share": n / total if total else None,
            "bad_rate": bad / n if n > EPS else None,
            "bad_rate_low": None,
            "bad_rate_high": None,
        }
        if drawn is not None and n > EPS:
            mass_drawn, bads_drawn = drawn[name]
            there = mass_drawn > EPS
            if there.any():
                low, high = np.quantile(bads_drawn[there] / mass_drawn[there], [0.025, 0.975])
                out[name] |= {"bad_rate_low": float(low), "bad_rate_high": float(high)}
    out["bad_rate_gap"] = _gap(out, drawn)
    return out


def _gap(
    record: dict[str, Any], drawn: dict[str, tuple[np.ndarray, np.ndarray]] | None
) -> dict[str, float | None] | None:
    """Bad rate of those swapped in minus that of those swapped out; None where one is empty."""
    into, out_of = record["swapped_in"]["bad_rate"], record["swapped_out"]["bad_rate"]
    if into is None or out_of is None:
        return None
    gap: dict[str, float | None] = {"value": into - out_of, "low": None, "high": None}
    if drawn is not None:
        (m_in, b_in), (m_out, b_out) = drawn["swapped_in"], drawn["swapped_out"]
        there = (m_in > EPS) & (m_out > EPS)
        if there.any():
            gaps = b_in[there] / m_in[there] - b_out[there] / m_out[there]
            low, high = np.quantile(gaps, [0.025, 0.975])
            gap |= {"low": float(low), "high": float(high)}
    return gap
