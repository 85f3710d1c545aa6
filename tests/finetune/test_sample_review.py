"""The review of a sample file: every reason to leave a row out, and what the store knows."""

from __future__ import annotations

import datetime as dt
import json
import re
from pathlib import Path

import polars as pl
import pytest

from finetune.report_page import TEMPLATES
from finetune.report_words import WORDS
from finetune.sample_report import review_lines, run_review
from finetune.sample_review import REASONS, Review, ReviewSettings, review_samples
from finetune.samples import read_samples
from foundation.errors import SampleError
from foundation.store import EventStore
from tests.finetune.small_reports import Page
from tests.finetune.small_store import few_customers, sample_rows

NOW = ReviewSettings(dt.datetime(2025, 1, 1))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EventStore:
    return few_customers(tmp_path_factory.mktemp("few"))


def reviewed(table: pl.DataFrame, store: EventStore, settings: ReviewSettings = NOW) -> Review:
    return review_samples(table, store.schema, store, settings)


def test_a_clean_file_stays_as_it_is(store: EventStore) -> None:
    found = reviewed(sample_rows(), store)
    assert found.kept is not None and len(found.kept) == 40 and not len(found.dropped)
    assert found.numbers["basis"]["n_bad"] == 10
    assert [m["month"] for m in found.numbers["months"]] == ["2024-03", "2024-04", "2024-05"]


def test_every_reason_is_found_with_its_rows(store: EventStore) -> None:
    table = sample_rows().with_columns(
        weight=pl.lit("1"), label_known_at=pl.lit("2024-12-01"), channel=pl.lit("app")
    )

    def change(row: int, **values: str | None) -> None:
        nonlocal table
        at = pl.int_range(pl.len()) == row - 1
        table = table.with_columns(
            pl.when(at).then(pl.lit(v, dtype=pl.String)).otherwise(c).alias(c)
            for c, v in values.items()
        )

    change(1, entity_id="  ")
    change(2, as_of="soon")
    change(3, label="maybe")
    change(4, label=None)
    change(5, weight="-1")
    change(6, requested="much")
    change(7, label_known_at="later")
    change(8, label_known_at="2024-01-01")
    change(9, as_of="2026-01-01", label_known_at="2026-06-01")
    change(10, label_known_at="2025-03-01")
    change(11, as_of="2024-11-20 00:00:00")
    table = pl.concat([table, table[20:22], table[30:31].with_columns(label=pl.lit("1"))])
    found = reviewed(table, store, ReviewSettings(NOW.now, window_days=90))
    reasons = dict(zip(found.dropped["row"], found.dropped["reason"], strict=True))
    assert reasons == {
        1: "no id", 2: "no time", 3: "bad label", 4: "no label", 5: "bad weight",
        6: "bad context", 7: "bad label time", 8: "early label", 9: "future",
        10: "unknown yet", 11: "not ripe", 31: "conflict", 41: "duplicate", 42: "duplicate",
        43: "conflict",
    }  # fmt: skip
    assert set(reasons.values()) == set(REASONS)
    assert found.numbers["rows"] == 43 and found.numbers["kept"] == 28
    assert [d["rows"] for d in found.numbers["dropped"] if d["key"] == "conflict"] == [[31, 43]]
    assert found.kept is not None and 20 in found.kept.frame["row"].to_list()


def test_the_store_is_asked_before_as_of_only(store: EventStore) -> None:
    table = sample_rows().with_columns(
        entity_id=pl.when(pl.int_range(pl.len()) < 3).then(pl.lit("x") + pl.col("entity_id"))
        .otherwise("entity_id"),
        as_of=pl.lit("2024-02-10 00:00:00"),
    )  # fmt: skip
    cover = reviewed(table, store).numbers["coverage"]
    # customers without an event are in no table: 37 of 40 known ids, a fifth of them without one
    assert cover["customers_unknown"] == 3 + sum(i % 5 == 0 for i in range(3, 40))
    # at that midnight in Shanghai the event of 10 February (UTC+8 midnight) is not known yet
    assert cover["few_events"] == sum(i % 5 > 0 for i in range(3, 40))
    assert cover["no_event"] == 40 - cover["few_events"]


def test_refused_rows_without_labels_are_kept_and_counted(store: EventStore) -> None:
    table = sample_rows().with_columns(
        decision=pl.when(pl.int_range(pl.len()) % 5 == 0).then(pl.lit("refused"))
        .otherwise(pl.lit("approved"))
    ).with_columns(label=pl.when(pl.col("decision") == "approved").then("label"))  # fmt: skip
    found = reviewed(table, store)
    assert found.numbers["selection"] == {
        "said": 40, "approved": 32, "refused_without_label": 8, "approved_only": True,
    }  # fmt: skip
    assert any("approved customers alone" in v for v in found.numbers["verdict"])


def test_what_is_written_is_read_back_the_same(store: EventStore, tmp_path: Path) -> None:
    file = tmp_path / "samples.csv"
    pl.concat([sample_rows(), sample_rows()[:2]]).write_csv(file)
    out = tmp_path / "out"
    found = run_review(file, store.directory, NOW, output=out)
    again = read_samples(out / "samples.parquet", store.schema, need_labels=True)
    assert found.kept is not None
    assert again.frame.drop("row").equals(found.kept.frame.drop("row"))
    assert pl.read_csv(out / "dropped.csv")["row"].to_list() == [41, 42]
    assert sorted(p.name for p in out.iterdir()) == [
        "dropped.csv", "review.html", "review.json", "samples.parquet",
    ]  # fmt: skip
    assert json.loads((out / "review.json").read_text())["kept"] == 40
    page = Page((out / "review.html").read_text(encoding="utf-8"))
    assert not {"link", "img", "iframe"} & set(page.tags) and not page.handlers
    assert "repeats an earlier row" in page.text and page.plots == ["months"]
    assert "left out       2  repeats an earlier row (rows 41, 42)" in review_lines(found.numbers)


def test_other_names_are_found_or_refused(store: EventStore, tmp_path: Path) -> None:
    table = sample_rows().rename({"entity_id": "客户号", "as_of": "申请日期", "label": "是否逾期"})
    table.write_csv(tmp_path / "a.csv")
    found = run_review(tmp_path / "a.csv", store.directory, NOW)
    assert found.numbers["mapping"]["by"] == "proposal" and found.numbers["kept"] == 40
    assert any("please check" in line for line in review_lines(found.numbers))
    table.drop("申请日期").write_csv(tmp_path / "b.csv")
    with pytest.raises(SampleError, match="run riskfm samples map"):
        run_review(tmp_path / "b.csv", store.directory, NOW)


def test_useless_files_are_called_so(store: EventStore) -> None:
    one = reviewed(sample_rows().with_columns(label=pl.lit("0")), store).numbers
    assert not one["usable"] and "all 40 labels are 0" in one["verdict"][0]
    strange = sample_rows().with_columns(entity_id=pl.lit("z") + pl.col("entity_id"))
    assert "knows none of the customers" in reviewed(strange, store).numbers["verdict"][0]
    empty = reviewed(sample_rows().with_columns(entity_id=pl.lit(" ")), store).numbers
    assert not empty["usable"] and empty["verdict"] == ["none of 40 rows can be used"]


def test_every_sentence_has_its_translation() -> None:
    template = (TEMPLATES / "sample_review.html.j2").read_text(encoding="utf-8")
    said = set(re.findall(r'\bt\("((?:[^"\\]|\\.)*)"', template)) | set(REASONS.values())
    assert len(said) > 50
    assert sorted(said - set(WORDS)) == []
