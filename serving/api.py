"""The scoring API: a Starlette router behind one gateway.

The gateway gives every request its id, checks the API key before anything else is looked at,
turns every failure into the same error shape and counts. Only the two health routes are open.
The routes stand in `serving/routes`.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import Message, Receive, Scope, Send

from foundation.errors import RequestError
from serving.audit import Unwritable
from serving.logs import tell
from serving.messages import CODES, UNWRITTEN, ApiError, ErrorAnswer, ErrorBody
from serving.routes.call import Call
from serving.routes.catalogue import OPERATIONS
from serving.routes.operation import Operation
from serving.runtime import Runtime
from serving.tenancy.idempotency import Stored, keeps
from serving.tenancy.key_ring import KeyRefused
from serving.tenancy.principal import Principal
from serving.tracing import note

log = logging.getLogger("riskfm.serving")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ENCODER = msgspec.json.Encoder()
_HEADERS = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="riskfm"'}


class Application:
    """ASGI application; `runtime` may be set after the server has started."""

    def __init__(self, runtime: Runtime | None = None) -> None:
        self.runtime = runtime
        self._argon2 = asyncio.Semaphore(1)
        self.operations = OPERATIONS
        paths: dict[str, dict[str, Operation]] = {}
        for operation in self.operations:
            paths.setdefault(operation.path, {})[operation.method] = operation
        self._open = {o.path for o in self.operations if not o.scope}
        routes = [
            Route(path, _endpoint(methods), methods=list(methods))
            for path, methods in paths.items()
        ]
        self._router = Router(routes, redirect_slashes=False, default=_not_found)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request; other ASGI scopes are left alone."""
        if scope["type"] != "http":
            return
        begin = time.perf_counter()
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        call = Call(given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex)
        scope = {**scope, "app": self, "riskfm": call}
        status = 500
        started = False

        async def reply(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                started, status = True, message["status"]
                message["headers"] = [
                    *message["headers"],
                    *_HEADERS,
                    (b"x-request-id", call.request_id.encode()),
                    *((k.lower().encode(), v.encode()) for k, v in call.headers.items()),
                ]
            await send(message)

        try:
            if self.runtime is not None:
                call.runtime = self.runtime
            if scope["path"] not in self._open:
                call.principal = await self._authenticate(headers)
                await _admit(call)
            elif self.runtime is None and not scope["path"].endswith("/live"):
                raise _starting()
            await self._route(call, headers, scope, receive, reply)
        except ClientDisconnect:
            status = 499
        except Exception as exc:
            if started:
                raise
            await _failure(exc, call)(scope, receive, reply)
        finally:
            if call.held:
                call.runtime.room.leave(call.tenant, call.held)
            if self.runtime is not None:
                seconds = time.perf_counter() - begin
                tenant = call.known.tenant if call.known else ""
                self.runtime.metrics.request(call.route, status, call.package, seconds, tenant)
                tell(
                    log, logging.INFO, "request", request_id=call.request_id, tenant=tenant,
                    key_id=call.known.key_id if call.known else "", method=scope["method"],
                    route=call.route, status=status, ms=seconds * 1000, package=call.package,
                )  # fmt: skip

    async def _route(
        self,
        call: Call,
        headers: dict[bytes, bytes],
        scope: Scope,
        receive: Receive,
        reply: Send,
    ) -> None:
        """The router, as a span of the request's trace where traces are made."""
        if self.runtime is None or not self.runtime.tracing.on:
            await self._router(scope, receive, reply)
            return
        tracing = self.runtime.tracing
        caller = tracing.caller(headers.get(b"traceparent", b"").decode("latin-1"))
        with tracing.span("request", caller, method=scope["method"]) as span:
            try:
                await self._router(scope, receive, reply)
            finally:
                note(span, route=call.route, package=call.package)

    async def _authenticate(self, headers: dict[bytes, bytes]) -> Principal:
        if self.runtime is None:
            raise _starting()
        keys = self.runtime.front.keys
        text = headers.get(b"x-api-key", b"").decode("latin-1").strip()
        scheme, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if scheme:
            text = token.strip() if scheme.lower() == "bearer" else ""
        if not text:
            message = "an API key is required: Authorization: Bearer rfm_<id>_<secret>"
            raise ApiError(401, message, "", _CHALLENGE)
        try:
            known = keys.remembered(text)
            if known is None:
                async with self._argon2:
                    known = await asyncio.to_thread(keys.authenticate, text)
            return known
        except KeyRefused as exc:
            raise ApiError(401, str(exc), "", _CHALLENGE) from None


async def _admit(call: Call) -> None:
    """Take the request's token of the rate limits.

    Raises:
        ApiError: 429.
    """
    front = call.runtime.front
    if front.rates_block:
        call.headers |= await asyncio.to_thread(front.rates.admit, call.principal)
    else:
        call.headers |= front.rates.admit(call.principal)


def _endpoint(methods: dict[str, Operation]) -> Callable[[Request], Awaitable[Response]]:
    """Run the operation of the request's method; HEAD is a GET whose body is not sent."""

    async def run(request: Request) -> Response:
        operation = methods.get(request.method) or methods["GET"]
        call: Call = request.scope["riskfm"]
        call.route, call.request = operation.path, request
        if operation.scope and operation.scope not in call.principal.scopes:
            raise ApiError(403, f"the API key lacks the scope '{operation.scope}'")
        changes = operation.method != "GET" and not operation.rehearsed
        if operation.scope and changes and call.principal.sandbox:
            raise ApiError(403, "a sandbox key changes nothing; it scores test entities")
        call.only_queries(*(p.name for p in operation.parameters if p.where == "query"))
        if operation.repeatable and "idempotency-key" in request.headers:
            return await _once(operation, call, request.headers["idempotency-key"])
        return await operation.handler(call)

    return run


async def _once(operation: Operation, call: Call, key: str) -> Response:
    """Answer under an idempotency key: decided once, answered alike however often it is sent."""
    runtime = call.runtime
    kept = runtime.front.idempotency
    body = await call.body(getattr(runtime.settings, operation.largest), operation.media)
    url = call.request.url
    digest = hashlib.sha256(f"{url.path}?{url.query}\0{call.media_type}\0".encode() + body)
    route = f"sandbox {operation.path}" if call.principal.sandbox else operation.path
    found = await asyncio.to_thread(kept.begin, call.tenant, route, key, digest.hexdigest())
    if isinstance(found, Stored):
        runtime.metrics.replayed()
        return _stored(found, call)
    call.begun = found
    try:
        try:
            response = await operation.handler(call)
            await call.logged()
        except ClientDisconnect:
            raise
        except Exception as exc:
            response = _failure(exc, call)
        if not keeps(response.status_code):
            await asyncio.to_thread(kept.abandon, found)
            return response
        sealed = msgspec.msgpack.encode((response.media_type or "", bytes(response.body)))
        given = await asyncio.to_thread(kept.finish, found, response.status_code, sealed)
        return response if given.answer == sealed else _stored(given, call)
    except (asyncio.CancelledError, ClientDisconnect):
        # Nobody hears of it: sent again, the request begins anew.
        await asyncio.shield(asyncio.to_thread(kept.abandon, found))
        raise


def _stored(given: Stored, call: Call) -> Response:
    media, body = msgspec.msgpack.decode(given.answer, type=tuple[str, bytes])
    call.headers["idempotent-replay"] = "true"
    return Response(body, given.status, media_type=media or None)


def _failure(exc: Exception, call: Call) -> Response:
    """The error answer of an exception; what is not the request's fault says nothing of itself."""
    headers: dict[str, str] = {}
    where = ""
    if isinstance(exc, ApiError):
        status, message, where, headers = exc.status, str(exc), exc.field, exc.headers
        if exc.shed:
            call.runtime.metrics.shed(exc.shed)
    elif isinstance(exc, Unwritable):
        status, headers = 503, {"Retry-After": "5"}
        message = UNWRITTEN
    elif isinstance(exc, RequestError):
        status, message, where = 422, str(exc), exc.field
    elif isinstance(exc, HTTPException) and exc.status_code in CODES:
        status, headers = exc.status_code, dict(exc.headers or {})
        message = "the route does not take this method" if status == 405 else "no such route"
    else:
        # Type and place only: the text of an unforeseen error may hold values of the request.
        place = exc.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where_at = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else "?"
        log.error("request %s failed: %s at %s", call.request_id, type(exc).__name__, where_at)
        status, message = 500, "an internal fault; the request id finds it in the service's log"
    body = ErrorAnswer(ErrorBody(CODES[status], message, where, call.request_id))
    return Response(_ENCODER.encode(body), status, headers, "application/json")


def _starting() -> ApiError:
    return ApiError(503, "the service is starting", headers={"Retry-After": "1"})


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    raise ApiError(404, "no such route")
