"""Master secrets: made only in development, refused when weak, never shown."""

from __future__ import annotations

import os
import secrets as random
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from foundation.errors import ConfigError
from serving.cli import cli
from serving.safety.hashing import EntityHasher, mark_of
from serving.safety.secrets import (
    FILE_VARIABLE,
    VARIABLE,
    SecretDocument,
    load_secrets,
    make_secrets,
    open_secrets,
    rotate_secrets,
)
from serving.safety.vault import Vault


def test_development_makes_what_production_refuses(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "master.key"
    with pytest.raises(ConfigError, match="riskfm secret make"):
        open_secrets(path, "production", {})
    assert not path.exists()
    found = open_secrets(path, "development", {})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert open_secrets(path, "development", {}).hashing == found.hashing
    with pytest.raises(ConfigError, match="made by a service in development"):
        open_secrets(path, "production", {})
    path.unlink()
    make_secrets(path)
    assert open_secrets(path, "production", {}).origin == "made"
    assert [p.name for p in path.parent.iterdir()] == ["master.key"]


def test_processes_that_start_at_once_have_one_secret(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        path = tmp_path / "master.key"
        found = pool.map(lambda _: open_secrets(path, "development", {}).hashing, range(16))
        assert len(set(found)) == 1


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o660, 0o644])
def test_a_secret_that_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "master.key"
    make_secrets(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        open_secrets(path, "development", {})
    path.chmod(0o440)
    load_secrets(path)


def weak(**change: object) -> str:
    key = {"id": "aabbccdd", "created": "", "secret": random.token_hex(32)}
    document = {"hashing": random.token_hex(32), "sealing": [key], "format": 1} | change
    return msgspec.json.encode(document).decode()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("changeme", "64 hexadecimal"),
        ("ab" * 20, "64 hexadecimal"),
        ("00" * 32, "not random"),
        ("0123456789abcdef" * 4, "not random"),
        (weak(format=2), "no document"),
        (weak(unknown=1), "no document"),
        (weak(sealing=[]), "id of its own"),
        (weak(hashing="short"), "64 hexadecimal"),
        (weak(sealing=[{"id": "zz", "created": "", "secret": "aa" * 32}]), "id of its own"),
        ("{", "no document"),
    ],
)
def test_weak_and_damaged_secrets_are_refused_without_being_shown(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        open_secrets("nowhere", "development", {VARIABLE: text})
    assert text not in str(caught.value) and VARIABLE in str(caught.value)


def test_the_environment_holds_or_names_them(tmp_path: Path) -> None:
    text = random.token_hex(32)
    held = open_secrets("nowhere", "production", {VARIABLE: text})
    path = tmp_path / "k"
    path.write_text(text + "\n")
    path.chmod(0o600)
    named = open_secrets("nowhere", "production", {FILE_VARIABLE: str(path)})
    assert (held.hashing, held.sealing) == (named.hashing, named.sealing)
    assert text not in f"{held} {held!r} {held.lines()} {held.sealing}"
    missing = tmp_path / "made"
    open_secrets("nowhere", "development", {FILE_VARIABLE: str(missing)})
    assert missing.exists()
    both = {VARIABLE: text, FILE_VARIABLE: str(missing)}
    assert open_secrets("nowhere", "production", both).hashing == held.hashing
    # What one random text gave lives on in the file with several keys.
    sealed = Vault(held).seal("t", "p", b"x")
    rotated = rotate_secrets(path)
    assert Vault(rotated).open("t", "p", sealed) == b"x"
    assert EntityHasher(rotated).hash("t", "c") == EntityHasher(held).hash("t", "c")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    document = msgspec.json.decode(path.read_bytes(), type=SecretDocument)
    assert all(key.secret not in repr(document) for key in document.sealing)


def test_hashes_are_of_a_tenant_and_stay(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    found = open_secrets(path, "development", {})
    for algorithm in ("hmac-sha256", "hmac-sm3"):
        hasher = EntityHasher(found, algorithm)
        seen = {hasher.hash(t, e) for t in ("a", "b", "") for e in ("c1", "c2", "", "客户")}
        assert len(seen) == 12 and all(len(h) == 64 for h in seen)
        before = hasher.hash("a", "c1")
        assert EntityHasher(rotate_secrets(path), algorithm).hash("a", "c1") == before
        assert hasher.mark("a", 7) == mark_of(algorithm, hasher.mark_key("a"), 7)
        assert hasher.mark("a", 7) != hasher.mark("b", 7) != hasher.mark("b", 8)
    kinds = {EntityHasher(found, a).hash("a", "c1") for a in ("hmac-sha256", "hmac-sm3")}
    assert len(kinds) == 2
    with pytest.raises(ConfigError, match="did you mean 'hmac-sm3'"):
        EntityHasher(found, "hmac-sm4")


def test_commands_show_ids_and_nothing_else(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv(FILE_VARIABLE, raising=False)
    path, run = tmp_path / "master.key", CliRunner()
    assert run.invoke(cli, ["secret", "make", str(path)]).exit_code == 0
    again = run.invoke(cli, ["secret", "make", str(path)])
    assert again.exit_code == 2 and "exists; riskfm secret rotate" in again.output
    first = path.read_text()
    shown = run.invoke(cli, ["secret", "rotate", str(path)]).output
    shown += run.invoke(cli, ["secret", "status", str(path)]).output
    monkeypatch.setenv(FILE_VARIABLE, str(path))
    shown += run.invoke(cli, ["secret", "status"]).output
    document = msgspec.json.decode(path.read_bytes(), type=SecretDocument)
    assert len(document.sealing) == 2 and document.hashing in first
    assert shown.count(f"{document.sealing[1].id}  {document.sealing[1].created}  seals") == 3
    for hidden in (document.hashing, *(key.secret for key in document.sealing)):
        assert hidden not in shown
