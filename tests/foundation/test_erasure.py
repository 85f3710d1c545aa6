"""After an erasure nothing of the entity is left, and nothing of anybody else is gone."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import polars as pl
import pytest

from foundation import lakehouse
from foundation.buckets import BucketReader
from foundation.compaction import compact
from foundation.erasure import count_entity, erase_entity
from foundation.errors import DataError
from foundation.store import EventStore, import_events

SCHEMA = """
name: shop
entity: client
sources:
  purchase:
    path: purchase.csv
    event_time: at
    fields:
      amount: {kind: money, role: amount}
      device: {kind: identifier}
profile:
  path: profile.csv
  fields:
    region: {kind: category}
"""
WHO = "AAA-person"  # the smallest id of its bucket: the log of a Delta table names it
OTHERS = 20
DAY = dt.datetime(2024, 1, 1)


def day_files(folder: Path, day: int) -> Path:
    folder.mkdir(parents=True)
    ids = [WHO, *[f"c{i:03d}" for i in range(OTHERS)]]
    at = [DAY + dt.timedelta(days=day, minutes=i) for i in range(len(ids))]
    frame = pl.DataFrame(
        {"client": ids, "at": at, "amount": range(len(ids)), "device": ["d1"] * len(ids)}
    )
    frame.write_csv(folder / "purchase.csv")
    regions = pl.DataFrame({"client": ids, "region": [f"r{day}"] * len(ids)})
    regions.write_csv(folder / "profile.csv")
    (folder / "schema.yaml").write_text(SCHEMA)
    return folder / "schema.yaml"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for day in range(2):
        import_events(day_files(tmp_path / str(day), day), tmp_path / "store")
    return tmp_path / "store"


def traces(store: Path, entity_id: str) -> list[str]:
    """Files below the store that hold an id, whatever their packing."""
    found = []
    for file in store.rglob("*"):
        if not file.is_file():
            continue
        text = file.read_bytes()
        if file.suffix == ".parquet":
            text += str(pl.read_parquet(file, hive_partitioning=False).to_dicts()).encode()
        if entity_id.encode() in text:
            found.append(str(file.relative_to(store)))
    return found


def without(frames: dict[str, pl.DataFrame]) -> dict[str, pl.DataFrame]:
    return {name: frame.filter(pl.col("entity_id") != WHO) for name, frame in frames.items()}


def test_nothing_of_the_person_is_left_and_all_of_the_others(store: Path, tmp_path: Path) -> None:
    before = EventStore.open(store)
    frames = {v: without(before.frames(v)) for v in (1, 2)}
    assert any("_delta_log" in name for name in traces(store, WHO))
    counted = count_entity(store, WHO)
    assert counted.rows == {"purchase": 2, "_profile": 2}
    assert erase_entity(store, WHO) == counted
    assert traces(store, WHO) == []
    after = EventStore.open(store)
    assert after.version == 2 and WHO not in after.entity_ids()
    for version, expected in frames.items():
        assert after.frames(version)["purchase"].equals(expected["purchase"])
        assert len(after.profile(version)) == OTHERS * version
    reader = BucketReader(after.at(1))
    assert reader.store.below("purchase") == OTHERS + 1
    for file in after.files("purchase")["file"]:
        rows = pl.read_parquet(file, hive_partitioning=False)
        assert rows.equals(rows.sort("entity_id", "known_at", "event_time", lakehouse.ROW))
    record = json.loads((store / "rewrites" / "000001.json").read_text())
    assert record["why"] == "erasure" and record["removed"] == counted.rows
    # Imports, compaction and a second erasure go on from there.
    import_events(day_files(tmp_path / "2", 2), store)
    assert len(EventStore.open(store).frames()["purchase"]) == 3 * OTHERS + 1
    compact(store)
    assert erase_entity(store, WHO).total == 2 and traces(store, WHO) == []
    assert erase_entity(store, WHO).total == 0
    again = EventStore.open(store)
    assert again.frames(1)["purchase"].equals(frames[1]["purchase"])
    assert len(again.frames()["purchase"]) == 3 * OTHERS


def test_an_erasure_that_died_is_ended_by_the_next(store: Path, monkeypatch) -> None:
    expected = without(EventStore.open(store).frames())["purchase"]

    def dies(path: Path) -> None:
        raise KeyboardInterrupt

    real = lakehouse.without_entity
    for step in ("without_entity", "forget_files", "forget_log"):
        with monkeypatch.context() as patch:
            if step == "without_entity":  # after the first table

                def once(path: Path, pinned: int, entity_id: str) -> int:
                    if path.name == "_profile":
                        raise KeyboardInterrupt
                    return real(path, pinned, entity_id)

                patch.setattr(lakehouse, step, once)
            else:
                patch.setattr(lakehouse, step, dies)
            with pytest.raises(KeyboardInterrupt):
                erase_entity(store, WHO)
        assert without(EventStore.open(store).frames())["purchase"].equals(expected)
    erase_entity(store, WHO)
    assert traces(store, WHO) == []
    assert EventStore.open(store).frames()["purchase"].equals(expected)


def test_a_bucket_of_one_entity_and_no_store(tmp_path: Path) -> None:
    schema = day_files(tmp_path / "a", 0)
    pl.DataFrame(
        {"client": [WHO], "at": [DAY], "amount": [1.0], "device": [None]},
        schema_overrides={"device": pl.String},
    ).write_csv(tmp_path / "a" / "purchase.csv")
    import_events(schema, tmp_path / "store")
    erase_entity(tmp_path / "store", WHO)
    assert EventStore.open(tmp_path / "store").frames()["purchase"].is_empty()
    assert traces(tmp_path / "store", WHO) == []
    with pytest.raises(DataError, match="no event store"):
        erase_entity(tmp_path, WHO)
