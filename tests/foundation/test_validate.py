"""Reading files and checking rows: what is refused whole, what is set aside, what is stored."""

from __future__ import annotations

import datetime as dt
import gzip
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.errors import DataError, SchemaError
from foundation.schema import Schema, schema_from_dict
from foundation.tables import parse_numbers, parse_times, read_csv, read_parts, read_table
from foundation.validate import DUPLICATE, Checked, check_events, check_profile

NOW_US = 1_717_200_000_000_000  # 2024-06-01
FIELDS = {
    "amount": {"kind": "money"},
    "status": {"kind": "category"},
    "paid": {"kind": "boolean"},
    "due": {"kind": "timestamp"},
}


def schema(zone: str = "UTC", **source: Any) -> Schema:
    return schema_from_dict(
        {
            "time_zone": zone,
            "sources": {"pay": {"fields": FIELDS, **source}},
            "profile": {"fields": {"age": {"kind": "number"}}},
        }
    )


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def check(path: Path, spec: Schema | None = None) -> Checked:
    return check_events(spec or schema(), "pay", read_parts(path), NOW_US)


HEAD = "entity_id,event_time,amount,status,paid,due\n"


def test_good_rows_and_their_types(tmp_path: Path) -> None:
    path = write(
        tmp_path / "pay.csv",
        HEAD + "007,2024-01-01 10:00,1.5,late,yes,2024-01-05\n" + " 8 ,2024-01-02,, ,0,\n",
    )
    done = check(path)
    assert done.good["entity_id"].to_list() == ["007", "8"]
    assert done.good["amount"].to_list() == [1.5, None]
    assert done.good["status"].to_list() == ["late", None]
    assert done.good["paid"].to_list() == [True, False]
    assert done.good["due"][0] == dt.datetime(2024, 1, 5)
    assert done.good["known_at"].to_list() == done.good["event_time"].to_list()
    assert not len(done.bad)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (",2024-01-01,1,a,,", "entity id is missing"),
        ("  ,2024-01-01,1,a,,", "entity id is missing"),
        ("x,,1,a,,", "'event_time' is missing"),
        ("x,2024-13-01,1,a,,", "'event_time' is no readable time"),
        ("x,1969-12-31,1,a,,", "'event_time' is before 1970"),
        ("x,2024-06-03,1,a,,", "'event_time' is more than a day in the future"),
        ("x,2024-01-01,12 EUR,a,,", "'amount' is no number"),
        ("x,2024-01-01,inf,a,,", "'amount' is no number"),
        ("x,2024-01-01,1,a,maybe,", "'paid' is neither true nor false"),
        ("x,2024-01-01,1,a,,soon", "'due' is no readable time"),
        ("ok,2024-01-01,1,a,,2024-01-01", DUPLICATE),
        (",,x,a,,", "entity id is missing"),
    ],
)
def test_bad_row_is_set_aside_with_file_row_and_reason(
    tmp_path: Path, row: str, reason: str
) -> None:
    path = write(tmp_path / "pay.csv", f"{HEAD}ok,2024-01-01,1,a,,2024-01-01\n{row}\n")
    done = check(path)
    assert done.bad.rows() == [("pay", str(path), 2, reason)]
    assert done.good["entity_id"].to_list() == ["ok"]
    assert done.reasons() == {reason: 1} and done.rows == 2


def test_null_ids_and_times_in_parquet(tmp_path: Path) -> None:
    when = dt.datetime(2024, 1, 1)
    path = tmp_path / "pay.parquet"
    pl.DataFrame(
        {
            "entity_id": ["a", None, "c"],
            "event_time": [when, when, None],
            "amount": [1, 2, 3],
            "status": ["x"] * 3,
            "paid": [True] * 3,
            "due": [when] * 3,
        }
    ).write_parquet(path)
    done = check(path)
    assert done.good["entity_id"].to_list() == ["a"]
    assert done.bad["row"].to_list() == [2, 3]


def test_known_at_before_event_time_is_set_aside(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.csv",
        "entity_id,event_time,seen,amount,status,paid,due\n"
        "a,2024-01-02,2024-01-01,1,a,,\nb,2024-01-02,2024-01-03,1,a,,\n"
        "c,2024-01-02,,1,a,,\n",
    )
    done = check(path, schema(known_at="seen"))
    assert done.good["known_at"].to_list() == [dt.datetime(2024, 1, 3)]
    assert done.bad["reason"].to_list() == ["'seen' is before 'event_time'", "'seen' is missing"]


