"""Scores that go on from a kept state equal scores of the whole history."""

from __future__ import annotations

import datetime as dt
import itertools
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.package import Package
from serving.messages import Envelope
from serving.online.histories import Histories
from serving.online.states import EntityStates
from serving.requests import RequestReader
from tests.finetune.small_packages import lender, write
from tests.serving.online.small_store import Small

TOLERANCE = 1e-5
START = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
CUSTOMERS = itertools.count()


class World(NamedTuple):
    small: Small
    packages: list[Package]
    reader: RequestReader
    counts: Counter[str]
    histories: Histories


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("states")
    made = lender(folder)
    packages = [write(made, folder / f"p{seed}", seed) for seed in (1, 2)]
    small, counts = Small(folder), Counter[str]()

    def count(result: str) -> None:
        counts[result] += 1

    states = EntityStates(count=count)
    histories = Histories(small.store, small.bounds, small.hasher, states)
    return World(small, packages, RequestReader(packages[0].schema), counts, histories)


def event(hour: int, late: int, shop: str | None, amount: int) -> dict[str, Any]:
    known = START + dt.timedelta(hours=hour + late)
    base = {"event_time": (START + dt.timedelta(hours=hour)).isoformat()}
    base["known_at"] = known.isoformat()
    if shop is None:
        return base | {"status": str(amount % 3), "bill": amount}
    return base | {"shop": shop, "amount": amount, "device": f"d{amount % 4}"}


def scored(world: World, entity: str, hour: int, package: Package) -> None:
    """Score with and without kept states: equal within the tolerance."""
    as_of = (START + dt.timedelta(hours=hour)).isoformat()
    request = Envelope(entity_id=entity, as_of=as_of, history="stored")
    memory = world.histories.of("acme", "cards")
    given = memory.read(world.reader, request, 1_700_000_000_000_000)
    whole = package.score_population(given.population())[0]
    follow = memory.follow(request, package)
    kept = package.score_population(given.population(), follow=follow)[0]
    assert kept.score == pytest.approx(whole.score, abs=TOLERANCE)
    assert kept.points == pytest.approx(whole.points, abs=1)
    for name, value in whole.forecasts.items():
        assert kept.forecasts[name] == pytest.approx(value, abs=TOLERANCE)


def store(world: World, entity: str, rows: list[tuple[int, int, str | None, int]]) -> None:
    events: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        events.setdefault("statement" if row[2] is None else "payment", []).append(event(*row))
    if events:
        world.small.post(events, entity=entity, reader=world.reader)


rows = st.tuples(
    st.integers(0, 2000),
    st.sampled_from([0, 0, 0, 5, 300]),
    st.sampled_from([None, "food", "fuel"]),
    st.integers(1, 500),
)
steps = st.lists(
    st.tuples(st.lists(rows, max_size=30), st.integers(0, 3000), st.integers(0, 1)),
    min_size=1,
    max_size=6,
)


@settings(max_examples=25)
@given(steps=steps)
def test_posts_and_scores_in_any_order(world: World, steps: list) -> None:
    entity = f"e{next(CUSTOMERS)}"
    for posted, hour, which in steps:
        store(world, entity, posted)
        scored(world, entity, hour, world.packages[which])


def test_what_becomes_of_a_state(world: World) -> None:
    entity, (one, two) = f"e{next(CUSTOMERS)}", world.packages

    def result(hour: int, package: Package = one) -> str:
        world.counts.clear()
        scored(world, entity, hour, package)
        (name,) = world.counts
        return name

    store(world, entity, [(10 * n, 0, "food", n) for n in range(40)])
    assert result(1000) == "full"
    assert result(1000) == "used"
    assert result(1100, two) == "used", "channels on one frozen backbone share it"
    store(world, entity, [(1001 + n, 0, None, n) for n in range(4)])
    assert result(1100) == "used", "new events go on from it"
    store(world, entity, [(5, 0, "fuel", 7)])
    assert result(1100) == "rebuilt", "an event arrived late"
    assert result(200) == "rebuilt", "as_of before events of the state"
    store(world, entity, [(1200 + n, 0, "food", n) for n in range(30)])
    assert result(2000) == "rebuilt", "the window slid"
    assert result(2000) == "used"
    hidden = world.small.hasher.hash("acme", entity)
    assert world.histories.erase("acme", hidden) == 75
    store(world, entity, [(1, 0, "food", 1)])
    assert result(2000) == "full", "erased with the history"


def test_states_are_of_a_tenant_and_within_bytes(world: World, tmp_path: Path) -> None:
    states = EntityStates(max_bytes=200_000)
    package = world.packages[0]
    for n in range(30):
        entity = f"many{n}"
        store(world, entity, [(k, 0, "food", k) for k in range(60)])
        request = Envelope(entity_id=entity, as_of="2021-01-01T00:00:00Z", history="stored")
        given = world.histories.read("acme", "cards", world.reader, request, 10**15 * 2)
        follow = states.follow(package, "acme", entity)
        package.score_population(given.population(), follow=follow)
    assert 0 < states.cache.bytes <= 200_000
    assert len(states.cache) < 30
    assert package.encoder is not None
    assert states.cache.get(("acme", "many29", package.encoder.backbone)) is not None
    assert states.cache.get(("other", "many29", package.encoder.backbone)) is None


def test_inline_requests_leave_no_state(world: World) -> None:
    request = Envelope(entity_id="inline")
    assert world.histories.follow("acme", request, world.packages[0]) is None
