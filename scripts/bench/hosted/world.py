"""What the sections measure: packages of synthetic purchases, the service, its processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[3]
EVENTS = 256
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class World:
    """Where everything lies, and how long to look.

    Attributes:
        work: folder of packages and results.
        size: configuration of the backbone.
        seconds: of each part under load.
        rounds: turns of what is compared.
        channels: of one worker.
        requests: of the isolation section.
        peer: another library's graph, see `peer`.
        precision: of the packages' graphs, float32 or int8.
    """

    work: Path
    size: str
    seconds: float
    rounds: int
    channels: int
    requests: int
    peer: Path | None = None
    precision: str = "float32"

    @property
    def called(self) -> str:
        """Size and precision of what is measured."""
        return self.size if self.precision == "float32" else f"{self.size} {self.precision}"

    def package(self, recipe: str = "probe") -> Path:
        """A package of the recipe, made at the first call: minutes for larger backbones."""
        from scripts.bench.scoring import AS_OF, write_synthetic
        from serving.cli import cli

        folder = self.work / self.size
        into = folder / (recipe if self.precision == "float32" else f"{recipe}-{self.precision}")
        made = into / "package"
        if (made / "manifest.json").exists():
            return made
        store, backbone = str(folder / "store"), str(folder / "backbone")
        samples = str(folder / "samples.csv")
        lines: list[list[str]] = []
        if not (folder / "backbone" / "config.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_synthetic(folder, 200, 300, np.random.default_rng(1))
            config = str(ROOT / "configs" / "pretrain" / f"{self.size}.yaml")
            fitted = ["--until", f"{AS_OF:%Y-%m-%d}", "--epochs", "0.1"]
            lines = [
                ["events", "import", "--schema", str(folder / "schema.yaml"), "--store", store],
                ["pretrain", "--config", config, "--store", store, "-o", backbone, *fitted],
            ]
        given = ["--backbone", backbone, "--samples", samples, "--recipes", recipe]
        given += ["--precision", self.precision]
        lines.append(["adapt", *given, "--store", store, "-o", str(into)])
        for line in lines:
            cli.main([*line, "--quiet"])
        return made

    def bodies(self, package: Path, count: int, events: int = EVENTS) -> list[bytes]:
        """Requests about as many customers, with random histories."""
        from finetune.package import read_manifest
        from foundation.schema import schema_from_dict
        from scripts.bench.scoring import make_requests

        schema = schema_from_dict(read_manifest(package)["schema"], str(package))
        return list(make_requests(schema, events, count, False))

    @contextmanager
    def service(self, package: Path, name: str, **more: Any) -> Iterator[Service]:
        """The service over a package (or a directory of them), ready."""
        from serving.launch import running_service
        from serving.settings import Settings

        state = self.work / "state" / f"{name}-{os.getpid()}"
        state.mkdir(parents=True, exist_ok=True)
        settings = Settings(state=str(state), **more)
        with running_service(package, settings=settings, wait_seconds=300) as (url, key):
            yield Service(int(url.rpartition(":")[2]), key, state)


@dataclass(frozen=True)
class Service:
    """A running service."""

    port: int
    key: str
    state: Path

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        return {"authorization": f"Bearer {self.key}", "content-type": "application/json"}

    def workers(self) -> list[int]:
        """Process ids of the workers."""
        found = []
        for each in Path("/proc").iterdir():
            if each.name.isdigit():
                try:
                    mine = str(self.state).encode() in (each / "environ").read_bytes()
                    words = (each / "cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                if mine and b"--worker-id" in words:
                    found.append(int(each.name))
        return found


def cpu_seconds(pid: int) -> float:
    """Processor time of a process, all of its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def resident_mb(pid: int) -> float:
    """Resident memory of a process in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0
