"""Variable analysis: every column of the samples alone, before any model.

Profile and context columns as they are, aggregates and forecasts at the as_of of the samples:
missing, distribution, IV, KS, AUC, weight-of-evidence bins, stability by month and against a later
sample, groups that say the same, and variables that may know the outcome. Bins are found on the
development rows and never moved; nothing here chooses or changes a model.

All variables are ranked by quantile bins first; optbinning, which is slow, sees the best alone.

Shapes: S samples, F variables, B bins, M months.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from finetune.report_evaluation import month_of
from finetune.samples import effective_counts
from finetune.scorecard import Bins, optimal_bins
from finetune.table import Column, FeatureTable
from finetune.variable_bins import BIN_COLUMNS, Judged, bin_rows, top_levels
from finetune.variable_measures import (
    Ranking,
    assigned,
    bin_weights,
    bins_for,
    chance_of,
    clusters,
    quantile_bins,
    rank_correlation,
    ranking,
    stability,
    weight_of_evidence,
)
from finetune.variable_suspects import Suspect, schema_notes, suspects
from foundation.errors import SampleError
from foundation.schema import Schema

OPTIMAL = 50
MONTH_ROWS = 30
QUANTILES = {"min": 0.0, "q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95, "max": 1.0}
BLOCKS = ("aggregate", "profile", "context", "forecast")


@dataclass(frozen=True)
class Rows:
    """Samples with their features.

    Attributes:
        y: [S] 1 bad, 0 good; None where a later sample has no labels yet.
        weight: [S] positive.
        as_of_us: [S] int64 microseconds, UTC.
    """

    table: FeatureTable
    y: np.ndarray | None
    weight: np.ndarray
    as_of_us: np.ndarray


@dataclass
class VariableAnalysis:
    """What was found.

    Attributes:
        variables: one row per variable, strongest first.
        bins: one row per variable and bin, `binning` says which kind.
        months: one row per variable, sample and month.
        suspects: grave ones first.
        basis: n, bads, bad_rate, bins, and the same of the test sample where there is one.
    """

    variables: pl.DataFrame
    bins: pl.DataFrame
    months: pl.DataFrame
    suspects: list[Suspect]
    notes: list[str]
    basis: dict[str, Any] = field(default_factory=dict)


def analyse(
    development: Rows, schema: Schema, test: Rows | None = None, optimal: int = OPTIMAL
) -> VariableAnalysis:
    """Analyse the variables of a labelled sample.

    Args:
        test: later rows to compare with; their columns may stand in another order.
        optimal: so many of the strongest variables, one of each group, also get optbinning's bins.
    Raises:
        SampleError: no labels, or one class only, or no column to look at.
    """
    y = development.y
    if y is None or not 0 < y.sum() < len(y):
        raise SampleError("variables are judged by labels: both 0 and 1 are needed")
    table = development.table.select(BLOCKS)
    if not table.columns:
        raise SampleError("there is no profile, context, aggregate or forecast column to look at")
    weight = development.weight / development.weight.mean()
    return _Analysis(table, y, weight, development.as_of_us, schema, _aligned(test, table)).run(
        optimal
    )


def _aligned(test: Rows | None, table: FeatureTable) -> Rows | None:
    """The later rows with the columns of the development table, in its order."""
    if test is None:
        return None
    values = test.table.matrix(table.names)
    weight = test.weight / test.weight.mean()
    return Rows(FeatureTable(table.columns, values), test.y, weight, test.as_of_us)


class _Analysis:
    """One analysis; every step fills columns of the table of variables."""

    def __init__(
        self,
        table: FeatureTable,
        y: np.ndarray,
        weight: np.ndarray,
        as_of_us: np.ndarray,
        schema: Schema,
        test: Rows | None,
    ) -> None:
        self.columns: tuple[Column, ...] = table.columns
        self.x, self.y, self.weight, self.as_of_us = table.values, y, weight, as_of_us
        self.schema, self.test = schema, test
        labels, bads = effective_counts(y, weight)
        self.bads, self.goods = max(bads, 1), max(labels - bads, 1)
        count = bins_for(self.bads)
        self.bins = [quantile_bins(c, self.x[:, f], count) for f, c in enumerate(table.columns)]
        self.width = max(b.count for b in self.bins)
        self.at = assigned(self.bins, self.x, self.width)
        self.bad = bin_weights(self.at, weight * y, self.width)
        self.good = bin_weights(self.at, weight * (1 - y), self.width)
        self.all = self.bad + self.good
        self.woe, self.iv_parts = weight_of_evidence(self.bad, self.good)
        self.iv = self.iv_parts.sum(axis=1)
        self.used = (self.all > 0).sum(axis=1)
        self.out: dict[str, Any] = {}

    def run(self, optimal: int) -> VariableAnalysis:
        self._describe()
        traces = self._traces(self.x, self.at)
        development = ranking(traces, self.y, self.weight)
        chance = chance_of(self.used, self.bads, self.goods)
        self.out |= {"iv": self.iv, "iv_chance": chance, "bins": self.used}
        self.out |= _ranked("", development)
        code = np.array([c.kind == "code" for c in self.columns])
        self.out["direction"] = [
            None if is_code or not np.isfinite(a) else ("rises" if a >= 0.5 else "falls")
            for is_code, a in zip(code, development.auc, strict=True)
        ]
        tested = self._test()
        months = self._months()
        leader = clusters(correlation := rank_correlation(traces), self.iv)
        self.out |= {
            "representative": [self.columns[f].name for f in leader],
            "correlation": correlation[np.arange(len(leader)), leader],
            "alike": np.bincount(leader, minlength=len(leader))[leader],
        }
        found = suspects(
            self.columns, self.x, self.y, development, tested, self.iv, chance, self.schema
        )
        order = np.argsort(-self.iv, kind="stable")
        bins = [self._bin_rows(int(f), self.bins[f], "quantile") for f in order]
        # Of variables that say the same one is enough for the slow search.
        best = self._optimal([int(f) for f in order if leader[f] == f][:optimal])
        self.out["iv_optimal"] = [
            None if f not in best else sum(r["iv_part"] for r in best[f])
            for f in range(len(self.columns))
        ]
        named: dict[str, list[str]] = {}
        for s in found:
            named.setdefault(s.variable, []).append(s.kind)
        self.out["suspect"] = [", ".join(named.get(c.name, [])) for c in self.columns]
        return VariableAnalysis(
            variables=pl.DataFrame(self.out, strict=False, nan_to_null=True)[order].with_row_index(
                "rank", offset=1
            ),
            bins=pl.DataFrame(
                [row for rows in (*best.values(), *bins) for row in rows], schema=BIN_COLUMNS
            ),
            months=months,
            suspects=found,
            notes=schema_notes(self.schema),
            basis=self._basis(),
        )

    def _traces(self, x: np.ndarray, at: np.ndarray) -> np.ndarray:
        """[S, F] numbers as they are; codes by the weight of evidence of their development bin."""
        code = np.flatnonzero([c.kind == "code" for c in self.columns])
        if not len(code):
            return x
        out = x.copy()
        woe = self.woe[code, at[:, code]].astype(np.float32)
        out[:, code] = np.where(np.isnan(x[:, code]), np.nan, woe)
        return out

    def _describe(self) -> None:
        x, missing = self.x, np.isnan(self.x)
        plain = np.array([c.kind != "code" for c in self.columns])
        every = np.full((len(QUANTILES), x.shape[1]), np.nan)
        some = plain & ~missing.all(axis=0)
        every[:, some] = np.nanquantile(x[:, some], list(QUANTILES.values()), axis=0)
        mean = np.full(x.shape[1], np.nan)
        mean[some] = np.nanmean(x[:, some].astype(np.float64), axis=0)
        self.out |= {
            "variable": [c.name for c in self.columns],
            "title": [c.title for c in self.columns],
            "block": [c.block for c in self.columns],
            "kind": [c.kind for c in self.columns],
            "group": [c.group for c in self.columns],
            "n": (~missing).sum(axis=0),
            "missing": missing.mean(axis=0),
            "zero": np.where(plain, (x == 0).mean(axis=0), np.nan),
            "mean": mean,
            **{name: every[i] for i, name in enumerate(QUANTILES)},
            "top": [
                None if plain[f] else top_levels(column, x[:, f])
                for f, column in enumerate(self.columns)
            ],
        }

    def _test(self) -> Ranking | None:
        """Figures of the later rows over the frozen bins; their ranking, or None."""
        if self.test is None:
            return None
        x, weight = self.test.table.values, self.test.weight
        at = assigned(self.bins, x, self.width)
        every = bin_weights(at, weight, self.width)
        either = ((self.all > 0) | (every > 0)).sum(axis=1)
        self.out |= {
            "missing_test": np.isnan(x).mean(axis=0),
            "psi_test": stability(self.all, every),
            "psi_test_chance": chance_of(either, len(self.y), len(weight)),
        }
        y = self.test.y
        if y is None or not 0 < y.sum() < len(y):
            return None
        bad = bin_weights(at, weight * y, self.width)
        _, parts = weight_of_evidence(bad, every - bad)
        tested = ranking(self._traces(x, at), y, weight)
        self.out |= {"iv_test": parts.sum(axis=1), **_ranked("_test", tested)}
        return tested

    def _months(self) -> pl.DataFrame:
        """PSI of every month against the whole development sample, over its bins."""
        sets = [("development", self.x, self.weight, self.as_of_us)]
        if self.test is not None:
            later = self.test
            sets.append(("test", later.table.values, later.weight, later.as_of_us))
        names, frames = [c.name for c in self.columns], []
        worst = np.full(len(names), np.nan)
        worst_chance, worst_month = np.full(len(names), np.nan), np.full(len(names), "", object)
        for sample, x, weight, as_of_us in sets:
            month = month_of(as_of_us)
            at = self.at if sample == "development" else assigned(self.bins, x, self.width)
            for m in np.unique(month):
                rows = month == m
                n, whole = int(rows.sum()), sample == "development" and rows.all()
                psi = np.full(len(names), np.nan)
                chance = psi
                if n >= MONTH_ROWS and not whole:
                    mass = bin_weights(at[rows], weight[rows], self.width)
                    psi = stability(self.all, mass)
                    # A month of development is a part of what it is compared with.
                    base = len(self.y) if sample == "test" else -len(self.y)
                    chance = chance_of(((self.all > 0) | (mass > 0)).sum(axis=1), n, base)
                    more = ~(psi <= worst)
                    worst, worst_chance = (
                        np.where(more, new, old)
                        for new, old in ((psi, worst), (chance, worst_chance))
                    )
                    worst_month = np.where(more, str(m), worst_month)
                frames.append(
                    pl.DataFrame(
                        {
                            "variable": names,
                            "sample": [sample] * len(names),
                            "month": [str(m)] * len(names),
                            "n": [n] * len(names),
                            "missing": np.isnan(x[rows]).mean(axis=0),
                            "psi": psi,
                            "psi_chance": chance,
                        },
                        nan_to_null=True,
                    )
                )
        self.out |= {
            "psi_month": worst,
            "psi_month_chance": worst_chance,
            "psi_month_at": [m or None for m in worst_month.tolist()],
        }
        return pl.concat(frames)

    def _optimal(self, best: list[int]) -> dict[int, list[dict[str, Any]]]:
        """Bins by optbinning of some variables; those it cannot split keep their quantiles."""
        out = {}
        for f in best:
            try:
                found = optimal_bins(self.bins[f], self.x[:, f], self.y, self.weight)
            except SampleError:
                continue
            if found is not None:
                out[f] = self._bin_rows(f, found, "optimal")
        return out

    def _bin_rows(self, f: int, bins: Bins, binning: str) -> list[dict[str, Any]]:
        test = None
        if self.test is not None:
            test = Judged(self.test.table.values[:, f], self.test.y, self.test.weight)
        own = Judged(self.x[:, f], self.y, self.weight)
        return bin_rows(self.columns[f], bins, binning, own, test)

    def _basis(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "n": len(self.y), "bads": int(self.y.sum()), "bad_rate": float(self.y.mean()),
            "variables": len(self.columns), "bins": bins_for(self.bads), "test": None,
        }  # fmt: skip
        if self.test is not None:
            y = self.test.y
            out["test"] = {
                "n": len(self.test.weight),
                "bads": None if y is None else int(y.sum()),
                "bad_rate": None if y is None else float(y.mean()),
            }
        return out


def _ranked(suffix: str, found: Ranking) -> dict[str, np.ndarray]:
    return {
        f"auc{suffix}": found.auc,
        f"auc{suffix}_low": found.low,
        f"auc{suffix}_high": found.high,
        f"ks{suffix}": found.ks,
    }
