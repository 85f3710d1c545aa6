"""The application in this process, called through ASGI on one event loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx

from serving.api import Application
from serving.runtime import open_runtime
from serving.settings import Settings
from serving.tenancy.keys import create_key, revoke_key
from serving.tenancy.principal import SCOPES
from tests.serving.fake_package import Package, write_package

_OPENED: list[Service] = []


class Service:
    """An application over fake packages, with a key of every scope."""

    def __init__(self, directory: Path, package: dict[str, Any] | None = None, **settings: Any):
        path = write_package(directory, **(package or {}))
        # One thread, however many cores there are, and nothing on the event loop: what waits for
        # whom is the same everywhere, and a package may wait for its test.
        settings = {"threads": 1, "short_ms": 0.0} | settings
        self.settings = Settings(packages=(str(path),), state=str(directory), **settings)
        self.runtime = open_runtime(self.settings, Package.load, "0")
        self.database = self.runtime.database
        self.key = create_key(self.database, "tests", SCOPES)
        self.runtime.front.keys.refresh()
        self.loop = asyncio.new_event_loop()
        self.application = Application(self.runtime)
        transport = httpx.ASGITransport(self.application)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test")
        _OPENED.append(self)

    def make_key(self, name: str, scopes: Iterable[str] = SCOPES, **more: Any) -> str:
        """A further key, known to the service at once."""
        key = create_key(self.database, name, scopes, **more)
        self.runtime.front.keys.refresh()
        return key

    def revoke(self, key: str) -> None:
        """Revoke a key; the service knows at once."""
        revoke_key(self.database, key.split("_")[1])
        self.runtime.front.keys.refresh()

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


def opened() -> int:
    """How many services were opened so far."""
    return len(_OPENED)


def close_from(first: int) -> None:
    """Close the services opened since `opened` gave that number; harmless for closed ones."""
    while len(_OPENED) > first:
        _OPENED.pop().close()
