"""Keys are stored as hashes, verified fast, and refused soon after they end."""

from __future__ import annotations

import datetime as dt
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from foundation.errors import ConfigError, UserError
from serving.database import Database
from serving.messages import ApiError
from serving.tenancy import key_ring as module
from serving.tenancy.key_ring import KeyRefused, KeyRing
from serving.tenancy.keys import create_key, import_keys, list_keys, revoke_key, rotate_key
from serving.tenancy.principal import Principal
from serving.tenancy.tables import keys as table
from serving.tenancy.tenants import add_tenant, list_tenants, resume_tenant, suspend_tenant
from tests.serving.tenancy.small_hosting import open_hosting


@pytest.fixture
def database(tmp_path: Path) -> Database:
    """One kind of database is enough for most of this."""
    return open_hosting(tmp_path / "riskfm.db")


@pytest.fixture
def ring(database: Database) -> Iterator[KeyRing]:
    ring = KeyRing(database, refresh_seconds=0.2)
    yield ring
    ring.close()


def id_of(key: str) -> str:
    return key.split("_")[1]


def soon(text: str, ring: KeyRing, error: type[Exception], seconds: float = 60.0) -> float:
    """Seconds until a key is refused."""
    begin = time.monotonic()
    while time.monotonic() < begin + seconds:
        try:
            ring.authenticate(text)
        except error:
            return time.monotonic() - begin
        time.sleep(0.01)
    raise AssertionError("the key is still accepted")


def test_made_rotated_revoked_in_both_kinds_of_database(database_url: str) -> None:
    database = Database(database_url)
    key = create_key(database, "n")
    fresh, _ = rotate_key(database, id_of(key))
    ring = KeyRing(database, refresh_seconds=0.2)
    assert ring.authenticate(key).scopes == ring.authenticate(fresh).scopes
    revoke_key(database, id_of(key))
    assert soon(key, ring, KeyRefused) <= 1.0
    assert [r.state() for r in list_keys(database, "default")] == ["revoked", "active"]
    ring.close()


def test_only_the_hash_is_stored(database: Database) -> None:
    key = create_key(database, "lender", ["score"])
    other = create_key(database, "lender")
    assert key != other
    with database.reading() as connection:
        rows = [str(row) for row in connection.execute(sa.select(table))]
    assert all(key.split("_", 2)[2] not in row and "$argon2id$" in row for row in rows)
    assert [r.scopes for r in list_keys(database)] == [("score",), ("score", "events", "read")]


def test_a_key_speaks_for_its_tenant(database: Database, ring: KeyRing) -> None:
    add_tenant(database, "acme")
    key = create_key(database, "n", ["read"], tenant="acme", sandbox=True, person=" Anna ")
    ring.refresh()
    assert ring.authenticate(key) == Principal(
        "acme", id_of(key), "n", frozenset(["read"]), True, "anna"
    )
    assert ring.remembered(key) == ring.authenticate(key)


@pytest.mark.parametrize(
    "change",
    [
        lambda key: key[:-1] + ("A" if key[-1] != "A" else "B"),
        lambda key: key + "x",
        lambda key: key[1:],
        lambda key: key.upper(),
        lambda key: "",
        lambda key: key + "\n",
        lambda key: "rfm_000000000000_" + key.split("_", 2)[2],
    ],
)
def test_other_keys_are_refused_in_the_same_words(database: Database, change) -> None:
    key = create_key(database, "a")
    ring = KeyRing(database)
    for _ in range(2):
        with pytest.raises(KeyRefused, match=r"^the API key is not valid$"):
            ring.authenticate(change(key))
    assert ring.authenticate(key)
    ring.close()


def test_revoked_within_a_second_even_if_remembered(database: Database) -> None:
    key, other = create_key(database, "a"), create_key(database, "b")
    ring = KeyRing(database)
    assert ring.authenticate(key) and ring.authenticate(other) and len(ring) == 2
    record = revoke_key(database, id_of(key))
    assert record.state() == "revoked" and revoke_key(database, record.id) == record
    assert soon(key, ring, KeyRefused) <= 1.0
    assert ring.authenticate(other) and len(ring) == 1
    ring.close()


def test_a_ring_that_cannot_look_trusts_nothing(database: Database, monkeypatch) -> None:
    key = create_key(database, "a")
    ring = KeyRing(database, refresh_seconds=0.1)
    ring.authenticate(key)

    def broken() -> None:
        raise sa.exc.OperationalError("", {}, Exception())

    ring.close()
    monkeypatch.setattr(ring.database, "reading", broken)
    time.sleep(0.12)
    assert ring.remembered(key) is None
    with pytest.raises(ApiError) as refused:
        ring.authenticate(key)
    assert refused.value.status == 503 and refused.value.headers == {"Retry-After": "1"}


