"""The benchmark runner: what it reads of a script, what its exit code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.bench import run_all


def bench(folder: Path, name: str, body: str) -> None:
    (folder / f"{name}.py").write_text(body)


def test_table_and_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_all, "HERE", tmp_path)
    monkeypatch.setattr("sys.argv", ["run_all.py"])
    figure = '{"what": "cut", "value": %s, "unit": "s", "bar": 10, "better": "lower", "on": "3"}'
    bench(tmp_path, "history", f"print('some words')\nprint('''{figure % 4.5}''')\n")
    assert run_all.main() == 0
    shown = capsys.readouterr().out
    assert "some words" in shown
    assert "tokenizer: no such script" in shown
    assert ["history", "cut", "4.5", "s", "<=", "10", "met", "3"] in [
        line.split() for line in shown.splitlines()
    ]

    bench(tmp_path, "history", f"print('''{figure % 11}''')\n")
    assert run_all.main() == 1
    assert "MISSED" in capsys.readouterr().out
    bench(tmp_path, "history", "raise SystemExit(3)\n")
    assert run_all.main() == 1


def test_lines_that_are_no_figures() -> None:
    assert run_all.parse("plain") is None
    assert run_all.parse("{broken") is None
    assert run_all.parse('{"value": 1}') is None
    row = run_all.parse('{"what": "a", "value": 1200.4, "unit": "x"}')
    assert row is not None
    assert run_all.meets(row) is None
    assert run_all.number(row["value"]) == "1,200"
