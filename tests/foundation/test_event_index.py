"""The index gives the rows that Parquet gives, and follows the store whatever happens to it."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation import event_index, lakehouse
from foundation.buckets import BucketReader, Piece
from foundation.compaction import compact
from foundation.erasure import erase_entity
from foundation.errors import DataError, InternalError
from foundation.event_index import COLUMNS, INDEX, indexed
from foundation.history import Timeline, entity_index
from foundation.indexing import drop_index, make_index
from foundation.store import EventStore, import_events
from serving.cli import cli

START = dt.datetime(2024, 3, 1)
FIELDS = {
    "amount": {"kind": "money"},
    "place": {"kind": "category"},
    "note": {"kind": "text"},
    "online": {"kind": "boolean"},
    "due": {"kind": "timestamp"},
    "device": {"kind": "identifier", "sharing": True},
}
SCHEMA = {
    "name": "shop",
    "sources": {
        "pay": {"path": "pay.parquet", "known_at": "known_at", "fields": FIELDS},
        "login": {"path": "login.parquet", "fields": {"place": {"kind": "category"}}},
    },
}


def take_in(root: Path, seed: int, rows: int = 80, customers: int = 30) -> None:
    """Import rows with gaps in every column, ties in time and late ones."""
    rng = np.random.default_rng(seed)
    ids = [f"k{i:03d}" for i in rng.integers(0, customers, rows)]
    at = [START + dt.timedelta(hours=int(h)) for h in rng.integers(0, 60, rows)]
    known = [t + dt.timedelta(hours=int(h)) for t, h in zip(at, rng.integers(0, 9, rows) // 4,
                                                            strict=True)]  # fmt: skip

    def gaps(values: list) -> list:
        return [None if gap else v for v, gap in zip(values, rng.random(rows) < 0.2, strict=True)]

    pay = {
        "entity_id": ids, "event_time": at, "known_at": known,
        "amount": gaps((rng.integers(1, 900, rows) / 100).tolist()),
        "place": gaps(rng.choice(["a", "b", "ü"], rows).tolist()),
        "note": gaps([f"note {k}" for k in rng.integers(0, 40, rows)]),
        "online": gaps((rng.random(rows) < 0.5).tolist()),
        "due": gaps([t + dt.timedelta(days=3) for t in at]),
        "device": gaps([f"d{k}" for k in rng.integers(0, 9, rows)]),
    }  # fmt: skip
    pl.DataFrame(pay).write_parquet(root / "pay.parquet")
    login = {"entity_id": ids, "event_time": at, "place": gaps(["x"] * rows)}
    pl.DataFrame(login, schema_overrides={"place": pl.String}).write_parquet(root / "login.parquet")
    (root / "schema.yaml").write_text(yaml.safe_dump(SCHEMA, sort_keys=False), encoding="utf-8")
    import_events(root / "schema.yaml", root / "store")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store of two imports."""
    for seed in range(2):
        take_in(tmp_path, seed)
    return tmp_path


def pieces(store: EventStore, wanted: pl.Series) -> list[Piece]:
    """Two buckets of some entities by themselves, and three of them together."""
    bucket = lakehouse.buckets_of(wanted)
    held = np.unique(bucket).tolist()
    out = [Piece((b,), 0, wanted.filter(pl.Series(bucket == b))) for b in held[:2]]
    few = tuple(held[:3])
    return [*out, Piece(few, 0, wanted.filter(pl.Series(np.isin(bucket, few))))]


def events_of(timeline: Timeline, source: int, bounds: pl.DataFrame) -> pl.DataFrame:
    """A timeline as rows, in its order inside each entity, up to the bounds."""
    frame = timeline.frames[source][timeline.row]
    frame = frame.drop("entity_id", "event_time", "known_at", strict=False)
    rows = pl.DataFrame(
        {
            "entity_id": timeline.entity_ids[timeline.entity],
            "known_us": timeline.known_us,
            "event_us": timeline.event_us,
        }
    ).hstack(frame)
    rows = rows.join(bounds, on="entity_id").filter(pl.col("known_us") < pl.col("before_us"))
    return rows.sort("entity_id", maintain_order=True)


