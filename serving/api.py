"""The scoring API: a Starlette router behind one gateway.

The gateway gives every request its id, checks the API key before anything else is looked at,
turns every failure into the same error shape and counts. Only the two health routes are open.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import Message, Receive, Scope, Send

from foundation.errors import RequestError
from foundation.schema import Field
from serving.audit import DecisionLog
from serving.keys import KeyRecord, KeyRefused, KeyRing
from serving.messages import (
    CODES,
    ApiError,
    Envelope,
    ErrorAnswer,
    ErrorBody,
    EventCounts,
    Health,
    PackageDetail,
    PackageList,
    PackageRef,
    PackageSummary,
    ReasonAnswer,
    ScoreAnswer,
    TableShape,
    refusal,
)
from serving.metrics import CONTENT_TYPE, Metrics
from serving.openapi import OPERATIONS, Operation, document
from serving.scorer import Loaded, Scorer
from serving.settings import Settings

log = logging.getLogger("riskfm.serving")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ENVELOPE = msgspec.json.Decoder(Envelope)
_ENCODER = msgspec.json.Encoder()
_MEMBERS = tuple(msgspec.structs.fields(Envelope))
_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


@dataclass
class Runtime:
    """What answers requests; `scorer` stays None until packages are loaded and verified."""

    settings: Settings
    keys: KeyRing
    audit: DecisionLog
    scorer: Scorer | None = None
    metrics: Metrics = field(default_factory=Metrics)
    version: str = "0"

    def close(self) -> None:
        """Stop scoring, then finish the decision log."""
        if self.scorer is not None:
            self.scorer.close()
        log.info("decision log ends at %s", self.audit.close())


@dataclass
class _Call:
    """What is known about the request being answered; lives in the ASGI scope."""

    request_id: str
    key: KeyRecord | None = None
    route: str = "unmatched"
    package: str = ""


class Application:
    """ASGI application; `runtime` may be set after the server has started."""

    def __init__(self, runtime: Runtime | None = None) -> None:
        self.runtime = runtime
        self._argon2 = asyncio.Semaphore(1)
        routes = []
        for operation in OPERATIONS:
            handler = getattr(self, f"_do_{operation.name}")
            routes.append(Route(operation.path, handler, methods=[operation.method]))
        self._open = {o.path for o in OPERATIONS if not o.scope}
        self._router = Router(routes, redirect_slashes=False, default=_not_found)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request; other ASGI scopes are left alone."""
        if scope["type"] != "http":
            return
        begin = time.perf_counter()
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        call = _Call(given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex)
        scope = {**scope, "app": self, "riskfm": call}
        status = 500
        started = False

        async def answer(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                started, status = True, message["status"]
                extra = {**_HEADERS, "x-request-id": call.request_id}
                message["headers"] = [
                    *message["headers"],
                    *((k.encode(), v.encode("latin-1")) for k, v in extra.items()),
                ]
            await send(message)

        try:
            if scope["path"] not in self._open:
                call.key = await self._authenticate(headers)
            await self._router(scope, receive, answer)
        except ClientDisconnect:
            status = 499
        except Exception as exc:
            if started:
                raise
            await _failure(exc, call)(scope, receive, answer)
        finally:
            if self.runtime is not None:
                seconds = time.perf_counter() - begin
                self.runtime.metrics.request(call.route, status, call.package, seconds)

    async def _authenticate(self, headers: dict[bytes, bytes]) -> KeyRecord:
        keys = self._ready().keys
        text = headers.get(b"x-api-key", b"").decode("latin-1").strip()
        scheme, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if scheme:
            text = token.strip() if scheme.lower() == "bearer" else ""
        challenge = {"WWW-Authenticate": 'Bearer realm="riskfm"'}
        if not text:
            message = "an API key is required: Authorization: Bearer rfm_<id>_<secret>"
            raise ApiError(401, message, "", challenge)
        try:
            known = keys.remembered(text)
            if known is not None:
                return known
            async with self._argon2:
                return await asyncio.to_thread(keys.authenticate, text)
        except KeyRefused as exc:
            raise ApiError(401, str(exc), "", challenge) from None

    def _ready(self) -> Runtime:
        if self.runtime is None:
            raise ApiError(503, "the service is starting", headers={"Retry-After": "1"})
        return self.runtime

    def _enter(self, request: Request, name: str) -> tuple[_Call, Runtime]:
        """Note the route and check the scope of the key."""
        operation: Operation = next(o for o in OPERATIONS if o.name == name)
        call: _Call = request.scope["riskfm"]
        call.route = operation.path
        if operation.scope and (call.key is None or operation.scope not in call.key.scopes):
            raise ApiError(403, f"the API key lacks the scope '{operation.scope}'")
        return call, self._ready()

    def _scorer(self) -> Scorer:
        scorer = self._ready().scorer
        if scorer is None:
            raise ApiError(503, "packages are being loaded", headers={"Retry-After": "1"})
        return scorer

    async def _do_score(self, request: Request) -> Response:
        call, runtime = self._enter(request, "score")
        body = await _body(request, runtime.settings.max_body_bytes)
        envelope = read_envelope(body)
        loaded = self._scorer().pick(envelope.package)
        call.package = loaded.id
        runtime.metrics.waiting(loaded.id, loaded.waiting + 1)
        try:
            scored = await loaded.score(envelope)
        finally:
            runtime.metrics.waiting(loaded.id, loaded.waiting)
        row, given = scored.row, scored.request
        assert call.key is not None
        written = runtime.audit.append(
            {
                "request_id": call.request_id,
                "key_id": call.key.id,
                "package": loaded.id,
                "digest": str(loaded.package.manifest["digest"]),
                "as_of": given.as_of,
                "score": float(row.score),
                "points": int(row.points),
                "band": row.band,
            },
            envelope.entity_id,
        )
        if runtime.settings.audit_durable:
            await asyncio.wrap_future(written)
        runtime.metrics.scored(loaded.id, row.score, scored.seconds)
        answer = ScoreAnswer(
            request_id=call.request_id,
            package=_ref(loaded),
            entity_id=envelope.entity_id,
            as_of=given.as_of,
            score=float(row.score),
            points=int(row.points),
            band=row.band,
            reasons=[ReasonAnswer(r.name, r.title, r.value, float(r.effect)) for r in row.reasons],
            forecasts={name: float(value) for name, value in row.forecasts.items()},
            events=EventCounts(given.used, given.ignored),
            flags=list(dict.fromkeys((*row.flags, *given.flags))),
        )
        return _json(answer)

    async def _do_packages(self, request: Request) -> Response:
        self._enter(request, "packages")
        scorer = self._scorer()
        every = [_summary(loaded, scorer) for loaded in scorer.packages.values()]
        return _json(PackageList(every, scorer.default))

    async def _do_package(self, request: Request) -> Response:
        call, _ = self._enter(request, "package")
        scorer = self._scorer()
        loaded = scorer.pick(request.path_params["id"])
        call.package = loaded.id
        manifest, schema = loaded.package.manifest, loaded.package.schema
        detail = PackageDetail(
            **msgspec.structs.asdict(_summary(loaded, scorer)),
            sources={
                name: TableShape(_kinds(source.fields), schema.zone(name), source.delay)
                for name, source in schema.sources.items()
            },
            profile=TableShape(_kinds(schema.profile_fields), schema.time_zone),
            context=TableShape(_kinds(schema.context), schema.time_zone),
            label=manifest.get("label"),
            points=manifest.get("points"),
            bands=manifest.get("bands"),
            metrics=manifest.get("metrics"),
        )
        return _json(detail)

    async def _do_live(self, request: Request) -> Response:
        request.scope["riskfm"].route = "/v1/health/live"
        return _json(Health("live"))

    async def _do_ready(self, request: Request) -> Response:
        request.scope["riskfm"].route = "/v1/health/ready"
        return _json(Health("ready", len(self._scorer().packages)))

    async def _do_metrics(self, request: Request) -> Response:
        _, runtime = self._enter(request, "metrics")
        return Response(runtime.metrics.text(), media_type=CONTENT_TYPE)

    async def _do_openapi(self, request: Request) -> Response:
        _, runtime = self._enter(request, "openapi")
        return _json(document(runtime.version))


def read_envelope(body: bytes) -> Envelope:
    """Decode the outer part of a request.

    Raises:
        ApiError: 400 for anything but JSON, 422 for a wrong member.
    """
    try:
        envelope = _ENVELOPE.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise refusal(exc, "", [member.name for member in _MEMBERS]) from None
    entity = envelope.entity_id.strip()
    if not entity:
        raise ApiError(422, "the entity id is empty", "entity_id")
    return msgspec.structs.replace(envelope, entity_id=entity)


async def _body(request: Request, limit: int) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "send the body as Content-Type: application/json")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "send the body without Content-Encoding")
    message = f"the body is larger than {limit} bytes"
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length[:20]) > limit:
        raise ApiError(413, message)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise ApiError(413, message)
        parts.append(part)
    if not size:
        raise ApiError(400, "the body is empty")
    return b"".join(parts)


