"""API keys: hashed with argon2 in a JSON file, scoped, revocable.

A key reads `rfm_<id>_<secret>`: the id finds the record, 256 random bits are the secret, and only
its argon2id hash is stored. Argon2 is slow on purpose, so a verified key is remembered in memory
as an HMAC under a key of this process; the file is looked at on every request, and a revocation
counts from the next one.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import argon2
import msgspec

from foundation import strict
from foundation.errors import ConfigError, UserError, listing, nearest

SCOPES = ("score", "read")
_KEY = re.compile(r"rfm_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
# OWASP's argon2id minimum; the secret carries 256 bits, so more would only slow us down.
_HASHER = argon2.PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
_REMEMBERED = 4096


class KeyRefused(UserError):
    """The key is missing, malformed, unknown, wrong or revoked; which of them stays unsaid."""


class KeyRecord(strict.Strict):
    """One key as stored: everything except the secret. Times are ISO 8601, UTC."""

    id: str
    name: str
    scopes: tuple[str, ...]
    hash: str
    created_at: str
    revoked_at: str | None = None

    @property
    def revoked(self) -> bool:
        """Whether the key is refused for good."""
        return self.revoked_at is not None


class _KeyFile(strict.Strict):
    version: int = 1
    keys: tuple[KeyRecord, ...] = ()


def create_key(path: str | Path, name: str, scopes: Iterable[str] = SCOPES) -> str:
    """Make a key and store its hash.

    Returns:
        The key in clear; it is shown this once and cannot be recovered.
    Raises:
        ConfigError: an unknown scope, an empty name or a damaged file.
    """
    scopes = tuple(dict.fromkeys(scopes))
    for scope in scopes:
        if scope not in SCOPES:
            raise ConfigError(
                f"unknown scope '{scope}'{nearest(scope, SCOPES)}; scopes: {listing(SCOPES)}"
            )
    if not scopes or not name.strip():
        raise ConfigError("a key needs a name and at least one scope")
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    record = KeyRecord(
        id=key_id, name=name, scopes=scopes, hash=_HASHER.hash(secret), created_at=_now()
    )
    with _locked(path) as stored:
        _write(path, (*stored, record))
    return f"rfm_{key_id}_{secret}"


def revoke_key(path: str | Path, key_id: str) -> KeyRecord:
    """Revoke a key for good; revoking twice changes nothing.

    Raises:
        ConfigError: no key has this id.
    """
    with _locked(path) as stored:
        ids = [record.id for record in stored]
        if key_id not in ids:
            raise ConfigError(f"{path}: no key '{key_id}'{nearest(key_id, ids)}")
        place = ids.index(key_id)
        record = stored[place]
        if not record.revoked:
            record = msgspec.structs.replace(record, revoked_at=_now())
            _write(path, (*stored[:place], record, *stored[place + 1 :]))
    return record


def list_keys(path: str | Path) -> tuple[KeyRecord, ...]:
    """Every key of the file, revoked ones included; a missing file holds none."""
    return _read(path)


class KeyRing:
    """Verifies keys against a file; safe to share between threads.

    Args:
        remember_seconds: how long a verified (or refused) key needs no argon2 again.
    """

    def __init__(self, path: str | Path, remember_seconds: float = 300.0) -> None:
        self.path = Path(path)
        self._remember = remember_seconds
        self._salt = secrets.token_bytes(32)
        self._stamp: tuple[int, ...] = ()
        self._records: dict[str, KeyRecord] = {}
        self._seen: dict[bytes, tuple[float, bool]] = {}
        self._lock = threading.Lock()
        self._refresh()

    def __len__(self) -> int:
        return sum(not record.revoked for record in self._records.values())

    def remembered(self, text: str) -> KeyRecord | None:
        """The record of a key verified a short while ago, without argon2; None if unknown.

        Raises:
            KeyRefused: the key is known to be wrong, malformed or revoked.
        """
        record, secret = self._find(text)
        hit = self._seen.get(self._mark(record, secret))
        if hit is None or hit[0] < time.monotonic():
            return None
        if not hit[1]:
            raise KeyRefused("the API key is not valid")
        return record

    def authenticate(self, text: str) -> KeyRecord:
        """The record of a valid key; runs argon2 (tens of ms) the first time.

        Raises:
            KeyRefused: anything else.
        """
        known = self.remembered(text)
        if known is not None:
            return known
        record, secret = self._find(text)
        with self._lock:
            valid = False
            with contextlib.suppress(
                argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError
            ):
                valid = bool(_HASHER.verify(record.hash, secret))
            if len(self._seen) >= _REMEMBERED:
                self._seen.clear()
            until = time.monotonic() + self._remember
            self._seen[self._mark(record, secret)] = (until, valid)
        if not valid:
            raise KeyRefused("the API key is not valid")
        return record

    def _find(self, text: str) -> tuple[KeyRecord, str]:
        self._refresh()
        match = _KEY.fullmatch(text)
        record = self._records.get(match.group(1)) if match else None
        if match is None or record is None or record.revoked:
            raise KeyRefused("the API key is not valid")
        return record, match.group(2)

    def _mark(self, record: KeyRecord, secret: str) -> bytes:
        # Looked up under a MAC of this process: time spent in the lookup tells nothing about
        # the secret. The stored hash is part of it, so a replaced record is verified anew.
        text = f"{record.id}\0{record.hash}\0{secret}".encode()
        return hmac.new(self._salt, text, hashlib.sha256).digest()

    def _refresh(self) -> None:
        try:
            stat = os.stat(self.path)
        except FileNotFoundError:
            self._stamp, self._records = (), {}
            return
        stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if stamp != self._stamp:
            self._records = {record.id: record for record in _read(self.path)}
            self._stamp = stamp


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _read(path: str | Path) -> tuple[KeyRecord, ...]:
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ()
    except (ValueError, OSError) as exc:
        raise ConfigError(f"{path}: not a readable key file ({type(exc).__name__})") from None
    return strict.convert(_KeyFile, data, str(path)).keys


@contextlib.contextmanager
def _locked(path: str | Path) -> Iterator[tuple[KeyRecord, ...]]:
    """The stored keys, while no other process changes them."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(path.name + ".lock"), "a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield _read(path)


def _write(path: str | Path, records: tuple[KeyRecord, ...]) -> None:
    """Replace the file in one step, readable by its owner only."""
    path = Path(path)
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    text = json.dumps(msgspec.to_builtins(_KeyFile(keys=records)), indent=2) + "\n"
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    os.replace(fresh, path)
