"""Actions of a decision, posted by webhook from a durable outbox; the answer never waits.

A row of the outbox is made in the transaction that takes the decision out of the decision log, so
there is exactly one for each decision and action. It is posted at least once, with an
Idempotency-Key that stays the same, and signed:

    X-Riskfm-Signature: t=<unix seconds>,v1=<hex HMAC-SHA256(secret, t + "." + body)>

Redirects are not followed and no proxy is used. The address a name resolves to is checked and then
connected to, so that it cannot change in between; private ones are refused unless allowed.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import http.client
import ipaddress
import json
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import SplitResult, urlsplit

import sqlalchemy as sa

from foundation.errors import ConfigError, UserError
from serving.database import Database, now
from serving.decisions.decision_file import SECRET_PREFIX, DecisionFile
from serving.decisions.tables import metadata, outbox

WAITING, SENT, FAILED = "waiting", "sent", "failed"
TRIES = 12
FIRST_WAIT, LONGEST_WAIT, LEASE = 5.0, 3600.0, 120.0
TIMEOUT_SECONDS = 10.0
SIGNATURE = "X-Riskfm-Signature"


def environment_secret(name: str) -> str:
    """A signing secret from the environment.

    Raises:
        UserError: the name has another prefix, or is not set.
    """
    found = os.environ.get(name) if name.startswith(SECRET_PREFIX) else None
    if not found:
        raise UserError(f"the environment has no {name}, which signs this action")
    return found


def check_url(url: str, networks: Iterable[str] = ()) -> SplitResult:
    """The parts of an action's address.

    Args:
        networks: allowed private networks, such as 10.1.0.0/16; plain http is allowed to them.
    Raises:
        ConfigError: no http(s) address, one with credentials, or plain http to anywhere else.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ConfigError("the address of an action is malformed") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ConfigError("the address of an action should be https://HOST/PATH")
    if parts.username or parts.password or any(c.isspace() for c in url):
        raise ConfigError("the address of an action holds no credentials and no blanks")
    if parts.scheme == "http" and not tuple(networks):
        raise ConfigError(
            "the address of an action should be https; plain http only goes to allowed networks"
        )
    return parts


def actions_of(
    decision: str, record: dict[str, Any], file: DecisionFile | None
) -> list[dict[str, Any]]:
    """The actions of a decision, as rows of the outbox.

    Args:
        decision: its id, unique for the tenant.
        record: its line of the decision log.
        file: the decision file that named the actions.
    """
    detail = record.get("decision") or {}
    names = list(dict.fromkeys(detail.get("actions") or []))
    moment, rows = now(), []
    for name in names:
        declared = None if file is None else file.actions.get(name)
        body = {
            "id": decision, "action": name, "time": record.get("time", ""),
            "request_id": record.get("request_id", ""), "channel": record.get("channel", ""),
            "outcome": record.get("outcome", ""), "rules": record.get("rules", []),
            "reasons": detail.get("reasons", []), "band": record.get("band", ""),
        }  # fmt: skip
        body |= {k: detail[k] for k in ("limit", "price") if k in detail}
        rows.append({
            "tenant": record["tenant"], "decision": decision, "action": name,
            "channel": record.get("channel", ""), "url": "" if declared is None else declared.url,
            "secret": "" if declared is None else declared.secret, "body": json.dumps(body),
            "state": FAILED if declared is None else WAITING, "tries": 0, "created_at": moment,
            "next_at": moment, "sent_at": "", "error": "not declared" if declared is None else "",
        })  # fmt: skip
    return rows


