"""The store: atomic and repeat-safe imports, versions, filters, identifiers, authorization."""

from __future__ import annotations

import datetime as dt
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation import identifiers, lakehouse
from foundation.errors import ConfigError, DataError, SchemaError
from foundation.history import build_timeline
from foundation.schema import load_schema
from foundation.store import EventStore, ImportSummary, import_events

NOW = dt.datetime(2024, 6, 1, tzinfo=dt.UTC)
SCHEMA: dict[str, Any] = {
    "name": "lender",
    "sources": {
        "pay": {
            "path": "pay.csv",
            "fields": {"amount": {"kind": "money"}, "device": {"kind": "identifier"}},
            "authorization": {"by": "bank", "use": "scoring", "until": "2025-01-01"},
        },
        "call": {"path": "call.csv", "delay": "1d", "fields": {"note": {"kind": "category"}}},
    },
    "profile": {"path": "profile.csv", "fields": {"age": {"kind": "number"}}},
}
PAY = """entity_id,event_time,amount,device
b,2024-01-03,3,d1
a,2024-01-02,1,d1
a,2024-01-02,2,d2
,2024-01-02,9,d1
b,2024-01-01,4,
"""


@pytest.fixture
def lender(tmp_path: Path) -> Path:
    """A folder with a schema and its three files; the store goes to `store` in it."""
    (tmp_path / "schema.yaml").write_text(yaml.safe_dump(SCHEMA, sort_keys=False))
    (tmp_path / "pay.csv").write_text(PAY)
    calls = "entity_id,event_time,note\na,2024-01-04,x\nc,2024-01-01,y\n"
    (tmp_path / "call.csv").write_text(calls)
    (tmp_path / "profile.csv").write_text("entity_id,age\na,30\nb,40\n")
    return tmp_path


def run(folder: Path, **more: Any) -> ImportSummary:
    return import_events(folder / "schema.yaml", folder / "store", now=NOW, **more)


def edit(folder: Path, change: Any) -> None:
    data = yaml.safe_load((folder / "schema.yaml").read_text())
    change(data)
    (folder / "schema.yaml").write_text(yaml.safe_dump(data, sort_keys=False))


def contents(folder: Path) -> dict[str, list]:
    opened = EventStore.open(folder / "store")
    frames = opened.frames()
    return {name: frame.rows() for name, frame in frames.items()} | {
        "profile": opened.profile().rows(),
        "version": [opened.version],
    }


def test_import_and_read(lender: Path) -> None:
    summary = run(lender)
    assert (summary.version, summary.stored, summary.quarantined) == (1, 8, 1)
    opened = EventStore.open(lender / "store")
    frames = opened.frames()
    assert frames["pay"].select("entity_id", "amount").rows() == [
        ("a", 1.0),
        ("a", 2.0),
        ("b", 4.0),
        ("b", 3.0),
    ]
    assert frames["pay"].schema["known_at"] == pl.Datetime("us")
    assert frames["call"]["known_at"].to_list() == [
        dt.datetime(2024, 1, 5),
        dt.datetime(2024, 1, 2),
    ]
    assert opened.profile().rows() == [("a", None, 30.0), ("b", None, 40.0)]
    assert opened.entity_ids().to_list() == ["a", "b", "c"]
    assert opened.quarantine().select("source", "row", "reason").rows() == [
        ("pay", 4, "entity id is missing")
    ]
    timeline = opened.timeline()
    assert timeline.entity_ids.to_list() == ["a", "b", "c"] and len(timeline) == 6
    assert len(opened.profile_history().entity_ids) == 2
    text = "\n".join(summary.lines())
    assert "quarantined 1: entity id is missing" in text
    assert "warning: 'call' has no authorization" in text and "'pay' has no" not in text


@pytest.mark.parametrize("name", ["a b", "客户 100%", "x?*#"])
def test_a_folder_of_any_name(lender: Path, name: str) -> None:
    """polars' own Delta reader finds no file below a folder with a blank in its name."""
    run(lender)
    plain = contents(lender)
    folder = lender / name
    folder.mkdir()
    for file in ("schema.yaml", "pay.csv", "call.csv", "profile.csv"):
        (folder / file).write_bytes((lender / file).read_bytes())
    assert run(folder).stored == 8
    read = contents(folder)
    for each in (plain, read):  # but for the devices, which every store hides with its own key
        each["pay"] = [row[:4] for row in each["pay"]]
    assert read == plain and run(folder).repeated
    opened = EventStore.open(folder / "store")
    assert opened.frames(entities=["b"])["pay"].height == 2
    assert opened.frames(entities=["nobody"])["call"].columns == ["entity_id", "event_time",
                                                                  "known_at", "note"]  # fmt: skip
    edit(folder, lambda data: data["sources"]["pay"].update(path="more.csv"))
    (folder / "more.csv").write_text(PAY + "c,2024-01-05,7,d9\n")
    assert run(folder).stored == 1


