"""Routes about the service itself: is it alive, is it ready, its metrics, its document."""

from __future__ import annotations

from starlette.responses import Response

from serving.messages import ApiError, Health
from serving.metrics import CONTENT_TYPE
from serving.openapi import document
from serving.routes.call import Call, answer
from serving.routes.operation import Operation


async def live(call: Call) -> Response:
    """The process answers."""
    return answer(Health("live"))


async def ready(call: Call) -> Response:
    """Packages are loaded and verified, and decisions can be written down."""
    deployments = call.runtime.deployments
    if not deployments.ready:
        raise ApiError(503, "nothing is loaded that could answer", headers={"Retry-After": "1"})
    if call.runtime.audit.failure:
        message = "decisions cannot be written down at the moment"
        raise ApiError(503, message, headers={"Retry-After": "5"})
    return answer(Health("ready", deployments.live))


async def metrics(call: Call) -> Response:
    """Prometheus metrics."""
    return Response(call.runtime.metrics.text(), media_type=CONTENT_TYPE)


async def openapi(call: Call) -> Response:
    """The OpenAPI document of everything the application answers."""
    return answer(document(call.request.app.operations, call.runtime.version))


OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/health/live",
        name="live",
        scope="",
        summary="The process answers.",
        answer=Health,
        handler=live,
    ),
    Operation(
        method="GET",
        path="/v1/health/ready",
        name="ready",
        scope="",
        summary="Packages are loaded and verified; 503 until then.",
        answer=Health,
        handler=ready,
        errors=(503,),
    ),
    Operation(
        method="GET",
        path="/v1/metrics",
        name="metrics",
        scope="read",
        summary="Prometheus metrics.",
        answer="text/plain",
        handler=metrics,
    ),
    Operation(
        method="GET",
        path="/v1/openapi.json",
        name="openapi",
        scope="read",
        summary="This document.",
        answer="application/json",
        handler=openapi,
    ),
)
