"""Compaction: fewer files, the same rows at every version, whatever is interrupted."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from click.testing import CliRunner

from foundation import compaction, lakehouse
from foundation.buckets import BucketReader, Piece
from foundation.compaction import compact
from foundation.errors import UserError
from foundation.store import EventStore, import_events
from serving.cli import cli

DAYS = 3
START = dt.datetime(2024, 3, 1)
SCHEMA = {
    "name": "daily",
    "sources": {
        "pay": {
            "path": "pay.parquet",
            "known_at": "known_at",
            "fields": {"amount": {"kind": "money"}, "device": {"kind": "identifier"}},
        },
        "login": {"path": "login.parquet", "fields": {"place": {"kind": "category"}}},
    },
    "profile": {
        "path": "profile.parquet", "valid_time": "since", "fields": {"age": {"kind": "number"}}
    },
}  # fmt: skip


def take_in(root: Path, day: int, customers: int = 40) -> None:
    """Import a day's rows; ties in time, late ones, and rows the store holds already."""
    rng = np.random.default_rng(day)
    n = 60
    ids = pl.Series([f"k{i:03d}" for i in rng.integers(0, customers, n)])
    event = [START + dt.timedelta(days=day, hours=int(h)) for h in rng.integers(0, 12, n)]
    late = [
        t + dt.timedelta(days=int(d)) for t, d in zip(event, rng.integers(0, 9, n), strict=True)
    ]
    pl.DataFrame(
        {
            "entity_id": ids, "event_time": event, "known_at": late,
            "amount": rng.integers(1, 9, n) * 1.0,
            "device": [f"d{k}" for k in rng.integers(0, 9, n)],
        }
    ).write_parquet(root / "pay.parquet")  # fmt: skip
    pl.DataFrame(
        {"entity_id": ids, "event_time": event, "place": rng.choice(["a", "b"], n)}
    ).write_parquet(root / "login.parquet")
    pl.DataFrame(
        {"entity_id": ids[:5], "since": event[:5], "age": rng.integers(20, 60, 5)}
    ).write_parquet(root / "profile.parquet")
    (root / "schema.yaml").write_text(yaml.safe_dump(SCHEMA, sort_keys=False), encoding="utf-8")
    import_events(root / "schema.yaml", root / "store")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store of some daily imports."""
    for day in range(DAYS):
        take_in(tmp_path, day)
    return tmp_path


def everything(store: EventStore) -> list[pl.DataFrame]:
    """All that readers ask a store for."""
    reader, ids = BucketReader(store), store.entity_ids()
    out = [ids.to_frame(), *store.frames().values(), store.profile()]
    some = pl.Series(["k003", "k017", "nobody"])
    out += [*store.frames(entities=some).values(), store.profile(entities=some)]
    bucket = lakehouse.buckets_of(ids)
    for b in np.unique(bucket)[:2].tolist():
        piece = Piece((b,), 0, ids.filter(pl.Series(bucket == b)))
        out += [reader.frame(name, piece) for name in store.schema.source_names]
        out.append(pl.DataFrame({"n": reader.count(b, piece.entity_ids)}))
    return out


def at_every_version(root: Path) -> list[list[pl.DataFrame]]:
    store = EventStore.open(root / "store")
    return [everything(store.at(v)) for v in (0, 2, DAYS, store.version)]


def require_same(found: list[list[pl.DataFrame]], before: list[list[pl.DataFrame]]) -> None:
    for a, b in zip(found, before, strict=False):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert x.equals(y)


def files(root: Path) -> dict[str, int]:
    """Most files of any bucket of each table."""
    store = EventStore.open(root / "store")
    return {
        name: int(store.files(name).group_by("bucket").len()["len"].max() or 0)  # type: ignore[arg-type]
        for name in store.table_names()
    }


def test_every_version_reads_as_before(root: Path) -> None:
    before, running = at_every_version(root), EventStore.open(root / "store")
    assert files(root)["pay"] == DAYS
    summary = compact(root / "store")
    assert set(files(root).values()) == {1}
    assert summary.after < summary.before and summary.deleted == 0
    require_same(at_every_version(root), before)
    # A reader that opened the store before goes on with the files it knows.
    assert running.rewritten is None
    require_same([everything(running)], before[-1:])


def test_merged_files_are_sorted_as_imports_sort_them(root: Path) -> None:
    compact(root / "store")
    store = EventStore.open(root / "store")
    for name in ("pay", "login"):
        for file in store.files(name)["file"]:
            rows = pl.read_parquet(file, hive_partitioning=False)
            assert rows.equals(rows.sort("entity_id", "known_at", "event_time", lakehouse.ROW))


def test_again_changes_nothing_and_imports_go_on(root: Path) -> None:
    compact(root / "store")
    record = sorted((root / "store" / "rewrites").iterdir())
    versions = [lakehouse.DeltaTable(str(root / "store/tables/pay")).version()]
    assert compact(root / "store").line().endswith("nothing to merge")
    assert sorted((root / "store" / "rewrites").iterdir()) == record
    assert versions == [lakehouse.DeltaTable(str(root / "store/tables/pay")).version()]
    take_in(root, 2)  # the same rows again: none is stored a second time
    store = EventStore.open(root / "store")
    assert store.version == DAYS
    take_in(root, DAYS)
    before = at_every_version(root)
    compact(root / "store")
    require_same(at_every_version(root), before)
    for name in ("pay", "login", "_profile"):  # days later: what nobody reads is gone
        pinned = EventStore.open(root / "store").pin(name)[0]
        assert lakehouse.forget(root / "store/tables" / name, pinned, 0) > 0
    require_same(at_every_version(root), before)


def test_interrupted_before_its_record_nothing_happened(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, number = at_every_version(root), files(root)

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    for where, what in ((compaction, "_commit"), (lakehouse, "write_deltalake")):
        plain: Callable[..., None] = getattr(where, what)
        calls: list[int] = []

        def third(
            *a: object, plain: Callable[..., None] = plain, calls: list[int] = calls, **k: object
        ) -> None:
            calls.append(1)
            if plain.__name__ == "_commit" or len(calls) == 3:
                dies()
            plain(*a, **k)

        monkeypatch.setattr(where, what, third)
        with pytest.raises(KeyboardInterrupt):
            compact(root / "store")
        monkeypatch.undo()
        assert files(root) == number
        require_same(at_every_version(root), before)
    take_in(root, DAYS)
    grown = at_every_version(root)
    require_same(grown[:3], before[:3])
    compact(root / "store")
    require_same(at_every_version(root), grown)


def test_the_command(root: Path) -> None:
    store = str(root / "store")
    answer = CliRunner().invoke(cli, ["events", "compact", "--store", store, "--quiet"])
    assert answer.exit_code == 0, answer.output
    assert "files merged into" in answer.output
    again = CliRunner().invoke(cli, ["events", "compact", "--store", store, "--quiet"])
    assert "nothing to merge" in again.output
    with pytest.raises(UserError, match="keep at least 1"):
        compact(root / "store", keep_days=0)