def before(piece: Piece, bounds: pl.DataFrame) -> np.ndarray:
    """The bounds in the order of a piece's entities."""
    return bounds["before_us"].to_numpy()[entity_index(bounds["entity_id"], piece.entity_ids)]


def require_equal(directory: Path, bounds: pl.DataFrame) -> None:
    """The index gives what Parquet gives, of all fields and of one."""
    store = EventStore.open(directory)
    with_index, without = BucketReader(store), BucketReader(store)
    without.__dict__["index"] = None
    assert with_index.index is not None
    names = store.schema.source_names
    for piece in pieces(store, bounds["entity_id"].sort()):
        for source, name in enumerate(names):
            for fields in (FIELDS, ["place"], []):
                before_us = before(piece, bounds)
                a = with_index.timeline(name, piece, fields, before_us)
                b = without.timeline(name, piece, fields, before_us)
                assert not len(a.timeline) or a.timeline.only_source == source
                found = events_of(a.timeline, source, bounds)
                assert len(found) == len(a.timeline), "nothing beyond the bounds is read"
                assert found.equals(events_of(b.timeline, source, bounds))
                for read in (a, b):
                    ids = read.timeline.entity_ids
                    assert np.array_equal(read.place, entity_index(ids, piece.entity_ids))
                there = [dict(zip(r.timeline.entity_ids, r.held, strict=True)) for r in (a, b)]
                assert there[0] == there[1]
        for bucket in piece.buckets[: len(piece.buckets) == 1]:
            counts = [r.count(bucket, piece.entity_ids) for r in (with_index, without)]
            assert np.array_equal(*counts)


def bounds_of(hours: list[int]) -> pl.DataFrame:
    """Customers, some unknown to the store, and how far each may be read."""
    ids = [f"k{i:03d}" for i in range(len(hours))]
    before = [START + dt.timedelta(hours=h, minutes=30) for h in hours]
    return pl.DataFrame({"entity_id": ids, "before_us": before}).with_columns(
        pl.col("before_us").cast(pl.Datetime("us")).cast(pl.Int64)
    )


