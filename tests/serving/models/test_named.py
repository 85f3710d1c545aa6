"""Packages named by their path: found, verified, one of them the default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from foundation.errors import ArtifactError, ConfigError
from serving.models.deployments import Deployments
from serving.settings import Settings
from tests.serving.fake_package import Package, write_package


def test_packages_are_found_verified_and_chosen(tmp_path: Path) -> None:
    one, two = write_package(tmp_path / "a", "one"), write_package(tmp_path / "a", "two")
    damaged = write_package(tmp_path / "a", "bad", damaged=True)

    def load(*paths: Path, **more: Any) -> Deployments:
        found = Deployments(Settings(packages=tuple(map(str, paths)), **more), Package.load)
        found.close()
        return found

    folder = load(tmp_path / "a")
    assert (
        sorted(folder.tenant("default").packages) == ["one-0001", "two-0001"]
        and folder.tenant("default").default is None
    )
    assert list(folder.refused) == ["bad"]
    assert load(two, one, one).tenant("default").default == "two-0001"
    assert load(one, two, default_package="two-0001").tenant("default").default == "two-0001"
    with pytest.raises(ConfigError, match="did you mean 'two-0001'"):
        load(one, two, default_package="two-001")
    with pytest.raises(ArtifactError, match="digest"):
        load(one, damaged)
    with pytest.raises(ArtifactError, match="another package with the id"):
        load(one, write_package(tmp_path / "b", "one", digest="other"))
    with pytest.raises(ConfigError, match="no such directory"):
        load(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="holds no package"):
        load(tmp_path)
