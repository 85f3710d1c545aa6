"""What is posted is stored once, for one customer of one tenant, sealed, and seen at once."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.errors import ArtifactError
from serving.messages import ApiError
from serving.online.cache import ByteCache
from serving.online.erasing import eraser
from serving.online.tables import blocks, entities, event_ids
from serving.requests import RequestReader
from tests.serving.online.small_store import Small, schema, statement


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return Small(tmp_path)


CUSTOMERS = itertools.count()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    small = Small(tmp_path_factory.mktemp("shared"))
    yield small
    small.store.close()


def test_posts_are_stored_once(tmp_path: Path, database_url: str) -> None:
    small = Small(tmp_path, database_url)
    one = {"statement": [statement(1, bill_amt=10), statement(1, bill_amt=10)]}
    first = small.post(one)
    assert (first.stored, first.repeated) == (2, 0), "two equal events in one post are two"
    again = small.post(one)
    assert (again.stored, again.repeated, again.version) == (0, 2, first.version)
    # What differs in anything is another event: a correction is known later.
    fixed = {"statement": [statement(1, bill_amt=12, known_at="2020-02-01T00:00:00Z")]}
    assert small.post(fixed).stored == 1
    assert small.post({"statement": [statement(1, bill_amt=10.0, status=None)]}).repeated == 1
    assert small.post({"login": [{"event_time": statement(1)["event_time"]}]}).stored == 1
    assert small.held() == 4
    small.store.close()
    assert Small(tmp_path, database_url).held() == 4


def test_ids_make_events_what_they_are(small: Small) -> None:
    twins = {"statement": [statement(1, bill_amt=10), statement(1, bill_amt=10)]}
    assert small.post(twins, ids={"statement": ["a", "b"]}).stored == 2
    assert small.post(twins, ids={"statement": ["b", "c"]}).stored == 1
    assert small.post(twins, ids={"statement": ["a", "c"]}).repeated == 2
    assert small.post({"statement": [statement(2)]}, ids={"statement": ["d"]}).stored == 1
    with pytest.raises(ApiError) as wrong:
        small.post(
            {"statement": [statement(3), statement(2, bill_amt=1)]}, ids={"statement": ["e", "d"]}
        )
    assert (wrong.value.status, wrong.value.field) == (409, "ids.statement[1]")
    assert small.held() == 4, "a refused post stores nothing"
    assert small.post({"statement": [statement(3)]}, ids={"statement": ["e"]}).stored == 1
    assert small.post({"statement": [statement(3)]}, ids={"statement": ["e"]}, entity="c2").stored


@settings(max_examples=15)
@given(st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=5), min_size=1, max_size=8))
def test_whatever_is_repeated_is_stored_once(shared: Small, groups: list[list[int]]) -> None:
    entity = f"c{next(CUSTOMERS)}"
    seen: set[int] = set()
    for group in groups:
        days = sorted(set(group))
        events = {"statement": [statement(day, bill_amt=day) for day in days]}
        assert shared.post(events, entity=entity).stored == len(set(days) - seen)
        seen |= set(days)
        assert shared.held(entity) == len(seen)


def test_threads_and_workers_store_once(tmp_path: Path, database_url: str) -> None:
    workers = [Small(tmp_path, database_url) for _ in range(2)]
    days = list(range(12))
    wrong: list[Exception] = []

    def work(small: Small, order: list[int]) -> None:
        try:
            for day in order:
                small.post({"statement": [statement(day)]}, ids={"statement": [f"d{day}"]})
                small.post({"login": [statement(day)]})
        except Exception as exc:
            wrong.append(exc)

    threads = [
        threading.Thread(target=work, args=(small, order))
        for small in workers
        for order in (days, days[::-1])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    for small in workers:
        assert small.held() == 24
        small.store.close()


def test_another_worker_sees_a_post_at_once(tmp_path: Path, database_url: str) -> None:
    one, two = Small(tmp_path, database_url), Small(tmp_path, database_url)
    for day in range(6):
        one.post({"statement": [statement(day)]})
        assert two.held() == one.held() == day + 1
    one.store.erase("acme", one.hasher.hash("acme", "c1"))
    assert two.held() == 0
    two.post({"statement": [statement(1)]})
    assert one.held() == 1
    one.store.close()
    two.store.close()


def test_a_worker_reads_only_what_changed(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    small.post({"statement": [statement(day) for day in range(100)]})
    small.post({"login": [statement(day) for day in range(10)]})
    hidden = small.hasher.hash("acme", "c1")
    before = small.store.read("acme", hidden)
    assert before is not None
    assert small.store.read("acme", hidden) is before
    opened: list[int] = []
    from serving.online import store

    unseal = store.unseal
    monkeypatch.setattr(store, "unseal", lambda *a: opened.append(a[3]) or unseal(*a))
    small.post({"login": [statement(20)]})
    after = small.store.read("acme", hidden)
    assert after is not None and after.events == 111
    assert len(opened) == 1


def test_tenants_and_customers_are_apart(small: Small) -> None:
    small.post({"statement": [statement(1)]})
    assert small.held(tenant="other") == small.held("c2") == 0
    small.post({"statement": [statement(2), statement(3)]}, tenant="other")
    assert (small.held(), small.held(tenant="other")) == (1, 2)
    small.store.erase("other", small.hasher.hash("other", "c1"))
    assert (small.held(), small.held(tenant="other")) == (1, 0)
    # A block belongs to its place: a copied row opens for nobody else.
    with small.database.transaction() as connection:
        row = dict(connection.execute(sa.select(blocks)).first()._mapping)  # type: ignore[union-attr]
        there = dict(connection.execute(sa.select(entities)).first()._mapping)  # type: ignore[union-attr]
        for tenant, entity in (("other", "c1"), ("acme", "c2")):
            place = {"tenant": tenant, "entity": small.hasher.hash(tenant, entity)}
            connection.execute(blocks.insert(), row | place)
            connection.execute(entities.insert(), there | place)
    for tenant, entity in (("other", "c1"), ("acme", "c2")):
        with pytest.raises(ArtifactError):
            small.held(entity, tenant)


def test_nothing_lies_in_clear(tmp_path: Path) -> None:
    small = Small(tmp_path)
    events = {
        "statement": [statement(1, status="GOLDSTATUS", bill_amt=1234567.25)],
        "login": [statement(1, note="a private note", **{"device id": "DEVICE-77"})],
    }
    small.post(events, entity="customer-4711", ids={"login": ["ID-0815"]})
    number = np.float64(1234567.25).tobytes()
    held = small.store.read("acme", small.hasher.hash("acme", "customer-4711"))
    assert held is not None
    decoded = b"".join(e.to_bytes() for _, _, e in held.parts.values())
    assert b"GOLDSTATUS" in decoded and number in decoded
    assert b"DEVICE-77" not in decoded, "identifiers are hashed even inside"
    small.store.close()
    for path in tmp_path.glob("online.db*"):
        raw = path.read_bytes()
        for planted in (b"GOLDSTATUS", b"private note", b"DEVICE-77", b"4711", b"0815", number):
            assert planted not in raw, (path.name, planted)


def test_old_events_leave_in_blocks(tmp_path: Path) -> None:
    small = Small(tmp_path, max_events=300)
    late = {"statement": [statement(0, bill_amt=n) for n in range(200)]}
    small.post(late, ids={"statement": [f"old{n}" for n in range(200)]})
    for begin in (0, 1):
        small.post({"login": [statement(30 + begin, note=str(n)) for n in range(200)]})
    summary = small.store.summary("acme", small.hasher.hash("acme", "c1"))
    assert summary is not None
    assert (summary.events, summary.dropped) == (400, 200)
    assert list(summary.sources) == ["login"]
    assert small.held() == 400
    with small.database.reading() as connection:
        count = sa.select(sa.func.count())
        assert connection.execute(count.select_from(event_ids)).scalar() == 0
        assert connection.execute(count.select_from(blocks)).scalar() == 2


def test_erasure_counts_and_leaves_nothing(tmp_path: Path) -> None:
    small = Small(tmp_path)
    small.post({"statement": [statement(1), statement(2)]}, ids={"statement": ["a", "b"]})
    first = small.post({"login": [statement(1)]})
    small.post({"statement": [statement(1)]}, entity="c2")
    hidden = small.hasher.hash("acme", "c1")
    small.held()
    run = eraser(small.database)
    assert run("acme", hidden, "c1", dry_run=True).rows == 3
    assert small.held() == 3
    assert run("acme", hidden, "c1").rows == 3
    assert run("acme", hidden, "c1", dry_run=True).rows == 0
    assert (small.held(), small.held("c2")) == (0, 1)
    with small.database.reading() as connection:
        for table in (blocks, entities, event_ids):
            mine = sa.select(table).where(table.c.entity == hidden)
            assert connection.execute(mine).first() is None
    again = small.post({"statement": [statement(1)]}, ids={"statement": ["a"]})
    assert again.stored == 1 and again.version > first.version


def test_fields_of_other_kinds_share_a_source(small: Small) -> None:
    number = RequestReader(schema(statement={"fields": {"status": {"kind": "number"}}}))
    small.post({"statement": [statement(1, status="7")]})
    small.post({"statement": [statement(1, status=7)]}, reader=number)
    small.post({"statement": [statement(1, status=7)]}, reader=number)
    assert small.held() == 2
    words = small.read()
    assert "stored_fields_differ" in words.flags
    column: Any = words.tables["statement"][2].columns["status"]
    assert [(*column.values, None)[i] for i in column.code] == ["7", None]
    found: Any = small.read(reader=number).tables["statement"][2].columns["status"]
    np.testing.assert_array_equal(found, [np.nan, 7.0])


def test_a_group_fails_alone(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = small.made({"statement": [statement(1)]}, entity="bad")
    good = small.made({"statement": [statement(1)]}, entity="good")
    from serving.online import writing

    seal = writing.seal

    def failing(vault: Any, tenant: str, entity: str, *rest: Any) -> bytes:
        if entity == bad.entity:
            raise ArtifactError("cannot be sealed")
        return seal(vault, tenant, entity, *rest)

    monkeypatch.setattr(writing, "seal", failing)
    with pytest.raises(ArtifactError):
        small.store.append([good, bad])
    assert (small.held("good"), small.held("bad")) == (1, 0)


def test_the_cache_stays_within_its_bytes() -> None:
    cache: ByteCache[np.ndarray] = ByteCache(1000)
    for n in range(10):
        cache.put(("key", str(n)), np.zeros(300, np.uint8))
        cache.get(("key", "0"))
    assert cache.bytes == 900 and len(cache) == 3
    assert cache.get(("key", "0")) is not None and cache.get(("key", "5")) is None
    cache.put(("key", "0"), np.zeros(2000, np.uint8))
    assert cache.get(("key", "0")) is None and cache.bytes == 600
    cache.drop(("key", "9"))
    assert cache.bytes == 300
    cache.drop_where(lambda key: key[0] == "key")
    assert len(cache) == cache.bytes == 0