def test_argon2_runs_once_per_key_and_term(database: Database, monkeypatch) -> None:
    key = create_key(database, "a")
    calls = []
    real = module.HASHER

    class Counting:
        def verify(self, *args: str) -> bool:
            calls.append(args)
            return real.verify(*args)

    monkeypatch.setattr(module, "HASHER", Counting())
    ring = KeyRing(database, remember_seconds=0.6)
    for _ in range(5):
        ring.authenticate(key)
    assert len(calls) == 1
    time.sleep(0.65)
    assert ring.remembered(key) is None
    ring.authenticate(key)
    assert len(calls) == 2
    ring.close()


def test_an_expired_key_is_refused_without_a_look(database: Database, ring: KeyRing) -> None:
    end = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=2)
    key = create_key(database, "a", expires=end.isoformat())
    ring.refresh()
    assert ring.authenticate(key)
    soon(key, ring, KeyRefused)
    assert [r.state() for r in list_keys(database)] == ["expired"]
    with pytest.raises(ConfigError, match="expired already"):
        create_key(database, "a", expires="2020-01-01")
    with pytest.raises(ConfigError, match="no ISO 8601 moment"):
        create_key(database, "a", expires="tomorrow")


def test_rotation_leaves_a_grace_period(database: Database, ring: KeyRing) -> None:
    add_tenant(database, "acme")
    key = create_key(database, "n", ["read"], tenant="acme")
    fresh, old = rotate_key(database, id_of(key), grace_seconds=0.6)
    ring.refresh()
    before, after = ring.authenticate(key), ring.authenticate(fresh)
    assert (before.tenant, before.scopes) == (after.tenant, after.scopes)
    assert soon(key, ring, KeyRefused) < 1.0 and ring.authenticate(fresh)
    records = {r.id: r for r in list_keys(database, "acme")}
    assert records[id_of(fresh)].rotated_from == id_of(key) == old.id
    with pytest.raises(ConfigError, match="is expired"):
        rotate_key(database, id_of(key))
    with pytest.raises(ConfigError, match="grace"):
        rotate_key(database, id_of(fresh), -1)


def test_a_suspended_tenant_is_told_so_once_it_proved_who_it_is(
    database: Database, ring: KeyRing
) -> None:
    key = create_key(database, "a")
    ring.refresh()
    ring.authenticate(key)
    suspend_tenant(database, "default")
    ring.refresh()
    for ask in (ring.authenticate, ring.remembered):
        with pytest.raises(ApiError, match="'default' is suspended") as refused:
            ask(key)
        assert refused.value.status == 403
    with pytest.raises(KeyRefused):
        ring.authenticate(key[:-1] + "_")
    resume_tenant(database, "default")
    ring.refresh()
    assert ring.authenticate(key)
    assert [t.name for t in list_tenants(database)] == ["default"]


def test_wrong_wishes(database: Database) -> None:
    with pytest.raises(ConfigError, match="unknown scope 'scor', did you mean 'score'"):
        create_key(database, "a", ["scor"])
    with pytest.raises(ConfigError, match="a name and at least one scope"):
        create_key(database, " ", ["score"])
    with pytest.raises(UserError, match="no tenant 'defalt', did you mean 'default'"):
        create_key(database, "a", tenant="defalt")
    key = id_of(create_key(database, "a"))
    with pytest.raises(ConfigError, match="no key"):
        revoke_key(database, "nothing")
    add_tenant(database, "acme")
    with pytest.raises(ConfigError, match="no key"):
        revoke_key(database, key, tenant="acme")


def test_a_key_file_is_taken_over_once(database: Database, tmp_path: Path, ring: KeyRing) -> None:
    key = create_key(open_hosting(tmp_path / "other.db"), "old", ["score"])
    record = list_keys(open_hosting(tmp_path / "other.db"))[0]
    row = {
        "id": record.id, "name": "old", "scopes": ["score"], "hash": record.hash,
        "created_at": "2026-01-01T00:00:00Z", "revoked_at": None,
    }  # fmt: skip
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"version": 1, "keys": [row]}))
    assert [import_keys(database, file) for _ in range(2)] == [1, 0]
    ring.refresh()
    assert ring.authenticate(key).name == "old"
    file.write_text("{}")
    with pytest.raises(ConfigError, match="not a readable key file"):
        import_keys(database, file)
