"""HTTP for the client: kept-alive connections, safe repetition, one kind of error.

A request is repeated only where a repetition cannot decide twice: reads, and writes under an
idempotency key. Repeated are 429 and 503, 409 where it says when to come back, and connections
that fail; never earlier than Retry-After says, with growing, jittered waits (full jitter:
Brooker, "Exponential backoff and jitter", AWS Architecture Blog, 2015).
"""

from __future__ import annotations

import http.client
import json
import random
import re
import secrets
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from foundation.errors import ConfigError, RequestError, RiskfmError
from serving.messages import ErrorAnswer

T = TypeVar("T")
LOCAL = ("localhost", "127.0.0.1", "::1")
FIRST_WAIT = 0.1
LONGEST_WAIT = 5.0
_KEY = re.compile(r"[!-~]+")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,255}")
_ERROR = msgspec.json.Decoder(ErrorAnswer)


class ApiFailure(RiskfmError):
    """The service refused a request or failed at it.

    Attributes:
        status: HTTP status.
        code: stable word for it, such as `invalid`; empty where something before the service
            answered.
        field: part of the request at fault, or empty.
        request_id: finds the request in the service's log.
        retry_after: seconds to wait, where the service said so.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str = "",
        field: str = "",
        request_id: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.field = status, code, field
        self.request_id, self.retry_after = request_id, retry_after

    def __str__(self) -> str:
        place = f"{self.field}: " if self.field else ""
        return f"{self.status} {self.code}: {place}{self.args[0]} (request {self.request_id})"


class Unreachable(RiskfmError):
    """No answer came; whether the request was worked on is not known.

    Attributes:
        request_id: as it was sent.
    """

    def __init__(self, message: str, request_id: str) -> None:
        super().__init__(f"{message} (request {request_id})")
        self.request_id = request_id


@dataclass(frozen=True)
class Reply:
    """An answer with a status below 400; `headers` have names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport:
    """Sends requests; safe for threads, each of which has a connection of its own.

    Args:
        url: of the service, with a path where a proxy serves it under one.
        key: API key; kept to itself.
        timeout: seconds a connection may be silent.
        retries: repetitions of a request where they are safe.
        longest_wait: seconds; where Retry-After asks for more, the error is raised at once.
        allow_http: let the key travel unencrypted to a host that is not this machine.
        tls: context for https; None: the system's certificates.
        sleep, jitter: replaced in tests; `jitter` gives 0 to 1.
    Raises:
        ConfigError: a URL or a key that cannot be used.
    """

    def __init__(
        self,
        url: str,
        key: str,
        timeout: float = 30.0,
        retries: int = 4,
        longest_wait: float = 30.0,
        allow_http: bool = False,
        tls: ssl.SSLContext | None = None,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        try:
            parts = urlsplit(url)
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError:
            raise ConfigError("the URL of the service cannot be read") from None
        if parts.scheme not in ("http", "https") or not self._host or parts.username is not None:
            raise ConfigError("expected a URL such as https://scoring.example.com, without a name")
        if parts.scheme == "http" and self._host not in LOCAL and not allow_http:
            raise ConfigError("the API key would travel unencrypted; use https or allow_http=True")
        if not _KEY.fullmatch(key):
            raise ConfigError("the API key is empty or holds characters no key has")
        port = f":{self._port}" if self._port else ""
        shown = f"[{self._host}]" if ":" in self._host else self._host
        self._prefix = parts.path.rstrip("/")
        self.url = f"{parts.scheme}://{shown}{port}{self._prefix}"
        self._tls = None
        if parts.scheme == "https":
            self._tls = ssl.create_default_context() if tls is None else tls
        self._key, self._timeout, self._retries = key, timeout, retries
        self._longest, self._sleep, self._jitter = longest_wait, sleep, jitter
        self._mine = threading.local()
        self._guard = threading.Lock()
        self._every: list[http.client.HTTPConnection] = []

    def close(self) -> None:
        """Close every connection; a later request opens a new one."""
        with self._guard:
            every, self._every = self._every, []
        for connection in every:
            connection.close()
        self._mine = threading.local()

    def send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | int | None] | None = None,
        body: bytes | None = None,
        media: str = "application/json",
        request_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> Reply:
        """One request, repeated where that is safe.

        Args:
            query: parameters; those that are None are left out.
        Raises:
            ApiFailure: the answer is an error.
            Unreachable: there is none.
            ConfigError: an id or an idempotency key that no header can carry.
        """
        request_id = request_id or f"c-{secrets.token_hex(12)}"
        headers = {"Authorization": f"Bearer {self._key}", "X-Request-Id": request_id}
        if body is not None:
            headers["Content-Type"] = media
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        if not _REQUEST_ID.fullmatch(request_id):
            raise ConfigError("a request id has 1 to 64 letters, digits, '.', '_' or '-'")
        if idempotency_key is not None and not _IDEMPOTENCY_KEY.fullmatch(idempotency_key):
            raise ConfigError("an idempotency key has 1 to 255 visible ASCII characters")
        given = {name: value for name, value in (query or {}).items() if value is not None}
        target = self._prefix + path + (f"?{urlencode(given)}" if given else "")
        safe = method == "GET" or idempotency_key is not None
        for attempt in range(self._retries + 1):
            last = attempt == self._retries or not safe
            wait: float | None = None
            try:
                reply = self._once(method, target, body, headers, fresh=not safe)
            except (OSError, http.client.HTTPException) as exc:
                if last:
                    words = f"{self.url} gave no answer: {type(exc).__name__}"
                    raise Unreachable(words, request_id) from None
            else:
                if reply.status < 400:
                    return reply
                failure = _failure(reply, request_id)
                wait = failure.retry_after
                again = failure.status in (429, 503) or (failure.status == 409 and wait is not None)
                if last or not again or (wait or 0.0) > self._longest:
                    raise failure
            growing = min(LONGEST_WAIT, FIRST_WAIT * 2.0**attempt)
            self._sleep((wait or 0.0) + growing * self._jitter())
        raise AssertionError("the last attempt returns or raises")

    def _once(
        self, method: str, target: str, body: bytes | None, headers: dict[str, str], fresh: bool
    ) -> Reply:
        """One attempt; a connection that failed is thrown away.

        Args:
            fresh: on a new connection: one that was kept may have been closed by the other side,
                and nobody could tell whether the request went through.
        """
        connection = self._connection(fresh)
        try:
            connection.request(method, target, body, headers)
            with connection.getresponse() as answer:
                content = answer.read()
                names = {name.lower(): value for name, value in answer.getheaders()}
                return Reply(answer.status, names, content)
        except BaseException:
            self._forget(connection)
            raise

    def _connection(self, fresh: bool) -> http.client.HTTPConnection:
        kept: http.client.HTTPConnection | None = getattr(self._mine, "connection", None)
        if kept is not None and not fresh:
            return kept
        if kept is not None:
            self._forget(kept)
        if self._tls is None:
            made = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
        else:
            made = http.client.HTTPSConnection(
                self._host, self._port, timeout=self._timeout, context=self._tls
            )
        self._mine.connection = made
        with self._guard:
            self._every.append(made)
        return made

    def _forget(self, connection: http.client.HTTPConnection) -> None:
        connection.close()
        self._mine.connection = None
        with self._guard:
            self._every = [each for each in self._every if each is not connection]


