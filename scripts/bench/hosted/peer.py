"""Another library's exported graph behind a bare route, beside the service: what it would take.

The graph is an ONNX file, its inputs lie beside it as FILE.npz, named `0/input`, `1/input`, ... for
one customer each. The route only runs the graph: nothing is read from the request, tokenized or
decided, and the server has the same settings as the service's. docs/benchmarks/README.md tells how
pragmatiq's is made.

    python -m scripts.bench.hosted.peer PORT FILE.onnx
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from scripts.bench.hosted.load import Client, Seen, closed, one, turns
from scripts.bench.hosted.process import listening
from scripts.bench.hosted.world import EVENTS, World

Figure = Callable[..., None]
CLIENTS = (1, 8, 32)
TOGETHER = 12


def run(world: World, figure: Figure) -> None:
    """Times and rates of the service and of the other library's graph, by turns."""
    graph = world.peer
    if graph is None:
        raise SystemExit("name the other library's graph with --peer FILE.onnx")
    package = world.package("probe")
    bodies = world.bodies(package, 40)
    with (
        world.service(package, "peer") as service,
        listening("scripts.bench.hosted.peer", [str(graph)], world.work / "peer.log") as (port, _),
    ):
        takes = {
            "service": (service.port, "/v1/score", service.headers),
            graph.stem: (port, "/run", {}),
        }
        took: dict[str, list[float]] = {name: [] for name in takes}
        clients = {name: Client(port, headers) for name, (port, _, headers) in takes.items()}
        for name in turns(world.rounds, list(takes)):
            seen = Seen()
            for i in range(TOGETHER):
                one(clients[name], takes[name][1], bodies[i], seen)
            if set(seen.statuses) != {200}:
                raise SystemExit(f"{name} answered {dict(seen.statuses)}")
            took[name] += seen.seconds
        on = f"{EVENTS} events; service: probe, {len(bodies[0]) // 1000} kB of JSON"
        for name, seconds in took.items():
            figure(f"p50, one client: {name}", float(np.median(seconds)) * 1000, "ms", on)
            figure(f"p99, one client: {name}", float(np.percentile(seconds, 99)) * 1000, "ms", on)
        for count in CLIENTS:
            for name, (at, path, headers) in takes.items():
                found = closed(at, path, headers, bodies, count, world.seconds)
                figure(f"rate, {count} clients: {name}", found.rate, "requests/s", on)


def main(port: int, graph: str) -> None:
    """Serve the graph until stopped."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from finetune.features import open_session

    session = open_session(graph)
    feeds = itertools.cycle(inputs(Path(graph).with_suffix(".npz"), session))

    async def answer(request: Request) -> Response:
        await request.body()
        found = session.run(None, next(feeds))
        return Response(json.dumps({"first": float(found[0].flat[0])}).encode())

    routes = [Route("/run", answer, methods=["POST"])]
    uvicorn.run(Starlette(routes=routes), port=port, log_level="warning", access_log=False)


def inputs(file: Path, session: Any) -> list[dict[str, np.ndarray]]:
    """What the graph reads, per customer of the file."""
    names = [i.name for i in session.get_inputs()]
    with np.load(file, allow_pickle=False) as arrays:
        held = sorted({int(key.split("/")[0]) for key in arrays.files})
        return [{name: arrays[f"{i}/{name}"] for name in names} for i in held]


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
