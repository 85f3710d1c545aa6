"""How much N labels with B bads can show, before anything is trained.

Scores are taken to be binormal with equal variance: goods N(0, 1), bads N(d, 1), so that
AUC = Phi(d / sqrt 2) and the distance of the distributions is KS = 2 Phi(d / 2) - 1. Two models
judged on the same rows have bivariate normal scores with one correlation inside both classes.

* AUC: the variance of the Mann-Whitney statistic (Hanley and McNeil 1982, Radiology 143, eq. 1),
  and for two models its covariance (Hanley and McNeil 1983, Radiology 148; DeLong et al. 1988),
  their pair probabilities taken from the binormal model, where they are bivariate normal
  integrals (Owen 1956).
* KS: mean and spread of simulated statistics, since the maximum over a small sample is biased
  upwards; above `SIMULATED_ROWS` rows the normal limit under the alternative (Raghavachari 1973,
  Annals of Statistics 1), in which KS is a difference of two shares at one fixed score.

A difference counts as detectable where a two-sided test at 5 % finds it in 80 % of samples:
2.80 standard errors of the paired difference.

Shapes: D simulated samples, B bads, G goods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from math import sqrt
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri, owens_t

from finetune.samples import effective_counts
from foundation.errors import SampleError

AUC = 0.75
CORRELATION = 0.8
TIMES = (1, 2, 5)
LEAST = 2
SIMULATED_ROWS = 20_000
MOST_DRAWS, LEAST_DRAWS = 2000, 300
_CHUNK_CELLS = 2_000_000
_LEVEL_Z = 1.959964
_POWER_Z = 0.841621
DETECTABLE = _LEVEL_Z + _POWER_Z


@dataclass(frozen=True)
class LabelPower:
    """What a number of labels can show.

    Attributes:
        labels, bads: rows that count, and the bads among them.
        auc, ks: the true values assumed.
        auc_half, ks_half: expected half-width of the 95 % interval.
        ks_excess: by how much a measured KS exceeds the true one in the mean.
        auc_detectable, ks_detectable: smallest true difference of two models on these rows that is
            found with 80 % power.
        correlation: of the two models' scores, inside bads and inside goods.
    """

    labels: int
    bads: int
    auc: float
    ks: float
    auc_half: float
    ks_half: float
    ks_excess: float
    auc_detectable: float
    ks_detectable: float
    correlation: float

    @property
    def bad_rate(self) -> float:
        """Share of bads."""
        return self.bads / self.labels

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"bad_rate": self.bad_rate}


def ks_of_auc(auc: float) -> float:
    """KS of binormal scores of that AUC."""
    return float(2 * ndtr(ndtri(auc) / sqrt(2)) - 1)


def auc_of_ks(ks: float) -> float:
    """AUC of binormal scores of that KS."""
    return float(ndtr(sqrt(2) * ndtri((ks + 1) / 2)))


def label_power(
    labels: int,
    bads: int,
    auc: float = AUC,
    correlation: float = CORRELATION,
    seed: int = 0,
) -> LabelPower:
    """What `labels` rows with `bads` bads can show of a model whose true AUC is `auc`.

    The same numbers and seed give the same answer.

    Raises:
        SampleError: fewer than two bads or two goods, or an AUC or a correlation out of range.
    """
    check_counts(labels, bads)
    if not 0.5 < auc < 1:
        raise SampleError(f"an assumed AUC must lie between 0.5 and 1, {auc:g} does not")
    if not 0 <= correlation < 1:
        raise SampleError(f"a correlation must lie in [0, 1), {correlation:g} does not")
    goods = labels - bads
    error = auc_standard_error(auc, bads, goods)
    gap = auc_difference_error(auc, bads, goods, correlation)
    if labels <= SIMULATED_ROWS:
        half, excess, ks_gap = _simulated_ks(auc, bads, goods, correlation, seed)
    else:
        ks = ks_of_auc(auc)
        half, excess = _LEVEL_Z * ks_standard_error(ks, bads, goods), 0.0
        ks_gap = ks_difference_error(ks, bads, goods, correlation)
    return LabelPower(
        labels,
        bads,
        auc,
        ks_of_auc(auc),
        _LEVEL_Z * error,
        half,
        excess,
        DETECTABLE * gap,
        DETECTABLE * ks_gap,
        correlation,
    )


def check_counts(labels: int, bads: int) -> None:
    """Refuse counts that nothing can be measured on.

    Raises:
        SampleError: negative, more bads than labels, or fewer than two of a class.
    """
    if min(bads, labels - bads) < LEAST:
        raise SampleError(
            f"{labels} labels with {bads} of them bad and {labels - bads} good show nothing: at "
            f"least {LEAST} of each are needed"
        )


def power_table(
    labels: int,
    bads: int,
    auc: float = AUC,
    correlation: float = CORRELATION,
    times: Sequence[int] = TIMES,
    seed: int = 0,
) -> list[LabelPower]:
    """The same for n, 2 n, 5 n labels of one bad rate: what more labels would buy."""
    return [label_power(k * labels, k * bads, auc, correlation, seed) for k in times]


def _both_below(h: float, rho: float) -> float:
    """P(X < h, Y < h) of standard normals with correlation rho (Owen 1956)."""
    return float(ndtr(h) - 2 * owens_t(h, sqrt((1 - rho) / (1 + rho))))


def auc_standard_error(auc: float, bads: int, goods: int) -> float:
    """Standard error of an AUC measured on that many bads and goods."""
    return sqrt(_auc_covariance(auc, bads, goods, 1.0))


def auc_difference_error(auc: float, bads: int, goods: int, correlation: float) -> float:
    """Standard error of the difference of two equally good models on the same rows."""
    alone = _auc_covariance(auc, bads, goods, 1.0)
    return sqrt(max(2 * (alone - _auc_covariance(auc, bads, goods, correlation)), 0.0))


def _auc_covariance(auc: float, bads: int, goods: int, rho: float) -> float:
    """Covariance of two AUCs whose scores correlate by rho; their variance at rho = 1."""
    h = float(ndtri(auc))
    same = auc if rho == 1.0 else _both_below(h, rho)  # one bad, one good
    shared = _both_below(h, rho / 2)  # one of them shared, the other not
    square = auc * auc
    terms = (same - square) + (bads + goods - 2) * (shared - square)
    return terms / (bads * goods)


def ks_standard_error(ks: float, bads: int, goods: int) -> float:
    """Standard error of KS in the limit of many rows (Raghavachari 1973)."""
    below = (1 - ks) / 2  # share of bads, and of goods beyond, at the point of largest distance
    return sqrt(below * (1 - below) * (1 / bads + 1 / goods))


def ks_difference_error(ks: float, bads: int, goods: int, correlation: float) -> float:
    """Standard error of the difference of two equal KS on the same rows, in the same limit."""
    h = float(ndtri((1 + ks) / 2))
    apart = (1 + ks) / 2 - _both_below(h, correlation)  # variance minus covariance of a row's hit
    return sqrt(2 * apart * (1 / bads + 1 / goods))


@lru_cache(maxsize=64)
def _simulated_ks(
    auc: float, bads: int, goods: int, correlation: float, seed: int
) -> tuple[float, float, float]:
    """Half-width, mean excess and spread of paired differences of simulated KS."""
    shift = sqrt(2) * float(ndtri(auc))
    rows = bads + goods
    draws = min(MOST_DRAWS, max(LEAST_DRAWS, _CHUNK_CELLS // rows))
    random = np.random.default_rng((seed, bads, goods))
    step = max(1, _CHUNK_CELLS // rows)
    first, second = [], []
    for begin in range(0, draws, step):
        size = (min(step, draws - begin), rows)
        z = random.standard_normal(size)
        other = correlation * z + sqrt(1 - correlation**2) * random.standard_normal(size)
        first.append(_ks_rows(z, bads, shift))
        second.append(_ks_rows(other, bads, shift))
    one, two = np.concatenate(first), np.concatenate(second)
    both = np.concatenate([one, two])
    excess = float(both.mean()) - ks_of_auc(auc)
    return _LEVEL_Z * float(both.std(ddof=1)), excess, float((one - two).std(ddof=1))


def _ks_rows(z: np.ndarray, bads: int, shift: float) -> np.ndarray:
    """[D] KS of [D, B + G] scores, the first B columns of which are bads."""
    scores = z.copy()
    scores[:, :bads] += shift
    bad = np.argsort(scores, axis=1) < bads
    goods = z.shape[1] - bads
    gap = np.cumsum(np.where(bad, -1.0 / bads, 1.0 / goods), axis=1)
    return np.asarray(np.abs(gap).max(axis=1))


def points_of(value: float) -> str:
    """A share of KS or AUC as it is read: two digits, `.10`; three where two would be `.00`."""
    digits = 2 if abs(value) >= 0.005 else 3
    return f"{value:.{digits}f}".replace("0.", ".", 1)


def power_sentence(power: LabelPower, where: str, rows: str = "labels") -> str:
    """One line for people, such as `300 labels with 64 bads (bad rate 21.3 %): KS ± .10 ...`."""
    return (
        f"{power.labels:,} {rows} with {power.bads:,} bads (bad rate {100 * power.bad_rate:.1f} %)"
        f": KS {points_of(power.ks)} ± {points_of(power.ks_half)}, AUC {points_of(power.auc)} ± "
        f"{points_of(power.auc_half)} {where}; differences of two models under "
        f"{points_of(power.ks_detectable)} KS or {points_of(power.auc_detectable)} AUC cannot be "
        "told apart"
    )


def assumption_sentence(power: LabelPower) -> str:
    """What the figures rest on."""
    return (
        f"expected 95 % intervals if the true AUC is {points_of(power.auc)} (KS "
        f"{points_of(power.ks)}); differences at 80 % power between models whose scores correlate "
        f"by {points_of(power.correlation)}; a measured KS exceeds the true one by "
        f"{points_of(max(power.ks_excess, 0.0))} in the mean"
    )


def table_lines(powers: Sequence[LabelPower]) -> list[str]:
    """The table of n, 2 n, 5 n for a terminal."""
    lines = [
        f"{'labels':>9}{'bads':>8}{'KS ±':>8}{'AUC ±':>8}{'smallest KS diff.':>19}"
        f"{'smallest AUC diff.':>20}"
    ]
    lines += [
        f"{p.labels:>9,}{p.bads:>8,}{points_of(p.ks_half):>8}{points_of(p.auc_half):>8}"
        f"{points_of(p.ks_detectable):>19}{points_of(p.auc_detectable):>20}"
        for p in powers
    ]
    return lines


def power_record(
    y: np.ndarray,
    weight: np.ndarray,
    test: tuple[np.ndarray, np.ndarray] | None = None,
    seed: int = 0,
) -> dict[str, Any] | None:
    """What an adaptation says before it trains, plain data.

    Args:
        y, weight: [S] labels and weights that cross-validation will measure on.
        test: the same of a test file.
    Returns:
        `sentences`, `assumption`, `training`, `test` (or None) and `more`, the table of n, 2 n and
        5 n training labels; None where a class has fewer than two rows.
    """
    counts = effective_counts(y, weight)
    if min(counts[1], counts[0] - counts[1]) < LEAST:
        return None
    rows = "labels" if counts[0] == len(y) else "labels (after weighting)"
    table = power_table(*counts, seed=seed)
    sentences = [power_sentence(table[0], "by cross-validation", rows)]
    tested = None
    if test is not None:
        counts = effective_counts(*test)
        if min(counts[1], counts[0] - counts[1]) >= LEAST:
            tested = label_power(*counts, seed=seed)
            sentences.append(power_sentence(tested, "on the test file", "test labels"))
    return {
        "sentences": sentences,
        "assumption": assumption_sentence(table[0]),
        "training": table[0].to_dict(),
        "test": None if tested is None else tested.to_dict(),
        "more": [p.to_dict() for p in table],
    }
