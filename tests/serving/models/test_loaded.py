"""A package that made room for others comes back when it is asked for."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from serving.messages import ApiError
from serving.models.loaded import Loaded, Model
from serving.models.pool import ScoringPool
from serving.models.shelves import Shelves
from serving.requests import RequestReader
from tests.serving.fake_package import Package, write_package
from tests.serving.models.fake_workspace import REQUEST


def test_a_package_comes_back_from_the_disk(tmp_path: Path) -> None:
    path = write_package(tmp_path)
    loads: list[Path] = []

    def load(path: Path, **more: object) -> Package:
        loads.append(path)
        return Package.load(path)

    shelf, pool = Shelves(load), ScoringPool()  # type: ignore[arg-type]
    model = Model(path, shelf, lambda package: RequestReader(package.schema))
    loaded = Loaded(model, pool, "acme", "cards")
    first = asyncio.run(loaded.score(REQUEST)).row.score
    assert model.at_hand and loads == [path]
    shelf.drop(path)
    assert not model.at_hand
    # What describes it needs no package.
    assert loaded.manifest["recipe"] == "blend" and loaded.id and not model.at_hand
    assert asyncio.run(loaded.score(REQUEST)).row.score == first
    assert loads == [path, path]
    shelf.drop(path)
    (path / "manifest.json").unlink()
    with pytest.raises(ApiError, match="loaded again") as caught:
        asyncio.run(loaded.score(REQUEST))
    assert caught.value.status == 503
    assert loaded.waiting == 0
    pool.close()
