"""Keys are stored as hashes, verified fast, and refused from the moment they are revoked."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from foundation.errors import ConfigError
from serving import keys as module
from serving.keys import KeyRefused, KeyRing, create_key, list_keys, revoke_key


def test_only_the_hash_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "keys.json"
    key = create_key(path, "lender", ["score"])
    other = create_key(path, "lender")
    text = path.read_text()
    assert key != other and key.split("_", 2)[2] not in text
    assert "$argon2id$" in text and stat.S_IMODE(os.stat(path).st_mode) == 0o600
    record = KeyRing(path).authenticate(key)
    assert (record.id, record.name, record.scopes) == (key.split("_")[1], "lender", ("score",))
    assert [r.scopes for r in list_keys(path)] == [("score",), ("score", "read")]


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
def test_other_keys_are_refused(tmp_path: Path, change) -> None:
    key = create_key(tmp_path / "k", "a")
    ring = KeyRing(tmp_path / "k")
    for _ in range(2):
        with pytest.raises(KeyRefused):
            ring.authenticate(change(key))
    assert ring.authenticate(key)


def test_revoked_at_once_even_if_remembered(tmp_path: Path) -> None:
    path = tmp_path / "k"
    key, other = create_key(path, "a"), create_key(path, "b")
    ring = KeyRing(path)
    assert ring.authenticate(key) and ring.remembered(key) and len(ring) == 2
    record = revoke_key(path, key.split("_")[1])
    assert record.revoked and revoke_key(path, record.id) == record
    with pytest.raises(KeyRefused):
        ring.remembered(key)
    with pytest.raises(KeyRefused):
        ring.authenticate(key)
    assert ring.authenticate(other) and len(ring) == 1


def test_argon2_runs_once_per_key_and_term(tmp_path: Path, monkeypatch) -> None:
    key = create_key(tmp_path / "k", "a")
    calls = []
    real = module._HASHER

    class Counting:
        def verify(self, *args: str) -> bool:
            calls.append(args)
            return real.verify(*args)

    monkeypatch.setattr(module, "_HASHER", Counting())
    ring = KeyRing(tmp_path / "k", remember_seconds=0.05)
    for _ in range(5):
        ring.authenticate(key)
    assert len(calls) == 1
    time.sleep(0.06)
    ring.authenticate(key)
    assert len(calls) == 2


def test_mistakes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "k"
    with pytest.raises(ConfigError, match="did you mean 'score'"):
        create_key(path, "a", ["scor"])
    with pytest.raises(ConfigError, match="at least one scope"):
        create_key(path, "a", [])
    assert list_keys(path) == () and len(KeyRing(path)) == 0
    with pytest.raises(ConfigError, match="no key 'abc'"):
        revoke_key(path, "abc")
    path.write_text("{")
    with pytest.raises(ConfigError, match="not a readable key file"):
        list_keys(path)
