"""The people of a simulated world: what they are, and the hidden state they are in every month.

Synthetic. Three traits (income, stability, liquidity) and a hidden monthly state, comfortable,
tight or distressed, drive everything that can be observed later. A person gets worse or better by
one state a month; how likely, hangs on the traits and drifts with the world.

Legend: C customers of one part, M months of the world, H months simulated (M and a tail, so that
loans granted in the last month still have an end), 3 states.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from foundation.history import DAY_US
from foundation.simulation_scenario import Scenario, month_starts

COMFORTABLE, TIGHT, DISTRESSED = 0, 1, 2
TAIL_MONTHS = 13
HISTORY_MONTHS = 6
_BURN_IN = 8
_PRESENT_AT_START = 0.5


@dataclass(frozen=True)
class People:
    """Customers of one part of the world.

    Attributes:
        ids: [C] strings, all beginning with `synthetic-`.
        number: [C] int64, place in the whole world.
        channel: [C] int64, index into the scenario's channels.
        join_month: [C] int64, month of becoming a customer, below 0 for those before the start.
        joined_us: [C] int64 microseconds UTC; nothing is known of anybody earlier.
        log_income, stability, liquidity: [C] float64, standardised but for income.
        ring: [C] int64 fraud ring, -1 for everybody else.
        device: [C] int64 number of the device used, shared inside a ring and some households.
        state: [H, C] int8 hidden state of every month.
        month_us: [H + 1] int64 microseconds UTC at which months begin.
    """

    scenario: Scenario
    months: int
    ids: pl.Series
    number: np.ndarray
    channel: np.ndarray
    join_month: np.ndarray
    joined_us: np.ndarray
    log_income: np.ndarray
    stability: np.ndarray
    liquidity: np.ndarray
    ring: np.ndarray
    device: np.ndarray
    state: np.ndarray
    month_us: np.ndarray

    def __len__(self) -> int:
        return len(self.number)

    @property
    def fraud(self) -> np.ndarray:
        """[C] bool."""
        return self.ring >= 0

    @property
    def first_month(self) -> np.ndarray:
        """[C] first month of which bills and bureau queries can be had; consent brings history."""
        back = np.where(self.fraud, 0, HISTORY_MONTHS)
        return np.maximum(self.join_month - back, 0)

    def of_channel(self, attribute: str) -> np.ndarray:
        """[C] an attribute of everybody's channel."""
        values = [getattr(c, attribute) for c in self.scenario.channels.values()]
        return np.array(values, dtype=np.float64)[self.channel]


def make_people(
    scenario: Scenario, months: int, first: int, count: int, rng: np.random.Generator
) -> People:
    """People `first` to `first + count` of a world, with their states of all months."""
    channel, join = _channels(scenario, months, count, rng)
    ring = np.full(count, -1, dtype=np.int64)
    wave = scenario.fraud_wave
    if wave is not None and wave.month < months:
        chosen = np.sort(rng.choice(count, round(wave.share * count), replace=False))
        ring[chosen] = np.arange(len(chosen)) // wave.ring_size
        channel[chosen] = list(scenario.channels).index(wave.channel)
        join[chosen] = wave.month - 1
    fraud = ring >= 0
    month_us = month_starts(scenario, months + TAIL_MONTHS)
    before = month_us[0] + join * 30 * DAY_US
    joined = np.where(join < 0, before, month_us[np.maximum(join, 0)])
    joined = joined + rng.integers(0, 27 * DAY_US, count)
    stability, liquidity = rng.standard_normal((2, count))
    incomes = np.array([c.income for c in scenario.channels.values()])[channel]
    income = 8.6 + incomes + 0.2 * stability + 0.45 * rng.standard_normal(count)
    digits = pl.Series(np.arange(first, first + count)).cast(pl.String).str.zfill(7)
    return People(
        scenario=scenario,
        months=months,
        ids=pl.select(entity_id=pl.lit("synthetic-") + digits).to_series(),
        number=np.arange(first, first + count),
        channel=channel,
        join_month=join,
        joined_us=joined,
        log_income=income,
        stability=stability,
        liquidity=liquidity,
        ring=ring,
        device=_devices(first, ring, fraud, rng),
        state=_states(scenario, months, stability, liquidity, rng),
        month_us=month_us,
    )


def transitions(
    scenario: Scenario, month: int, stability: np.ndarray, liquidity: np.ndarray
) -> np.ndarray:
    """[C, 3, 3] probabilities of next month's state given this month's, for people's traits."""
    drift = scenario.drift.worsening * max(month, 0) / 24
    worse = [_logistic(at - 0.6 * stability + drift) for at in (-3.1, -2.6)]
    better = [_logistic(at + 0.5 * liquidity) for at in (-1.6, -1.9)]
    out = np.zeros((len(stability), 3, 3))
    out[:, 0, 1], out[:, 1, 2] = worse
    out[:, 1, 0], out[:, 2, 1] = better[0] * (1 - worse[1]), better[1]
    for state in range(3):
        out[:, state, state] = 1 - out[:, state].sum(axis=1)
    return out


def _channels(
    scenario: Scenario, months: int, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Everybody's channel and month of joining; a channel has no customer before it opens."""
    opens = np.array([c.opens for c in scenario.channels.values()])
    share = np.array([c.share for c in scenario.channels.values()])
    join = np.where(
        rng.random(count) < _PRESENT_AT_START,
        rng.integers(-HISTORY_MONTHS, 0, count),
        rng.integers(0, max(months - 1, 1), count),
    )
    odds = np.where(opens[None, :] <= np.maximum(join, 0)[:, None], share[None, :], 0.0)
    reach = np.cumsum(odds, axis=1)
    drawn = rng.random(count) * reach[:, -1]
    return (drawn[:, None] >= reach).sum(axis=1), join


def _devices(
    first: int, ring: np.ndarray, fraud: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """One device a person; 6 % use the one of the person before, and a ring shares one."""
    device = np.arange(first, first + len(ring))
    household = rng.random(len(ring)) < 0.06
    household[0] = False
    device[household] -= 1
    head = np.flatnonzero(fraud)
    _, start = np.unique(ring[head], return_index=True)
    device[head] = (first + head[start])[ring[head]] if len(head) else device[head]
    return device


def _states(
    scenario: Scenario,
    months: int,
    stability: np.ndarray,
    liquidity: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """[H, C] int8 states: some months from comfortable on, unrecorded, then the world's."""
    state = np.zeros(len(stability), dtype=np.int64)
    rows = np.empty((months + TAIL_MONTHS, len(stability)), dtype=np.int8)
    everyone = np.arange(len(stability))
    for month in range(-_BURN_IN, months + TAIL_MONTHS):
        if month >= 0:
            rows[month] = state
        reach = np.cumsum(
            transitions(scenario, month, stability, liquidity)[everyone, state], axis=1
        )
        state = np.minimum((rng.random(len(state))[:, None] >= reach).sum(axis=1), 2)
    return rows


def _logistic(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))
