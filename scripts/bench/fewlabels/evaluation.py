"""What the cells say: KS and AUC, paired gains with intervals, label efficiency, stability.

Intervals resample draws and test rows together (rows within bads and within goods, the same rows
for both scores), so they hold for another draw of labels and another test set of this size.

Shapes: D draws, S test rows, B bootstrap replicates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import rankdata

from finetune.metrics import auc, ks, psi
from foundation.errors import UserError
from scripts.bench.fewlabels.cells import ALL, Cell
from scripts.bench.fewlabels.sets import BenchSet

REPLICATES = 1000
# Opponents that "best opponent" is taken of; boosted forecasts are shown beside them.
BEST_OF = ("lgb", "cat", "lr", "scorecard", "avg")
# Of other libraries: taken for the best as well where they have as many draws as those.
EMBEDDED = ("pragmatiq", "coles_lgb")
FORECASTS = ("forecast_lr", "avg+forecast")
ZERO = ("zero.query", "zero.boosted", "zero.network", "zero.state")
COLUMNS = ["set", "learner", "n", "draw", "auc", "ks", "seconds"]
PREFIX = "riskfm."
"""Our recipes are named apart from opponents of the same kind; `auto` keeps its name."""


@dataclass(frozen=True)
class Gain:
    """A paired gain in KS over the best opponent.

    Attributes:
        replicates: [B] gains; reference: [B] the opponent's KS.
    """

    n: int
    learner: str
    opponent: str
    value: float
    opponent_ks: float
    replicates: np.ndarray
    reference: np.ndarray

    @property
    def interval(self) -> tuple[float, float]:
        """95 % percentile interval of the gain."""
        low, high = np.quantile(self.replicates, [0.025, 0.975])
        return float(low), float(high)

    @property
    def relative(self) -> float:
        """Gain over the opponent's KS."""
        return self.value / self.opponent_ks

    @property
    def relative_replicates(self) -> np.ndarray:
        """[B] relative gains."""
        return self.replicates / self.reference


