"""Bare Starlette routes over a package, as a process of its own: what the service cannot beat.

/session runs the backbone's graph on inputs that were prepared before; /model reads the request,
makes the features and runs everything the package has. No keys, limits, decisions, log, metrics
or threads, and the same server with the same settings as the service's.

    python -m scripts.bench.hosted.bare PORT PACKAGE BODIES
"""

from __future__ import annotations

import gc
import itertools
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts.bench.hosted.process import listening


def main(port: int, package: str, bodies: str) -> None:
    """Serve until stopped."""
    import msgspec
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from serving.messages import Envelope
    from serving.models.deployments import Deployments
    from serving.settings import Settings

    loaded = Deployments(Settings(packages=(package,))).pick("default")
    decode = msgspec.json.Decoder(Envelope).decode
    requests = [decode(line) for line in Path(bodies).read_bytes().splitlines()]
    runs = itertools.cycle(backbone_runs(loaded.model, requests))

    async def session(request: Request) -> Response:
        await request.body()
        graph, outputs, feed = next(runs)
        found = graph.run(outputs, feed)
        return Response(json.dumps({"score": float(found[0].flat[0])}).encode())

    async def model(request: Request) -> Response:
        scored = loaded.model.score(decode(await request.body()))
        return Response(json.dumps({"score": scored.row.score}).encode())

    routes = [Route(f"/{f.__name__}", f, methods=["POST"]) for f in (session, model)]
    gc.collect()
    gc.freeze()
    uvicorn.run(Starlette(routes=routes), port=port, log_level="warning", access_log=False)


def backbone_runs(model: Any, requests: list[Any]) -> list[tuple[Any, Any, dict[str, Any]]]:
    """The runs of the slowest graph while requests are scored: session, outputs, inputs."""
    import onnxruntime as ort

    seen: list[tuple[float, Any, Any, dict[str, Any]]] = []
    plain = ort.InferenceSession.run

    def noted(session: Any, outputs: Any, feed: dict[str, Any], *more: Any) -> Any:
        begin = time.perf_counter()
        found = plain(session, outputs, feed, *more)
        seen.append((time.perf_counter() - begin, session, outputs, dict(feed)))
        return found

    ort.InferenceSession.run = noted
    try:
        for request in requests:
            model.score(request)
    finally:
        ort.InferenceSession.run = plain
    slowest = max(seen, key=lambda run: run[0])[1]
    return [run[1:] for run in seen if run[1] is slowest]


@contextmanager
def bare(package: Path, bodies: Path, log: Path) -> Iterator[tuple[int, int]]:
    """Run it for the time of a with block: port and process id."""
    with listening("scripts.bench.hosted.bare", [str(package), str(bodies)], log) as found:
        yield found


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
