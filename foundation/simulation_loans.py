"""Applications, the lender's policy, loans, repayments, labels, and what could be known at best.

Synthetic. The lender approves by a score of its own that sees only income as stated, queries and
late bills, so the approved are a selected population and the refused are listed without a label.
For everybody, refused or not, the same chances are drawn: `truth` says how the refused would have
paid, and the probability of the label given everything hidden (state, traits, fraud) at the moment
of the decision. No model can rank better than that on average; it is never part of a sample.

Legend: C customers, A applications, I instalments of a loan (12 at most).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from foundation.history import DAY_US
from foundation.simulation_events import (
    MINUTE_US,
    PAID,
    Behaviour,
    entity_times,
)
from foundation.simulation_people import People, transitions
from foundation.simulation_scenario import GRACE_DAYS, REPORTED_DAYS

TERMS = (3, 6, 12)
MOST_INSTALMENTS = max(TERMS)
STATUS = ("on_time", "late", "missed")
ON_TIME, LATE, MISSED = 0, 1, 2
_GIVEN_UP_AFTER = 3
_FRAUD = 4.5


@dataclass(frozen=True)
class Applications:
    """Every application of a part, in the order of months.

    Attributes:
        who: [A] customer. month: [A]. as_of_us: [A] int64 microseconds UTC.
        amount: [A] float64. term: [A] int64 months. approved: [A] bool.
        status: [A, I] int8 of every instalment, -1 where none is paid any more; for refused
            applications what would have happened.
        label: [A] int64. reference: [A] float64 probability of the label given all that is hidden.
    """

    who: np.ndarray
    month: np.ndarray
    as_of_us: np.ndarray
    amount: np.ndarray
    term: np.ndarray
    approved: np.ndarray
    status: np.ndarray
    label: np.ndarray
    reference: np.ndarray


def apply_and_pay(
    people: People, stated: np.ndarray, behaviour: Behaviour, rng: np.random.Generator
) -> Applications:
    """Month by month: who applies, whom the policy approves, and how the loans go.

    Args:
        stated: [C] logarithm of the income as stated.
    """
    free_from = np.maximum(people.join_month + 1, 0)
    missed_before = np.zeros(len(people))
    out: list[Applications] = []
    for month in range(people.months):
        who = _applicants(people, month, free_from, rng)
        if not len(who):
            continue
        made = _month(people, who, month, stated, behaviour, missed_before, rng)
        out.append(made)
        granted, term = who[made.approved], made.term[made.approved]
        missed = (made.status[made.approved] == MISSED).sum(axis=1)
        free_from[granted] = month + term + 2  # settled, and a missed last instalment is known
        free_from[granted[missed >= _GIVEN_UP_AFTER]] = people.months
        missed_before[granted] += missed
    return _concatenated(out)


def repayment_events(people: People, made: Applications) -> pl.DataFrame:
    """`repayment`: instalments of approved loans; a missed one comes 30 days after it was due."""
    loan, nth = np.nonzero((made.status >= 0) & made.approved[:, None])
    status, who = made.status[loan, nth].astype(np.int64), made.who[loan]
    due = _due(people, made, loan, nth + 1)
    spread = (loan * 7919 + nth * 104729) % 97  # a fixed spread over days and hours
    days = np.select(
        [status == ON_TIME, status == LATE], [-(spread % 4), 4 + spread % 22], GRACE_DAYS
    )
    event = due + days * DAY_US + spread * 5 * MINUTE_US
    amount = (made.amount[loan] / made.term[loan] * 1.04).round(2)
    frame = entity_times(people, who, {"event_time": event, "known_at": event + 6 * 60 * MINUTE_US})
    return frame.with_columns(
        pl.Series("due", due).cast(pl.Datetime("us")),
        pl.Series("amount_due", amount),
        pl.Series("paid", np.where(status == MISSED, 0.0, amount)),
        pl.Series("instalment", nth + 1),
        pl.Series(STATUS).gather(status).alias("status"),
    )


def application_events(people: People, made: Applications) -> pl.DataFrame:
    """`application`: what was asked for and the decision, known a few minutes after as_of."""
    known = made.as_of_us + 5 * MINUTE_US
    times = {"event_time": made.as_of_us, "known_at": known}
    return entity_times(people, made.who, times).with_columns(
        channel_of(people, made.who),
        pl.Series("amount", made.amount),
        pl.Series("term", made.term),
        pl.Series("decision", np.where(made.approved, "approved", "refused").tolist()),
    )


def application_table(people: People, made: Applications) -> pl.DataFrame:
    """One row for each application: entity_id, as_of, channel, amount, term, approved, label,
    label_known_at, and the hidden columns reference, state, fraud. Sorted by (as_of, entity_id)."""
    judged = np.full(len(made.who), people.scenario.label_instalments)
    last = _due(people, made, np.arange(len(made.who)), judged)
    known = last + (GRACE_DAYS + REPORTED_DAYS) * DAY_US
    frame = entity_times(people, made.who, {"as_of": made.as_of_us, "label_known_at": known})
    return frame.with_columns(
        channel_of(people, made.who),
        pl.Series("amount", made.amount),
        pl.Series("term", made.term),
        pl.Series("approved", made.approved.astype(np.int8)),
        pl.Series("label", made.label.astype(np.int8)),
        pl.Series("reference", made.reference),
        pl.Series("state", people.state[made.month, made.who]),
        pl.Series("fraud", people.fraud[made.who]),
    ).sort("as_of", "entity_id")


def channel_of(people: People, who: np.ndarray) -> pl.Series:
    """Names of customers' channels."""
    names = pl.Series("channel", list(people.scenario.channels))
    return names.gather(people.channel[who])


