"""Scores of a store of many imports are the same bytes after its files are merged."""

from __future__ import annotations

import datetime as dt
import shutil
from pathlib import Path

import polars as pl

from finetune.file_scoring import score_file
from foundation.compaction import compact
from foundation.store import EventStore, import_events
from tests.journeys.small_world import World


def test_scores_are_the_same_bytes(world: World, adapted: Path, tmp_path: Path) -> None:
    for file in world.root.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    shutil.copytree(world.store, tmp_path / "store")
    whole = pl.read_parquet(tmp_path / "statement.parquet")
    for days in (1, 2, 3):
        earlier = pl.col("event_time") - dt.timedelta(days=days)
        part = whole.gather_every(5, days).with_columns(earlier, pl.col("amount") + days)
        part.write_parquet(tmp_path / "statement.parquet")
        import_events(tmp_path / "schema.yaml", tmp_path / "store")

    def scored(name: str) -> bytes:
        out = tmp_path / f"{name}.parquet"
        score_file(adapted / "package", tmp_path / "store", world.test, out, True)
        return out.read_bytes()

    before = scored("before")
    assert before != (score_plain(world, adapted, tmp_path))
    summary = compact(tmp_path / "store")
    assert summary.after < summary.before
    assert scored("after") == before
    old = EventStore.open(tmp_path / "store").at(1).frames()
    for name, frame in EventStore.open(world.store).frames().items():
        assert old[name].equals(frame)


def score_plain(world: World, adapted: Path, folder: Path) -> bytes:
    """Scores on the store before the imports: the later events matter."""
    score_file(adapted / "package", world.store, world.test, folder / "plain.parquet", True)
    return (folder / "plain.parquet").read_bytes()