def test_delay_is_added(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", HEAD + "a,2024-01-02,1,a,,\n")
    assert check(path, schema(delay="36h")).good["known_at"][0] == dt.datetime(2024, 1, 3, 12)


def test_undeclared_columns_are_ignored_and_named_but_tell_equal_rows_apart(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.csv",
        "transaction," + HEAD + "1,a,2024-01-02,1,a,,\n"
        "2,a,2024-01-02,1,a,,\n2,a,2024-01-02,1,a,,\n",
    )
    done = check(path)
    assert done.ignored == ("transaction",)
    assert "transaction" not in done.good.columns
    assert len(done.good) == 2 and done.reasons() == {DUPLICATE: 1}


def test_missing_column_is_refused_with_what_exists(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", HEAD.replace("amount", "amuont") + "a,2024-01-02,1,a,,\n")
    with pytest.raises(SchemaError, match=r"'amount'.*p\.csv.*did you mean 'amuont'.*event_time"):
        check(path)
    write(path, "age\n3\n")
    with pytest.raises(SchemaError, match=r"profile reads column 'entity_id'.*its columns: age"):
        check_profile(schema(), read_parts(path), NOW_US)


def test_undated_profile_is_always_known(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", "entity_id,age\na,30\na,x\n")
    done = check_profile(schema(), read_parts(path), NOW_US)
    assert done.good.rows() == [("a", None, 30.0)]
    assert done.bad["reason"].to_list() == ["'age' is no number"]


def test_mixed_zones_are_refused_with_file_row_and_column(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", HEAD + "a,2024-01-02 10:00,1,a,,\nb,2024-01-02T10:00Z,1,a,,\n")
    with pytest.raises(DataError, match=r"p\.csv, column 'event_time': time zones mixed: row 2.*Z"):
        check(path)


def test_whole_numbers_that_pandas_made_floats_stay_codes(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pl.DataFrame(
        {
            "entity_id": [1.0, 2.0],
            "event_time": [dt.date(2024, 1, 1)] * 2,
            "amount": ["1", "2"],
            "status": [3.0, None],
            "paid": [1, 0],
            "due": [None, None],
        }
    ).write_parquet(path)
    done = check(path)
    assert done.good["entity_id"].to_list() == ["1", "2"]
    assert done.good["status"].to_list() == ["3", None]


# ------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3\n4,5\n", r"t\.csv, line 3: found 1 fields, expected 2"),
        ("a,b\n1,2,9\n", r"t\.csv, line 2: found 3 fields, expected 2"),
        ('a,b\n1,"x\ny"\n2\n', r"t\.csv, line 4: found 1 fields"),
        ('a,b\r\n1,"x\r\ny"\r\n2\r\n', r"t\.csv, line 4: found 1 fields"),
        ('a,b\n1,"x\n2,3\n', r"t\.csv, line 2: a quote is opened and never closed"),
        ("a,b\n1,2\n\n3,4\n", r"t\.csv, line 3: found 1 fields"),
        ("a,a\n1,2\n", r"t\.csv, line 1: column 'a' stands twice"),
        ("", r"t\.csv: the file is empty"),
    ],
)
def test_broken_csv_names_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_csv(write(tmp_path / "t.csv", text))


def test_csv_that_is_not_utf8_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"a,b\n1,\xff\n")
    with pytest.raises(DataError, match=r"line 2: not UTF-8"):
        read_csv(tmp_path / "t.csv")


CELL = st.text(st.sampled_from('ab,"\n é;'), max_size=4)


@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=8))
def test_any_well_formed_csv_is_read(tmp_path_factory: Any, rows: list[tuple[str, str]]) -> None:
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    quoted = [[f'"{c.replace(chr(34), chr(34) * 2)}"' for c in row] for row in rows]
    write(path, "one,two\n" + "".join(",".join(row) + "\n" for row in quoted))
    expected = [tuple(c if c.strip() else None for c in row) for row in rows]
    assert read_csv(path).rows() == expected


