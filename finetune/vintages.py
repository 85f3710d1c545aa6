"""Vintages, roll rates and maturity of a bad definition.

* Vintage: share of a cohort that was ever bad by each month; shown while all of it is known.
* Maturity: the same over all cohorts as one minus a Kaplan-Meier curve (Kaplan and Meier 1958),
  so that young cohorts count for the months they have. A window is mature at the first month by
  which `share` of the bads of the last observed month have shown; its interval is that of a
  bootstrap over subjects.
* Roll rates: from a customer's last state of one month to that of the next.

Shapes: S subjects, K months, D draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from finetune.bad_definition import States, Subjects
from finetune.report_evaluation import wilson
from foundation.errors import DataError, SampleError

SHARE = 0.9
LEAST_AT_RISK = 30
LEAST_BADS = 10
DRAWS = 400
MOST_COHORTS = 24
FLAT = 0.02
NO_EVENT = "no event"


def cohort_names(origin: pl.Series) -> pl.Series:
    """[S] month of the origin; its quarter or year where there would be too many months."""
    month = origin.dt.strftime("%Y-%m")
    if month.n_unique() <= MOST_COHORTS:
        return month
    quarter = origin.dt.strftime("%Y-Q") + origin.dt.quarter().cast(pl.String)
    return quarter if quarter.n_unique() <= MOST_COHORTS else origin.dt.strftime("%Y")


def vintages(subjects: Subjects) -> pl.DataFrame:
    """Share ever bad by cohort and month.

    Returns:
        cohort, month, n, bads (so far), share, low, high (95 % Wilson interval).
    """
    cohort = cohort_names(subjects.origin)
    names = cohort.unique().sort()
    code = cohort.replace_strict(names, np.arange(len(names)), return_dtype=pl.Int64).to_numpy()
    longest = int(subjects.months.max())
    known = np.full(len(names), longest)
    np.minimum.at(known, code, subjects.months)
    size = np.bincount(code, minlength=len(names))
    cells = code * (longest + 1) + subjects.first_bad
    new = np.bincount(cells, minlength=len(names) * (longest + 1)).reshape(len(names), -1)
    bads = np.cumsum(new[:, 1:], axis=1)
    at, month = np.nonzero(np.arange(1, longest + 1)[None] <= known[:, None])
    shown = bads[at, month]
    low, high = wilson(shown, size[at])
    return pl.DataFrame(
        {
            "cohort": names.gather(at),
            "month": month + 1,
            "n": size[at],
            "bads": shown,
            "share": shown / size[at],
            "low": low,
            "high": high,
        }
    )


@dataclass(frozen=True)
class Maturity:
    """When the bads have shown.

    Attributes:
        frame: month, at_risk, new_bads, share (ever bad), low, high, of_final.
        n, bads: subjects, and those ever bad.
        final_month: last month with enough subjects at risk.
        wanted: the share of the final bads asked for.
        month: first month by which that share has shown; low, high: its 95 % interval.
        recent: part of the final bads that showed in the last quarter of the months.
    """

    frame: pl.DataFrame
    n: int
    bads: int
    final_month: int
    wanted: float
    month: int
    low: int
    high: int
    recent: float

    @property
    def flat(self) -> bool:
        """Whether the curve has stopped rising by the last observed month."""
        return self.recent <= FLAT

    def shown_between(self, age: np.ndarray, months: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bads expected within `months` of an age, and those still expected at all.

        Args:
            age, months: [S] whole months, since the start and from then on.
        Returns:
            two [S] shares of all subjects; the second is 0 beyond the last observed month.
        """
        ever = np.concatenate([[0.0], self.frame["share"].to_numpy()])
        before = ever[np.minimum(age, self.final_month)]
        return ever[np.minimum(age + months, self.final_month)] - before, ever[-1] - before

    def sentence(self) -> str:
        """The finding in one line."""
        text = (
            f"by month {self.month} (95 % interval {self.low} to {self.high}) "
            f"{100 * self.wanted:.0f} % of the bads of month {self.final_month} have shown; "
            f"n = {self.n:,}, {self.bads:,} ever bad"
        )
        if self.flat:
            return text
        return (
            f"{text}; the curve still rises: {100 * self.recent:.0f} % of those bads came in the "
            "last quarter of the months, so the true maturity lies later"
        )