@dataclass
class SetResults:
    """The scores of one set.

    Attributes:
        scores: (learner, n, draw) -> [S] test scores; `pool` the same for the pool's rows.
        earlier: figures of an earlier run, of learners that have no scores here.
        drawn: (n, draw) -> rows that taught.
        seconds: (learner, n, draw) -> seconds a cell took.
    """

    bench: BenchSet
    scores: dict[tuple[str, int, int], np.ndarray] = field(default_factory=dict)
    pool: dict[tuple[str, int, int], np.ndarray] = field(default_factory=dict)
    earlier: pl.DataFrame | None = None
    drawn: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    seconds: dict[tuple[str, int, int], float] = field(default_factory=dict)
    chosen: dict[tuple[int, int], str] = field(default_factory=dict)

    def add(self, n: int, k: int, cell: Cell) -> None:
        """Take in a cell; of a slow ladder only the slow recipes and its choice, `auto_slow`."""
        slow = "lora" in cell.scores or "prompt" in cell.scores
        for name, score in cell.scores.items():
            if slow and name not in ("prompt", "lora", "auto"):
                continue
            called = "auto_slow" if slow and name == "auto" else name
            if "chosen" in cell.detail and name != "auto":
                called = f"{PREFIX}{name}"
            self.scores[called, n, k] = score
            self.seconds[called, n, k] = float(
                cell.detail.get("seconds", {}).get(name, cell.seconds)
                if isinstance(cell.detail.get("seconds"), dict)
                else cell.seconds
            )
            if name in cell.pool:
                self.pool[called, n, k] = cell.pool[name]
        if "chosen" in cell.detail and not slow:
            self.chosen[n, k] = str(cell.detail["chosen"])

    def add_averages(self) -> None:
        """Rank averages: of LightGBM, CatBoost and logistic regression; and with the forecasts."""
        for store in (self.scores, self.pool):
            for n, k in {(n, k) for _, n, k in store}:
                members = [store.get((m, n, k)) for m in ("lgb", "cat", "lr")]
                if any(m is None for m in members):
                    continue
                ranks = [rankdata(m) for m in members]
                store["avg", n, k] = np.mean(ranks, axis=0).astype(np.float32)
                forecast = store.get(("forecast_lr", n, k))
                if forecast is not None:
                    both = rankdata(store["avg", n, k]) + rankdata(forecast)
                    store["avg+forecast", n, k] = (both / 2).astype(np.float32)

    @cached_property
    def figures(self) -> pl.DataFrame:
        """One row per cell: set, learner, n, draw, auc, ks, seconds."""
        rows = []
        for (learner, n, k), score in self.scores.items():
            y = self.truth(k)
            rows.append(
                {
                    "set": self.bench.name,
                    "learner": learner,
                    "n": n,
                    "draw": k,
                    "auc": auc(y, score),
                    "ks": ks(y, score),
                    "seconds": self.seconds.get((learner, n, k)),
                }
            )
        kinds = {"set": pl.String, "learner": pl.String, "n": pl.Int64, "draw": pl.Int64}
        floats = {"auc": pl.Float64, "ks": pl.Float64, "seconds": pl.Float64}
        found = pl.DataFrame(rows, schema={**kinds, **floats})
        return found if self.earlier is None else pl.concat([found, self.earlier])

    def truth(self, k: int) -> np.ndarray:
        """[S] labels of the test rows of a draw."""
        return self.bench.y[self.bench.split(k).test]

    def draws(self, learner: str, n: int) -> list[int]:
        """Draws of which there is a score."""
        return sorted(k for name, m, k in self.scores if name == learner and m == n)

    def mean(self, learner: str, n: int, measure: str = "ks") -> float:
        """Mean over draws; NaN without any."""
        found = self._column(learner, n, measure)
        return float(found.mean()) if len(found) else float("nan")

    def spread(self, learner: str, n: int) -> float:
        """Standard deviation of the KS over draws."""
        found = self._column(learner, n, "ks")
        return float(found.std(ddof=1)) if len(found) > 1 else float("nan")

    def counted(self, learner: str, n: int) -> int:
        """Draws of which there is a figure, from an earlier run too."""
        return len(self._column(learner, n, "ks"))

    def _column(self, learner: str, n: int, measure: str) -> np.ndarray:
        rows = self.figures.filter((pl.col("learner") == learner) & (pl.col("n") == n))
        return rows[measure].to_numpy()

    @property
    def sizes(self) -> list[int]:
        """Label counts with cells, ascending; none of them is ALL."""
        return sorted({n for _, n, _ in self.scores if n != ALL})

    def best_opponent(self, n: int) -> str | None:
        """The opponent of the highest mean KS, forecasts aside."""
        most = max(len(self.draws(o, n)) for o in BEST_OF)
        embedded = (o for o in EMBEDDED if most and len(self.draws(o, n)) >= most)
        means = {o: self.mean(o, n) for o in (*BEST_OF, *embedded)}
        known = {o: m for o, m in means.items() if m == m}
        return max(known, key=lambda o: known[o]) if known else None


class Bootstrap:
    """Replicates of a set's test rows, shared by every score so that differences are paired."""

    def __init__(self, results: SetResults, replicates: int = REPLICATES, seed: int = 0) -> None:
        self.results, self.replicates, self.seed = results, replicates, seed
        self._counts: dict[int, np.ndarray] = {}
        self._found: dict[tuple[str, int, int], np.ndarray] = {}

    def ks(self, learner: str, n: int, k: int) -> np.ndarray:
        """[B] KS of a cell."""
        key = learner, n, k
        if key not in self._found:
            score, y = self.results.scores[key], self.results.truth(k)
            self._found[key] = ks_of_counts(y, score, self._counts_of(k))
        return self._found[key]

    def gain(self, learner: str, n: int) -> Gain | None:
        """Gain of a learner over the best opponent of its draws."""
        opponent = self.results.best_opponent(n)
        if opponent is None:
            return None
        shared = sorted(set(self.results.draws(learner, n)) & set(self.results.draws(opponent, n)))
        if not shared:
            return None
        ours = np.stack([self.ks(learner, n, k) for k in shared])
        theirs = np.stack([self.ks(opponent, n, k) for k in shared])
        rng = np.random.default_rng((self.seed, n, len(shared)))
        picked = rng.integers(0, len(shared), size=(len(shared), self.replicates))
        gap = np.take_along_axis(ours - theirs, picked, axis=0).mean(axis=0)
        reference = np.take_along_axis(theirs, picked, axis=0).mean(axis=0)
        y = [self.results.truth(k) for k in shared]
        value = [
            [ks(t, self.results.scores[name, n, k]) for k, t in zip(shared, y, strict=True)]
            for name in (learner, opponent)
        ]
        return Gain(
            n,
            learner,
            opponent,
            float(np.mean(value[0]) - np.mean(value[1])),
            float(np.mean(value[1])),
            gap,
            reference,
        )

    def zero_gap(self, learner: str, reference: str) -> tuple[float, float, float] | None:
        """Difference in KS of two scores made without labels, with its 95 % interval."""
        scores, y = self.results.scores, self.results.truth(0)
        if (learner, ALL, 0) not in scores or (reference, ALL, 0) not in scores:
            return None
        low, high = np.quantile(
            self.ks(learner, ALL, 0) - self.ks(reference, ALL, 0), [0.025, 0.975]
        )
        value = ks(y, scores[learner, ALL, 0]) - ks(y, scores[reference, ALL, 0])
        return float(value), float(low), float(high)

    def _counts_of(self, k: int) -> np.ndarray:
        at = k if len(self.results.bench.splits) > 1 else 0
        if at not in self._counts:
            y = self.results.truth(at)
            self._counts[at] = row_counts(y, self.replicates, (self.seed, at))
        return self._counts[at]


