"""The BentoML service: packaging, worker processes and probes around our ASGI application.

Every path but BentoML's own probes (/livez, /readyz, /healthz) goes to the application, which
answers for its errors itself. Settings come from RISKFM_* variables; packages are loaded when a
worker starts, never at import.
"""

from __future__ import annotations

import gc
import importlib.metadata
import os

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")

import bentoml
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.api import Application
from serving.audit import DecisionLog
from serving.keys import KeyRing
from serving.runtime import Runtime
from serving.scorer import Scorer
from serving.settings import Settings, load_settings

PROBES = ("/livez", "/readyz", "/healthz")
_SETTINGS = load_settings()
application = Application()


def open_runtime(settings: Settings) -> Runtime:
    """Load and verify everything the application needs.

    Raises:
        UserError: settings, keys or packages are at fault.
    """
    runtime = Runtime(
        settings=settings,
        keys=KeyRing(settings.keys, settings.key_cache_seconds),
        audit=DecisionLog(settings.audit_path, settings.secret_path),
        version=distribution_version(),
    )
    try:
        runtime.scorer = Scorer(settings)
    except Exception:
        runtime.close()
        raise
    return runtime


def distribution_version() -> str:
    """Version of the installed distribution, 0 when it runs from a checkout."""
    try:
        return importlib.metadata.version("riskfm")
    except importlib.metadata.PackageNotFoundError:
        return "0"


class OnlyOurs:
    """ASGI middleware: what BentoML would publish beside the probes goes to the application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Route one request."""
        ours = scope["type"] == "http" and scope["path"] not in PROBES
        await (application if ours else self._app)(scope, receive, send)


@bentoml.asgi_app(application, path="/")
class _Scoring:
    """Opens the runtime in each worker and closes it when the worker stops."""

    def __init__(self) -> None:
        application.runtime = open_runtime(load_settings())
        # What is loaded stays: the collector need not walk it while requests are answered.
        gc.collect()
        gc.freeze()

    @bentoml.on_shutdown
    def close(self) -> None:
        """Finish the decision log."""
        if application.runtime is not None:
            application.runtime.close()
            application.runtime = None


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
