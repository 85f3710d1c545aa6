"""A cache of packages: within its bytes, one load for all who ask, nobody waits for others."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.package import Package
from finetune.package_cache import PackageCache
from finetune.sessions import Sessions
from foundation.errors import ArtifactError
from tests.finetune.small_packages import Lender, lender, scores, write

PLENTY = 1 << 40


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lender, list[Path]]:
    root = tmp_path_factory.mktemp("cached")
    made = lender(root)
    for seed in range(4):
        write(made, root / str(seed), seed)
    return made, [root / str(seed) for seed in range(4)]


def test_a_package_is_loaded_once_and_scores_as_itself(world: tuple[Lender, list[Path]]) -> None:
    people, paths = world
    cache = PackageCache(PLENTY)
    for path in [*paths, *reversed(paths)]:
        wanted = scores(Package.load(path, verify=False), people.population)
        np.testing.assert_array_equal(scores(cache.get(path), people.population), wanted)
    use = cache.use()
    assert (use.packages, use.graphs, use.loads, use.hits, use.dropped) == (4, 2, 4, 4, 0)
    assert use.bytes == use.own_bytes + use.shared_bytes


def test_the_least_recently_used_is_dropped_and_comes_back(
    world: tuple[Lender, list[Path]],
) -> None:
    _, paths = world
    probe = PackageCache(PLENTY)
    own = [probe.get(path).own_bytes for path in paths]
    room = probe.use().shared_bytes + sum(sorted(own)[-2:]) + min(own) // 2
    cache = PackageCache(room)
    for i in (0, 1, 0, 2):
        cache.get(paths[i])
    assert [path in cache for path in paths] == [True, False, True, False]
    assert cache.use().bytes <= room
    cache.get(paths[1])
    assert [path in cache for path in paths] == [False, True, True, False]
    assert cache.use().loads == 4


def test_one_package_is_held_however_large(world: tuple[Lender, list[Path]]) -> None:
    _, paths = world
    cache = PackageCache(0)
    for path in paths:
        assert cache.get(path) is cache.get(path)
        assert len(cache) == 1


def test_golden_rows_are_scored_once_for_unchanged_content(
    world: tuple[Lender, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, paths = world
    proved: list[str] = []
    check = Package.check_golden

    def counted(package: Package) -> float:
        proved.append(package.id)
        return check(package)

    monkeypatch.setattr(Package, "check_golden", counted)
    cache = PackageCache(PLENTY)
    first = cache.get(paths[0])
    cache.drop(paths[0])
    assert cache.get(paths[0]) is not first
    cache.get(paths[1])
    assert len(proved) == 2 and len(set(proved)) == 2
    PackageCache(PLENTY).get(paths[0])
    assert len(proved) == 3  # other sessions prove for themselves


class Doubles:
    """A loader that waits where it is told to."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.go = threading.Event()
        self.begun = threading.Event()

    def __call__(self, path: Path, verify: bool, sessions: Sessions) -> Any:
        self.loads.append(path.name)
        if path.name == "slow":
            self.begun.set()
            assert self.go.wait(60)
        if path.name == "broken":
            raise ArtifactError("broken")
        return Held(path.name)


class Held:
    """As much of a package as the cache looks at."""

    def __init__(self, name: str, own_bytes: int = 10) -> None:
        self.name = name
        self.own_bytes = own_bytes


def test_a_load_stops_nobody_and_happens_once() -> None:
    cache, load = PackageCache(PLENTY), Doubles()
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(cache.get, "slow", load) for _ in range(2)]
        assert load.begun.wait(60)
        other = pool.submit(cache.get, "other", load)
        assert other.result(10) is cache.get("other", load)
        assert not any(w.done() for w in waiting)
        load.go.set()
        assert waiting[0].result(10) is waiting[1].result(10)
    assert sorted(load.loads) == ["other", "slow"]


def test_a_failed_load_is_told_and_tried_again() -> None:
    cache, load = PackageCache(PLENTY), Doubles()
    for _ in range(2):
        with pytest.raises(ArtifactError, match="broken"):
            cache.get("broken", load)
    assert load.loads == ["broken", "broken"] and len(cache) == 0


def test_what_is_dropped_while_loading_is_not_held() -> None:
    cache, load = PackageCache(PLENTY), Doubles()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(cache.get, "slow", load)
        assert load.begun.wait(60)
        cache.drop("slow")
        load.go.set()
        assert waiting.result(10) is not None
    assert "slow" not in cache
    cache.get("slow", load)
    assert load.loads == ["slow", "slow"] and "slow" in cache


@settings(deadline=None, max_examples=25)
@given(asked=st.lists(st.integers(0, 5), max_size=40), room=st.integers(0, 70))
def test_it_holds_the_latest_that_fit(asked: list[int], room: int) -> None:
    sizes = [10, 3, 7, 20, 1, 12]
    cache = PackageCache(room)
    for i in asked:
        cache.get(str(i), lambda path, **_: Held(path.name, sizes[int(path.name)]))
    latest = list(dict.fromkeys(reversed(asked)))
    held = [i for i in latest if str(i) in cache]
    assert held == latest[: len(held)]
    assert sum(sizes[i] for i in held) <= room or len(held) == 1