class Sender:
    """Posts what waits in the outbox; several may run side by side.

    Args:
        secret: name -> signing secret; raises UserError where there is none.
        networks: private networks that may be posted to; none by default.
    """

    def __init__(
        self,
        database: Database,
        secret: Callable[[str], str] = environment_secret,
        networks: Iterable[str] = (),
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._database, self._secret, self._timeout = database, secret, timeout_seconds
        self._names = tuple(networks)
        try:
            self._networks = tuple(ipaddress.ip_network(text) for text in self._names)
        except ValueError as exc:
            raise ConfigError(f"allowed networks of actions: {exc}") from None
        self._tls = ssl.create_default_context()
        database.make(metadata)

    def step(self, limit: int = 20) -> int:
        """Post what is due; how many were taken on."""
        taken = self._take(limit)
        for row in taken:
            try:
                self._post(row)
            except UserError as exc:
                self._settle(row, str(exc))
            except Exception as exc:
                # Whatever it is, the others go on. Only its kind: texts may repeat addresses.
                self._settle(row, type(exc).__name__)
            else:
                self._settle(row, "")
        return len(taken)

    def _take(self, limit: int) -> list[Any]:
        moment = now()
        due = (outbox.c.state == WAITING) & (outbox.c.next_at <= moment)
        query = sa.select(outbox).where(due).order_by(outbox.c.next_at).limit(limit)
        with self._database.reading() as connection:
            if connection.execute(query.limit(1)).first() is None:
                return []
        with self._database.transaction() as connection:
            rows = list(connection.execute(query))
            for row in rows:
                connection.execute(
                    outbox.update().where(_is(row)).values(
                        tries=row.tries + 1, next_at=_later(LEASE)
                    )
                )  # fmt: skip
        return rows

    def _settle(self, row: Any, error: str) -> None:
        tries = int(row.tries) + 1
        if not error:
            values: dict[str, Any] = {"state": SENT, "sent_at": now(), "error": ""}
        elif tries >= TRIES:
            values = {"state": FAILED, "error": error}
        else:
            wait = min(FIRST_WAIT * 2 ** (tries - 1), LONGEST_WAIT)
            values = {"next_at": _later(wait), "error": error}
        with self._database.transaction() as connection:
            connection.execute(
                outbox.update().where(_is(row), outbox.c.state == WAITING).values(**values)
            )

    def _post(self, row: Any) -> None:
        parts = check_url(row.url, self._names)
        body = str(row.body).encode()
        stamp = str(int(time.time()))
        secret = self._secret(str(row.secret)).encode()
        mark = hmac.new(secret, f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
        headers = {
            "Content-Type": "application/json", "User-Agent": "riskfm",
            "Idempotency-Key": f"{row.decision}/{row.action}",
            SIGNATURE: f"t={stamp},v1={mark}",
        }  # fmt: skip
        connection = self._connection(parts)
        try:
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            answer.read(1 << 16)
            if not 200 <= answer.status < 300:
                raise UserError(f"answered {answer.status}")
        finally:
            connection.close()

    def _connection(self, parts: SplitResult) -> http.client.HTTPConnection:
        """Connected to an address that was checked."""
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "https" else 80)
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(one[4][0]) for one in found]
        for text in addresses:
            self._require_allowed(text, parts.scheme)
        raw = socket.create_connection((addresses[0], port), timeout=self._timeout)
        connection = http.client.HTTPConnection(host, port, timeout=self._timeout)
        try:
            secure = parts.scheme == "https"
            connection.sock = self._tls.wrap_socket(raw, server_hostname=host) if secure else raw
        except Exception:
            raw.close()
            raise
        return connection

    def _require_allowed(self, text: str, scheme: str) -> None:
        address = ipaddress.ip_address(text.partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None)
        address = mapped or address
        if any(address in network for network in self._networks):
            return
        if not address.is_global or address.is_multicast:
            raise UserError("the address is private and its network is not allowed")
        if scheme == "http":
            raise UserError("plain http only goes to allowed networks")


def waiting(database: Database, tenant: str, state: str | None = None) -> list[dict[str, Any]]:
    """Actions of a tenant in the outbox, newest first, without their bodies."""
    columns = [c for c in outbox.c if c.name not in ("body", "secret")]
    query = sa.select(*columns).where(outbox.c.tenant == tenant)
    if state is not None:
        query = query.where(outbox.c.state == state)
    with database.reading() as connection:
        rows = connection.execute(query.order_by(outbox.c.created_at.desc()).limit(1000))
        return [dict(row) for row in rows.mappings()]


def _is(row: Any) -> sa.ColumnElement[bool]:
    return sa.and_(
        outbox.c.tenant == row.tenant, outbox.c.decision == row.decision,
        outbox.c.action == row.action,
    )  # fmt: skip


def _later(seconds: float) -> str:
    moment = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)
    return moment.isoformat(timespec="microseconds")