def row_counts(y: np.ndarray, replicates: int, seed: Any) -> np.ndarray:
    """[B, S] uint8: how often each row was drawn, with replacement within each class."""
    rng = np.random.default_rng(seed)
    out = np.zeros((replicates, len(y)), np.uint8)
    for label in (0, 1):
        at = np.flatnonzero(y == label)
        for b in range(replicates):
            picked = rng.integers(0, len(at), len(at))
            out[b, at] = np.bincount(picked, minlength=len(at))
    return out


def ks_of_counts(
    y: np.ndarray, score: np.ndarray, counts: np.ndarray, chunk: int = 100
) -> np.ndarray:
    """[B] KS of a score under row counts [B, S]; tied scores share a step."""
    order = np.argsort(score, kind="stable")
    ends = np.append(np.diff(score[order]) > 0, True)
    bad = y == 1
    # One signed step per row: its share of the bads or minus its share of the goods.
    step = np.where(bad, 1.0 / bad.sum(), -1.0 / (~bad).sum())[order].astype(np.float64)
    out = np.empty(len(counts))
    for begin in range(0, len(counts), chunk):
        part = counts[begin : begin + chunk][:, order] * step
        out[begin : begin + chunk] = np.abs(np.cumsum(part, axis=1)[:, ends]).max(axis=1)
    return out


def mean_gain(gains: Sequence[Gain], relative: bool = False) -> tuple[float, float, float]:
    """Mean over sets of gains, with its interval; sets are replicated independently."""
    values = [g.relative if relative else g.value for g in gains]
    drawn = [g.relative_replicates if relative else g.replicates for g in gains]
    low, high = np.quantile(np.mean(drawn, axis=0), [0.025, 0.975])
    return float(np.mean(values)), float(low), float(high)


def label_efficiency(results: SetResults, learner: str, n: int = 100) -> tuple[float, str] | None:
    """How many times as many labels the best opponent needs for a learner's KS at n.

    The opponents' best mean KS is interpolated in log n and never falls; with all labels they
    stand at the size of the pool.

    Returns:
        the factor and `>` where it is only a lower bound, `<` where only an upper one; None where
        there is no cell at n.
    """
    wanted = results.mean(learner, n)
    points = [(m, _best_ks(results, m)) for m in results.sizes]
    pool = len(results.bench.splits[0].pool)
    points = [(m, v) for m, v in [*points, (pool, _best_ks(results, ALL))] if v == v]
    if wanted != wanted or not points:
        return None
    x = np.log([m for m, _ in points])
    curve = np.maximum.accumulate([v for _, v in points])
    if wanted > curve[-1]:
        return float(np.exp(x[-1]) / n), ">"
    at = int(np.searchsorted(curve, wanted))
    if at == 0:
        return float(np.exp(x[0]) / n), "<"
    share = (wanted - curve[at - 1]) / max(curve[at] - curve[at - 1], 1e-12)
    return float(np.exp(x[at - 1] + share * (x[at] - x[at - 1])) / n), ""


