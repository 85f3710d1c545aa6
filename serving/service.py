"""The BentoML service: packaging, worker processes and probes around our ASGI application.

Every path but BentoML's own probes (/livez, /readyz, /healthz) goes to the application, which
answers for its errors itself. Settings come from RISKFM_* variables; packages are loaded when a
worker starts, never at import.
"""

from __future__ import annotations

import gc
import logging
import os

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")

import bentoml
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.api import Application
from serving.draining import Draining
from serving.logs import configure
from serving.runtime import open_runtime
from serving.settings import load_settings

PROBES = ("/livez", "/readyz", "/healthz")
_SETTINGS = load_settings()
configure(_SETTINGS, gather=True)
application = Application()
draining = Draining()


class OnlyOurs:
    """ASGI middleware: what BentoML would publish beside the probes goes to the application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Route one request."""
        ours = scope["type"] == "http" and scope["path"] not in PROBES
        await draining.serve(application if ours else self._app, scope, receive, send)


@bentoml.asgi_app(application, path="/")
class _Scoring:
    """Opens the runtime in each worker and closes it when the worker stops."""

    def __init__(self) -> None:
        settings = load_settings()
        # Again: BentoML sets its own logging up once a worker starts.
        configure(settings, gather=True)
        with draining.not_yet():
            application.runtime = open_runtime(settings)
        draining.watch(settings.drain_seconds, application.runtime.metrics.draining)
        # What is loaded stays: the collector need not walk it while requests are answered.
        gc.collect()
        gc.freeze()

    @bentoml.on_shutdown
    def close(self) -> None:
        """Finish the decision log."""
        if application.runtime is not None:
            application.runtime.close()
            application.runtime = None
        # The server ends its worker without the interpreter's own way out.
        for handler in logging.getLogger().handlers:
            handler.flush()


RiskfmService = bentoml.service(
    _Scoring,
    name="riskfm",
    workers=_SETTINGS.workers,
    # Ours answers first, with an error of the API's own shape.
    traffic={"timeout": _SETTINGS.timeout_seconds + 30.0},
    metrics={"enabled": False},
    tracing={"excluded_urls": "/"},
    logging={"access": {"enabled": False}},
)
RiskfmService.add_asgi_middleware(OnlyOurs)