def test_separators_bom_gzip_globs_and_delta(tmp_path: Path) -> None:
    write(tmp_path / "a1.csv", "\ufeffx;y\n1;2\n\n")
    (tmp_path / "a2.csv.gz").write_bytes(gzip.compress(b"y\tx\n4\t3\n"))
    assert read_table(tmp_path / "a*").rows() == [("1", "2"), ("3", "4")]
    pl.DataFrame({"x": [1]}).write_delta(str(tmp_path / "delta"))
    assert read_table(tmp_path / "delta").rows() == [(1,)]
    odd = tmp_path / "a 表"
    odd.mkdir()
    rows = pl.DataFrame({"x": [1, 2], "city": ["北京", "São Paulo"]})
    rows.write_delta(str(odd / "delta"), delta_write_options={"partition_by": ["city"]})
    assert sorted(read_table(odd / "delta").select("x", "city").rows()) == rows.rows()
    write(tmp_path / "b.csv", "x\n1\n")
    write(tmp_path / "b2.csv", "z\n1\n")
    with pytest.raises(DataError, match=r"b2\.csv: columns \(z\) differ"):
        read_table(tmp_path / "b*.csv")
    with pytest.raises(DataError, match=r"no such file"):
        read_table(tmp_path / "none.parquet")
    write(tmp_path / "x.parquet", "no")
    with pytest.raises(DataError, match=r"x\.parquet: not a readable Parquet file"):
        read_table(tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"cannot tell what this is"):
        read_table(write(tmp_path / "x.xlsx", "no"))


# --------------------------------------------------------------------------------------- times


def times(values: list, zone: str = "UTC", **more: Any) -> list:
    return parse_times(pl.Series("t", values), zone, "f.csv, column 't'", **more).to_list()


def test_times_are_utc() -> None:
    at = dt.datetime(2024, 1, 1, 2)
    texts = ["2024-01-01 10:00", "2024/01/01 10:00:00", "2024-01-01T10:00:00.000"]
    assert times(texts, "Asia/Shanghai") == [at] * 3
    assert (
        times(
            ["2024-01-01T10:00+08:00", "2024-01-01 02:00:00Z", "2024-01-01 04:00 +02"], "Asia/Tokyo"
        )
        == [at] * 3
    )
    aware = pl.Series("t", [at]).dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Tokyo")
    assert parse_times(aware, "Asia/Shanghai", "f").to_list() == [at]
    assert times([dt.date(2024, 1, 1)], "Asia/Shanghai") == [dt.datetime(2023, 12, 31, 16)]
    assert times([dt.datetime(2024, 1, 1, 10)], "Asia/Shanghai") == [at]


def test_times_in_other_orders() -> None:
    day, minute = dt.datetime(2024, 3, 1), dt.datetime(2024, 3, 1, 9, 5)
    assert times(["2024/3/1", "2024年3月1日", "20240301", "1.3.2024", "01.03.2024"]) == [day] * 5
    assert times(["2024/3/1 9:05", "2024年03月01日09:05", "20240301 09:05:00"]) == [minute] * 3
    assert times(["1.3.2024 10:05+01:00"]) == [minute]
    assert times(["2024-03-01", "31.2.2024", "2024年13月1日"]) == [day, None, None]
    with pytest.raises(DataError, match=r"no time in this column is readable \(row 1: '3/1/2024'"):
        times(["3/1/2024"])


def test_clock_changes() -> None:
    gap, twice = "2021-03-28 02:30", "2021-10-31 02:30"
    late = times([gap, twice], "Europe/Berlin")
    assert late == [dt.datetime(2021, 3, 28, 1, 30), dt.datetime(2021, 10, 31, 1, 30)]
    early = times([gap, twice], "Europe/Berlin", ambiguous="earliest")
    assert early == [dt.datetime(2021, 3, 28, 1, 30), dt.datetime(2021, 10, 31, 0, 30)]


def test_unreadable_times() -> None:
    assert times(["2024-01-01", "soon", None]) == [dt.datetime(2024, 1, 1), None, None]
    with pytest.raises(DataError, match=r"column 't', row 2: time 'soon' is not readable"):
        times(["2024-01-01", "soon"], strict=True)
    with pytest.raises(DataError, match=r"no time in this column is readable"):
        times(["x", "y"])
    with pytest.raises(DataError, match=r"expected times, found Int64"):
        times([20240101])


@given(
    st.datetimes(dt.datetime(1970, 1, 2), dt.datetime(2100, 1, 1)), st.integers(-14 * 60, 14 * 60)
)
def test_offset_is_taken_off(moment: dt.datetime, minutes: int) -> None:
    zone = dt.timezone(dt.timedelta(minutes=minutes))
    assert times([moment.replace(tzinfo=zone).isoformat()]) == [moment - zone.utcoffset(None)]


def test_numbers() -> None:
    assert parse_numbers(pl.Series(["1", " 2.5e1 ", "x", "inf", None])).to_list() == [
        1.0,
        25.0,
        None,
        None,
        None,
    ]
