"""What was erased anywhere leaves the memory of every worker."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from serving.messages import Envelope
from serving.online import erasing
from serving.online.erasing import eraser
from serving.online.histories import Histories
from serving.online.states import EntityStates
from serving.runtime import open_runtime
from tests.serving.fake_package import Package
from tests.serving.harness import Service
from tests.serving.online.small_store import Small, statement

EVENTS = {"statement": [statement(3, status="1", bill_amt=5.0)]}


class State(NamedTuple):
    """Some bytes in place of a backbone's state."""

    nbytes: int = 100


def worker(folder: Path, url: str) -> Small:
    """A worker that has decoded and holds states of c1 and c2, each on two backbones."""
    made = Small(folder, url)
    states = EntityStates()
    made.histories = Histories(made.store, made.bounds, made.hasher, states)
    for entity in ("c1", "c2"):
        made.read(entity_id=entity)
        for backbone in ("one", "two"):
            key = ("acme", made.hasher.hash("acme", entity), backbone)
            states.cache.put(key, State())  # type: ignore[arg-type]
    return made


def held(of: Small) -> tuple[int, int]:
    """Customers decoded and states kept."""
    assert of.histories.states is not None
    return of.store.decoded, len(of.histories.states.cache)


@pytest.fixture
def workers(tmp_path: Path, database_url: str) -> list[Small]:
    first = Small(tmp_path, database_url)
    for entity in ("c1", "c2"):
        first.post(EVENTS, entity=entity)
    return [worker(tmp_path, database_url) for _ in range(3)]


def test_others_drop_the_erased_customer_and_nobody_else(workers: list[Small]) -> None:
    one, two, three = workers
    for each in workers:
        each.histories.forget_erased()
        assert held(each) == (2, 4)
    one.histories.erase("acme", one.hasher.hash("acme", "c1"))
    assert (held(one), held(two)) == ((1, 2), (2, 4))
    two.histories.forget_erased()
    assert (held(two), held(three)) == ((1, 2), (2, 4))
    # Without a service that runs, as the command does it.
    eraser(two.database)("acme", two.hasher.hash("acme", "c2"), "c2")
    for each in workers:
        each.histories.forget_erased()
        assert held(each) == (0, 0)


def test_another_tenants_customer_of_the_name_stays(workers: list[Small]) -> None:
    one, two, _ = workers
    one.histories.erase("brix", one.hasher.hash("brix", "c1"))
    two.histories.forget_erased()
    assert held(two) == (2, 4)


def test_what_is_read_while_it_is_erased_goes_at_the_next_look(workers: list[Small]) -> None:
    one, two, _ = workers
    hidden = one.hasher.hash("acme", "c1")
    found = two.store.read("acme", hidden)
    one.histories.erase("acme", hidden)
    two.histories.forget_erased()
    assert found is not None
    two.store._cache.put(("acme", hidden), found)  # a read that began before
    two.histories.forget_erased()
    assert two.store.decoded == 1
    # Posted again, it is a customer like any other.
    one.post(EVENTS, entity="c1")
    two.read(entity_id="c1")
    two.histories.forget_erased()
    assert two.store.decoded == 2


def test_who_looks_too_late_drops_everything(
    workers: list[Small], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, _ = workers
    one.histories.erase("acme", one.hasher.hash("acme", "c1"))
    monkeypatch.setattr(erasing, "KEEP_US", -1)  # the mark goes with the next erasure
    one.histories.erase("acme", one.hasher.hash("acme", "nobody"))
    two.histories.forget_erased()
    assert held(two) == (0, 0)


def test_two_running_workers_over_one_database(tmp_path: Path) -> None:
    service = Service(tmp_path)
    other = open_runtime(service.settings, Package.load, "0")
    try:
        body = {"entity_id": "c1", "events": EVENTS}
        assert service.call("POST", "/v1/events", body).status_code == 200
        request = Envelope(entity_id="c1", history="stored")
        for runtime in (service.runtime, other):
            loaded = runtime.deployments.pick("default", None, None, "c1")
            assert loaded.score_now(request).request.history.events == 1  # type: ignore[union-attr]
            assert runtime.histories.store.decoded == 1
        assert service.call("DELETE", "/v1/entities/c1").json()["erased"] == 1
        assert service.runtime.histories.store.decoded == 0
        assert _soon(lambda: other.histories.store.decoded == 0)
    finally:
        other.close()
        service.close()


def _soon(holds: Callable[[], Any], seconds: float = 20.0) -> bool:
    """Whether something holds before long, without anybody asking about the customer."""
    until = time.monotonic() + seconds
    while not holds() and time.monotonic() < until:
        time.sleep(0.05)
    return bool(holds())