def _failure(reply: Reply, request_id: str) -> ApiFailure:
    """The error of an answer; one without an error of the API comes from something before it."""
    after = reply.headers.get("retry-after", "")
    wait = float(after) if re.fullmatch(r"\d{1,9}", after) else None
    try:
        error = _ERROR.decode(reply.body).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        words = "the answer is none of the scoring service"
        return ApiFailure(reply.status, words, request_id=request_id, retry_after=wait)
    return ApiFailure(reply.status, error.message, error.code, error.field, error.request_id, wait)


def decoded(reply: Reply, kind: type[T]) -> T:
    """An answer as its message; members this client does not know are passed over.

    Raises:
        ApiFailure: it is none of the API's.
    """
    try:
        return msgspec.json.decode(reply.body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = reply.headers.get("x-request-id", "")
        words = f"the answer is no {kind.__name__}"
        raise ApiFailure(reply.status, words, request_id=found) from None


def strict_json(value: Any) -> bytes:
    """Strict JSON: a NaN is neither zero nor missing and must not travel as either.

    Raises:
        RequestError: a number that is not finite, or a value JSON has no word for.
    """
    try:
        return json.dumps(
            msgspec.to_builtins(value), allow_nan=False, separators=(",", ":")
        ).encode()
    except ValueError:
        words = "every number must be finite; leave a missing value out or give None"
        raise RequestError(words) from None
    except TypeError as exc:
        raise RequestError(f"a value cannot be written as JSON ({exc})") from None


def part(text: str) -> str:
    """A name as one part of a path."""
    return quote(text, safe="")
