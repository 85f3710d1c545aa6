"""Samples that say who was approved, and weights."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from finetune.samples import check_samples, read_label_counts
from foundation.errors import SampleError
from foundation.schema import schema_from_dict

SCHEMA = schema_from_dict({"name": "plain"})


def table(**columns: list) -> pl.DataFrame:
    n = len(next(iter(columns.values())))
    base = {"entity_id": [f"c{i}" for i in range(n)], "as_of": ["2020-01-01"] * n}
    return pl.DataFrame(base | columns)


def test_refused_rows_without_a_label_are_set_aside():
    found = check_samples(
        table(label=["0", "1", None, "0", None], approved=[1, 1, 0, 1, 0]), SCHEMA, True
    )
    assert len(found) == 3 and found.approved_only
    assert found.refused is not None and found.refused.entity_ids.to_list() == ["c2", "c4"]
    assert found.frame["row"].to_list() == [1, 2, 4]
    assert any("3 of 5 rows are approved, 2 refused (40 %)" in n for n in found.notes)
    assert found.original.height == 3


@pytest.mark.parametrize("words", [("Approved", "refused"), ("yes", "no"), ("accept", "declined")])
def test_decisions_in_words(words: tuple[str, str]):
    found = check_samples(
        table(label=[0, 1, None, 0], decision=[words[0], words[0], words[1], words[0]]),
        SCHEMA,
        True,
    )
    assert found.approved_only and len(found) == 3


def test_labels_of_refused_customers_are_no_selection():
    found = check_samples(table(label=[0, 1, 1, 0], approved=[1, 1, 0, 1]), SCHEMA, True)
    assert len(found) == 4 and not found.approved_only and found.refused is None
    assert not any("approved" in n for n in found.notes)


def test_no_such_column_says_nothing():
    found = check_samples(table(label=[0, 1, 1, 0]), SCHEMA, True)
    assert not found.approved_only and found.frame["approved"].null_count() == 4


def test_an_approved_row_without_a_label_is_an_error():
    with pytest.raises(SampleError, match=r"row 2, column 'label': is empty"):
        check_samples(table(label=[0, None, 1], approved=[1, 1, 1]), SCHEMA, True)
    with pytest.raises(SampleError, match=r"row 3, column 'label': 'x' is neither"):
        check_samples(table(label=["0", "1", "x"], approved=[1, 1, 0]), SCHEMA, True)


def test_only_refused_rows_are_an_error():
    with pytest.raises(SampleError, match="all 2 rows are refused"):
        check_samples(table(label=[None, None], approved=[0, 0]), SCHEMA, True)


def test_unknown_words_are_named_not_guessed():
    found = check_samples(
        table(label=[0, 1, 0], decision=["approve", "manual", "approve"]), SCHEMA, True
    )
    assert not found.approved_only
    assert any("manual is read as neither approved nor refused" in n for n in found.notes)


def test_a_schema_may_use_the_name_for_its_own():
    schema = schema_from_dict({"name": "p", "context": {"decision": {"kind": "category"}}})
    found = check_samples(table(label=[0, 1], decision=["approve", "refuse"]), schema, True)
    assert found.frame["decision"].to_list() == ["approve", "refuse"]
    assert found.frame["approved"].null_count() == 2


def test_weights_are_checked_and_told():
    found = check_samples(table(label=[0, 1, 0, 1], weight=[1.0, 1.0, 3.0, 3.0]), SCHEMA, True)
    assert any("from 1 to 3: 4 rows are worth 3 of equal weight" in n for n in found.notes)
    same = check_samples(table(label=[0, 1], weight=[2.0, 2.0]), SCHEMA, True)
    assert not any("weighted" in n for n in same.notes)
    for wrong in (0.0, -1.0, float("inf"), float("nan"), None):
        with pytest.raises(SampleError, match=r"row 2, column 'weight'"):
            check_samples(table(label=[0, 1], weight=[1.0, wrong]), SCHEMA, True)


def test_counts_of_a_file(tmp_path):
    path = tmp_path / "s.parquet"
    table(label=[1, 0, 0, None, 1]).write_parquet(path)
    assert read_label_counts(path) == (4, 2, ["1 rows without a label were left out"])
    frame = pl.DataFrame({"entity_id": ["a"] * 8 + ["b"] * 8, "label": [1, 0] * 8})
    frame.write_parquet(path)
    labels, bads, notes = read_label_counts(path)
    assert (labels, bads) == (16, 8) and "2.8 times as wide" in notes[0]
    frame.drop("label").with_columns(lable=pl.lit(1)).write_parquet(path)
    with pytest.raises(SampleError, match="did you mean 'lable'"):
        read_label_counts(path)


def test_equal_weights_change_no_fit():
    """Weights of one and weights of two give the same model, bit for bit where scaling allows."""
    from finetune.gbdt import GbdtRecipe
    from finetune.linear import LinearRecipe
    from finetune.scorecard import ScorecardRecipe
    from tests.finetune.small_tables import small_table

    data, y = small_table(160)
    groups = np.arange(160)
    for recipe in (LinearRecipe(), GbdtRecipe(), ScorecardRecipe()):
        one = recipe.fit(data, y, np.ones(160), groups, 0).logit(data)
        two = recipe.fit(data, y, np.full(160, 2.0), groups, 0).logit(data)
        assert np.array_equal(one, two), recipe.name


def test_a_weight_of_three_pulls_like_three_rows():
    from finetune.linear import LinearRecipe
    from tests.finetune.small_tables import small_table

    data, y = small_table(200)
    groups = np.arange(200)
    heavy = np.where(y == 1, 3.0, 1.0)
    plain = LinearRecipe().fit(data, y, np.ones(200), groups, 0).logit(data)
    tilted = LinearRecipe().fit(data, y, heavy, groups, 0).logit(data)
    rate = lambda z: float(np.mean(1 / (1 + np.exp(-z))))  # noqa: E731
    weighted = float(np.average(1 / (1 + np.exp(-tilted)), weights=heavy))
    assert weighted == pytest.approx(np.average(y, weights=heavy), abs=1e-3)
    assert rate(tilted) > rate(plain) + 0.1
