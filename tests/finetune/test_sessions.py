"""Packages of one backbone hold it once, and score alike from as many threads as there are."""

from __future__ import annotations

import gc
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from finetune.export import read_heads
from finetune.features import open_session
from finetune.package import FORMAT, Package, manifest_digest
from finetune.sessions import Once, Sessions
from foundation.errors import ArtifactError
from tests.finetune.small_packages import Lender, lender, scores, write


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lender, Path]:
    """A lender and a folder with packages `a` and `b`, and `tuned` with a tuned head."""
    root = tmp_path_factory.mktemp("packages")
    made = lender(root)
    for seed, name in enumerate("ab"):
        write(made, root / name, seed)
    write(made, root / "tuned", 5, ("lora", "prompt"))
    return made, root


def test_packages_of_one_backbone_share_it(world: tuple[Lender, Path]) -> None:
    people, root = world
    sessions = Sessions()
    a, b, tuned = (Package.load(root / name, sessions=sessions) for name in ("a", "b", "tuned"))
    for one in (b, tuned):
        assert one.builder.history is a.builder.history
        assert one.builder.tokenizer is a.builder.tokenizer
        assert one.builder.spec is a.builder.spec
        assert one.schema is a.schema
        assert one.manifest["columns"] is a.manifest["columns"]
    assert len(sessions) == 4  # whole histories, kept states and two tuned graphs
    alone = Package.load(root / "b")
    assert alone.builder.history is not b.builder.history
    found = scores(b, people.population)
    np.testing.assert_array_equal(found, scores(alone, people.population))
    assert np.abs(found - scores(a, people.population)).max() > 1e-3


def test_graphs_of_one_backbone_are_equal_to_the_byte(
    world: tuple[Lender, Path], tmp_path: Path
) -> None:
    people, root = world
    again = lender(tmp_path)
    assert again.history.read_bytes() == people.history.read_bytes()
    write(again, tmp_path / "tuned", 6, ("lora", "prompt"))
    first, second = (
        json.loads((folder / "tuned" / "manifest.json").read_text())["files"]
        for folder in (root, tmp_path)
    )
    graphs = [name for name in first if name.endswith(".onnx") and name != "heads.onnx"]
    assert sorted(graphs) == ["history.onnx", "incremental.onnx", "tuned_0.onnx", "tuned_1.onnx"]
    for name in graphs:
        assert first[name] == second[name], name
    assert first["heads.onnx"] != second["heads.onnx"]


def test_sharing_skips_no_digest(world: tuple[Lender, Path], tmp_path: Path) -> None:
    _, root = world
    sessions = Sessions()
    held = [Package.load(root / name, sessions=sessions) for name in ("a", "tuned")]
    for victim in ("history.onnx", "tuned_0.onnx", "tokenizer.json", "heads.onnx"):
        copy = tmp_path / victim
        shutil.copytree(root / "tuned", copy)
        content = bytearray((copy / victim).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / victim).write_bytes(bytes(content))
        with pytest.raises(ArtifactError, match=f"'{victim}' was altered"):
            Package.load(copy, sessions=sessions)
    assert len(held) == 2


def test_an_altered_graph_never_becomes_a_session_of_others(
    world: tuple[Lender, Path], tmp_path: Path
) -> None:
    people, root = world
    shutil.copytree(root / "a", tmp_path / "a")
    (tmp_path / "a" / "history.onnx").write_bytes(b"something else")
    sessions = Sessions()
    with pytest.raises(ArtifactError, match=r"history\.onnx"):
        Package.load(tmp_path / "a", verify=False, sessions=sessions)
    assert np.isfinite(scores(Package.load(root / "a", sessions=sessions), people.population)).all()


def test_graphs_close_with_their_last_package(world: tuple[Lender, Path]) -> None:
    _, root = world
    sessions = Sessions(max_bytes=0)
    a, b = (Package.load(root / name, sessions=sessions) for name in "ab")
    assert len(sessions) == 2 and sessions.bytes > 0
    del a
    gc.collect()
    assert len(sessions) == 2
    del b
    gc.collect()
    assert len(sessions) == 0 and sessions.bytes == 0
    kept = Sessions()
    Package.load(root / "a", sessions=kept)
    gc.collect()
    assert len(kept) == 2  # so that a package that comes back finds it open


@pytest.mark.parametrize("name", ["a", "tuned"])
def test_four_threads_get_equal_scores(world: tuple[Lender, Path], name: str) -> None:
    people, root = world
    package = Package.load(root / name, sessions=Sessions())
    wanted = scores(package, people.population)
    why = [row.reasons for row in package.score_population(people.population, reasons=True)]
    fresh = Package.load(root / name, verify=False)  # with nothing kept from an earlier call
    start = threading.Barrier(4)

    def score(thread: int) -> None:
        start.wait(60)
        for turn in range(3):
            rows = fresh.score_population(people.population, reasons=(thread + turn) % 2 == 0)
            np.testing.assert_allclose([r.score for r in rows], wanted, rtol=0, atol=1e-12)
            if (thread + turn) % 2 == 0:
                assert [[r.name for r in row.reasons] for row in rows] == [
                    [r.name for r in row] for row in why
                ]

    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(score, range(4)))) == 4


def test_heads_are_read_back_as_they_were_written(world: tuple[Lender, Path]) -> None:
    people, root = world
    package = Package.load(root / "tuned")
    table = people.builder.table(people.population)
    heads = read_heads(root / "tuned", package.manifest)
    parts = package.column_logits(package.features(people.population))
    assert [h.adapter is None for h in heads] == [True, True, False, False]
    for head in heads[:2]:
        x = np.ascontiguousarray(table.matrix(head.columns))
        alone = open_session(head.model.SerializeToString()).run(None, {"x": x})[0]
        np.testing.assert_array_equal(alone.astype(np.float64), parts[head.name])


def test_a_package_of_another_format_says_so(world: tuple[Lender, Path], tmp_path: Path) -> None:
    shutil.copytree(world[1] / "a", tmp_path / "a")
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text()) | {"format": 2}
    manifest["digest"] = manifest_digest(manifest)
    (tmp_path / "a" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=f"package format 2, expected {FORMAT}"):
        Package.load(tmp_path / "a")


class Thing:
    """Something that can be held weakly."""


def test_once_makes_one_value_for_all_threads_and_tries_again() -> None:
    once: Once[Thing] = Once()
    made: list[Thing] = []
    start = threading.Barrier(6)
    slow = threading.Event()

    def make() -> Thing:
        slow.wait(0.05)
        made.append(Thing())
        return made[-1]

    def get(_: int) -> Thing:
        start.wait(60)
        return once.get("key", make)

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(get, range(6)))
    assert len(made) == 1 and all(thing is made[0] for thing in found)

    def fail() -> Thing:
        raise ArtifactError("no")

    with pytest.raises(ArtifactError):
        once.get("other", fail)
    assert once.get("other", Thing) is not None