@settings(max_examples=10)
@given(st.lists(st.integers(-2, 70), min_size=1, max_size=33))
def test_the_same_rows_as_parquet_gives(kept: Path, hours: list[int]) -> None:
    require_equal(kept, bounds_of(hours))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An indexed store of three imports, of which two came after the index."""
    folder = tmp_path_factory.mktemp("indexed")
    take_in(folder, 0)
    make_index(folder / "store")
    for seed in (1, 2):
        take_in(folder, seed)
    return folder / "store"


def test_again_changes_nothing_and_another_version_reads_its_own(root: Path) -> None:
    store, every = root / "store", bounds_of([99] * 30)
    assert not indexed(store) and not drop_index(store)
    first = make_index(store)
    assert first.made and first.size and "files indexed, 0 old" in first.line()
    files = {p: p.stat().st_mtime_ns for p in (store / INDEX).rglob("*.npy")}
    assert make_index(store).made == 0
    assert files == {p: p.stat().st_mtime_ns for p in (store / INDEX).rglob("*.npy")}
    early = BucketReader(EventStore.open(store).at(1))
    plain = BucketReader(EventStore.open(store).at(1))
    plain.__dict__["index"] = None
    for piece in pieces(early.store, every["entity_id"]):
        found, expected = (
            r.timeline("pay", piece, FIELDS, before(piece, every)).timeline for r in (early, plain)
        )
        source = early.store.schema.source_names.index("pay")
        assert events_of(found, source, every).equals(events_of(expected, source, every))
    assert drop_index(store) and not indexed(store)


def test_it_follows_imports_and_compaction(root: Path) -> None:
    store, every = root / "store", bounds_of([99] * 30)
    make_index(store)
    take_in(root, 7)
    require_equal(store, every)
    compact(store)
    require_equal(store, every)
    there = {f"{p.parent.name}.{p.stem}" for p in (store / "tables" / "pay").glob("*/*.parquet")}
    assert {p.name for p in (store / INDEX / "pay").iterdir()} == there
    # Files that are gone take their index along.
    compact(store, keep_days=1)
    for path in (store / "tables" / "login").glob("*/*.parquet"):
        if str(path) not in set(EventStore.open(store).files("login")["file"]):
            path.unlink()
    assert make_index(store).dropped > 0
    require_equal(store, every)


def test_interrupted_it_is_ended_by_the_next(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, every = root / "store", bounds_of([99] * 30)
    written = 0

    def dies(path: Path, text: str) -> None:
        nonlocal written
        written += 1
        if written == 5:
            raise KeyboardInterrupt
        real(path, text)

    real = event_index.write_whole
    with monkeypatch.context() as patch:
        patch.setattr(event_index, "write_whole", dies)
        with pytest.raises(KeyboardInterrupt):
            make_index(store)
    # What is half there is not used, and what is there is right.
    require_equal(store, every)
    assert len(list((store / INDEX).rglob(COLUMNS))) == 4
    make_index(store)
    require_equal(store, every)


def test_nothing_of_an_erased_customer_is_left_in_it(root: Path) -> None:
    store = root / "store"
    make_index(store)
    held = [p for p in (store / INDEX).rglob("ids.npy") if b"k007" in p.read_bytes()]
    assert held
    erase_entity(store, "k007")
    for path in (store / INDEX).rglob("*"):
        assert path.is_dir() or b"k007" not in path.read_bytes(), path
    require_equal(store, bounds_of([99] * 30))


def test_entities_of_one_key_are_told_apart(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(lakehouse, "keys_of", lambda ids: np.full(len(ids), 7, dtype=np.uint64))
        make_index(root / "store")
        store = EventStore.open(root / "store")
        ids = pl.Series([f"k{i:03d}" for i in range(30)])
        every = bounds_of([99] * 30)
        reader = BucketReader(store)
        plain = BucketReader(store)
        plain.__dict__["index"] = None
        piece = Piece(tuple(range(lakehouse.BUCKETS)), 0, ids)
        source = store.schema.source_names.index("pay")
        found, expected = (
            r.timeline("pay", piece, FIELDS, before(piece, every)).timeline for r in (reader, plain)
        )
        assert len(found) and events_of(found, source, every).equals(
            events_of(expected, source, every)
        )


def test_an_index_of_another_version_is_made_anew(root: Path) -> None:
    store = root / "store"
    make_index(store)
    listed = next((store / INDEX / "pay").rglob(COLUMNS))
    listed.write_text(listed.read_text().replace('"format": 2', '"format": 1'))
    require_equal(store, bounds_of([99] * 30))
    assert make_index(store).made == 1


def test_a_file_in_another_order_is_refused(root: Path) -> None:
    store = EventStore.open(root / "store")
    file = store.files("pay")["file"][0]
    pl.read_parquet(file, hive_partitioning=False).reverse().write_parquet(file)
    with pytest.raises(InternalError, match="not in the order of a store"):
        make_index(root / "store")


def test_the_command_makes_and_removes_it(root: Path) -> None:
    where = ["events", "index", "--store", str(root / "store"), "--quiet"]
    made = CliRunner().invoke(cli, where)
    assert made.exit_code == 0 and "files indexed" in made.output, made.output
    dropped = CliRunner().invoke(cli, [*where, "--drop"])
    assert dropped.exit_code == 0 and "removed" in dropped.output
    assert "no index" in CliRunner().invoke(cli, [*where, "--drop"]).output
    with pytest.raises(DataError, match="no event store here"):
        make_index(root / "nowhere")
