"""Who a key speaks for, answered from memory.

Argon2 is slow on purpose, so a verified key is remembered as an HMAC under a key of this process.
Keys and tenants are read again when their version number has changed; a thread looks several
times a second. What was read longer ago than `refresh_seconds` is not trusted: a revoked, expired
or suspended key is refused at the latest that long after, in every worker, even where the
database stopped answering (then with 503).
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import threading
import time
from dataclasses import dataclass, field

import argon2
import sqlalchemy as sa

from foundation.errors import UserError
from serving.database import Database
from serving.messages import ApiError
from serving.tenancy.background import Background
from serving.tenancy.keys import HASHER, KeyRecord, moment, read_keys
from serving.tenancy.principal import Principal
from serving.tenancy.tables import directory_version, open_tables
from serving.tenancy.tenants import Tenant, TenantLimits, read_tenants

_KEY = re.compile(r"rfm_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_REMEMBERED = 4096
_NO_LIMITS = TenantLimits()


class KeyRefused(UserError):
    """The key is missing, malformed, unknown, wrong, expired or revoked; which stays unsaid."""


@dataclass(frozen=True)
class _Known:
    record: KeyRecord
    principal: Principal
    ends: float  # seconds since 1970


@dataclass(frozen=True)
class _Snapshot:
    version: int = -1
    keys: dict[str, _Known] = field(default_factory=dict)
    tenants: dict[str, Tenant] = field(default_factory=dict)


class KeyRing:
    """Verifies keys against the hosting database; safe to share between threads.

    Args:
        remember_seconds: how long a verified (or refused) key needs no argon2 again.
        refresh_seconds: the longest time a change of keys and tenants goes unnoticed.
    """

    def __init__(
        self, database: Database, remember_seconds: float = 300.0, refresh_seconds: float = 1.0
    ) -> None:
        open_tables(database)
        self.database = database
        self._remember, self._trust = remember_seconds, refresh_seconds
        self._salt = secrets.token_bytes(32)
        self._snapshot = _Snapshot()
        self._trusted_until = 0.0
        self._seen: dict[bytes, tuple[float, bool]] = {}
        self._lock = threading.Lock()
        self._refreshing = threading.Lock()
        self.refresh()
        self._background = Background("api-keys", refresh_seconds * 0.4, self.refresh)

    def __len__(self) -> int:
        return sum(known.record.state() == "active" for known in self._snapshot.keys.values())

    def close(self) -> None:
        """Stop looking for changes."""
        self._background.close()

    def remembered(self, text: str) -> Principal | None:
        """Whom a key verified a short while ago speaks for; None if that is not known now.

        Takes neither argon2 nor the database.

        Raises:
            KeyRefused: the key is known to be wrong, malformed, expired or revoked.
            ApiError: 403, its tenant is suspended.
        """
        if time.monotonic() >= self._trusted_until:
            return None
        known, secret = self._find(text)
        hit = self._seen.get(self._mark(known.record, secret))
        if hit is None or hit[0] < time.monotonic():
            return None
        if not hit[1]:
            raise KeyRefused("the API key is not valid")
        return self._admitted(known)

    def authenticate(self, text: str) -> Principal:
        """Whom a valid key speaks for; runs argon2 (tens of ms) the first time.

        Raises:
            KeyRefused: it is not valid.
            ApiError: 403, its tenant is suspended; 503, keys cannot be checked at the moment.
        """
        if time.monotonic() >= self._trusted_until:
            try:
                self.refresh()
            except sa.exc.SQLAlchemyError:
                raise ApiError(
                    503, "API keys cannot be checked at the moment", headers={"Retry-After": "1"}
                ) from None
        known, secret = self._find(text)
        mark = self._mark(known.record, secret)
        with self._lock:
            hit = self._seen.get(mark)
            if hit is None or hit[0] < time.monotonic():
                hit = (time.monotonic() + self._remember, _verify(known.record, secret))
                if len(self._seen) >= _REMEMBERED:
                    self._seen.clear()
                self._seen[mark] = hit
        if not hit[1]:
            raise KeyRefused("the API key is not valid")
        return self._admitted(known)

    def tenant(self, name: str) -> Tenant | None:
        """A tenant as it was at the last look."""
        return self._snapshot.tenants.get(name)

    def limits(self, tenant: str) -> TenantLimits:
        """A tenant's limits as they were at the last look."""
        found = self._snapshot.tenants.get(tenant)
        return _NO_LIMITS if found is None else found.limits

    def refresh(self) -> None:
        """Look for changes, and read keys and tenants again where there are any."""
        with self._refreshing:
            began = time.monotonic()
            with self.database.reading() as connection:
                # The number comes first: a change in between is found at the next look.
                version = directory_version(connection)
                if version != self._snapshot.version:
                    keys = {r.id: _known(r) for r in read_keys(connection) if r.revoked is None}
                    tenants = {t.name: t for t in read_tenants(connection)}
                    self._snapshot = _Snapshot(version, keys, tenants)
            self._trusted_until = began + self._trust

    def _find(self, text: str) -> tuple[_Known, str]:
        match = _KEY.fullmatch(text)
        known = self._snapshot.keys.get(match.group(1)) if match else None
        if match is None or known is None or known.ends <= time.time():
            raise KeyRefused("the API key is not valid")
        return known, match.group(2)

    def _admitted(self, known: _Known) -> Principal:
        tenant = self._snapshot.tenants.get(known.record.tenant)
        if tenant is None or tenant.suspended:
            raise ApiError(
                403, f"the tenant '{known.record.tenant}' is suspended; its operator can resume it"
            )
        return known.principal

    def _mark(self, record: KeyRecord, secret: str) -> bytes:
        # Looked up under a MAC of this process: time spent in the lookup tells nothing about
        # the secret. The stored hash is part of it, so a replaced record is verified anew.
        text = f"{record.id}\0{record.hash}\0{secret}".encode()
        return hashlib.blake2b(text, key=self._salt).digest()


def _verify(record: KeyRecord, secret: str) -> bool:
    with contextlib.suppress(
        argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError
    ):
        return bool(HASHER.verify(record.hash, secret))
    return False


def _known(record: KeyRecord) -> _Known:
    principal = Principal(
        record.tenant, record.id, record.name, frozenset(record.scopes), record.sandbox,
        record.person,
    )  # fmt: skip
    ends = float("inf") if record.expires is None else moment(record.expires).timestamp()
    return _Known(record, principal, ends)