def test_a_folder_that_cannot_hold_a_store(lender: Path) -> None:
    with pytest.raises(ConfigError, match=r"'\[' in its name; choose another"):
        import_events(lender / "schema.yaml", lender / "[x]" / "store", now=NOW)
    assert not (lender / "[x]").exists()


def test_names_of_any_letters(tmp_path: Path) -> None:
    fields = {"金额": {"kind": "money"}, "状态": {"kind": "category"}}
    data = {"entity": "客户号", "sources": {"交易": {"path": "交易.csv", "event_time": "时间",
                                              "fields": fields}},
            "outcomes": {"逾期": "交易.状态 = '逾期' within 30d"}}  # fmt: skip
    (tmp_path / "schema.yaml").write_text(yaml.safe_dump(data, allow_unicode=True), "utf-8")
    text = "客户号,时间,金额,状态\n甲,2024年1月2日,3.5,逾期\n乙,2024年5月12日 08:30,4,正常\n"
    (tmp_path / "交易.csv").write_text(text, "utf-8")
    run(tmp_path)
    stored = EventStore.open(tmp_path / "store").frames()["交易"]
    assert sorted(stored.select("entity_id", "event_time", "金额", "状态").rows()) == [
        ("乙", dt.datetime(2024, 5, 12, 8, 30), 4.0, "正常"),
        ("甲", dt.datetime(2024, 1, 2), 3.5, "逾期"),
    ]


def test_same_import_again_changes_nothing_and_says_so(lender: Path) -> None:
    first = run(lender)
    before = contents(lender)
    files = sorted(p for p in (lender / "store").rglob("*") if p.is_file())
    again = run(lender)
    assert again.repeated and again.version == first.version and again.stored == 0
    assert again.lines() == ["already imported as version 1; nothing changed"]
    assert contents(lender) == before
    assert sorted(p for p in (lender / "store").rglob("*") if p.is_file()) == files


def test_overlapping_file_adds_only_what_is_new(lender: Path) -> None:
    run(lender)
    (lender / "more.csv").write_text(PAY.replace(",2024-01-02,9,d1\n", "c,2024-02-01,5,d1\n"))
    summary = run(lender, files={"pay": lender / "more.csv"})
    (table,) = summary.tables
    assert (table.read, table.stored, table.already) == (5, 1, 4)
    assert EventStore.open(lender / "store").frames()["pay"]["amount"].to_list() == [1, 2, 4, 3, 5]


def test_versions_stay_readable(lender: Path) -> None:
    run(lender)
    (lender / "more.csv").write_text("entity_id,event_time,amount,device\na,2024-03-01,7,\n")
    assert run(lender, files=[f"pay={lender / 'more.csv'}"]).version == 2
    opened = EventStore.open(lender / "store")
    assert opened.frames()["pay"]["amount"].to_list() == [1, 2, 7, 4, 3]
    assert opened.frames(version=1)["pay"].equals(opened.at(1).frames()["pay"])
    assert len(opened.at(1).timeline()) == 6 and len(opened.at(0).timeline()) == 0
    with pytest.raises(DataError, match=r"no version 3; versions 0 to 2 exist"):
        opened.at(3)


def test_filters(lender: Path) -> None:
    run(lender)
    opened = EventStore.open(lender / "store")
    assert opened.frames(entities=["b", "nobody"])["pay"]["amount"].to_list() == [4, 3]
    assert opened.frames(entities=[])["pay"].is_empty()
    until = int(dt.datetime(2024, 1, 3, tzinfo=dt.UTC).timestamp() * 1e6)
    assert opened.frames(until_us=until)["pay"]["amount"].to_list() == [1, 2, 4]
    assert opened.frames(until_us=until + 1)["pay"]["amount"].to_list() == [1, 2, 4, 3]
    assert opened.profile(entities=["a"], until_us=0).rows() == [("a", None, 30.0)]


FAILURES = [
    ("append", 2),
    ("after_append", 1),
    ("after_append", 4),
    ("write_deltalake", 1),
    ("commit", 1),
]


