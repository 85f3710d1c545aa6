"""Many requests of several tenants over every route that reads, in one process: who sees whom.

Every tenant has the same names of channels and customers and a mark of its own in everything that
is its own: packages, releases, keys, request ids, lists. An answer that holds another tenant's mark
which the request did not hold itself is a leak.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from scripts.bench.hosted.world import World

Figure = Callable[..., None]
MARKS = ("kiloq", "limaq", "mikeq", "novemberq")
AT_ONCE = 16
SCORES = ("/v1/score", "/v1/query", "/v1/score/batch")


def run(world: World, figure: Figure) -> None:
    """Requests at random; no network, packages of arithmetic."""
    from serving.api import Application
    from serving.champions import write_champions
    from serving.runtime import open_runtime
    from serving.settings import Settings
    from serving.tenancy.keys import create_key
    from serving.tenancy.principal import SCOPES
    from serving.tenancy.tenants import add_tenant
    from serving.workspace import Workspace
    from tests.serving.fake_package import Package, write_package

    root = world.work / "isolation"
    shutil.rmtree(root, ignore_errors=True)
    Workspace.open(root, create=True)
    entries: dict[str, dict[str, str]] = {}
    for number, mark in enumerate(MARKS):
        for channel in ("cards", "loans"):
            digest = f"{number}{channel.encode().hex()}{mark.encode().hex()}".ljust(64, "0")
            name = f"{mark}-{channel}"
            write_package(root / "packages", digest, id=name, digest=digest)
            release = f"{mark}/{channel}/1"
            entries[f"{mark}/{channel}"] = {"release": release, "package": digest, "name": name}
    write_champions(root, entries)
    state = str(root / "state")
    settings = Settings(workspace=str(root), state=state, queue=1000)
    runtime = open_runtime(settings, Package.load, "0")
    keys = {}
    for mark in MARKS:
        add_tenant(runtime.database, mark)
        keys[mark] = create_key(runtime.database, f"{mark}-key", SCOPES, tenant=mark)
    runtime.front.keys.refresh()
    application = Application(runtime)
    callers = _Callers(application, keys)
    begin = time.perf_counter()
    asyncio.run(callers.all(world.requests))
    took = time.perf_counter() - begin
    runtime.close()
    found = callers.statuses
    on = f"{world.requests:,} requests of {len(MARKS)} tenants over {len(callers.paths)} routes"
    figure("answers that show another tenant", len(callers.leaks), "requests", on, 0.0)
    figure("scores that differ from the tenant's own", callers.different, "requests", on, 0.0)
    figure("answers of 500", found[500], "requests", on, 0.0)
    figure("answered 200", found[200], "requests", on)
    figure("refused 4xx", sum(n for s, n in found.items() if 400 <= s < 500), "requests", on)
    figure("rate", world.requests / took, "requests/s", f"{on}, in one process")
    for leak in callers.leaks[:5]:
        print(leak)
    shutil.rmtree(root, ignore_errors=True)


class _Callers:
    """Calls the application as its server would."""

    def __init__(self, application: Any, keys: dict[str, str]) -> None:
        self.application, self.keys = application, keys
        reads = {o.path for o in application.operations if o.method == "GET" and o.scope}
        self.paths = [*sorted(reads - {"/v1/metrics"}), *SCORES]
        self.statuses: Counter[int] = Counter()
        self.leaks: list[str] = []
        self.different = 0
        self._scores: dict[tuple[str, int], float] = {}
        self._ids: dict[str, list[str]] = {mark: [f"{mark}-cards"] for mark in keys}

    async def all(self, count: int) -> None:
        """Every request, some at a time."""
        left = iter(range(count))
        rng = random.Random(0)

        async def work() -> None:
            for number in left:
                await self._one(number, rng)

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))

    async def _one(self, number: int, rng: random.Random) -> None:
        mark, path = rng.choice(MARKS), rng.choice(self.paths)
        request_id = f"{mark}.{number}"
        sent, seed = b"", rng.randrange(8)
        if path.startswith(("/v1/score", "/v1/query")):
            sent = self._body(path, mark, seed, rng)
        while "{" in path:
            before, _, rest = path.partition("{")
            _, _, after = rest.partition("}")
            whose = rng.choice((mark, rng.choice(MARKS)))
            word = rng.choice((*self._ids[whose][-20:], "cards", "c1", f"{whose}/cards/1"))
            path = before + word.replace("/", "%2F") + after
        status, answer = await self._call(path, self.keys[mark], request_id, sent)
        self.statuses[status] += 1
        if self.shows(mark, answer, path.encode() + sent):
            self.leaks.append(f"{mark} {path}: {status} {answer[:300]!r}")
        if path == "/v1/score" and status == 200:
            found = json.loads(answer)
            if found["package"]["id"].partition("-")[0] != mark:
                self.leaks.append(f"{mark}: answered by {found['package']}")
            key = found["package"]["id"], seed
            self.different += self._scores.setdefault(key, found["score"]) != found["score"]
            self._ids[mark].append(request_id)

    @staticmethod
    def shows(mark: str, answer: bytes, asked: bytes) -> bool:
        """Whether an answer holds another tenant's mark that the request did not hold."""
        others = (other.encode() for other in MARKS if other != mark)
        return any(other in answer and other not in asked for other in others)

    def _body(self, path: str, mark: str, seed: int, rng: random.Random) -> bytes:
        from tests.serving.fake_package import request_of

        given: dict[str, Any] = request_of(2, seed)
        # Sometimes somebody else's package: it must not be there.
        if rng.random() < 0.1:
            given["package"] = f"{rng.choice(MARKS)}-cards"
        else:
            given["channel"] = rng.choice(("cards", "loans"))
        if path.endswith("batch"):
            given = {"requests": [given, given]}
        return json.dumps(given).encode()

    async def _call(self, path: str, key: str, request_id: str, body: bytes) -> tuple[int, bytes]:
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        status, parts = 0, []

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await asyncio.Event().wait()

        async def send(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                parts.extend(value for _, value in message["headers"])
            else:
                parts.append(message.get("body", b""))

        headers = [
            (b"authorization", f"Bearer {key}".encode()),
            (b"x-request-id", request_id.encode()),
            (b"content-type", b"application/json"),
        ]
        from urllib.parse import unquote

        scope = {
            "type": "http", "method": "POST" if body else "GET", "path": unquote(path),
            "raw_path": path.encode(), "query_string": b"", "headers": headers, "root_path": "",
            "server": ("bench", 80), "scheme": "http",
        }  # fmt: skip
        await self.application(scope, receive, send)
        return status, parts[-1]
