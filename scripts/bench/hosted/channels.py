"""Hundreds of channels of one backbone in one worker, and a release that goes live under load."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from scripts.bench.hosted.load import Client
from scripts.bench.hosted.world import World, resident_mb

Figure = Callable[..., None]
MEMORY_MB, LIVE_SECONDS = 1024.0, 5.0
CLIENTS = 2


def run(world: World, figure: Figure) -> None:
    """Memory and start of a worker with every channel, then a new champion."""
    from serving.champions import write_champions
    from serving.workspace import Workspace

    package = world.package("probe")
    workspace = world.work / f"workspace-{world.size}"
    shutil.rmtree(workspace, ignore_errors=True)
    Workspace.open(workspace, create=True)
    entries = {}
    for number in range(world.channels):
        name = f"channel{number:04d}"
        entries[f"default/{name}"] = _release(workspace, package, name, 1)
    write_champions(workspace, entries)
    bodies = [
        json.dumps(json.loads(body) | {"channel": f"channel{i % world.channels:04d}"}).encode()
        for i, body in enumerate(world.bodies(package, 60))
    ]
    begin = time.perf_counter()
    on = f"{world.channels} channels, probe, one worker"
    with world.service(package, "channels", workspace=str(workspace)) as service:
        figure("start to ready", time.perf_counter() - begin, "s", on)
        (worker,) = service.workers()
        figure("memory when ready", resident_mb(worker), "MiB", on, MEMORY_MB)
        client = Client(service.port, service.headers)
        for body in bodies:
            status, answer, _ = client.post("/v1/score", body)
            if status != 200:
                raise SystemExit(f"{status}: {answer.decode()}")
        figure("memory after a score of 60 channels", resident_mb(worker), "MiB", on, MEMORY_MB)
        statuses: dict[int, int] = {}
        over, lock = threading.Event(), threading.Lock()
        fresh = _release(workspace, package, "channel0000", 2)
        live: list[float] = []

        def ask(number: int) -> None:
            mine, body = Client(service.port, service.headers), bodies[0]
            while not over.is_set():
                status, answer, _ = mine.post("/v1/score", body)
                with lock:
                    statuses[status] = statuses.get(status, 0) + 1
                    if status != 200 or live:
                        continue
                    if json.loads(answer)["package"]["release"] == fresh["release"]:
                        live.append(time.perf_counter())

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(CLIENTS)]
        for thread in threads:
            thread.start()
        time.sleep(2)
        write_champions(workspace, entries | {"default/channel0000": fresh})
        begin = time.perf_counter()
        while not live and time.perf_counter() < begin + 60:
            time.sleep(0.02)
        time.sleep(2)
        over.set()
        for thread in threads:
            thread.join()
    under = f"{on}, {sum(statuses.values())} requests of {CLIENTS} clients meanwhile"
    took = live[0] - begin if live else float("inf")
    figure("a new release answers after", took, "s", under, LIVE_SECONDS)
    figure("failed requests meanwhile", sum(statuses.values()) - statuses.get(200, 0),
           "requests", under, 0.0)  # fmt: skip
    shutil.rmtree(workspace, ignore_errors=True)


def _release(workspace: Path, package: Path, channel: str, number: int) -> dict[str, str]:
    """A package of its own for a channel: another manifest, the same files."""
    from finetune.package import manifest_digest

    manifest = json.loads((package / "manifest.json").read_text(encoding="utf-8"))
    manifest |= {"name": f"{channel}v{number}", "channel": channel}
    digest = manifest_digest(manifest)
    manifest |= {"digest": digest, "id": f"{channel}v{number}-{digest[:8]}"}
    made = workspace / "packages" / digest
    made.mkdir()
    for file in package.iterdir():
        if file.name != "manifest.json":
            os.link(file, made / file.name)
    (made / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    release = f"default/{channel}/{number}"
    return {"release": release, "package": digest, "name": manifest["id"]}