@pytest.mark.parametrize(("where", "nth"), FAILURES)
@pytest.mark.parametrize("first", [True, False])
def test_interrupted_import_is_not_seen_and_a_rerun_completes(
    lender: Path, monkeypatch: pytest.MonkeyPatch, where: str, nth: int, first: bool
) -> None:
    if first:
        EventStore.create(lender / "store", load_schema(lender / "schema.yaml"))
    else:
        run(lender)
        (lender / "pay.csv").write_text(PAY + "z,2024-02-02,8,d1\n,2024-02-02,8,d1\n")
        (lender / "call.csv").write_text("entity_id,event_time,note\nz,2024-02-04,x\n")
        (lender / "profile.csv").write_text("entity_id,age\nz,50\n")
    before = contents(lender)
    calls = 0

    def failing(real: Any, late: bool = False) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            result = real(*args, **kwargs) if calls != nth or late else None
            if calls == nth:
                raise KeyboardInterrupt
            return result

        return call

    with monkeypatch.context() as patch:
        if where == "commit":
            patch.setattr(os, "replace", failing(os.replace))
        elif where == "write_deltalake":
            patch.setattr(lakehouse, "write_deltalake", failing(lakehouse.write_deltalake, True))
        else:
            real = lakehouse.append
            patch.setattr(lakehouse, "append", failing(real, where == "after_append"))
        with pytest.raises(KeyboardInterrupt):
            run(lender)
    assert contents(lender) == before
    done = run(lender)
    assert not done.repeated
    if not first:
        assert contents(lender)["pay"][-1][3] == 8.0
        assert len(contents(lender)["pay"]) == 5 and len(contents(lender)["call"]) == 3
    else:
        assert len(contents(lender)["pay"]) == 4 and len(contents(lender)["call"]) == 2
    assert run(lender).repeated


def test_refused_file_imports_nothing(lender: Path) -> None:
    (lender / "profile.csv").write_text("entity_id,aeg\na,3\n")
    with pytest.raises(SchemaError, match=r"profile reads column 'age'.*did you mean 'aeg'"):
        run(lender)
    assert contents(lender) == {"pay": [], "call": [], "profile": [], "version": [0]}


def test_another_schema_is_refused_and_the_difference_named(lender: Path) -> None:
    run(lender)
    edit(lender, lambda d: d["sources"]["pay"].update(delay="2d"))
    with pytest.raises(SchemaError, match=r"another schema \(sources\.pay\.delay: absent -> 2d\)"):
        run(lender)
    edit(lender, lambda d: d["sources"]["pay"].update(delay="0d", path="x/../pay.csv"))
    (lender / "x").mkdir()
    assert run(lender).repeated


def test_expired_authorization_is_refused(lender: Path) -> None:
    edit(lender, lambda d: d["sources"]["pay"]["authorization"].update(until="2024-05-31"))
    message = r"'pay' may not be imported.*'bank' ran out on 2024-05-31"
    with pytest.raises(SchemaError, match=message):
        run(lender)


def test_files_are_matched_to_sources(lender: Path) -> None:
    assert [t.name for t in run(lender, files=[lender / "call.csv"]).tables] == ["call"]
    with pytest.raises(ConfigError, match=r"no source is called 'pays', did you mean 'pay'"):
        run(lender, files=["pays=x.csv"])
    with pytest.raises(DataError, match=r"source 'pay': .*absent\.csv: no such file"):
        run(lender, files={"pay": "absent.csv"})
    moved = lender / "elsewhere"
    moved.mkdir()
    for name in ("pay.csv", "call.csv", "profile.csv"):
        (lender / name).rename(moved / name)
    summary = run(lender, data_dir=moved)
    already = {table.name: table.already for table in summary.tables}
    assert (summary.stored, already["call"]) == (6, 2)
    with pytest.raises(DataError, match=r"no event store here"):
        EventStore.open(moved)


def test_reserved_field_names_are_refused(lender: Path) -> None:
    edit(lender, lambda d: d["sources"]["call"]["fields"].update(import_row={"kind": "number"}))
    with pytest.raises(SchemaError, match=r"field name 'import_row' is used by the store"):
        run(lender)


# --------------------------------------------------------------------------------- identifiers


