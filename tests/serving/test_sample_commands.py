"""`riskfm samples`: propose, check, keep and compare, from the command line."""

from __future__ import annotations

from pathlib import Path

import click
import polars as pl
import pytest
from click.testing import CliRunner, Result

from foundation.errors import SampleError
from serving.cli import cli
from serving.sample_commands import reads_mapping
from tests.finetune.small_store import few_customers, sample_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("few")
    few_customers(made)
    lender = sample_rows().rename({"entity_id": "customer_no", "as_of": "apply_date"})
    lender = lender.with_columns(label=pl.col("label").replace({"1": "Y", "0": "N"}))
    lender.rename({"label": "bad_flag"}).write_csv(made / "lender.csv")
    sample_rows().write_csv(made / "samples.csv")
    return made


def run(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(w) for w in words])


def test_from_a_lenders_file_to_versions(folder: Path, tmp_path: Path) -> None:
    store, file, mapping = folder / "store", folder / "lender.csv", tmp_path / "mapping.yaml"
    done = run("samples", "map", file, "--store", store, "-o", mapping)
    assert done.exit_code == 0, done.output
    assert "customer_no" in done.stdout and "values of the label: n = 0, y = 1" in done.stdout
    assert run("samples", "map", file, "--store", store, "-o", mapping).exit_code == 2

    out = tmp_path / "review"
    words = ["samples", "check", file, "--store", store, "--mapping", mapping, "-o", out]
    done = run(*words, "--now", "2024-06-20", "--window", 60)
    assert done.exit_code == 0, done.output
    assert "40 rows, 27 usable" in done.stdout  # those decided in May are not ripe
    assert "left out      13  the performance window had not ended by now" in done.stdout
    assert (out / "review.html").is_file()

    space = tmp_path / "space"
    add = ["samples", "add", "--name", "app", "--workspace", space]
    assert "is new: say which store" in run(*add, file).output
    done = run(*add, file, "--store", store, "--mapping", mapping)
    assert done.exit_code == 0 and "added app@1" in done.stdout
    # the reviewed file is in standard form and needs no mapping
    assert "added app@2" in run(*add, out / "samples.parquet", "--store", store).stdout
    again = run(*add, folder / "samples.csv", "--store", store)
    assert "added app@3" in again.stdout
    assert "already there: app@3" in run(*add, file, "--store", store, "--mapping", mapping).stdout
    assert len(run("samples", "list", "--workspace", space).stdout.splitlines()) == 3
    changes = tmp_path / "changes.csv"
    done = run("samples", "diff", "app@1", "app@2", "--workspace", space, "-o", changes)
    assert "0 rows added, 13 removed, 0 with another label" in done.stdout
    assert len(pl.read_csv(changes)) == 13


def test_a_useless_file_exits_2_after_its_review(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "one.csv"
    sample_rows().with_columns(label=pl.lit("1")).write_csv(file)
    done = run("samples", "check", file, "--store", folder / "store", "-o", tmp_path / "out")
    assert done.exit_code == 2 and "all 40 labels are 1" in done.stderr
    assert (tmp_path / "out" / "review.html").is_file()
    wrong = run("samples", "check", file, "--store", folder / "store", "--now", "soon")
    assert wrong.exit_code == 2 and "--now 'soon' is no time" in wrong.stderr


def test_errors_of_a_mapped_file_name_the_file_itself(folder: Path, tmp_path: Path) -> None:
    @click.command()
    @click.option("--samples", type=click.Path(path_type=Path))
    @click.option("--store", type=click.Path(path_type=Path))
    @reads_mapping("samples")
    def refuse(samples: Path, store: Path) -> None:
        raise SampleError(f"{samples}, row 3: odd")

    file, mapping = folder / "lender.csv", tmp_path / "mapping.yaml"
    run("samples", "map", file, "--store", folder / "store", "-o", mapping)
    words = ["--samples", file, "--store", folder / "store", "--mapping", mapping]
    found = CliRunner().invoke(refuse, [str(w) for w in words])
    assert isinstance(found.exception, SampleError)
    assert str(found.exception) == f"{file}, row 3: odd"
