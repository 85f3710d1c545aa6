"""The application in this process, called through ASGI on one event loop."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx

from serving.api import Application
from serving.audit import DecisionLog
from serving.keys import KeyRing, create_key
from serving.runtime import Runtime
from serving.scorer import Scorer
from serving.settings import Settings
from tests.serving.fake_package import Package, write_package


class Service:
    """An application over fake packages, with a key of every scope."""

    def __init__(self, directory: Path, package: dict[str, Any] | None = None, **settings: Any):
        path = write_package(directory, **(package or {}))
        self.settings = Settings(
            packages=(str(path),), keys=str(directory / "keys.json"), **settings
        )
        self.key = create_key(self.settings.keys, "tests")
        self.audit = DecisionLog(self.settings.audit_path, self.settings.secret_path)
        self.runtime = Runtime(
            self.settings,
            KeyRing(self.settings.keys),
            self.audit,
            Scorer(self.settings, Package.load),
        )
        self.loop = asyncio.new_event_loop()
        self.application = Application(self.runtime)
        transport = httpx.ASGITransport(self.application)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test")

    def call(
        self, method: str, path: str, body: Any = None, key: str | None = "", **headers: str
    ) -> httpx.Response:
        """One request; `key` None sends none, empty the valid one."""
        return self.loop.run_until_complete(self.send(method, path, body, key, **headers))

    async def send(
        self, method: str, path: str, body: Any = None, key: str | None = "", **headers: str
    ) -> httpx.Response:
        """The coroutine behind `call`."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            given.setdefault("authorization", f"Bearer {key or self.key}")
        if body is not None:
            given.setdefault("content-type", "application/json")
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        return await self.client.request(method, path, content=content, headers=given)

    def score(self, body: Any) -> httpx.Response:
        """POST /v1/score."""
        return self.call("POST", "/v1/score", body)

    def close(self) -> None:
        """Close everything; harmless twice."""
        if not self.loop.is_closed():
            self.loop.run_until_complete(self.client.aclose())
            self.runtime.close()
            self.loop.close()
