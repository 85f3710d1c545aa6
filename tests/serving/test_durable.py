"""Whole or absent: directories made once, torn ones noticed, copies under their digest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from foundation.errors import ArtifactError
from serving.durable import (
    RECORD,
    digest_file,
    place_copy,
    place_directory,
    place_tree,
    require_digest,
    whole_directory,
)


def filled(folder: Path) -> dict[str, Any]:
    """A directory with two files."""
    (folder / "inner").mkdir()
    (folder / "a.txt").write_text("alpha")
    (folder / "inner" / "b.txt").write_text("beta")
    return {"n": 2}


def test_a_directory_is_made_once(tmp_path: Path) -> None:
    calls = []

    def make(folder: Path) -> dict[str, Any]:
        calls.append(folder)
        return filled(folder)

    path = tmp_path / "out"
    assert place_directory(path, make) == place_directory(path, make) == {"n": 2}
    assert len(calls) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("victim", ["a.txt", "inner/b.txt", RECORD])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_torn_directory_is_noticed_and_made_again(
    tmp_path: Path, victim: str, damage: str
) -> None:
    path = tmp_path / "out"
    place_directory(path, filled)
    before = {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    file = path / victim
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(data if damage == "flip" else data[:2])
    assert whole_directory(path) is None
    assert place_directory(path, filled) == {"n": 2}
    assert before == {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_a_foreign_file_is_noticed(tmp_path: Path) -> None:
    place_directory(tmp_path / "out", filled)
    (tmp_path / "out" / "more.txt").write_text("x")
    assert whole_directory(tmp_path / "out") is None


def test_a_maker_that_fails_leaves_nothing_visible(tmp_path: Path) -> None:
    def broken(folder: Path) -> dict[str, Any]:
        (folder / "a.txt").write_text("half")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        place_directory(tmp_path / "out", broken)
    assert not (tmp_path / "out").exists()
    assert place_directory(tmp_path / "out", filled) == {"n": 2}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_copies_lie_under_their_digest(tmp_path: Path) -> None:
    source, folder = tmp_path / "Samples.CSV", tmp_path / "kept"
    folder.mkdir()
    source.write_text("entity_id\n1\n")
    digest, path = place_copy(source, folder)
    assert path.name == f"{digest}.csv"
    assert digest == digest_file(source) == digest_file(path)
    assert place_copy(source, folder) == (digest, path)
    assert list(folder.iterdir()) == [path]
    require_digest(path, digest, "hand it in again")
    path.write_text("entity_id\n2\n")
    with pytest.raises(ArtifactError, match=r"damaged.*hand it in again"):
        require_digest(path, digest, "hand it in again")
    path.unlink()
    with pytest.raises(ArtifactError, match="missing"):
        require_digest(path, digest, "hand it in again")


def test_a_tree_is_placed_once(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    filled(source)
    place_tree(source, tmp_path / "placed")
    (source / "a.txt").write_text("changed")
    place_tree(source, tmp_path / "placed")
    assert (tmp_path / "placed" / "a.txt").read_text() == "alpha"
