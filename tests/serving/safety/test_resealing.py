"""After a rotation everything sealed moves to the newest key, and the old one can go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from foundation.errors import ConfigError
from serving.cli import cli
from serving.database import Database
from serving.decisions.inputs import Inputs
from serving.online.tables import blocks
from serving.online.tables import metadata as online
from serving.safety import resealing
from serving.safety.hashing import EntityHasher
from serving.safety.resealing import reseal_all
from serving.safety.secrets import Secrets, load_secrets, make_secrets, rotate_secrets
from serving.safety.vault import Vault
from serving.tenancy.idempotency import Begun, Idempotency, Stored

COUNT = 7


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A file of secrets with one sealing key."""
    path = tmp_path / "master.key"
    make_secrets(path)
    return path


def fill(database: Database, secrets: Secrets) -> None:
    """Values of two tenants in every place."""
    vault = Vault(secrets)
    kept, answers = (
        Inputs(database, vault),
        Idempotency(database, vault, EntityHasher(secrets).hash),
    )
    database.make(online)
    for tenant in ("acme", "bank"):
        for number in range(COUNT):
            kept.keep(tenant, f"r{number}", "e", f"body {tenant} {number}".encode())
            begun = answers.begin(tenant, "/v1/score", f"k{number}", "d")
            assert isinstance(begun, Begun)
            if number:  # one is still at work and has no answer
                answers.finish(begun, 200, f"answer {tenant} {number}".encode())
            with database.transaction() as connection:
                place = {"tenant": tenant, "entity": "e", "seq": number}
                blob = vault.seal(tenant, f"online.events:e:{number}", f"events {number}".encode())
                numbers = dict.fromkeys(
                    ("version", "events", "first_event_us", "last_event_us", "last_known_us"), 1
                )
                connection.execute(
                    blocks.insert().values(**place, **numbers, source="s", blob=blob)
                )
    kept.close()


def readable(database: Database, secrets: Secrets) -> None:
    """Everything opens with these secrets."""
    vault = Vault(secrets)
    kept, answers = (
        Inputs(database, vault),
        Idempotency(database, vault, EntityHasher(secrets).hash),
    )
    for tenant in ("acme", "bank"):
        for number in range(COUNT):
            assert kept.body(tenant, f"r{number}") == f"body {tenant} {number}".encode()
            if number:
                found = answers.begin(tenant, "/v1/score", f"k{number}", "d")
                assert found == Stored(200, f"answer {tenant} {number}".encode())
    with database.reading() as connection:
        for row in connection.execute(sa.select(blocks)):
            opened = vault.open(row.tenant, f"online.events:e:{row.seq}", bytes(row.blob))
            assert opened == f"events {row.seq}".encode()


def without_old(key: Path) -> Secrets:
    """The file as an operator leaves it: only the newest sealing key."""
    document = json.loads(key.read_text())
    document["sealing"] = document["sealing"][-1:]
    key.write_text(json.dumps(document))
    return load_secrets(key)


def test_the_old_key_can_go(key: Path, database_url: str) -> None:
    database = Database(database_url)
    fill(database, load_secrets(key))
    vault = Vault(rotate_secrets(key), "sm4-gcm")
    moved = {result.name: result.moved for result in reseal_all(database, vault, together=3)}
    assert moved == {"stored events": 2 * COUNT, "kept requests": 2 * COUNT,
                     "kept answers": 2 * COUNT - 2}  # fmt: skip
    assert all(not result.moved and not result.left for result in reseal_all(database, vault))
    readable(database, without_old(key))


def test_a_run_that_was_stopped_goes_on(
    key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(f"sqlite:///{tmp_path}/test.db")
    fill(database, load_secrets(key))
    vault, done = Vault(rotate_secrets(key)), 0
    real = vault.reseal

    def dying(*what: object) -> bytes:
        nonlocal done
        done += 1
        if done > 8:
            raise KeyboardInterrupt
        return real(*what)  # type: ignore[arg-type]

    monkeypatch.setattr(vault, "reseal", dying)
    with pytest.raises(KeyboardInterrupt):
        reseal_all(database, vault, together=3)
    monkeypatch.undo()
    moved = sum(result.moved for result in reseal_all(database, vault, together=3))
    assert moved == 6 * COUNT - 2 - 6  # two whole groups had moved
    readable(database, without_old(key))


def test_the_command(key: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/test.db"
    database = Database(url)
    fill(database, load_secrets(key))
    newest = rotate_secrets(key).sealing[-1].id
    line = ["secret", "reseal", "--secrets", str(key), "--database", url]
    result = CliRunner().invoke(cli, line)
    assert result.exit_code == 0, result.output
    assert f"kept requests: {2 * COUNT} moved\n" in result.output
    assert f"everything is sealed under {newest}; older keys may leave" in result.output
    readable(database, without_old(key))


def test_what_does_not_open_stays_and_is_told(key: Path, tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/test.db")
    old = load_secrets(key)
    fill(database, old)
    rotate_secrets(key)
    alone = without_old(key)
    found = reseal_all(database, Vault(alone))
    assert [result.moved for result in found] == [0, 0, 0]
    assert found[0].line() == (
        f"stored events: 0 moved, {2 * COUNT} under {old.sealing[0].id} do not open"
    )
    readable(database, old)
    with pytest.raises(ConfigError, match="put that key back"):
        readable(database, alone)
    assert resealing.TOGETHER > 1