def _failure(exc: Exception, call: _Call) -> Response:
    """The error answer of an exception; what is not the request's fault says nothing of itself."""
    headers: dict[str, str] = {}
    where = ""
    if isinstance(exc, ApiError):
        status, message, where, headers = exc.status, str(exc), exc.field, exc.headers
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


def _json(value: Any) -> Response:
    return Response(_ENCODER.encode(value), media_type="application/json")


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    raise ApiError(404, "no such route")


def _ref(loaded: Loaded) -> PackageRef:
    manifest = loaded.package.manifest
    return PackageRef(
        loaded.id,
        str(manifest.get("name", "")),
        str(manifest.get("channel", "")),
        str(manifest["digest"]),
    )


def _summary(loaded: Loaded, scorer: Scorer) -> PackageSummary:
    manifest = loaded.package.manifest
    return PackageSummary(
        id=loaded.id,
        name=str(manifest.get("name", "")),
        channel=str(manifest.get("channel", "")),
        digest=str(manifest["digest"]),
        recipe=str(manifest.get("recipe", "")),
        created_at=str(manifest.get("created_at", "")),
        default=loaded.id == scorer.default,
    )


def _kinds(fields: dict[str, Field]) -> dict[str, str]:
    return {name: spec.kind for name, spec in fields.items()}
