"""What can be seen of simulated people: app use, bureau queries and bills.

Synthetic. Rates and statuses follow the hidden state of the month; channels shift them without
shifting risk, so that one number means different things in different channels. Nothing is known
of anybody before they became a customer, some events become known late, and some bills are first
reported wrongly: the right row comes later, with a later known_at.

Legend: C customers, M months, N events of a source, T types of bill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from foundation.history import DAY_US
from foundation.simulation_people import People

HOUR_US = DAY_US // 24
MINUTE_US = HOUR_US // 60
APP_EVENTS = ("login", "view_limit", "repay_page", "support", "failed_login", "top_up")
INSTITUTIONS = ("bank", "card", "consumer_finance", "online_lender")
BILLS = ("phone", "power", "rent")
BILL_STATUS = ("paid", "late", "unpaid")
PAID, LATE, UNPAID = 0, 1, 2
_UNPAID_AFTER = 20


@dataclass(frozen=True)
class Behaviour:
    """Monthly numbers from which events are made and which the lender's policy reads.

    Attributes:
        app, queries: [M, C] int64 numbers of events.
        bills: [T, M, C] int8 status, -1 where there is no bill.
    """

    app: np.ndarray
    queries: np.ndarray
    bills: np.ndarray


def behave(people: People, rng: np.random.Generator) -> Behaviour:
    """Draw how often everybody does what, month by month."""
    months, state = people.months, people.state[: people.months]
    month = np.arange(months)[:, None]
    active = month >= np.maximum(people.join_month, 0)
    habit = np.exp(0.5 * rng.standard_normal(len(people)))
    app = np.array([4.0, 4.8, 6.0])[state] * habit * people.of_channel("activity")
    app = np.where(people.fraud, 12.0, app)
    queries = np.array([0.15, 0.5, 1.3])[state] * people.of_channel("queries")
    seen = (month >= people.first_month) & ~(people.fraud & (month < people.join_month))
    bad = np.array([[0.04, 0.005], [0.18, 0.04], [0.34, 0.20]])[state]
    bills = np.full((len(BILLS), months, len(people)), -1, dtype=np.int8)
    rents = rng.random(len(people)) < 0.4
    for kind in range(len(BILLS)):
        drawn = rng.random((months, len(people)))
        status = np.where(drawn < bad[..., 1], UNPAID, PAID)
        status = np.where((drawn >= bad[..., 1]) & (drawn < bad.sum(axis=-1)), LATE, status)
        has = seen & ~people.fraud & (rents if BILLS[kind] == "rent" else True)
        bills[kind] = np.where(has, status, -1)
    return Behaviour(
        app=rng.poisson(np.where(active, app, 0.0)),
        queries=rng.poisson(np.where(seen, queries, 0.0)),
        bills=bills,
    )


def app_events(people: People, counts: np.ndarray, rng: np.random.Generator) -> pl.DataFrame:
    """`app`: logins and visits, with the device used."""
    month, who = _repeated(counts)
    state = people.state[month, who]
    odds = np.array(
        [[0.64, 0.08, 0.19, 0.04, 0.05], [0.53, 0.18, 0.14, 0.07, 0.08],
         [0.40, 0.30, 0.08, 0.09, 0.13]]
    )  # fmt: skip
    kind = _drawn(odds[state], rng)
    fresh = (month >= people.scenario.drift.new_app_event) & (rng.random(len(who)) < 0.15)
    kind = np.where(fresh, APP_EVENTS.index("top_up"), kind)
    night = np.array([0.05, 0.10, 0.18])[state] + people.of_channel("night")[who]
    hour = np.where(rng.random(len(who)) < night, rng.uniform(0, 5, len(who)), 0)
    hour = np.where(hour > 0, hour, rng.normal(15, 3.5, len(who)).clip(5.5, 23.9))
    event = _day(people, month, rng) + (hour * HOUR_US).astype(np.int64)
    device = people.device[who]
    other = (rng.random(len(who)) < 0.04) & ~people.fraud[who]
    device = np.where(other, -1 - who, device)
    seconds = np.exp(rng.normal(4.2 + 0.3 * state, 0.7))
    kept = (event >= people.joined_us[who]) & (event < people.month_us[month + 1])
    frame = _frame(people, who, event, event + rng.integers(1, 30, len(who)) * MINUTE_US, rng)
    return frame.with_columns(
        pl.Series(APP_EVENTS).gather(kind).alias("event"),
        _devices(people, device).alias("device"),
        pl.Series("seconds", seconds.round()),
    ).filter(pl.Series(kept))


def bureau_queries(people: People, counts: np.ndarray, rng: np.random.Generator) -> pl.DataFrame:
    """`bureau`: who looked a customer up, known one to three days later."""
    month, who = _repeated(counts)
    state = people.state[month, who]
    odds = np.array([[0.40, 0.35, 0.18, 0.07], [0.25, 0.27, 0.28, 0.20], [0.12, 0.16, 0.30, 0.42]])
    kind = _drawn(odds[state], rng)
    event = _day(people, month, rng) + rng.integers(8 * 60, 21 * 60, len(who)) * MINUTE_US
    amount = np.exp(people.log_income[who] + rng.normal(0.3, 0.6, len(who)) - 0.2 * state)
    known = event + rng.integers(1, 4, len(who)) * DAY_US
    return _frame(people, who, event, known, rng).with_columns(
        pl.Series(INSTITUTIONS).gather(kind).alias("institution"),
        pl.Series("amount", amount.round(-2)),
    )


def bill_events(people: People, bills: np.ndarray, rng: np.random.Generator) -> pl.DataFrame:
    """`bill`: paid, paid late or still unpaid after twenty days; some corrected later."""
    kind, month, who = np.nonzero(bills >= 0)
    status = bills[kind, month, who].astype(np.int64)
    level = np.array([4.2, 4.8, 7.1])[kind] + 0.35 * (people.log_income[who] - 8.6)
    growth = month * np.log1p(people.scenario.drift.prices)
    amount = np.exp(level + growth + rng.normal(0, 0.2, len(who))).round(2)
    due = people.month_us[month] + ((who * 7 + kind * 9) % 26) * DAY_US
    after = np.select(
        [status == PAID, status == LATE],
        [rng.integers(-6, 1, len(who)), rng.integers(3, 18, len(who))],
        _UNPAID_AFTER,
    )
    event = due + after * DAY_US + rng.integers(9 * 60, 18 * 60, len(who)) * MINUTE_US
    rows = _frame(people, who, event, event + DAY_US, rng).with_columns(
        pl.Series(BILLS).gather(kind).alias("bill_type"),
        pl.Series("amount", amount),
        pl.Series("due", due).cast(pl.Datetime("us")),
        pl.Series("status", status),
        pl.lit(False).alias("corrected"),
    )
    return _corrected(people, rows, rng).with_columns(
        paid=pl.when(pl.col("status") == UNPAID).then(0.0).otherwise(pl.col("amount")),
        status=pl.col("status").replace_strict(
            dict(enumerate(BILL_STATUS)), return_dtype=pl.String
        ),
    )


def _corrected(people: People, rows: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    """Give a share of the bills a wrong first row; the right one follows, known later."""
    delays = people.scenario.corrections
    wrong = rng.random(len(rows)) < delays.share
    later = (rng.exponential(delays.mean_days, len(rows)) * DAY_US).astype(np.int64) + DAY_US
    shown = pl.when(pl.col("status") == PAID).then(UNPAID).otherwise(PAID)
    first = rows.with_columns(
        pl.when(pl.Series(wrong)).then(shown).otherwise(pl.col("status")).alias("status")
    )
    second = rows.with_columns(
        (pl.col("known_at") + pl.Series(later).cast(pl.Duration("us"))).alias("known_at"),
        pl.lit(True).alias("corrected"),
    ).filter(pl.Series(wrong))
    return pl.concat([first, second])


def _repeated(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Month and customer of every event that a table of numbers [M, C] asks for."""
    month, who = np.nonzero(counts)
    times = counts[month, who]
    return np.repeat(month, times), np.repeat(who, times)