def maturity(subjects: Subjects, share: float = SHARE, seed: int = 0) -> Maturity:
    """The month by which a share of the final bads has shown.

    Raises:
        SampleError: the share is not between 0 and 1.
        DataError: too few subjects or bads for a curve.
    """
    if not 0 < share < 1:
        raise SampleError(f"a share of the final bads must lie between 0 and 1, not {share:g}")
    longest = int(subjects.months.max())
    counts = np.bincount(
        subjects.months * (longest + 1) + subjects.first_bad, minlength=(longest + 1) ** 2
    )
    cells = np.flatnonzero(counts)
    months, first = cells // (longest + 1), cells % (longest + 1)
    k = np.arange(1, longest + 1)
    risk = (months[:, None] >= k) & ((first[:, None] == 0) | (first[:, None] >= k))
    new = first[:, None] == k
    at_risk = counts[cells] @ risk
    final = int((at_risk >= LEAST_AT_RISK).sum())  # at_risk never rises
    bads = int((subjects.first_bad > 0).sum())
    if not final or bads < LEAST_BADS:
        raise DataError(
            f"{bads} bads among {len(subjects):,} in the months known are too few for a maturity "
            f"curve: {LEAST_BADS} bads and {LEAST_AT_RISK} customers followed are the least"
        )
    curve = _ever_bad(counts[cells][None].astype(float), risk, new)[0, :final]
    random = np.random.default_rng(seed)
    chance = counts[cells] / counts.sum()
    drawn = _ever_bad(
        random.multinomial(len(subjects), chance, size=DRAWS).astype(float), risk, new
    )[:, :final]
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    # A curve that only reaches its share at the last month has its first such month there.
    reached = np.argmax(drawn >= share * drawn[:, -1:] - 1e-12, axis=1) + 1
    month_low, month_high = np.quantile(reached, [0.025, 0.975], method="nearest")
    late = final - max(1, round(final / 4))
    frame = pl.DataFrame(
        {
            "month": k[:final],
            "at_risk": at_risk[:final],
            "new_bads": (counts[cells] @ new)[:final],
            "share": curve,
            "low": low,
            "high": high,
            "of_final": curve / curve[-1] if curve[-1] > 0 else np.zeros(final),
        }
    )
    return Maturity(
        frame,
        len(subjects),
        bads,
        final,
        share,
        int(np.argmax(curve >= share * curve[-1] - 1e-12)) + 1,
        int(month_low),
        int(month_high),
        float(1 - curve[late - 1] / curve[-1]) if late and curve[-1] > 0 else 1.0,
    )


def _ever_bad(counts: np.ndarray, risk: np.ndarray, new: np.ndarray) -> np.ndarray:
    """[D, K] one minus Kaplan-Meier of [D, cells] counts."""
    hazard = (counts @ new) / np.maximum(counts @ risk, 1.0)
    return 1 - np.cumprod(1 - hazard, axis=1)


def roll_rates(states: States) -> pl.DataFrame:
    """Where customers of a state stand one month later.

    Returns:
        from, to (the last one `no event`), n, n_from, share, low, high (95 % Wilson interval).
    Raises:
        DataError: no month has a known month after it.
    """
    local = pl.col("local")
    index = local.dt.year().cast(pl.Int64) * 12 + local.dt.month().cast(pl.Int64)
    monthly = (
        states.frame.with_columns(index.alias("month"))
        .group_by("entity_id", "month", maintain_order=True)
        .agg(pl.col("state").last(), pl.col("event_time").max())
    )
    ended = _last_whole_month(states)
    now = monthly.filter(pl.col("month") < ended).select("entity_id", "month", "state")
    if not len(now):
        raise DataError("roll rates need two whole months of events; there is one at most")
    after = monthly.select("entity_id", pl.col("month") - 1, pl.col("state").alias("next"))
    pairs = now.join(after, on=["entity_id", "month"], how="left")
    width = len(states.names) + 1
    to = pairs["next"].fill_null(width - 1).to_numpy()
    counts = np.bincount(
        pairs["state"].to_numpy() * width + to, minlength=(width - 1) * width
    ).reshape(width - 1, width)
    names = [*states.names, NO_EVENT]
    n, n_from = counts.ravel(), np.repeat(counts.sum(axis=1), width)
    some = n_from > 0
    low, high = wilson(n[some], n_from[some])
    return pl.DataFrame(
        {
            "from": np.repeat(names[:-1], width)[some],
            "to": np.tile(names, width - 1)[some],
            "n": n[some],
            "n_from": n_from[some],
            "share": n[some] / n_from[some],
            "low": low,
            "high": high,
        }
    )


