"""`riskfm simulate`, as a person types it."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from serving.cli import cli


def run(*words: str) -> tuple[int, str]:
    found = CliRunner().invoke(cli, ["simulate", *words])
    return found.exit_code, found.output


def test_a_world_is_called_synthetic(tmp_path: Path) -> None:
    code, text = run("-o", str(tmp_path / "w"), "--customers", "300", "--seed", "4", "--quiet")
    assert code == 0, text
    assert "SYNTHETIC" in text
    assert "no evidence about real customers" in text
    assert "knowing everything hidden ranks the approved with AUC 0." in text
    assert "branch: " in text
    assert (tmp_path / "w" / "truth.parquet").is_file()


def test_days(tmp_path: Path) -> None:
    days = ("--days-from", "2024-02-28", "--days-to", "2024-03-01")
    code, text = run("-o", str(tmp_path / "d"), "--customers", "200", *days, "--quiet")
    assert code == 0, text
    assert "3 days of a SYNTHETIC" in text
    folders = sorted(p.name for p in (tmp_path / "d").iterdir() if p.is_dir())
    assert folders == ["2024-02-28", "2024-02-29", "2024-03-01"]
    assert not list((tmp_path / "d").rglob("truth*"))
    for name in folders:
        app = pl.read_parquet(tmp_path / "d" / name / "events" / "synthetic_app-000.parquet")
        assert set(app["known_at"].dt.date().cast(pl.String)) == {name}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--days-from", "2024-02-28"), "--days-from and --days-to together"),
        (("--days-from", "2024-02-28", "--days-to", "2024-02-01"), "lies before --days-from"),
        (("--until", "tomorrow"), "is no day; write 2024-06-01"),
        (("--until", "2031-01-01"), "outside the world"),
        (("--customers", "3"), "at least 50 customers"),
        (
            ("--until", "2024-01-01", "--days-from", "2024-01-01", "--days-to", "2024-01-02"),
            "not both",
        ),
    ],
)
def test_refusals(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    code, text = run("-o", str(tmp_path / "w"), *words, "--quiet")
    assert code == 2, text
    assert message in text
    assert not (tmp_path / "w").exists()
