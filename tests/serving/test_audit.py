"""The decision log is a chain: any changed, dropped or moved line is found."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from foundation.errors import ArtifactError, ConfigError, InternalError
from serving.audit import FIRST, DecisionLog, verify_log


@pytest.fixture
def path(tmp_path: Path) -> Path:
    log = DecisionLog(tmp_path / "log.jsonl", tmp_path / "secret")
    for n in range(5):
        log.append({"score": n / 7, "band": "Überprüfen\u2028"}, f"customer-{n}")
    log.close()
    return tmp_path / "log.jsonl"


def test_chain_holds_and_continues(path: Path) -> None:
    first = verify_log(path)
    assert first.lines == 5 and "customer" not in path.read_text()
    log = DecisionLog(path, path.with_name("secret"))
    log.append({"score": 0.5}, "customer-0").result(timeout=5)
    head = log.close()
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    assert verify_log(path, head).lines == 6 and lines[5]["previous"] == first.head
    assert lines[5]["entity"] == lines[0]["entity"] != lines[1]["entity"]
    assert stat.S_IMODE(os.stat(path.with_name("secret")).st_mode) == 0o600


def _drop(n: int):
    return lambda lines: lines[:n] + lines[n + 1 :]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda x: [x[0], x[1].replace('"score":0.1', '"score":0.2'), *x[2:]], 2),
        (lambda x: [x[0], x[1].replace('"band"', '"bond"'), *x[2:]], 2),
        (_drop(0), 1),
        (_drop(2), 3),
        (lambda x: [x[1], x[0], *x[2:]], 1),
        (lambda x: [*x[:3], x[2], *x[3:]], 4),
        (lambda x: [*x[:4], "{}"], 5),
        (lambda x: [*x[:4], "broken"], 5),
    ],
)
def test_tampering_is_found_at_its_line(path: Path, change, line: int) -> None:
    lines = path.read_text().splitlines()
    changed = change(lines)
    assert changed != lines
    path.write_text("\n".join(changed) + "\n")
    with pytest.raises(ArtifactError, match=f"line {line}:"):
        verify_log(path)


def test_dropped_last_lines_are_found_against_a_noted_head(path: Path) -> None:
    head = verify_log(path).head
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    assert verify_log(path).lines == 3
    with pytest.raises(ArtifactError, match="ends at line 3"):
        verify_log(path, head)


def test_an_unfinished_line_of_a_crash_is_set_aside(path: Path) -> None:
    with open(path, "a") as out:
        out.write('{"seq":6,"half')
    with pytest.raises(ArtifactError, match="line 6"):
        verify_log(path)
    log = DecisionLog(path, path.with_name("secret"))
    log.append({}, "c").result(timeout=5)
    log.close()
    assert verify_log(path).lines == 6
    assert path.with_name("log.jsonl.torn").read_text() == '{"seq":6,"half\n'


def test_two_writers_share_one_chain(path: Path) -> None:
    logs = [DecisionLog(path, path.with_name("secret")) for _ in range(2)]
    for n in range(20):
        logs[n % 2].append({"n": n}, "c").result(timeout=5)
    waiting = [log.append({"n": n}, "c") for n in range(50) for log in logs]
    for done in waiting:
        done.result(timeout=5)
    for log in logs:
        log.close()
    assert verify_log(path).lines == 125


def test_a_log_that_cannot_be_written_stops_decisions(path: Path, monkeypatch) -> None:
    def full(number: int) -> None:
        raise OSError("no space left")

    log = DecisionLog(path, path.with_name("secret"))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InternalError):
        log.append({}, "c").result(timeout=5)
    with pytest.raises(InternalError, match="cannot be written"):
        log.append({}, "c")
    log.close()


def test_empty_log_and_bad_files(tmp_path: Path) -> None:
    DecisionLog(tmp_path / "log", tmp_path / "s").close()
    assert verify_log(tmp_path / "log").head == FIRST
    with pytest.raises(ConfigError, match="no readable decision log"):
        verify_log(tmp_path / "nowhere")
    (tmp_path / "s").write_text("short")
    with pytest.raises(ConfigError, match="64 hexadecimal digits"):
        DecisionLog(tmp_path / "log", tmp_path / "s")
