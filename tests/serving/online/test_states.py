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

from finetune.features import Population
from finetune.incremental import EntityState
from finetune.package import Package
from foundation.errors import RequestError
from serving.messages import Envelope
from serving.models.loaded import Model, Scored
from serving.online.histories import Histories
from serving.online.states import LONG, EntityStates
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


def test_at_hand_is_what_needs_neither_reading_nor_encoding(world: World) -> None:
    entity, package = f"hand{next(CUSTOMERS)}", world.packages[0]
    memory = world.histories.of("acme", "cards")
    request = Envelope(entity_id=entity, as_of="2020-06-01T00:00:00Z", history="stored")
    inline = Envelope(entity_id=entity, as_of="2020-06-01T00:00:00Z")

    def hand() -> int | None:
        return memory.at_hand(request, package)

    assert hand() is None and memory.at_hand(inline, package) == 0
    store(world, entity, [(hour, 0, "food", hour) for hour in range(5)])
    memory.read(world.reader, request, 1_700_000_000_000_000)
    assert hand() is None  # decoded, but there is no state
    scored(world, entity, 100, package)
    before = hand()
    assert before is not None and before > 0
    store(world, entity, [(200, 0, None, 3)])
    assert hand() == before
    scored(world, entity, 300, package)
    assert (hand() or 0) > before
    world.histories.erase("acme", world.small.hasher.hash("acme", entity))
    assert hand() is None


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


arrivals = st.lists(
    st.tuples(
        st.integers(0, 9),  # events posted, each behind all before it
        st.lists(st.sampled_from([None, "food", "fuel"]), min_size=9, max_size=9),
        st.booleans(),  # scored before the next post
        st.integers(0, 1),  # by which package
    ),
    min_size=4,
    max_size=12,
)


@settings(max_examples=25, deadline=None)
@given(steps=arrivals)
def test_what_is_posted_behind_a_state_goes_on_from_it(world: World, steps: list) -> None:
    """However posts and scores alternate: a state is made once and only goes on, to the last event
    that a score reads; behind that it is made anew once for a score with new events."""
    entity, hour, read = f"e{next(CUSTOMERS)}", 0, -1
    encoder = world.packages[0].encoder
    assert encoder is not None
    for count, shops, score, which in steps:
        store(world, entity, [(hour + n, 0, shops[n], 1 + n) for n in range(count)])
        hour += count
        if not score:
            continue
        world.counts.clear()
        scored(world, entity, hour + 1, world.packages[which])
        slid = hour > encoder.max_events and hour > read
        assert world.counts == {"full" if read < 0 else "rebuilt" if slid else "used": 1}
        read = hour


class Shelf:
    """One package in memory."""

    def __init__(self, package: Package) -> None:
        self.package = package

    def get(self, path: Path) -> Package:
        return self.package

    def drop(self, path: Path) -> None:
        """It stays."""


customers = st.lists(
    st.tuples(
        st.lists(rows, max_size=30),  # posted before it is scored alone
        st.sampled_from([None, 2500, 3000]),  # scored alone at that hour
        st.lists(rows, max_size=4),  # posted behind that
        st.integers(1500, 3500),  # as_of in the batch
        st.sampled_from(["stored", "stored", "both", "inline"]),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=25, deadline=None)
@given(many=customers, reasons=st.booleans())
def test_rows_of_a_batch_go_on_from_kept_states(world: World, many: list, reasons: bool) -> None:
    """Whatever is kept of whom: a row scores what the whole history of it alone scores."""
    package = world.packages[0]
    model = Model(Path("p"), Shelf(package), lambda _: world.reader)
    memory = world.histories.of("acme", "cards")
    requests, wanted = [], []
    for before, alone, behind, hour, source in many:
        entity = f"e{next(CUSTOMERS)}"
        store(world, entity, before)
        if alone is not None:
            scored(world, entity, alone, package)
        store(world, entity, behind)
        as_of = (START + dt.timedelta(hours=hour)).isoformat()
        one = Envelope(entity_id=entity, as_of=as_of, history=source, reasons=reasons)
        requests += [one, one] if hour % 2 else [one]
    wrong = Envelope(entity_id="x", as_of="never", history="stored", reasons=reasons)
    for one in requests:
        given = memory.read(world.reader, one, 1_700_000_000_000_000)
        wanted.append(package.score_population(given.population(), reasons)[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serving.online.states.LONG", 8)
        *found, last = model.score_many([*requests, wrong], memory)
    assert isinstance(last, RequestError)
    for one, whole in zip(found, wanted, strict=True):
        assert isinstance(one, Scored)
        assert one.row.score == pytest.approx(whole.score, abs=TOLERANCE)
        assert len(one.row.reasons) == len(whole.reasons)
        for name, value in whole.forecasts.items():
            assert one.row.forecasts[name] == pytest.approx(value, abs=TOLERANCE)


def test_which_rows_of_a_batch_go_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    package, memory = world.packages[0], world.histories.of("acme", "cards")
    assert package.encoder is not None and package.encoder.max_events == LONG
    names = {n: f"e{next(CUSTOMERS)}" for n in ("long", "new", "short", "inline")}
    for name, entity in names.items():
        count = 20 if name == "short" else LONG
        store(world, entity, [(k, 0, "food", k) for k in range(count)])
        if name != "new":
            scored(world, entity, 1000, package)
    ran: list[int] = []
    population = Package.score_population

    def counted(self: Package, given: Population, *more: Any, **how: Any) -> Any:
        ran.append(len(given) * (-1 if how.get("follow") else 1))
        return population(self, given, *more, **how)

    monkeypatch.setattr(Package, "score_population", counted)
    model = Model(Path("p"), Shelf(package), lambda _: world.reader)
    requests = [
        Envelope(entity_id=entity, as_of="2021-01-01T00:00:00Z",
                 history="inline" if name == "inline" else "stored")
        for name, entity in names.items()
    ]  # fmt: skip
    world.counts.clear()
    found = model.score_many([*requests, requests[0]], memory)
    assert ran == [3, -2], "the two rows with a long state, and the others together"
    assert world.counts == {"used": 2, "full": 2}
    both = [one.row.score for one in (found[0], found[-1]) if isinstance(one, Scored)]
    assert both[0] == pytest.approx(both[1], abs=TOLERANCE)
    # What goes wrong with states is no fault of the rows.
    monkeypatch.setattr(EntityState, "begins", None)
    again = model.score_many(requests, memory)
    assert all(isinstance(one, Scored) for one in again)


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