def _applicants(
    people: People, month: int, free_from: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Customers without a running loan who apply in this month."""
    chance = np.array([0.10, 0.15, 0.20])[people.state[month]]
    chance = np.where(month <= people.join_month + 2, chance + 0.25, chance)
    wave = people.scenario.fraud_wave
    if wave is not None:
        now = wave.month <= month < wave.month + wave.months
        chance = np.where(people.fraud, 0.7 if now else 0.0, chance)
    return np.flatnonzero((rng.random(len(people)) < chance) & (free_from <= month))


def _month(
    people: People,
    who: np.ndarray,
    month: int,
    stated: np.ndarray,
    behaviour: Behaviour,
    missed_before: np.ndarray,
    rng: np.random.Generator,
) -> Applications:
    """The applications of one month."""
    count = len(who)
    as_of = people.month_us[month] + rng.integers(0, 28 * DAY_US // MINUTE_US, count) * MINUTE_US
    growth = month * np.log1p(people.scenario.drift.prices)
    wish = 0.4 + 0.15 * people.state[month, who] + growth + rng.normal(0, 0.5, count)
    amount = np.exp(stated[who] + wish).round(-2).clip(500, 200_000)
    term = np.array(TERMS)[rng.integers(0, len(TERMS), count)]
    burden = np.log(amount / term) - people.log_income[who] + 1.5
    recent = slice(max(month - 3, 0), month)
    late_bills = (behaviour.bills[:, recent, :][:, :, who] > PAID).sum(axis=(0, 1))
    policy = (
        0.6 * (stated[who] - 8.6)
        - 0.3 * np.log1p(behaviour.queries[recent][:, who].sum(axis=0))
        - 0.4 * np.log1p(late_bills)
        - 0.8 * missed_before[who]
        - 0.3 * burden
        + rng.normal(0, 0.8, count)
    )
    status, reference = _paid(people, who, month, burden, term, rng)
    return Applications(
        who=who,
        month=np.full(count, month),
        as_of_us=as_of,
        amount=amount,
        term=term,
        approved=policy > people.of_channel("cutoff")[who],
        status=status,
        label=(status[:, : people.scenario.label_instalments] == MISSED).any(axis=1).astype(int),
        reference=reference,
    )


def _paid(
    people: People,
    who: np.ndarray,
    month: int,
    burden: np.ndarray,
    term: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Status of every instalment, and the probability that one of the judged ones is missed.

    The probability is the exact sum over all courses of the hidden state from this month on.
    """
    trait = (
        people.of_channel("risk")[who]
        - 0.45 * people.stability[who]
        - 0.35 * people.liquidity[who]
        + 0.35 * burden
        + np.where(people.fraud[who], _FRAUD, 0.0)
    )
    base = np.array([-4.8, -3.0, -0.9])
    miss = 1.0 / (1.0 + np.exp(-(base[None, :] + trait[:, None])))  # [A, 3] chance by state
    alive = np.eye(3)[people.state[month, who]]  # [A, 3] nothing missed yet, by state
    status = np.full((len(who), MOST_INSTALMENTS), -1, dtype=np.int8)
    missed = np.zeros(len(who), dtype=np.int64)
    everyone = np.arange(len(who))
    for nth in range(MOST_INSTALMENTS):
        if nth < people.scenario.label_instalments:
            step = transitions(
                people.scenario, month + nth, people.stability[who], people.liquidity[who]
            )
            alive = np.einsum("as,ast->at", alive, step) * (1 - miss)
        state = people.state[month + nth + 1, who]
        chance = miss[everyone, state]
        chance = np.where(missed > 0, 0.5 + 0.5 * chance, chance)
        drawn = rng.random((2, len(who)))
        late = drawn[1] < np.array([0.05, 0.20, 0.45])[state]
        now = np.where(drawn[0] < chance, MISSED, np.where(late, LATE, ON_TIME))
        runs = (nth < term) & (missed < _GIVEN_UP_AFTER)
        status[:, nth] = np.where(runs, now, -1)
        missed += runs & (now == MISSED)
    return status, 1.0 - alive.sum(axis=1)


def _due(people: People, made: Applications, loan: np.ndarray, nth: np.ndarray) -> np.ndarray:
    """Moments at which instalments are due: the application's day of month, `nth` months later."""
    into = made.as_of_us[loan] - people.month_us[made.month[loan]]
    return people.month_us[made.month[loan] + nth] + into


def _concatenated(parts: list[Applications]) -> Applications:
    if not parts:
        empty = np.zeros(0, dtype=np.int64)
        return Applications(
            empty, empty, empty, empty.astype(float), empty, empty.astype(bool),
            np.zeros((0, MOST_INSTALMENTS), dtype=np.int8), empty, empty.astype(float),
        )  # fmt: skip
    names = Applications.__dataclass_fields__
    return Applications(**{n: np.concatenate([getattr(p, n) for p in parts]) for n in names})
