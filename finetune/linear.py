"""Regularised logistic regressions: on plain columns, on forecasts, on the embedding.

Columns become inputs by rules fitted on the training rows alone: numbers are put on a signed
logarithm where that makes them less skewed, standardised and clipped; missing values count as
the mean, with an indicator for each pattern of missingness; codes become one column per level,
rare levels merged. What was fitted folds into one `LinearHead`.

Shapes: S samples, p inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from finetune.calibration import fit_platt
from finetune.crossval import assign_folds
from finetune.heads import CodeTerm, LinearHead, NumberTerm, Term, chance_term, transformed
from finetune.recipes import TABULAR, FittedLinear
from finetune.ridge import CAUTIOUS, STRENGTHS, average_ridge, fit_ridge
from finetune.table import BLOCKS, FeatureTable
from foundation.errors import SampleError

CLIP = 3.0
RARE_SHARE = 0.02
RARE_COUNT = 5


@dataclass(frozen=True)
class Input:
    """One input of the regression: a number, the absence of numbers, or a level of a code.

    Attributes:
        kind: `number`, `missing` or `level`.
        columns: the column; for `missing` the column that carries the indicator.
        center, scale: standardisation of the value (after the logarithm) or of the 0/1 hit.
    """

    kind: str
    column: str
    block: str
    center: float = 0.0
    scale: float = 1.0
    transform: str = "identity"
    code: float = np.nan


@dataclass
class Inputs:
    """Inputs fitted on training rows."""

    inputs: list[Input] = field(default_factory=list)

    @classmethod
    def fit(cls, table: FeatureTable, weight: np.ndarray) -> Inputs:
        """Look at training rows only: values [S, F], weights [S]; labels are not needed."""
        values = table.values
        kinds = np.array([c.kind for c in table.columns])
        numbers = np.flatnonzero(kinds == "number")
        out: list[Input] = []
        if len(numbers):
            out += _number_inputs(table, numbers, values[:, numbers].astype(np.float64))
        for i in np.flatnonzero(kinds == "code"):
            out += _level_inputs(table, int(i), values[:, i])
        return cls(out)

    def matrix(self, table: FeatureTable) -> np.ndarray:
        """[S, p] float64 inputs."""
        if not self.inputs:
            return np.zeros((len(table), 0))
        x = table.matrix([i.column for i in self.inputs]).astype(np.float64)
        kinds = np.array([i.kind for i in self.inputs])
        center = np.array([i.center for i in self.inputs])
        scale = np.array([i.scale for i in self.inputs])
        transform = np.array([i.transform for i in self.inputs])
        codes = np.array([i.code for i in self.inputs])
        gone = np.isnan(x)
        with np.errstate(invalid="ignore"):
            v = transformed(x, transform == "log", transform == "logit")
            z = np.where(gone, 0.0, np.clip((v - center) / scale, -CLIP, CLIP))
        z = np.where(kinds == "missing", (gone - center) / scale, z)
        level_hit = np.where(np.isnan(codes), gone, x == codes)
        return np.where(kinds == "level", (level_hit - center) / scale, z)

    def head(self, weights: np.ndarray, intercept: float) -> LinearHead:
        """The regression on these inputs as a head on the columns."""
        terms: list[Term] = []
        levels: dict[str, dict[float, float]] = {}
        gone: dict[str, float] = {}
        for item, w in zip(self.inputs, weights, strict=True):
            if item.kind == "number":
                terms.append(
                    NumberTerm(item.column, float(w), item.center, item.scale, item.transform, CLIP)
                )
                continue
            step = float(w) / item.scale
            intercept -= step * item.center
            if item.kind == "missing":
                gone[item.column] = gone.get(item.column, 0.0) + step
            else:
                levels.setdefault(item.column, {})[item.code] = step
        for column, step in gone.items():
            terms.append(NumberTerm(column, 0.0, missing=step))
        for column, steps in levels.items():
            known = {c: v for c, v in steps.items() if not np.isnan(c)}
            absent = next((v for c, v in steps.items() if np.isnan(c)), 0.0)
            terms.append(CodeTerm(column, tuple(known), tuple(known.values()), missing=absent))
        return LinearHead(tuple(terms), float(intercept))


def _number_inputs(table: FeatureTable, at: np.ndarray, x: np.ndarray) -> list[Input]:
    gone = np.isnan(x)
    seen = len(x) - gone.sum(axis=0)
    nowhere = np.zeros(len(at), bool)
    chance = np.array([table.columns[i].block == "forecast" for i in at])
    lean = transformed(np.where(gone, np.where(chance, 0.5, 0.0), x), nowhere, chance)
    log = transformed(lean, ~nowhere, nowhere)
    mean, spread, skew = _moments(lean, gone, seen)
    log_mean, log_spread, log_skew = _moments(log, gone, seen)
    wide = np.abs(lean).max(axis=0) > 5.0
    use_log = wide & ~chance & (np.abs(log_skew) < np.abs(skew))
    center = np.where(use_log, log_mean, mean)
    scale = np.where(use_log, log_spread, spread)
    varied = (seen >= RARE_COUNT) & (scale > 1e-6 * (1.0 + np.abs(center)))
    transform = np.where(chance, "logit", np.where(use_log, "log", "identity"))
    out = [
        Input(
            "number",
            table.columns[at[i]].name,
            table.columns[at[i]].block,
            float(center[i]),
            float(scale[i]),
            str(transform[i]),
        )
        for i in np.flatnonzero(varied)
    ]
    absent = gone.sum(axis=0)
    informative = (absent >= max(RARE_COUNT, RARE_SHARE * len(x))) & (seen >= RARE_COUNT)
    patterns: set[bytes] = set()
    for i in np.flatnonzero(informative):
        pattern = np.packbits(gone[:, i]).tobytes()
        if pattern not in patterns:
            patterns.add(pattern)
            share = float(absent[i] / len(x))
            column = table.columns[at[i]]
            out.append(
                Input(
                    "missing", column.name, column.block, share, float(np.sqrt(share * (1 - share)))
                )
            )
    return out


def _moments(x: np.ndarray, gone: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, ...]:
    """Mean, standard deviation and skewness of the values that are there, per column."""
    count = np.maximum(seen, 1)
    mean = x.sum(axis=0) / count
    off = np.where(gone, 0.0, x - mean)
    spread = np.sqrt((off**2).sum(axis=0) / count)
    skew = (off**3).sum(axis=0) / count / np.maximum(spread, 1e-12) ** 3
    return mean, spread, skew


def _level_inputs(table: FeatureTable, at: int, x: np.ndarray) -> list[Input]:
    column = table.columns[at]
    codes, counts = np.unique(x, return_counts=True)
    enough = max(RARE_COUNT, RARE_SHARE * len(x))
    keep = (counts >= enough) & (counts <= len(x) - RARE_COUNT)
    shares = counts / len(x)
    return [
        Input(
            "level", column.name, column.block, float(s), float(np.sqrt(s * (1 - s))), code=float(c)
        )
        for c, s in zip(codes[keep], shares[keep], strict=True)
    ]


def balanced_blocks(inputs: Sequence[Input]) -> np.ndarray:
    """[p] factors that give every block the same total variance."""
    blocks = np.array([i.block for i in inputs])
    sizes = {b: max(int((blocks == b).sum()), 1) for b in BLOCKS}
    present = [s for b, s in sizes.items() if (blocks == b).any()]
    typical = float(np.exp(np.mean(np.log(present)))) if present else 1.0
    return np.array([np.sqrt(typical / sizes[b]) for b in blocks])


def input_signs(inputs: Sequence[Input], directions: Mapping[str, int] | None) -> np.ndarray:
    """[p] 1, -1 or 0: the direction asked of each input; of numbers alone."""
    signs = directions or {}
    return np.array([signs.get(i.column, 0) if i.kind == "number" else 0 for i in inputs], int)


def fit_linear(
    name: str,
    table: FeatureTable,
    y: np.ndarray,
    weight: np.ndarray,
    groups: np.ndarray,
    seed: int,
    strengths: tuple[float, ...] = STRENGTHS,
    balance: bool = False,
    directions: Mapping[str, int] | None = None,
    start: np.ndarray | None = None,
) -> FittedLinear:
    """Prepare the columns of a table, choose C by inner cross-validation, fit.

    Args:
        directions: number column -> 1 where the logit may only rise with it, -1 only fall.
        start: [S] logits to add to, which stand beside what is returned.

    Raises:
        SampleError: one class only, or no column varies.
    """
    inputs = Inputs.fit(table, weight)
    if not inputs.inputs:
        raise SampleError("no column varies over the training rows")
    factors = balanced_blocks(inputs.inputs) if balance else np.ones(len(inputs.inputs))
    repeats = 2 if len(y) < 1000 else 1
    folds = assign_folds(y, groups, 5, repeats, seed)
    signs = input_signs(inputs.inputs, directions)
    factors = factors * np.where(signs < 0, -1.0, 1.0)
    z = inputs.matrix(table) * factors
    ridge = fit_ridge(z, y, weight, folds, strengths, signs != 0, start)
    detail = {"c": ridge.strength, "inputs": len(inputs.inputs), "inner_log_loss": ridge.losses}
    return FittedLinear(name, inputs.head(ridge.weights * factors, ridge.intercept), detail)


@dataclass(frozen=True)
class LinearRecipe:
    """Regularised logistic regression on aggregates, profile and context."""

    name: str = "linear"
    needs: frozenset[str] = frozenset()
    reads: frozenset[str] = TABULAR
    slow: bool = False
    directions: dict[str, int] = field(default_factory=dict)

    def fit(
        self, table: FeatureTable, y: np.ndarray, weight: np.ndarray, groups: np.ndarray, seed: int
    ) -> FittedLinear:
        """See `fit_linear`."""
        plain = table.select(TABULAR)
        return fit_linear(self.name, plain, y, weight, groups, seed, directions=self.directions)


def _numbers(inputs: Sequence[Input]) -> np.ndarray:
    """[p] which inputs are numbers."""
    return np.array([i.kind == "number" for i in inputs], bool)


@dataclass(frozen=True)
class ForecastRecipe:
    """The query, and what labels say against its equal weights."""

    name: str = "forecast"
    needs: frozenset[str] = frozenset({"forecast"})
    reads: frozenset[str] = frozenset({"forecast"})
    slow: bool = False
    monotone: bool = False
    directions: dict[str, int] = field(default_factory=dict)

    def fit(
        self, table: FeatureTable, y: np.ndarray, weight: np.ndarray, groups: np.ndarray, seed: int
    ) -> FittedLinear:
        """Calibrate the query, then correct it by a regression on the forecasts' logits.

        The correction shrinks to nothing, so with few labels the recipe is the query. Where labels
        clearly say that all forecasts point the other way, so does the query. `monotone` keeps all
        weights non-negative, `directions` those of the columns it names on their side of zero.

        Raises:
            SampleError: one class only, or no forecast varies.
        """
        block = table.block("forecast")
        inputs = Inputs.fit(block, weight)
        if not inputs.inputs:
            raise SampleError("no forecast varies over the training rows")
        signs = input_signs(inputs.inputs, self.directions)
        if self.monotone:
            signs = np.where((signs == 0) & _numbers(inputs.inputs), 1, signs)
        turn = np.where(signs < 0, -1.0, 1.0)
        z = inputs.matrix(block) * turn
        base = self._query(block, y, weight, either_way=not signs.any())
        folds = assign_folds(y, groups, 5, 2 if len(y) < 1000 else 1, seed)
        ridge = average_ridge(z, y, weight, folds, CAUTIOUS, signs != 0, base.logit(block))
        rest = inputs.head(turn * ridge.weights, ridge.intercept)
        detail = {"c": ridge.strength, "inputs": z.shape[1], "inner_log_loss": ridge.losses}
        return FittedLinear(self.name, base.plus(rest), detail)

    def _query(
        self, block: FeatureTable, y: np.ndarray, weight: np.ndarray, either_way: bool
    ) -> LinearHead:
        """The calibrated query; nothing where every forecast is of something good."""
        names = [n for n in block.names if self.directions.get(n, 1) > 0]
        if not names:
            return LinearHead(())
        head = LinearHead((chance_term(block, dict.fromkeys(names, 1.0)),))
        platt = fit_platt(head.logit(block), y, weight, either_way=either_way)
        return head.scaled(platt.slope, platt.intercept)


def held_out_logits(
    recipe: ForecastRecipe,
    table: FeatureTable,
    y: np.ndarray,
    weight: np.ndarray,
    groups: np.ndarray,
    seed: int,
) -> np.ndarray:
    """[S] cross-fitted logits: what a correction of the recipe starts from.

    Raises:
        SampleError: as `ForecastRecipe.fit`.
    """
    out = np.empty(len(y))
    folds = assign_folds(y, groups, 5, 1, seed)[0]
    for k in np.unique(folds):
        rows, held = np.flatnonzero(folds != k), np.flatnonzero(folds == k)
        part = recipe.fit(table.take(rows), y[rows], weight[rows], groups[rows], seed)
        out[held] = part.logit(table.take(held))
    return out


@dataclass(frozen=True)
class ProbeRecipe:
    """Regularised linear head on the backbone's frozen state.

    Attributes:
        readout: state column -> its weight in the mean of the forecasts that pretraining taught the
            state to say (`RiskBackbone.readout`); empty where it taught none.
    """

    name: str = "probe"
    needs: frozenset[str] = frozenset({"embedding"})
    reads: frozenset[str] = frozenset({"embedding"})
    slow: bool = False
    readout: Mapping[str, float] = field(default_factory=dict)

    def fit(
        self, table: FeatureTable, y: np.ndarray, weight: np.ndarray, groups: np.ndarray, seed: int
    ) -> FittedLinear:
        """Calibrate the readout and correct it by a regression on the state; see `fit_linear`.

        Raises:
            SampleError: one class only; without a readout also where no column varies.
        """
        block = table.block("embedding")
        if not self.readout:
            return fit_linear(self.name, block, y, weight, groups, seed)
        said = LinearHead(tuple(NumberTerm(c, w) for c, w in self.readout.items()))
        platt = fit_platt(said.logit(block), y, weight, either_way=True)
        base = said.scaled(platt.slope, platt.intercept)
        inputs = Inputs.fit(block, weight)
        folds = assign_folds(y, groups, 5, 2 if len(y) < 1000 else 1, seed)
        z = inputs.matrix(block)
        ridge = average_ridge(z, y, weight, folds, CAUTIOUS, offset=base.logit(block))
        rest = inputs.head(ridge.weights, ridge.intercept)
        detail = {"c": ridge.strength, "inputs": z.shape[1], "inner_log_loss": ridge.losses}
        return FittedLinear(self.name, base.plus(rest), detail)
