"""`riskfm labels` and the reject options of `adapt`, as a person types them."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
import pytest
import yaml
from click.testing import CliRunner

from foundation.store import import_events
from serving.cli import cli


def run(*words: str) -> str:
    """Standard output of a command that succeeds."""
    found = CliRunner().invoke(cli, list(words), catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.stdout


def refusal(*words: str) -> str:
    """What a person reads and the exit code 2 they get."""
    found = CliRunner().invoke(cli, list(words))
    assert found.exit_code == 2, (found.output, found.exception)
    return found.output


def test_power_of_numbers():
    text = run("labels", "power", "--labels", "300", "--bads", "64")
    assert text.startswith("300 labels with 64 bads (bad rate 21.3 %): KS .37 ± .1")
    assert re.search(r"\n +1,500 +320 ", text)
    assert "80 % power" in text and "correlate by .80" in text


def test_power_of_a_file_and_of_an_assumed_ks(tmp_path: Path):
    path = tmp_path / "samples.csv"
    pl.DataFrame({"entity_id": range(50), "label": [1] * 12 + [0] * 30 + [None] * 8}).write_csv(
        path
    )
    text = run("labels", "power", "--samples", str(path), "--ks", "0.4", "--correlation", "0.5")
    assert "42 labels with 12 bads (bad rate 28.6 %): KS .40" in text
    assert "note: 8 rows without a label were left out" in text
    tight = run("labels", "power", "--samples", str(path), "--ks", "0.4", "--correlation", "0.95")
    gap = [float(re.search(r"under (\.\d+) KS", t).group(1)) for t in (text, tight)]  # type: ignore[union-attr]
    assert gap[0] > gap[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --samples FILE, or --labels N and --bads B"),
        (["--labels", "9"], "give --samples FILE, or --labels N and --bads B"),
        (["--labels", "9", "--bads", "1"], "at least 2 of each"),
        (["--labels", "9", "--bads", "3", "--auc", "0.7", "--ks", "0.3"], "not both"),
        (["--labels", "9", "--bads", "3", "--ks", "1.5"], "between 0 and 1"),
        (["--labels", "9", "--bads", "3", "--auc", "0.2"], "between 0.5 and 1"),
    ],
)
def test_power_refusals(words: list[str], message: str):
    assert message in refusal("labels", "power", *words)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain store of monthly statuses."""
    root = tmp_path_factory.mktemp("labels")
    months = pl.datetime_range(
        pl.datetime(2020, 1, 31), pl.datetime(2020, 12, 31), "1mo", eager=True, time_unit="us"
    ).dt.month_end()
    parts = [
        pl.DataFrame(
            {
                "entity_id": [f"c{i}"] * 12,
                "event_time": months,
                "status": ["2" if i % 5 == 0 and m == 3 + i % 4 else "0" for m in range(12)],
            }
        )
        for i in range(80)
    ]
    pl.concat(parts).write_parquet(root / "state.parquet")
    schema = {
        "name": "s",
        "sources": {"state": {"path": "state.parquet", "fields": {"status": {"kind": "category"}}}},
        "outcomes": {"late": "state.status = '2' within 92d"},
    }
    (root / "schema.yaml").write_text(yaml.safe_dump(schema), encoding="utf-8")
    import_events(root / "schema.yaml", root / "store")
    return root / "store"


def test_vintages(store: Path, tmp_path: Path):
    text = run(
        "labels", "vintages", "--store", str(store), "-o", str(tmp_path), "--field", "status",
        "--bad", "2", "--until", "2021-01-01",
    )  # fmt: skip
    assert "bad: state.status is 2; events known before 2021-01-01" in text
    assert "ever bad by month 12: 20.00 %" in text and "n = 80, 16 ever bad" in text
    assert (tmp_path / "vintages.html").is_file()
    assert pl.read_parquet(tmp_path / "maturity.parquet")["share"][-1] == pytest.approx(0.2)
    by_outcome = run(
        "labels", "vintages", "--store", str(store), "-o", str(tmp_path / "o"), "--outcome",
        "late", "--until", "2021-01-01",
    )  # fmt: skip
    assert by_outcome.splitlines()[:3] == text.splitlines()[:3]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--field", "stat", "--bad", "2"], "did you mean 'status'"),
        (["--field", "status"], "--bad 2,3,4,5"),
        (["--field", "status", "--bad", "7"], "never 7"),
        (["--field", "status", "--bad", "2", "--edges", "a"], "write numbers such as"),
        (["--field", "status", "--bad", "2", "--until", "soon"], "is no date"),
        (["--field", "status", "--bad", "2", "--window", "6"], "give --samples FILE"),
        (["--field", "status", "--bad", "2", "--since", "as-of"], "give --samples FILE"),
        (["--outcome", "late", "--bad", "2"], "not both"),
    ],
)
def test_vintage_refusals(store: Path, tmp_path: Path, words: list[str], message: str):
    output = tmp_path / "never"
    assert message in refusal(
        "labels", "vintages", "--store", str(store), "-o", str(output), *words
    )
    assert not output.exists()


def test_rejects_without_a_method_are_refused_before_anything_is_read(tmp_path: Path):
    here = str(tmp_path)
    words = ["adapt", "--backbone", here, "--store", here, "--samples", f"{here}/s.csv"]
    words += ["-o", here, "--rejects", f"{here}/r.csv"]
    assert "add --reject-inference fuzzy or parcelling" in refusal(*words)
    words += ["--reject-inference", "fuzzy"]
    assert "cannot be meant" in refusal(*words, "--reject-factor", "0")
    assert "cannot be made with recipe 'lora'" in refusal(*words, "--recipe", "lora")