def _best_ks(results: SetResults, n: int) -> float:
    opponent = results.best_opponent(n)
    return float("nan") if opponent is None else results.mean(opponent, n)


def headroom_closed(results: SetResults, learner: str, n: int, least: float = 0.02) -> float | None:
    """Share of the way from the best opponent to the best all-label opponent; None under least."""
    ceiling, floor = _best_ks(results, ALL), _best_ks(results, n)
    room = ceiling - floor
    value = results.mean(learner, n)
    if not room > least or value != value:
        return None
    return (value - floor) / room


def stability(results: SetResults, learner: str, n: int) -> dict[str, float] | None:
    """In time against out of time, for sets whose test lies after the pool.

    Returns:
        KS on undrawn pool rows and on the test, their difference, the highest PSI of a month,
        all means over draws, and the deviation of the test KS over draws.
    """
    bench = results.bench
    draws = [k for k in results.draws(learner, n) if (learner, n, k) in results.pool]
    if not draws:
        return None
    inside, outside, shifts = [], [], []
    for k in draws:
        split = bench.split(k)
        rest = ~np.isin(split.pool, results.drawn[n, k])
        held = results.pool[learner, n, k][rest]
        score = results.scores[learner, n, k]
        inside.append(ks(bench.y[split.pool][rest], held))
        outside.append(ks(results.truth(k), score))
        shifts.append(max(psi(held, score[at]) for at in _months(bench, split.test)))
    return {
        "in_time": float(np.mean(inside)),
        "out_of_time": float(np.mean(outside)),
        "drop": float(np.mean(np.subtract(inside, outside))),
        "psi": float(np.mean(shifts)),
        "sd": float(np.std(outside, ddof=1)) if len(draws) > 1 else float("nan"),
    }


def _months(bench: BenchSet, rows: np.ndarray, least: int = 200) -> list[np.ndarray]:
    """Positions among the rows of each month of as_of; small months join the one before."""
    month = bench.samples["as_of"][rows].dt.truncate("1mo")
    groups = [np.flatnonzero((month == m).to_numpy()) for m in month.unique().sort()]
    out: list[np.ndarray] = []
    for group in groups:
        if out and len(group) < least:
            out[-1] = np.concatenate([out[-1], group])
        else:
            out.append(group)
    return out


def collect(
    benches: Mapping[str, BenchSet],
    cells: Mapping[tuple[str, int, int, str], Cell],
    drawn: Mapping[tuple[str, int, int], np.ndarray],
) -> dict[str, SetResults]:
    """Cells by set, with the averages that cost no fit."""
    out = {name: SetResults(bench) for name, bench in benches.items()}
    for (name, n, k, _), cell in cells.items():
        out[name].add(n, k, cell)
    for (name, n, k), rows in drawn.items():
        out[name].drawn[n, k] = rows
    for results in out.values():
        results.add_averages()
    return out


def take_earlier(results: Mapping[str, SetResults], file: Path, learners: Sequence[str]) -> None:
    """Show learners of an earlier run's Parquet beside those whose cells are here.

    Raises:
        UserError: the file has another form, or what both runs measured alike differs: those are
            other draws or other features.
    """
    try:
        frame = pl.read_parquet(file, columns=COLUMNS)
    except (pl.exceptions.PolarsError, OSError) as exc:
        raise UserError(f"{file}: not the cells of a run: {str(exc).splitlines()[0]}") from None
    for name, r in results.items():
        mine = frame.filter(pl.col("set") == name)
        both = mine.join(r.figures, on=["set", "learner", "n", "draw"], suffix="_here")
        fixed = both.filter(pl.col("learner").is_in(("lgb", "cat", "lr", "untuned")))
        if fixed.filter((pl.col("auc") - pl.col("auc_here")).abs() > 1e-6).height:
            raise UserError(f"{file}: {name} was measured on other draws or other features")
        there = r.figures["learner"].unique().to_list()
        new = pl.col("learner").is_in(list(learners)) & ~pl.col("learner").is_in(there)
        r.earlier = mine.filter(new)
        del r.figures  # made anew, with these