def test_identifier_is_kept_as_keyed_hash_only(
    lender: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(identifiers.KEY_VARIABLE, raising=False)
    (lender / "pay.csv").write_text(PAY.replace("d1", "13800138000").replace("d2", "13900139000"))
    run(lender)
    values = EventStore.open(lender / "store").frames()["pay"]["device"].drop_nulls()
    assert values.str.contains("^[0-9a-f]{16}$").all() and values.n_unique() == 2
    for path in (lender / "store").rglob("*"):
        assert not path.is_file() or b"13800138000" not in path.read_bytes()
    mode = stat.S_IMODE((lender / "store" / identifiers.KEY_FILE).stat().st_mode)
    assert mode == 0o600


def test_key_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(identifiers.KEY_VARIABLE, "k1")
    one = identifiers.hashed(pl.Series(["x", None, "x"]), identifiers.identifier_key(tmp_path))
    monkeypatch.setenv(identifiers.KEY_VARIABLE, "k2")
    two = identifiers.hashed(pl.Series(["x"]), identifiers.identifier_key(tmp_path))
    assert one[0] == one[2] != two[0] and one[1] is None
    assert not list(tmp_path.iterdir())


def test_sharing_is_stamped_over_all_stored_events(lender: Path) -> None:
    run(lender)
    frame = EventStore.open(lender / "store").frames()["pay"]
    assert frame["device__shared_with"].to_list() == [0, 0, None, 1]
    (lender / "more.csv").write_text(
        "entity_id,event_time,amount,device\nc,2024-01-03,7,d1\nc,2024-02-03,7,d1\n"
    )
    run(lender, files={"pay": lender / "more.csv"})
    frame = EventStore.open(lender / "store").frames(entities=["c"])["pay"]
    assert frame["device__shared_with"].to_list() == [1, 2]


ROW = st.tuples(st.sampled_from("xyz"), st.sampled_from("abc"), st.integers(0, 5))


@given(st.lists(ROW, max_size=12), st.lists(ROW, max_size=12))
def test_sharing_equals_oracle(old: list[tuple], new: list[tuple]) -> None:
    def frame(rows: list[tuple]) -> pl.DataFrame:
        return pl.DataFrame(
            {
                "value": pl.Series([None if r[0] == "z" else r[0] for r in rows], dtype=pl.String),
                "entity_id": pl.Series([r[1] for r in rows], dtype=pl.String),
                "known_at": pl.Series([r[2] for r in rows], dtype=pl.Int64).cast(pl.Datetime("us")),
            }
        )

    expected = [
        None if v == "z" else len({e2 for v2, e2, t2 in old + new if v2 == v and t2 < t} - {e})
        for v, e, t in new
    ]
    assert identifiers.shared_with(frame(new), frame(old)).to_list() == expected


# ----------------------------------------------------------------------------------- properties

EVENT = st.tuples(st.sampled_from(("a", "b", "客户")), st.integers(1, 4), st.integers(0, 99))


@settings(max_examples=6)
@given(st.lists(EVENT, max_size=12, unique=True), st.integers(0, 12))
def test_store_gives_back_what_was_imported_in_order(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple], split: int
) -> None:
    folder = tmp_path_factory.mktemp("lender")
    fields = {"n": {"kind": "number"}}
    data = {"sources": {"pay": {"path": "p.csv", "fields": fields}}}
    (folder / "schema.yaml").write_text(yaml.safe_dump(data))
    for number, part in enumerate((events[:split], events[split:])):
        rows = "".join(f"{e},2024-01-0{d},{n}\n" for e, d, n in part)
        (folder / f"p{number}.csv").write_text("entity_id,event_time,n\n" + rows)
        run(folder, files={"pay": folder / f"p{number}.csv"})
    opened = EventStore.open(folder / "store")
    # sorted() is stable, so ties keep the order of import
    expected = sorted(events, key=lambda e: (e[0].encode(), e[1]))
    frame = opened.frames()["pay"]
    assert frame["entity_id"].to_list() == [e[0] for e in expected]
    assert frame["n"].to_list() == [float(e[2]) for e in expected]
    timeline = opened.timeline()
    assert np.array_equal(timeline.row, build_timeline(opened.schema, {"pay": frame}).row)


def test_bucket_of_an_id_never_changes() -> None:
    ids = pl.Series(["a", "b", "客户", "x" * 300, "000", "00"])
    assert lakehouse.buckets_of(ids).tolist() == [0, 0, 6, 5, 8, 9]
    many = lakehouse.buckets_of(pl.Series([f"c{i}" for i in range(16_000)]))
    assert np.bincount(many, minlength=16).min() > 800


def test_the_schema_is_parsed_once_and_again_when_its_file_changes(
    lender: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(lender)
    read: list[Path] = []

    def counted(path: Path) -> Any:
        read.append(path)
        return load_schema(path)

    monkeypatch.setattr("foundation.store.load_schema", counted)
    file = lender / "store" / "schema.yaml"
    os.utime(file, ns=(1, 1))
    for _ in range(3):
        assert EventStore.open(lender / "store").schema.name == "lender"
    assert len(read) == 1
    file.write_text(file.read_text().replace("name: lender", "name: borrow"))
    os.utime(file, ns=(1, 2))
    assert EventStore.open(lender / "store").schema.name == "borrow"
    assert len(read) == 2
