"""Idempotency keys: the same request twice is one decision and one answer.

The guarantee. For a tenant, a route and a key, within `keep_seconds`:

* While one request works, every other with the key is told 409, in every worker: `begin` gives the
  key to one of them in a transaction of the database.
* Once an answer is finished, the same body gets that answer, byte for byte; another body is an
  error and gets nothing.
* A worker that dies between `begin` and `finish` holds the key for `lease_seconds` at most; the
  next request then takes it over and decides anew. What the dead one may have written to the
  decision log stays there as the truth, and both lines carry the same `once`, which metering bills
  once. So no request is lost and none is billed twice. A decision may be made twice only where the
  first never reached the client.
* A worker that was merely slow and finishes after it was taken over does not replace the answer of
  its successor: it hands out whatever was finished first.

Write the decision log (durably) before `finish`, and `finish` before answering. Refusals that may
pass with time (409, 429, 5xx) are given up with `abandon`, others are kept as answers.
Keys and digests are kept as keyed hashes and answers sealed: both may tell of a person.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import sqlalchemy as sa

from serving.database import Database
from serving.messages import ApiError
from serving.tenancy.tables import idempotency, metadata

HEADER = "Idempotency-Key"
LIMIT = 255
KEEP_SECONDS = 24 * 3600.0
PURPOSE = "idempotency"


class Sealing(Protocol):
    """Encrypts a tenant's bytes, as `serving.safety.vault.Vault` does."""

    def seal(self, tenant: str, purpose: str, data: bytes) -> bytes:
        """Encrypt."""

    def open(self, tenant: str, purpose: str, blob: bytes) -> bytes:
        """Decrypt."""


@dataclass(frozen=True)
class Begun:
    """The key is this request's: decide, then `finish` or `abandon`.

    Attributes:
        once: equal for a request and whoever takes it over.
        holder: tells this attempt from others.
    """

    tenant: str
    route: str
    key: str
    once: str
    holder: str

    def line(self, row: int = 0) -> str:
        """The member `once` of a decision's line in the log; `row` counts those of a batch."""
        return f"{self.once}:{row}"


@dataclass(frozen=True)
class Stored:
    """The answer given before."""

    status: int
    answer: bytes


class Idempotency:
    """Keys and answers in the hosting database.

    Args:
        vault: seals answers.
        hide: keyed hash of a tenant's text, hex, as `EntityHasher.hash`.
        keep_seconds: how long a key is remembered after its first use.
        lease_seconds: how long a request may work before another may take over; longer than any
            request is allowed to take.
        clock: seconds since 1970, the same on all nodes to within a second or so.
    """

    def __init__(
        self,
        database: Database,
        vault: Sealing,
        hide: Callable[[str, str], str],
        keep_seconds: float = KEEP_SECONDS,
        lease_seconds: float = 60.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        database.make(metadata)
        self.database, self._vault, self._hide = database, vault, hide
        self._keep, self._lease, self._clock = keep_seconds, lease_seconds, clock

    def begin(self, tenant: str, route: str, key: str, digest: str) -> Begun | Stored:
        """Take the key, or get the answer it had.

        Args:
            key: what the client sent, 1 to 255 visible ASCII characters.
            digest: of the request's body (and query), hex.
        Raises:
            ApiError: 422 for a malformed key or another body, 409 with Retry-After while the first
                request is at work.
        """
        check_key(key)
        hidden = self._hide(tenant, f"{route}\0{key}")
        digest = self._hide(tenant, f"{route}\0{digest}")
        mine = _mine(tenant, route, hidden)
        moment = self._clock()
        holder = secrets.token_hex(16)
        with self.database.transaction() as connection:
            row = connection.execute(sa.select(idempotency).where(mine)).first()
            if row is not None and row.expires <= moment:
                connection.execute(idempotency.delete().where(mine))
                row = None
            if row is None:
                once = secrets.token_hex(16)
                connection.execute(
                    idempotency.insert().values(
                        tenant=tenant, route=route, key=hidden, digest=digest, once=once,
                        holder=holder, leased_until=moment + self._lease, status=None,
                        answer=None, expires=moment + self._keep,
                    )
                )  # fmt: skip
                return Begun(tenant, route, hidden, once, holder)
            if row.digest != digest:
                raise ApiError(
                    422, "this idempotency key was used with another body; take a new key", HEADER
                )
            if row.status is None and row.leased_until > moment:
                raise ApiError(
                    409, "the first request with this idempotency key is still at work", HEADER,
                    {"Retry-After": "1"},
                )  # fmt: skip
            if row.status is None:
                connection.execute(
                    idempotency.update()
                    .where(mine)
                    .values(holder=holder, leased_until=moment + self._lease)
                )
                return Begun(tenant, route, hidden, row.once, holder)
        return self._stored(tenant, row.status, row.answer)

    def finish(self, begun: Begun, status: int, answer: bytes) -> Stored:
        """Keep the answer.

        Returns:
            the answer to give: this one, or the one of whoever took over and finished first.
        """
        sealed = self._vault.seal(begun.tenant, PURPOSE, answer)
        mine = _mine(begun.tenant, begun.route, begun.key)
        open_still = idempotency.c.status.is_(None) & (idempotency.c.once == begun.once)
        with self.database.transaction() as connection:
            changed = connection.execute(
                idempotency.update().where(mine & open_still).values(status=status, answer=sealed)
            )
            if changed.rowcount == 1:
                return Stored(status, answer)
            query = sa.select(idempotency).where(mine, idempotency.c.once == begun.once)
            row = connection.execute(query).first()
        # The key expired or was given up meanwhile: there is no other answer than this.
        if row is None or row.status is None:
            return Stored(status, answer)
        return self._stored(begun.tenant, row.status, row.answer)

    def abandon(self, begun: Begun) -> None:
        """Give the key up: the next request with it decides; after a take-over nothing happens."""
        mine = _mine(begun.tenant, begun.route, begun.key)
        held = (idempotency.c.holder == begun.holder) & idempotency.c.status.is_(None)
        with self.database.transaction() as connection:
            connection.execute(
                idempotency.update().where(mine & held).values(leased_until=self._clock())
            )

    def purge(self) -> int:
        """Forget what has expired; how much that was."""
        old = idempotency.c.expires <= self._clock()
        with self.database.reading() as connection:
            if connection.execute(sa.select(idempotency.c.key).where(old).limit(1)).first() is None:
                return 0
        with self.database.transaction() as connection:
            return connection.execute(idempotency.delete().where(old)).rowcount

    def erase(self, tenant: str) -> int:
        """Forget every answer of a tenant, at once; how many there were."""
        with self.database.transaction() as connection:
            mine = idempotency.c.tenant == tenant
            return connection.execute(idempotency.delete().where(mine)).rowcount

    def _stored(self, tenant: str, status: int, answer: bytes) -> Stored:
        return Stored(status, self._vault.open(tenant, PURPOSE, bytes(answer)))


def keeps(status: int) -> bool:
    """Whether an answer of this status is kept, or the same request may do better later."""
    return status < 500 and status not in (401, 403, 408, 409, 429, 499)


def check_key(key: str) -> None:
    """Refuse what is no idempotency key.

    Raises:
        ApiError: 422.
    """
    if not 1 <= len(key) <= LIMIT or not all("!" <= character <= "~" for character in key):
        raise ApiError(422, f"expected 1 to {LIMIT} visible ASCII characters", HEADER)


def _mine(tenant: str, route: str, key: str) -> sa.ColumnElement[bool]:
    table = idempotency.c
    return (table.tenant == tenant) & (table.route == route) & (table.key == key)
