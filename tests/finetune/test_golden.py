"""Golden rows: what packages share is proved once, every package's own heads always."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.features import Population
from finetune.golden import KEPT_TABLES, Proofs
from finetune.package import Package, manifest_digest
from finetune.sessions import Sessions
from finetune.table import Column, FeatureTable
from foundation.errors import ParityError
from tests.finetune.small_packages import Lender, lender, write


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lender, Path]:
    """A lender, and packages `a`, `b` and `tuned` of its backbone."""
    root = tmp_path_factory.mktemp("golden")
    made = lender(root)
    write(made, root / "a", 0)
    write(made, root / "b", 1)
    write(made, root / "tuned", 5, ("lora",))
    return made, root


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Samples of every table that packages make."""
    sizes: list[int] = []
    features = Package.features

    def counted(package: Package, population: Population, *rest: Any) -> FeatureTable:
        sizes.append(len(population))
        return features(package, population, *rest)

    monkeypatch.setattr(Package, "features", counted)
    return sizes


def changed(source: Path, path: Path, change: Callable[[Path, dict[str, Any]], object]) -> Path:
    """A copy with other content whose digests are right again."""
    shutil.copytree(source, path)
    manifest = json.loads((path / "manifest.json").read_text())
    change(path, manifest)
    for name in manifest["files"]:
        manifest["files"][name] = hashlib.sha256((path / name).read_bytes()).hexdigest()
    manifest["digest"] = manifest_digest(manifest)
    manifest["id"] = f"{path.name}-{manifest['digest'][:8]}"
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def renamed(path: Path, manifest: dict[str, Any]) -> None:
    manifest["channel"] = path.name


def other_scores(path: Path, manifest: dict[str, Any]) -> None:
    golden = json.loads((path / "golden.json").read_text())
    golden["scores"][0] += 1e-4
    (path / "golden.json").write_text(json.dumps(golden))


def other_offset(path: Path, manifest: dict[str, Any]) -> None:
    # Scores of these untrained packages lie close to 0 or to 1: move them to the other end.
    scores = json.loads((path / "golden.json").read_text())["scores"]
    manifest["offset"] = -1e6 if np.mean(scores) > 0.5 else 1e6


def other_weights(path: Path, manifest: dict[str, Any]) -> None:
    for head in manifest["heads"]:
        head["weight"] *= -1


def test_packages_of_one_backbone_build_rows_alone_once(
    world: tuple[Lender, Path], tmp_path: Path, built: list[int]
) -> None:
    _, root = world
    sessions = Sessions()
    first = Package.load(root / "a", sessions=sessions)
    rows = len(first.golden["scores"])
    assert built == [rows, 1, 1, 1]
    held = [first, Package.load(root / "b", sessions=sessions)]
    assert built[4:] == [len(held[1].golden["scores"])]  # other rows, columns that are proved
    copy = changed(root / "a", tmp_path / "copy", renamed)
    held.append(Package.load(copy, sessions=sessions))
    assert len(built) == 5  # the rows of `a` in another channel
    held.append(Package.load(root / "tuned", sessions=sessions))
    assert built[5:] == [len(held[3].golden["scores"]), 1, 1, 1]  # reads histories, as none did
    held.append(Package.load(copy))
    assert built[-3:] == [1, 1, 1] and len(built) == 13  # other sessions prove for themselves


@pytest.mark.parametrize("name", ["a", "tuned"])
@pytest.mark.parametrize("change", [other_scores, other_offset, other_weights])
def test_heads_are_checked_whatever_was_proved_before(
    world: tuple[Lender, Path], tmp_path: Path, name: str, change: Callable[..., object]
) -> None:
    _, root = world
    sessions = Sessions()
    held = Package.load(root / name, sessions=sessions)
    wrong = changed(root / name, tmp_path / "wrong", change)
    for _ in range(2):
        with pytest.raises(ParityError, match="golden rows differ"):
            Package.load(wrong, sessions=sessions)
    assert held.check_golden() <= 1e-5


def test_what_failed_proves_nothing(world: tuple[Lender, Path], tmp_path: Path) -> None:
    _, root = world
    sessions = Sessions()
    unproved = Package.load(root / "a", verify=False, sessions=sessions)
    with pytest.raises(ParityError):
        Package.load(changed(root / "a", tmp_path / "wrong", other_offset), sessions=sessions)
    assert not unproved._ground.proofs.cover(unproved.used)
    unproved.check_golden()
    assert unproved._ground.proofs.cover(unproved.used)


def test_few_tables_are_kept() -> None:
    proofs = Proofs()
    table = FeatureTable((Column("x", "context"),), np.zeros((1, 1), np.float32))
    for key in range(KEPT_TABLES + 2):
        proofs.note(frozenset("x"), key, table)
    kept = [key for key in range(KEPT_TABLES + 2) if proofs.table(key) is table]
    assert (
        kept == [2, 3, 4, 5] and proofs.cover(frozenset("x")) and not proofs.cover(frozenset("y"))
    )