def _last_whole_month(states: States) -> int:
    """Index (12 year + month) of the last calendar month that is known whole."""
    return 12 * states.horizon.year + states.horizon.month - 1


def directions(rates: pl.DataFrame, names: tuple[str, ...]) -> pl.DataFrame:
    """Per state the shares that get worse, stay and get better, of those with an event next month.

    Returns:
        state, n, worse, same, better.
    """
    at = {name: i for i, name in enumerate(names)}
    moved = rates.filter(pl.col("to") != NO_EVENT).with_columns(
        pl.col("from").replace_strict(at, return_dtype=pl.Int64).alias("a"),
        pl.col("to").replace_strict(at, return_dtype=pl.Int64).alias("b"),
    )
    n = pl.col("n")
    by = (
        moved.group_by("from", "a")
        .agg(
            n.sum(),
            (n.filter(pl.col("b") > pl.col("a")).sum() / n.sum()).alias("worse"),
            (n.filter(pl.col("b") == pl.col("a")).sum() / n.sum()).alias("same"),
            (n.filter(pl.col("b") < pl.col("a")).sum() / n.sum()).alias("better"),
        )
        .filter(n > 0)
        .sort("a")
    )
    return by.rename({"from": "state"}).drop("a")


def turning_state(table: pl.DataFrame) -> str | None:
    """The mildest state from which, and from every worse one, more get worse than better.

    The worst state of all cannot get worse and follows the one before it.
    """
    found = None
    for row in reversed(table.to_dicts()[:-1]):
        if row["worse"] <= row["better"]:
            break
        found = row["state"]
    return found


def window_maturity(
    as_of: pl.Series, label: pl.Series, age: np.ndarray, months: np.ndarray, curve: Maturity
) -> pl.DataFrame:
    """Which windows of a sample file are ripe.

    Args:
        as_of: [S] Datetime; label: [S] 0, 1 or null.
        age: [S] whole months between the start and as_of; 0 for new customers.
        months: [S] whole months watched from as_of on.
    Returns:
        as_of (month), n, bads, bad_rate (of those labelled), age (median), months (fewest), shown
        (of the bads the curve still expects after as_of, the share that comes within the months
        watched; null where it expects none), mature.
    """
    shown, left = curve.shown_between(age, months)
    frame = pl.DataFrame(
        {
            "as_of": as_of.dt.strftime("%Y-%m"), "label": label, "age": age, "months": months,
            "shown": shown, "left": left,
        }
    )  # fmt: skip
    left_sum = pl.col("left").sum()
    rows = frame.group_by("as_of").agg(
        pl.len().alias("n"),
        pl.col("label").sum().cast(pl.Int64).alias("bads"),
        pl.col("label").mean().alias("bad_rate"),
        pl.col("age").median().cast(pl.Int64),
        pl.col("months").min(),
        pl.when(left_sum > 0).then(pl.col("shown").sum() / left_sum).alias("shown"),
    )
    ripe = (pl.col("shown") >= curve.wanted - 1e-12).alias("mature")
    return rows.sort("as_of").with_columns(ripe)


def plain_rows(frame: pl.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON knows them; NaN becomes None."""
    return frame.fill_nan(None).to_dicts()
