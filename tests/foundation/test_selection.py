"""What may be read: entity files of every kind, moments in the schema's time zone."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import yaml

from foundation.errors import DataError, UserError
from foundation.selection import (
    chosen_entities,
    entity_digest,
    entity_file,
    read_selection,
    until_microseconds,
)
from foundation.store import EventStore, import_events


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EventStore:
    folder = tmp_path_factory.mktemp("selection")
    (folder / "pay.csv").write_text(
        "entity_id,event_time,amount\n"
        + "".join(f"00{k},2020-01-0{k} 10:00,{k}\n" for k in (1, 2, 3))
    )
    source = {"path": "pay.csv", "fields": {"amount": {"kind": "number"}}}
    schema = {"name": "till", "time_zone": "Asia/Shanghai", "sources": {"pay": source}}
    (folder / "schema.yaml").write_text(yaml.safe_dump(schema))
    import_events(folder / "schema.yaml", folder / "store")
    return EventStore.open(folder / "store")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "note,entity_id\nx,003\ny,001\nz,003\n"),
        ("a.tsv", "entity_id\tnote\n003\tx\n001\ty\n"),
        ("a.txt", "003\n\n 001 \n"),
        ("a.ids", "\ufeffentity_id\r\n003\r\n001"),
        ("ids", "001\n003\n003\n"),
    ],
)
def test_texts_and_tables_hold_ids(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert entity_file(tmp_path / name).to_list() == ["001", "003"]


def test_parquet_holds_ids(tmp_path: Path) -> None:
    pl.DataFrame({"entity_id": [7, None, 10]}).write_parquet(tmp_path / "a.parquet")
    assert entity_file(tmp_path / "a.parquet").to_list() == ["10", "7"]


def test_a_file_without_ids_is_named(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("entty_id,label\n1,0\n")
    message = r"b\.csv: column 'entity_id' is missing, did you mean 'entty_id'\?; columns: entty_id"
    with pytest.raises(DataError, match=message):
        entity_file(tmp_path / "b.csv")
    with pytest.raises(DataError, match=r"none\.txt: no such file"):
        entity_file(tmp_path / "none.txt")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe1")
    with pytest.raises(DataError, match=r"c\.txt: cannot be read as a list of entities"):
        entity_file(tmp_path / "c.txt")


def test_options_choose_entities_and_a_moment(store: EventStore, tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("002\n009\n")
    every = read_selection(store, None, None, None)
    assert (every.until_us, every.entities, every.digest) == (None, None, "all")
    these = read_selection(store, "2020-01-02", tmp_path / "some.txt", None)
    assert these.entities is not None and these.entities.to_list() == ["002", "009"]
    assert these.until_us == 1_577_894_400_000_000  # 2020-01-01 16:00 UTC
    others = read_selection(store, None, None, tmp_path / "some.txt")
    assert others.entities is not None and others.entities.to_list() == ["001", "003"]
    assert len({every.digest, these.digest, others.digest}) == 3
    timeline = store.timeline(entities=these.entities, until_us=these.until_us)
    assert len(timeline) == 0
    with pytest.raises(UserError, match="not both"):
        read_selection(store, None, tmp_path / "some.txt", tmp_path / "some.txt")
    (tmp_path / "all.txt").write_text("001\n002\n003\n")
    with pytest.raises(DataError, match="no entity is left"):
        read_selection(store, None, None, tmp_path / "all.txt")


def test_the_digest_names_the_set_not_its_order(store: EventStore) -> None:
    a, b = (chosen_entities(store, ids, ["001"]) for ids in (["003", "002", "001"], None))
    assert a is not None and b is not None and a.to_list() == b.to_list() == ["002", "003"]
    assert entity_digest(a) == entity_digest(b) != entity_digest(a[:1])


@pytest.mark.parametrize(
    ("text", "zone", "hours"),
    [
        ("2020-01-01", "UTC", 0),
        ("2020-01-01", "Asia/Shanghai", -8),
        ("2020-01-01 06:00", "Asia/Shanghai", -2),
        ("2020-01-01T00:00:00+02:00", "Asia/Shanghai", -2),
        ("2020-01-01T00:00:00Z", "Asia/Shanghai", 0),
    ],
)
def test_a_moment_without_a_zone_is_local(text: str, zone: str, hours: int) -> None:
    assert until_microseconds(text, zone) == 1_577_836_800_000_000 + hours * 3_600_000_000


@pytest.mark.parametrize("text", ["soon", "", "2020-13-01"])
def test_no_moment_is_named(text: str) -> None:
    with pytest.raises(UserError, match=f"--until '{text}' is no date; write 2017-09-01"):
        until_microseconds(text, "UTC")
