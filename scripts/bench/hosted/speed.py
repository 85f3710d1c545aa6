"""One customer at a time and many at once, against bare routes that take turns with the service."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from scripts.bench.hosted.bare import bare
from scripts.bench.hosted.load import Client, Seen, arrivals, closed, one, turns
from scripts.bench.hosted.world import EVENTS, World, cpu_seconds

OVERHEAD_MS, RATIO_BAR, TAIL_BAR = 1.5, 1.15, 2.5
CLIENTS = (1, 8, 32)
TOGETHER = 12
WARM_UP = 5
Figure = Callable[..., None]


def run(world: World, figure: Figure) -> None:
    """Overhead, ratio, rates and tail of the recipe that only reads the backbone."""
    package = world.package("probe")
    bodies = world.bodies(package, 40)
    file = world.work / "bodies.ndjson"
    file.write_bytes(b"\n".join(bodies))
    on = f"probe, {EVENTS} events, {len(bodies[0]) // 1000} kB of JSON"
    log = world.work / "bare.log"
    with (
        world.service(package, "speed") as service,
        bare(package, file, log) as (port, pid),
    ):
        (worker,) = service.workers()
        takes = {
            "service": (Client(service.port, service.headers), "/v1/score", worker),
            "session": (Client(port, {}), "/session", pid),
            "model": (Client(port, {}), "/model", pid),
        }
        took, spent = _take_turns(world.rounds, takes, bodies)
        p50 = {name: np.median(np.concatenate(took[name])) * 1000 for name in takes}
        rounds = {name: np.array([np.median(part) for part in took[name]]) for name in takes}
        cpu = {name: np.median(spent[name]) * 1000 for name in takes}
        for name in takes:
            figure(f"p50, one client: {name}", float(p50[name]), "ms", on)
            figure(f"processor time a request: {name}", float(cpu[name]), "ms", on)
        more = (rounds["service"] - rounds["session"]) * 1000
        hosting = (rounds["service"] - rounds["model"]) * 1000
        share = f"{on}, median of {world.rounds} rounds"
        figure("p50 over the bare session", float(np.median(more)), "ms", share, OVERHEAD_MS)
        figure("p50 over the bare model", float(np.median(hosting)), "ms", share, OVERHEAD_MS)
        ratio = float(np.median(rounds["service"] / rounds["session"]))
        figure(
            "p50, times the bare session",
            ratio,
            "x",
            share,
            RATIO_BAR if world.size == "small" else None,
        )
        figure("processor time over the bare session", float(cpu["service"] - cpu["session"]),
               "ms", share)  # fmt: skip
        figure("processor time over the bare model", float(cpu["service"] - cpu["model"]),
               "ms", share)  # fmt: skip
        best = 0.0
        for clients in CLIENTS:
            seen = closed(service.port, "/v1/score", service.headers, bodies, clients,
                          world.seconds)  # fmt: skip
            _all_answered(seen, log)
            best = max(best, seen.rate)
            figure(f"rate, {clients} clients", seen.rate, "requests/s", on)
        seen = arrivals(service.port, "/v1/score", service.headers, bodies, best / 2,
                        2 * world.seconds)  # fmt: skip
        _all_answered(seen, log)
        half = f"{on}, {len(seen.seconds)} arrivals at {best / 2:.1f}/s"
        figure("p50 at half load", seen.ms(50), "ms", half)
        figure("p99 at half load", seen.ms(99), "ms", half)
        figure(
            "p99 / p50 at half load",
            seen.ms(99) / seen.ms(50),
            "x",
            half,
            TAIL_BAR if world.size == "small" else None,
        )


def _take_turns(
    count: int, takes: dict[str, tuple[Client, str, int]], bodies: list[bytes]
) -> tuple[dict[str, list[list[float]]], dict[str, list[float]]]:
    """Seconds of every request by round, and processor seconds a request by round."""
    took: dict[str, list[list[float]]] = {name: [] for name in takes}
    spent: dict[str, list[float]] = {name: [] for name in takes}
    for client, path, _ in takes.values():
        for body in bodies[:WARM_UP]:
            one(client, path, body, Seen())
    for name in turns(count, list(takes)):
        client, path, pid = takes[name]
        seen, before = Seen(), cpu_seconds(pid)
        for i in range(TOGETHER):
            one(client, path, bodies[(len(took[name]) * TOGETHER + i) % len(bodies)], seen)
        if seen.statuses != {200: TOGETHER}:
            raise SystemExit(f"{path} answered {dict(seen.statuses)}")
        spent[name].append((cpu_seconds(pid) - before) / TOGETHER)
        took[name].append(seen.seconds)
    return took, spent


def _all_answered(seen: Seen, log: Path) -> None:
    if set(seen.statuses) != {200}:
        raise SystemExit(f"answers: {dict(seen.statuses)}; see {log}")
