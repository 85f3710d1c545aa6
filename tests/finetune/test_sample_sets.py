"""Versions of sample sets: content addressed, append-only, repeat-safe, and their differences."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.sample_sets import (
    add_version,
    diff_frames,
    diff_versions,
    find_version,
    read_version,
    schema_of,
    versions,
)
from finetune.samples import Samples, check_samples, read_samples
from foundation.errors import ArtifactError, UserError
from foundation.store import EventStore
from tests.finetune.small_store import few_customers, sample_rows


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EventStore:
    return few_customers(tmp_path_factory.mktemp("few"))


def checked(table: pl.DataFrame, store: EventStore) -> Samples:
    return check_samples(table, store.schema, need_labels=False)


def add(table: pl.DataFrame, store: EventStore, root: Path, name: str = "app"):
    return add_version(root, name, checked(table, store), store.schema, "file.csv", store.directory)


def test_the_same_rows_are_one_version_in_any_order(store: EventStore, tmp_path: Path) -> None:
    first, new = add(sample_rows(), store, tmp_path)
    again, repeated = add(sample_rows().reverse(), store, tmp_path)
    assert new and not repeated and first == again and first.number == 1
    assert first.facts == {
        "rows": 40, "customers": 40, "labels": 40, "bads": 10, "first": "2024-03-15",
        "last": "2024-05-15",
    }  # fmt: skip
    assert schema_of(first) == store.schema


def test_history_is_kept_and_can_return(store: EventStore, tmp_path: Path) -> None:
    one, _ = add(sample_rows(), store, tmp_path)
    bytes_before = one.path.read_bytes()
    two, _ = add(sample_rows()[:30], store, tmp_path)
    three, new = add(sample_rows(), store, tmp_path)
    assert new and [v.number for v in versions(tmp_path, "app")] == [1, 2, 3]
    assert three.digest == one.digest != two.digest and one.path.read_bytes() == bytes_before
    assert find_version(tmp_path, "app") == three
    assert find_version(tmp_path, "app@2") == find_version(tmp_path, f"app@{two.digest[:8]}") == two
    diff = diff_versions(one, two)
    assert (diff.added, diff.removed, diff.same) == (0, 10, 30)


def test_what_died_half_way_is_not_seen(store: EventStore, tmp_path: Path) -> None:
    one, _ = add(sample_rows(), store, tmp_path)
    folder = one.path.parents[2]
    torn = folder / "contents" / ".0123.99.part"
    torn.mkdir()
    (folder / "versions" / ".000002.json.99.part").write_text("{")
    bare = folder / "contents" / "0123456789abcdef"  # content without a version
    bare.mkdir()
    assert versions(tmp_path, "app") == [one]
    # content that was written before its version was: the next addition uses the place anew
    two, _ = add(sample_rows()[:30], store, tmp_path)
    record = folder / "versions" / "000002.json"
    record.unlink()
    (two.path.parent / "set.json").unlink()
    assert add(sample_rows()[:30], store, tmp_path)[0].digest == two.digest
    assert len(read_version(find_version(tmp_path, "app"))) == 30


def test_identifiers_and_other_columns_do_not_rest_in_clear(
    store: EventStore, tmp_path: Path
) -> None:
    table = sample_rows().with_columns(name=pl.lit("Zhang San"))
    version, _ = add(table, store, tmp_path)
    frame = read_version(version)
    assert set(frame.columns) == {"entity_id", "as_of", "label", "requested", "phone_no"}
    assert not set(frame["phone_no"]) & set(table["phone_no"])
    assert frame["phone_no"].n_unique() == 40
    for file in version.path.parent.iterdir():
        assert b"Zhang" not in file.read_bytes() and b"1380000" not in file.read_bytes()
    assert version.path.parents[1].stat().st_mode & 0o077 == 0
    with pytest.raises(UserError, match="give --store"):
        add_version(tmp_path, "app", checked(table, store), store.schema, "f.csv")


def test_a_version_reads_back_as_the_samples_it_was(store: EventStore, tmp_path: Path) -> None:
    version, _ = add(sample_rows(), store, tmp_path)
    again = read_samples(version.path, store.schema, need_labels=True)
    kept = ["entity_id", "as_of", "label", "requested"]
    assert again.frame.select(kept).equals(checked(sample_rows(), store).frame.select(kept))
    changed = read_version(version).with_columns(label=pl.lit(0, dtype=pl.Int8))
    changed.write_parquet(version.path)
    with pytest.raises(ArtifactError, match="not that of digest"):
        read_version(version)


def test_wrong_references_say_what_there_is(store: EventStore, tmp_path: Path) -> None:
    add(sample_rows(), store, tmp_path)
    with pytest.raises(UserError, match=r"no sample set 'ap', did you mean 'app'\?; sets: app"):
        find_version(tmp_path, "ap")
    with pytest.raises(UserError, match=r"no version '7'; versions: 1 \("):
        find_version(tmp_path, "app@7")
    with pytest.raises(UserError, match="no name of a set"):
        add(sample_rows(), store, tmp_path, "../app")
    assert json.loads((tmp_path / "sample_sets/app/versions/000001.json").read_text())["source"]


ROW = st.tuples(
    st.sampled_from(["a", "b", "c"]),
    st.sampled_from([1, 2]),
    st.sampled_from([None, "x"]),
    st.sampled_from([None, 0, 1]),
    st.sampled_from([1.0, 2.0]),
)


def framed(rows: list[tuple]) -> pl.DataFrame:
    kinds = {
        "entity_id": pl.String, "as_of": pl.Int64, "channel": pl.String, "label": pl.Int8,
        "weight": pl.Float64,
    }  # fmt: skip
    frame = pl.DataFrame(rows, schema=kinds, orient="row")
    return frame.with_columns(pl.col("as_of").cast(pl.Datetime("us", "UTC")))


@settings(max_examples=15)
@given(
    st.lists(ROW, max_size=8, unique_by=lambda r: r[:3]),
    st.lists(ROW, max_size=8, unique_by=lambda r: r[:3]),
)
def test_differences_by_definition(before: list[tuple], after: list[tuple]) -> None:
    old, new = ({r[:3]: r[3:] for r in rows} for rows in (before, after))
    found = diff_frames(framed(before), framed(after))
    shared = old.keys() & new.keys()
    kinds = Counter(
        "same" if old[k] == new[k]
        else "altered" if old[k][0] == new[k][0]
        else "labelled" if old[k][0] is None
        else "relabelled"
        for k in shared
    )  # fmt: skip
    assert found.added == len(new.keys() - old.keys())
    assert found.removed == len(old.keys() - new.keys())
    for name in ("same", "altered", "labelled", "relabelled"):
        assert getattr(found, name) == kinds[name], name
    assert len(found.rows) == len(old.keys() | new.keys()) - kinds["same"]


@settings(max_examples=10)
@given(st.lists(ROW, max_size=8), st.randoms())
def test_a_set_does_not_differ_from_itself_in_another_order(rows: list[tuple], random) -> None:
    shuffled = rows[:]
    random.shuffle(shuffled)
    found = diff_frames(framed(rows), framed(shuffled))
    assert found.same == len(rows) and not len(found.rows)