def _drawn(odds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[N] int64 choices by the probabilities of every row [N, K]."""
    reach = np.cumsum(odds, axis=1)
    return (rng.random(len(odds))[:, None] * reach[:, -1:] >= reach).sum(axis=1)


def _day(people: People, month: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[N] midnights inside the months."""
    days = (people.month_us[month + 1] - people.month_us[month]) // DAY_US
    return people.month_us[month] + (rng.random(len(month)) * days).astype(np.int64) * DAY_US


def _frame(
    people: People,
    who: np.ndarray,
    event_us: np.ndarray,
    known_us: np.ndarray,
    rng: np.random.Generator,
) -> pl.DataFrame:
    """entity_id, event_time, known_at: a share late, nothing before the customer had joined."""
    delays = people.scenario.late_events
    late = rng.random(len(who)) < delays.share
    extra = (rng.exponential(delays.mean_days, len(who)) * DAY_US).astype(np.int64)
    known = np.maximum(known_us + np.where(late, extra, 0), people.joined_us[who])
    return entity_times(people, who, {"event_time": event_us, "known_at": known})


def entity_times(people: People, who: np.ndarray, times: dict[str, np.ndarray]) -> pl.DataFrame:
    """entity_id and some columns of times (naive UTC microseconds)."""
    columns: Sequence[pl.Series] = [
        people.ids.gather(who),
        *(pl.Series(name, us).cast(pl.Datetime("us")) for name, us in times.items()),
    ]
    return pl.DataFrame(columns)


def _devices(people: People, device: np.ndarray) -> pl.Series:
    """Names of devices; a negative number -1 - c is the second device of customer c."""
    second = device < 0
    number = np.where(second, people.number[np.where(second, -1 - device, 0)], device)
    frame = pl.DataFrame({"number": number, "second": second})
    return frame.select(
        pl.when("second").then(pl.lit("second-")).otherwise(pl.lit("device-"))
        + pl.col("number").cast(pl.String)
    ).to_series()
