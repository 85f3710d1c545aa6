"""A workspace of fake packages and its `champions.json`, written as a registry would."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from serving.champions import CHAMPIONS, write_champions
from serving.messages import Envelope
from serving.models.deployments import Deployments
from serving.models.poller import Poller
from serving.settings import Settings
from tests.serving.fake_package import Package, write_package


class FakeWorkspace:
    """Channels of a workspace; `publish` writes what stands in them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.entries: dict[str, dict[str, Any]] = {}
        (root / "packages").mkdir(parents=True)

    def package(self, mark: str, **more: Any) -> str:
        """Install a package; its digest."""
        digest = f"{mark:0<64}"
        path = self.root / "packages" / digest
        if not path.exists():
            write_package(path.parent, digest, id=f"{mark}-0001", digest=digest, **more)
        return digest

    def directory(self, mark: str) -> Path:
        """Where a package is installed."""
        return self.root / "packages" / f"{mark:0<64}"

    def remove(self, mark: str) -> None:
        """Take a package off the disk."""
        shutil.rmtree(self.directory(mark))

    def named(self, channel: str, number: int, mark: str, **more: Any) -> dict[str, Any]:
        """Release, package and name, as they stand in the file."""
        digest = self.package(mark)
        release = f"{channel}/{number}"
        return {"release": release, "package": digest, "name": f"{mark}-0001"} | more

    def crown(self, channel: str, number: int, mark: str, **more: Any) -> None:
        """Make a package the champion of a channel and publish it."""
        self.entries[channel] = self.named(channel, number, mark, **more)
        self.publish()

    def publish(self) -> None:
        """Write the file, whole."""
        write_champions(self.root, self.entries)

    @property
    def file(self) -> Path:
        """The file."""
        return self.root / CHAMPIONS

    def settings(self, **more: Any) -> Settings:
        """Settings of a service over it."""
        state = str(self.root)
        return Settings(workspace=str(self.root), state=state, **more)

    def open(self, **more: Any) -> tuple[Deployments, Poller]:
        """Its deployments and a poller that looks when it is told to."""
        deployments = Deployments(self.settings(**more), Package.load)
        return deployments, Poller(deployments, self.root, 0.02)


REQUEST = Envelope(entity_id="c1")
