"""One key, one answer: across workers, crashes and time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from serving.database import Database
from serving.messages import ApiError
from serving.tenancy.idempotency import Begun, Stored, keeps
from serving.tenancy.tables import idempotency as table
from tests.serving.tenancy.small_hosting import Clock, open_idempotency

ROUTE = "/v1/score"


def refusal(call) -> ApiError:
    with pytest.raises(ApiError) as found:
        call()
    return found.value


def begun(found: Begun | Stored) -> Begun:
    assert isinstance(found, Begun)
    return found


def test_the_same_again_is_the_same_answer(database: Database, tmp_path: Path) -> None:
    one, two = (open_idempotency(database, tmp_path) for _ in range(2))
    first = begun(one.begin("acme", ROUTE, "order-77", "d1"))
    busy = refusal(lambda: two.begin("acme", ROUTE, "order-77", "d1"))
    assert busy.status == 409 and busy.headers == {"Retry-After": "1"}
    other = refusal(lambda: two.begin("acme", ROUTE, "order-77", "d2"))
    assert other.status == 422 and "another body" in str(other)
    answer = Stored(200, b'{"score":0.25}')
    assert one.finish(first, 200, answer.answer) == answer
    assert two.begin("acme", ROUTE, "order-77", "d1") == answer
    assert refusal(lambda: two.begin("acme", ROUTE, "order-77", "d2")).status == 422
    # Another tenant or route has keys of its own.
    assert begun(two.begin("other", ROUTE, "order-77", "d2")).once != first.once
    begun(two.begin("acme", "/v1/events", "order-77", "d2"))
    with database.reading() as connection:
        for row in connection.execute(sa.select(table)):
            stored = repr(tuple(row))
            assert "order-77" not in stored and "0.25" not in stored and "'d1'" not in stored


def test_a_dead_worker_is_succeeded_once(database: Database, tmp_path: Path) -> None:
    clock = Clock()
    keys = open_idempotency(database, tmp_path, lease_seconds=10, clock=clock)
    dead = begun(keys.begin("acme", ROUTE, "k", "d"))
    clock.now += 9.9
    assert refusal(lambda: keys.begin("acme", ROUTE, "k", "d")).status == 409
    clock.now += 0.2
    heir = begun(keys.begin("acme", ROUTE, "k", "d"))
    # Both lines of the decision log carry the same mark, so one is billed.
    assert heir.line(3) == dead.line(3) and heir.holder != dead.holder
    assert refusal(lambda: keys.begin("acme", ROUTE, "k", "d")).status == 409
    # The one believed dead gives the key up: the heir keeps it.
    keys.abandon(dead)
    assert refusal(lambda: keys.begin("acme", ROUTE, "k", "d")).status == 409
    assert keys.finish(heir, 200, b"heir") == Stored(200, b"heir")
    assert keys.finish(dead, 200, b"late") == Stored(200, b"heir")
    assert keys.begin("acme", ROUTE, "k", "d") == Stored(200, b"heir")


def test_whoever_finishes_first_wins(database: Database, tmp_path: Path) -> None:
    clock = Clock()
    keys = open_idempotency(database, tmp_path, lease_seconds=10, clock=clock)
    slow = begun(keys.begin("acme", ROUTE, "k", "d"))
    clock.now += 11
    heir = begun(keys.begin("acme", ROUTE, "k", "d"))
    assert keys.finish(slow, 200, b"slow").answer == b"slow"
    assert keys.finish(heir, 200, b"heir").answer == b"slow"


def test_given_up_and_expired_keys_are_free(database: Database, tmp_path: Path) -> None:
    clock = Clock()
    keys = open_idempotency(database, tmp_path, clock=clock)
    first = begun(keys.begin("acme", ROUTE, "k", "d"))
    keys.abandon(first)
    again = begun(keys.begin("acme", ROUTE, "k", "d"))
    assert again.line() == first.line()
    keys.finish(again, 422, b"no")
    keys.abandon(again)
    assert keys.begin("acme", ROUTE, "k", "d") == Stored(422, b"no")
    clock.now += 24 * 3600 - 1
    assert keys.purge() == 0
    clock.now += 2
    fresh = begun(keys.begin("acme", ROUTE, "k", "other"))
    assert fresh.line() != first.line()
    clock.now += 24 * 3600 + 1
    assert keys.purge() == 1 and keys.purge() == 0
    # Its end came while it worked: its answer is its own.
    assert keys.finish(fresh, 200, b"late") == Stored(200, b"late")
    keys.begin("acme", ROUTE, "k", "d")
    assert (keys.erase("other"), keys.erase("acme")) == (0, 1)


def test_of_many_at_once_one_begins(database: Database, tmp_path: Path) -> None:
    workers = [open_idempotency(database, tmp_path) for _ in range(4)]

    def ask(n: int) -> str:
        try:
            found = workers[n % 4].begin("acme", ROUTE, "k", "d")
        except ApiError as exc:
            return str(exc.status)
        return type(found).__name__

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(24)))
    assert sorted(answers) == ["409"] * 23 + ["Begun"]


@pytest.mark.parametrize("key", ["", "a b", "ä", "x" * 256, "a\n"])
def test_malformed_keys(tmp_path: Path, key: str) -> None:
    from tests.serving.tenancy.small_hosting import open_hosting

    keys = open_idempotency(open_hosting(tmp_path / "i.db"), tmp_path)
    error = refusal(lambda: keys.begin("acme", ROUTE, key, "d"))
    assert error.status == 422 and error.field == "Idempotency-Key"


def test_what_may_pass_is_not_kept() -> None:
    assert [s for s in (200, 202, 400, 409, 413, 422, 429, 500, 503) if keeps(s)] == [
        200, 202, 400, 413, 422,
    ]  # fmt: skip
