"""Sample files: what is read, and every way in which one can be wrong."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from finetune.samples import Samples, read_samples
from foundation.errors import SampleError
from foundation.schema import Schema, schema_from_dict

SCHEMA = schema_from_dict(
    {
        "name": "t",
        "time_zone": "Asia/Shanghai",
        "context": {"amount": {"kind": "money"}, "purpose": {"kind": "category"}},
    }
)
BARE = schema_from_dict({"name": "t"})
GOOD = """entity_id,as_of,label,amount,purpose
007,2024-01-31 08:00:00,0,100.5,car
7,2024-01-31,1,,
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "samples.csv"
    path.write_text(text, encoding="utf-8")
    return path


def read(folder: Path, text: str, schema: Schema = BARE, need_labels: bool = True) -> Samples:
    return read_samples(write(folder, text), schema, need_labels)


def refused(folder: Path, text: str, schema: Schema = BARE, need_labels: bool = True) -> str:
    with pytest.raises(SampleError) as caught:
        read(folder, text, schema, need_labels)
    return str(caught.value)


def test_csv_is_read_in_the_zone_of_the_schema(tmp_path: Path) -> None:
    samples = read(tmp_path, GOOD, SCHEMA)
    assert samples.entity_ids.to_list() == ["007", "7"]
    assert samples.frame["as_of"].to_list() == [
        dt.datetime(2024, 1, 31, 0, 0),
        dt.datetime(2024, 1, 30, 16, 0),
    ]
    assert samples.as_of_us[0] == 1_706_659_200_000_000
    assert samples.y.tolist() == [0.0, 1.0] and samples.weight.tolist() == [1.0, 1.0]
    assert samples.frame["amount"].to_list() == [100.5, None]
    assert samples.frame["purpose"].to_list() == ["car", None]
    assert samples.frame["row"].to_list() == [1, 2]
    assert len(set(samples.groups)) == 2
    assert samples.original.columns == ["entity_id", "as_of", "label", "amount", "purpose"]


def test_parquet_gives_what_csv_gives(tmp_path: Path) -> None:
    from_csv = read(tmp_path, GOOD, SCHEMA)
    path = tmp_path / "samples.parquet"
    pl.DataFrame(
        {
            "entity_id": ["007", "7"],
            "label": [0, 1],
            "amount": [100.5, None],
            "as_of": [dt.datetime(2024, 1, 31, 8), dt.datetime(2024, 1, 31)],
            "purpose": ["car", None],
        }
    ).write_parquet(path)
    assert read_samples(path, SCHEMA, True).frame.equals(from_csv.frame)


def test_missing_columns_are_named_with_the_nearest(tmp_path: Path) -> None:
    message = refused(tmp_path, "entity_id,asof,label\na,2024-01-01,0\n")
    assert "column 'as_of' is missing, did you mean 'asof'?" in message
    assert "samples.csv" in message
    assert "'label' is missing" in refused(tmp_path, "entity_id,as_of\na,2024-01-01\n")
    assert "'entity_id'" in refused(tmp_path, "customer,as_of,label\na,2024-01-01,0\n")
    text = "entity_id,as_of,label,amount\na,2024-01-01,0,3\n"
    assert "context column 'purpose' is missing" in refused(tmp_path, text, SCHEMA)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,2024-01-01,0\nb,2024-13-01,1\n", ["row 2", "'as_of'", "2024-13-01"]),
        ("a,2024-01-01,0\nb,,1\n", ["row 2", "'as_of'", "empty"]),
        ("a,2024-01-01,0\nb,2024-01-01,2\n", ["row 2", "'label'", "'2'"]),
        ("a,2024-01-01,\nb,2024-01-01,1\n", ["row 1", "'label'", "empty"]),
        ("a,2024-01-01,0\n,2024-01-01,1\n", ["row 2", "'entity_id'", "empty"]),
        ("a,2024-01-01 00:00:00+08:00,0\nb,2024-01-01,1\n", ["zones mixed"]),
        ("a,2024-01-01,1\nb,2024-01-01,1\n", ["all 2 samples have label 1"]),
        ("a,2024-01-01,0\na,2024-01-01,1\n", ["rows 1 and 2", "'a'"]),
        ("", ["no rows"]),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, text: str, expected: list[str]) -> None:
    message = refused(tmp_path, "entity_id,as_of,label\n" + text)
    for part in expected:
        assert part in message
    assert "samples.csv" in message


def test_context_and_weight_must_be_numbers(tmp_path: Path) -> None:
    text = "entity_id,as_of,label,amount,purpose\na,2024-01-01,0,ten,x\nb,2024-01-01,1,1,y\n"
    assert "row 1, column 'amount': 'ten'" in refused(tmp_path, text, SCHEMA)
    text = "entity_id,as_of,label,weight\na,2024-01-01,0,1\nb,2024-01-01,1,-2\n"
    assert "row 2, column 'weight': '-2'" in refused(tmp_path, text)


def test_a_label_known_before_its_sample_is_refused(tmp_path: Path) -> None:
    text = "entity_id,as_of,label,label_known_at\na,2024-02-01,0,2024-01-01\nb,2024-01-01,1,\n"
    assert "row 1, column 'label_known_at'" in refused(tmp_path, text)


def test_duplicates_are_dropped_with_a_note_or_kept_for_scoring(tmp_path: Path) -> None:
    text = "entity_id,as_of,label\na,2024-01-01,0\nb,2024-01-01,1\na,2024-01-01,0\n"
    samples = read(tmp_path, text)
    assert len(samples) == 2 and any("1 exact duplicate" in n for n in samples.notes)
    kept = read_samples(write(tmp_path, text), BARE, False, keep_duplicates=True)
    assert len(kept) == len(kept.original) == 3


def test_two_decisions_at_one_moment_are_no_duplicates(tmp_path: Path) -> None:
    text = "entity_id,as_of,label,amount,purpose\na,2024-01-01,0,5,car\na,2024-01-01,1,9,car\n"
    assert len(read(tmp_path, text, SCHEMA)) == 2


def test_undeclared_columns_are_ignored_and_named(tmp_path: Path) -> None:
    text = "entity_id,as_of,label,secret\na,2024-01-01,0,1\nb,2024-01-01,1,0\n"
    samples = read(tmp_path, text)
    assert "secret" not in samples.frame.columns and "secret" in samples.original.columns
    assert any("secret" in note for note in samples.notes)


def test_few_bads_are_noted(tmp_path: Path) -> None:
    rows = "".join(f"e{i},2024-01-01,{int(i < 3)}\n" for i in range(30))
    samples = read(tmp_path, "entity_id,as_of,label\n" + rows)
    assert any("only 3 bads in 30" in note for note in samples.notes)


def test_labels_are_optional_for_scoring(tmp_path: Path) -> None:
    samples = read(tmp_path, "entity_id,as_of\na,2024-01-01\n", need_labels=False)
    assert samples.label is None
    part = read(
        tmp_path, "entity_id,as_of,label\na,2024-01-01,1\nb,2024-01-01,\n", need_labels=False
    )
    assert part.label is not None and part.label.to_list() == [1, None]
    with pytest.raises(SampleError, match="without a label"):
        _ = part.y


def test_taking_rows_keeps_frame_and_file_side_by_side(tmp_path: Path) -> None:
    rows = "".join(f"e{i},2024-01-{i + 1:02d},{i % 2},{i}\n" for i in range(9))
    samples = read(tmp_path, "entity_id,as_of,label,extra\n" + rows)
    taken = samples.take(np.array([5, 2]))
    assert taken.entity_ids.to_list() == taken.original["entity_id"].to_list() == ["e5", "e2"]
