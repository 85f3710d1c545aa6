"""One request on its way through the service: who asks, for what, and with which id."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from serving.messages import ApiError, refusal
from serving.room import PER_REQUEST
from serving.runtime import Runtime
from serving.tenancy.idempotency import Begun
from serving.tenancy.principal import Principal

T = TypeVar("T")
JSON = "application/json"
_ENCODER = msgspec.json.Encoder()


class Call:
    """What a route handler gets.

    Attributes:
        request_id: given by the caller or made here; stands in the answer, the logs and the
            decision log.
        request: the HTTP request.
        runtime: the parts of the service.
        route: template of the matched path, for metrics and logs.
        package: id of the package that answered, for metrics; empty until it is known.
        begun: what an idempotency key stands for, where the request has one.
        written: lines of the decision log on their way to the disk.
        headers: further headers of the answer.
        held: bytes of the worker's room; the gateway gives them back.
    """

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.route = "unmatched"
        self.package = ""
        self.begun: Begun | None = None
        self.written: list[Future[None]] = []
        self.headers: dict[str, str] = {}
        self.held = 0
        self._body: bytes | None = None
        self.request: Request
        self.runtime: Runtime
        self._principal: Principal | None = None

    @property
    def principal(self) -> Principal:
        """Who asks; only routes that need an API key have one."""
        assert self._principal is not None, "the route is open to everyone"
        return self._principal

    @principal.setter
    def principal(self, principal: Principal) -> None:
        self._principal = principal

    @property
    def known(self) -> Principal | None:
        """Who asks, or None on a route that is open to everyone."""
        return self._principal

    @property
    def tenant(self) -> str:
        """The tenant whose data this request may see."""
        return self.principal.tenant

    def path(self, name: str) -> str:
        """A part of the path, such as the `id` of /v1/packages/{id}."""
        return str(self.request.path_params[name])

    def query(self, name: str, default: str | None = None) -> str | None:
        """A query parameter.

        Raises:
            ApiError: 422 where it is given twice.
        """
        given = self.request.query_params.getlist(name)
        if len(given) > 1:
            raise ApiError(422, "give the query parameter once", name)
        return given[0] if given else default

    def number(self, name: str, default: int, least: int, most: int) -> int:
        """A whole number among the query parameters.

        Raises:
            ApiError: 422 for anything else, or outside least to most.
        """
        text = self.query(name)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit() and len(text) < 16):
            raise ApiError(422, f"expected a whole number from {least} to {most}", name)
        value = int(text)
        if not least <= value <= most:
            raise ApiError(422, f"expected a whole number from {least} to {most}", name)
        return value

    def only_queries(self, *names: str) -> None:
        """Refuse query parameters the route does not have.

        Raises:
            ApiError: 422 naming the first unknown one.
        """
        for name in self.request.query_params:
            if name not in names:
                has = f"parameters: {', '.join(names)}" if names else "the route takes none"
                raise ApiError(422, f"unknown query parameter; {has}", name[:80])

    @property
    def media_type(self) -> str:
        """Media type of the body, without parameters."""
        return self.request.headers.get("content-type", "").partition(";")[0].strip().lower()

    async def body(self, limit: int | None = None, kinds: tuple[str, ...] = (JSON,)) -> bytes:
        """The body, read at most to `limit` bytes and once.

        Raises:
            ApiError: 415 for another media type or a compressed body, 413 for too much, 400 for
                nothing, 408 where it does not come in time, 429 or 503 where as much is held as
                the worker takes in.
            ClientDisconnect: the client went away.
        """
        if self._body is not None:
            return self._body
        if self.media_type not in kinds:
            raise ApiError(415, f"send the body as Content-Type: {' or '.join(kinds)}")
        headers = self.request.headers
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise ApiError(415, "send the body without Content-Encoding")
        limit = self.runtime.settings.max_body_bytes if limit is None else limit
        message = f"the body is larger than {limit} bytes"
        length = headers.get("content-length", "")
        if length.isdigit() and int(length[:20]) > limit:
            raise ApiError(413, message)
        parts: list[bytes] = []
        self._hold(PER_REQUEST)
        try:
            async with asyncio.timeout(self.runtime.settings.timeout_seconds):
                async for part in self.request.stream():
                    if self.held - PER_REQUEST + len(part) > limit:
                        raise ApiError(413, message)
                    self._hold(len(part))
                    parts.append(part)
        except TimeoutError:
            raise ApiError(408, "the body did not arrive in time") from None
        self._body = b"".join(parts)
        if not self._body:
            raise ApiError(400, "the body is empty")
        return self._body

    def _hold(self, size: int) -> None:
        """Count bytes of this request in the worker's room."""
        self.runtime.room.take(self.tenant, size)
        self.held += size

    async def while_there(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for work that is given up when the client goes away.

        Raises:
            ClientDisconnect: it went away first; the work was cancelled.
        """
        doing = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(self.request.receive())
        try:
            await asyncio.wait((doing, gone), return_when=asyncio.FIRST_COMPLETED)
            if not doing.done():
                raise ClientDisconnect()
            return doing.result()
        finally:
            for each in (doing, gone):
                if not each.done():
                    each.cancel()

    def id_of(self, row: int | None) -> str:
        """The request id; of a row of a batch, with its number."""
        return self.request_id if row is None else f"{self.request_id}.{row}"

    def once(self, row: int = 0) -> str | None:
        """What a line of the decision log says of its idempotency key; None without one."""
        return None if self.begun is None else self.begun.line(row)

    async def logged(self) -> None:
        """Wait until every decision of this request stands on the disk."""
        for line in self.written:
            await asyncio.wrap_future(line)

    async def read(self, decoder: msgspec.json.Decoder[Any], names: tuple[str, ...]) -> Any:
        """The JSON body through a decoder of one of the message types.

        Args:
            names: members of that type, for hints.
        Raises:
            ApiError: as `body`, and 400 or 422 for what the type does not allow.
        """
        return decode(decoder, await self.body(), names)


def decode(decoder: msgspec.json.Decoder[Any], body: bytes, names: tuple[str, ...]) -> Any:
    """Bytes through a decoder.

    Raises:
        ApiError: 400 for anything but JSON, 422 for a wrong member.
    """
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise refusal(exc, "", names) from None


def answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A message as a JSON answer."""
    return Response(_ENCODER.encode(value), status, headers, JSON)
