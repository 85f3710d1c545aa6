"""Column mapping: proposals from names and values, whatever order the columns stand in."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from finetune.sample_columns import (
    ColumnMapping,
    apply_mapping,
    load_mapping,
    mapping_yaml,
    propose_mapping,
)
from finetune.samples import read_samples
from foundation.errors import ConfigError, SampleError
from foundation.schema import schema_from_dict

SCHEMA = schema_from_dict(
    {
        "name": "t",
        "context": {"amount": {"kind": "money"}, "purpose": {"kind": "category"}},
    }
)
IDS = pl.Series([f"{100000 + i}" for i in range(200)])


def lender_file(rows: int = 60) -> pl.DataFrame:
    """A file as a lender names its columns, all text, as CSV is read."""
    each = range(rows)
    return pl.DataFrame(
        {
            "customer_no": [f"{100000 + i}" for i in each],
            "apply_date": [f"2024-0{1 + i % 6}-11" for i in each],
            "bad_flag": ["Y" if i % 5 == 0 else "N" for i in each],
            "perf_date": [f"2025-0{1 + i % 6}-11" for i in each],
            "loan_amount": [str(1000 + 7 * i) for i in each],
            "purpose": [("car", "home")[i % 2] for i in each],
            "remark": [f"text {i}" for i in each],
        }
    )


WANTED = {
    "entity_id": "customer_no",
    "as_of": "apply_date",
    "label": "bad_flag",
    "label_known_at": "perf_date",
    "amount": "loan_amount",
    "purpose": "purpose",
}


@settings(max_examples=10, phases=(Phase.explicit, Phase.generate))
@given(st.permutations(lender_file().columns))
def test_any_order_of_columns_gives_the_same_mapping(order: list[str]) -> None:
    found = propose_mapping(lender_file().select(order), SCHEMA, IDS)
    assert found.mapping.columns == WANTED
    assert found.mapping.labels == {"n": 0, "y": 1}
    assert found.unused == ("remark",)
    assert found.sure


@settings(max_examples=10, phases=(Phase.explicit, Phase.generate))
@given(st.permutations(range(3)))
def test_values_alone_tell_customer_time_and_label(order: list[int]) -> None:
    table = lender_file().select("customer_no", "apply_date", "bad_flag")
    table.columns = ["c1", "c2", "c3"]
    found = propose_mapping(table.select([f"c{i + 1}" for i in order]), SCHEMA, IDS)
    assert found.mapping.columns == {"entity_id": "c1", "as_of": "c2", "label": "c3"}
    text = "\n".join(found.lines())
    assert "100 % of the ids are in the store" in text and "please check" in text


def test_ids_of_the_store_beat_a_better_name() -> None:
    table = lender_file().rename({"remark": "customer_id", "customer_no": "ref"})
    found = propose_mapping(table, SCHEMA, IDS)
    assert found.mapping.columns["entity_id"] == "ref"


def test_a_flag_of_the_good_is_turned_around_and_said() -> None:
    table = lender_file().select("customer_no", "apply_date", pl.col("bad_flag").alias("is_paid"))
    found = propose_mapping(table, SCHEMA, IDS)
    assert found.mapping.labels == {"n": 1, "y": 0}
    assert "names the good ones" in found.notes[0]
    mapped = apply_mapping(table, found.mapping, SCHEMA, "f")
    assert mapped["label"].to_list()[:2] == ["0", "1"]


def test_the_written_mapping_is_read_again_and_applied(tmp_path: Path) -> None:
    table = lender_file()
    path = tmp_path / "mapping.yaml"
    path.write_text(mapping_yaml(propose_mapping(table, SCHEMA, IDS)), encoding="utf-8")
    assert load_mapping(path, SCHEMA).columns == WANTED
    file = tmp_path / "lender.csv"
    table.write_csv(file)
    read = read_samples(file, SCHEMA, need_labels=True, mapping=path)
    assert read.y.sum() == 12 and read.frame["amount"][0] == 1000.0
    assert read.original.columns == table.columns


def test_a_column_with_our_name_that_is_not_mapped_is_not_read() -> None:
    table = lender_file().with_columns(pl.lit("7").alias("label"))
    mapping = ColumnMapping(columns={k: WANTED[k] for k in ("entity_id", "as_of", "label")},
                            labels={"Y": 1, "n": 0})  # fmt: skip
    mapped = apply_mapping(table, mapping, SCHEMA, "f")
    assert set(mapped["label"]) == {"0", "1"}
    assert set(mapped["unmapped.label"]) == {"7"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("columns: {entity: a}", "'entity' is no column of ours, did you mean 'entity_id'?"),
        ("columns: {entity_id: a, as_of: a}", "column 'a' of the file stands for two"),
        ("columns: {entity_id: a}\nlabels: {x: 2}", r"label 'x': expected 0 \(good\) or 1"),
        ("column: {entity_id: a}", "unknown key 'column', did you mean 'columns'"),
    ],
)
def test_wrong_mappings_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mapping.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_mapping(path, SCHEMA)


def test_a_mapped_column_must_be_there() -> None:
    mapping = ColumnMapping(columns={"entity_id": "customer_nr"})
    with pytest.raises(SampleError, match=r"'customer_nr' \(mapped to 'entity_id'\).*customer_no"):
        apply_mapping(lender_file(), mapping, SCHEMA, "f")
    only = ColumnMapping(columns={"entity_id": "customer_no", "label": "bad"})
    assert "label" not in apply_mapping(lender_file(), only, SCHEMA, "f").columns
