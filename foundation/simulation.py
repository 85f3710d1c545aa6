"""A seeded small lending world, synthetic throughout: what is known of it by a day.

People, behaviour, loans and labels come from a scenario and a seed, in parts of at most
`PART_CUSTOMERS` customers, so that memory stays bounded. The same scenario, size and seed give the
same rows whatever is asked for, so a world up to a day and the days after it fit together.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from foundation.errors import ConfigError
from foundation.history import DAY_US
from foundation.simulation_events import app_events, behave, bill_events, bureau_queries
from foundation.simulation_loans import (
    application_events,
    application_table,
    apply_and_pay,
    repayment_events,
)
from foundation.simulation_people import People, make_people
from foundation.simulation_scenario import Scenario, month_starts

PART_CUSTOMERS = 10_000
HIDDEN = ("reference", "state", "fraud")
REGIONS = ("north", "east", "south", "west")
EDUCATION = ("school", "college", "degree")
EMPLOYMENT = ("employed", "self_employed", "temporary", "none")


@dataclass(frozen=True)
class WorldSize:
    """How much of a scenario is simulated."""

    customers: int = 2000
    months: int = 24
    seed: int = 0

    def __post_init__(self) -> None:
        if self.customers < 50 or self.months < 6:
            raise ConfigError(
                f"{self.customers} customers over {self.months} months make no world; give at "
                "least 50 customers and 6 months"
            )


@dataclass(frozen=True)
class Part:
    """Some customers of a world, everything about them.

    Attributes:
        events: source to entity_id, event_time, known_at and fields; sorted by known_at.
        profile: entity_id, stated_at and attributes, sorted by stated_at.
        applications: see `simulation_loans.application_table`; hidden columns included.
        first: number of the part's first customer in the world.
    """

    events: dict[str, pl.DataFrame]
    profile: pl.DataFrame
    applications: pl.DataFrame
    first: int


@dataclass(frozen=True)
class Known:
    """What had become known in a stretch of time, before `until` and not before `since`.

    Attributes:
        events, profile: rows that became known in it.
        applications: decided in it: entity_id, as_of, channel, amount, term, approved.
        labels: matured in it, of approved applications: entity_id, as_of, label, label_known_at,
            channel, amount, term, approved.
        pending: approved in it, the label not known before `until`.
        refused: refused in it; they never get a label.
    """

    events: dict[str, pl.DataFrame]
    profile: pl.DataFrame
    applications: pl.DataFrame
    labels: pl.DataFrame
    pending: pl.DataFrame
    refused: pl.DataFrame


def simulate(scenario: Scenario, size: WorldSize) -> Iterator[Part]:
    """The parts of a world, one after the other."""
    for index, first in enumerate(range(0, size.customers, PART_CUSTOMERS)):
        count = min(PART_CUSTOMERS, size.customers - first)
        yield _part(scenario, size, index, first, count)


def known_by(part: Part, day: dt.datetime) -> Known:
    """What had become known of a part before a moment (naive UTC)."""
    return known_between(part, None, day)


def known_between(part: Part, since: dt.datetime | None, until: dt.datetime) -> Known:
    """What became known from `since` (None: from the beginning) to before `until`, naive UTC.

    Slices of days that follow each other add up to `known_by` of the last day; only `pending`
    does not, as labels of it mature.
    """
    decided = _within(part.applications, "as_of", since, until).drop(HIDDEN)
    asked = decided.drop("label", "label_known_at")
    approved = pl.col("approved") == 1
    matured = _within(
        part.applications.filter(approved).sort("label_known_at", "as_of", "entity_id"),
        "label_known_at",
        since,
        until,
    )
    first = ["entity_id", "as_of", "label", "label_known_at", "channel", "amount", "term"]
    waiting = decided.filter(approved, pl.col("label_known_at") >= until)
    return Known(
        events={n: _within(f, "known_at", since, until) for n, f in part.events.items()},
        profile=_within(part.profile, "stated_at", since, until),
        applications=asked,
        labels=matured.select(*first, "approved"),
        pending=waiting.drop("label", "label_known_at"),
        refused=asked.filter(~approved),
    )


def world_end(scenario: Scenario, months: int) -> dt.datetime:
    """The moment at which a world ends, naive UTC."""
    us = int(month_starts(scenario, months)[-1])
    return dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=us)


def _within(
    frame: pl.DataFrame, column: str, since: dt.datetime | None, until: dt.datetime
) -> pl.DataFrame:
    """Rows of a frame sorted by a column of times, from `since` to before `until`."""
    times = frame[column]
    stop = int(times.search_sorted(until, side="left"))
    start = 0 if since is None else int(times.search_sorted(since, side="left"))
    return frame.slice(start, max(stop - start, 0))


def _part(scenario: Scenario, size: WorldSize, index: int, first: int, count: int) -> Part:
    """One part, from random streams of its own."""

    def stream(subject: int) -> np.random.Generator:
        return np.random.default_rng([size.seed, index, subject])

    people = make_people(scenario, size.months, first, count, stream(0))
    rng = stream(1)
    stated = people.log_income + 0.25 * rng.standard_normal(count) + 0.5 * people.fraud
    profile = _profile(people, stated, rng)
    behaviour = behave(people, stream(2))
    made = apply_and_pay(people, stated, behaviour, stream(3))
    events = {
        "app": app_events(people, behaviour.app, stream(4)),
        "application": application_events(people, made),
        "bill": bill_events(people, behaviour.bills, stream(5)),
        "bureau": bureau_queries(people, behaviour.queries, stream(6)),
        "repayment": repayment_events(people, made),
    }
    order = ("known_at", "event_time", "entity_id")
    return Part(
        events={n: f.sort(order, maintain_order=True) for n, f in events.items()},
        profile=profile,
        applications=application_table(people, made),
        first=first,
    )


def _profile(people: People, stated: np.ndarray, rng: np.random.Generator) -> pl.DataFrame:
    """What everybody stated on joining; some state another employment and income later."""
    count = len(people)
    steady = people.stability[:, None] * np.array([0.5, -0.1, -0.4, -0.7])
    gumbel = rng.gumbel(size=(count, len(EMPLOYMENT)))
    employment = (np.array([1.4, 0.2, 0.0, -1.0]) + steady + gumbel).argmax(axis=1)
    region = (rng.random(count) * 4 + 0.3 * people.channel).astype(np.int64) % 4
    frame = pl.DataFrame(
        {
            "entity_id": people.ids,
            "stated_at": pl.Series(people.joined_us).cast(pl.Datetime("us")),
            "birth_year": (1988 + 9 * rng.standard_normal(count) + 3 * people.of_channel("night"))
            .round()
            .clip(1950, 2004)
            .astype(np.int64),
            "sex": pl.Series(["female", "male"]).gather(rng.integers(0, 2, count)),
            "region": pl.Series(REGIONS).gather(region),
            "education": pl.Series(EDUCATION).gather(
                np.clip(np.round(1 + 0.6 * rng.standard_normal(count)), 0, 2).astype(np.int64)
            ),
            "employment": pl.Series(EMPLOYMENT).gather(employment),
            "stated_income": np.exp(stated).round(-2),
        }
    )
    changed = np.flatnonzero(rng.random(count) < 0.15)
    later = people.joined_us[changed] + rng.integers(30, 400, len(changed)) * DAY_US
    income = np.exp(stated[changed] + rng.normal(0, 0.3, len(changed))).round(-2)
    update = frame[changed].with_columns(
        pl.Series("stated_at", later).cast(pl.Datetime("us")),
        pl.Series("employment", EMPLOYMENT).gather(rng.integers(0, 4, len(changed))),
        pl.Series("stated_income", income),
    )
    return pl.concat([frame, update]).sort("stated_at", "entity_id")
