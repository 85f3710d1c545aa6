"""The decision log is a chain: any changed, dropped or moved line is found."""

from __future__ import annotations

import datetime as dt
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from foundation.errors import ArtifactError, ConfigError, InternalError
from serving import audit
from serving.audit import FIRST, DecisionLog, follow, verify_log
from serving.safety.chain import closed_segments
from serving.safety.hashing import EntityHasher
from serving.safety.secrets import open_secrets
from tests.contracts.tree import ROOT


def hasher_in(folder: Path) -> EntityHasher:
    return EntityHasher(open_secrets(folder / "master.key", "development"))


def log_at(path: Path, **how) -> DecisionLog:
    return DecisionLog(path, hasher_in(path.parent), **how)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    log = log_at(tmp_path / "log.jsonl")
    for n in range(5):
        log.append({"score": n / 7, "band": "Überprüfen\u2028"}, f"customer-{n}")
    log.close()
    return tmp_path / "log.jsonl"


def test_chain_holds_and_continues(path: Path) -> None:
    first = verify_log(path)
    assert first.lines == 5 and "customer" not in path.read_text()
    log = log_at(path)
    log.append({"score": 0.5, "rules": None}, "customer-0").result(timeout=60)
    log.append({"tenant": "acme"}, "customer-0").result(timeout=60)
    head = log.close()
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    assert verify_log(path, head).lines == 7 and lines[5]["previous"] == first.head
    assert lines[5]["entity"] == lines[0]["entity"] != lines[1]["entity"]
    assert lines[5]["tenant"] == "default" and "rules" not in lines[5]
    assert lines[6]["entity"] == log.hide("customer-0", "acme") != lines[5]["entity"]
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def _drop(n: int):
    return lambda lines: lines[:n] + lines[n + 1 :]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda x: [x[0], x[1].replace('"score":0.1', '"score":0.2'), *x[2:]], 2),
        (lambda x: [x[0], x[1].replace('"band"', '"bond"'), *x[2:]], 2),
        (lambda x: [x[0], x[1].replace('"mark":"', '"mark":"0', 1), *x[2:]], 2),
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
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]))
    assert verify_log(path).lines == 3
    with pytest.raises(ArtifactError, match="ends at line 3"):
        verify_log(path, head)
    path.write_text("".join(lines))
    log = log_at(path)
    log.append({}, "c").result(timeout=60)
    log.close()
    # A log that grew since still holds what was noted.
    assert verify_log(path, head).noted == 5


def test_an_unfinished_line_of_a_crash_is_set_aside(path: Path) -> None:
    with open(path, "a") as out:
        out.write('{"seq":6,"half')
    with pytest.raises(ArtifactError, match="line 6"):
        verify_log(path)
    assert len(follow(path)[0]) == 5
    log = log_at(path)
    log.append({}, "c").result(timeout=60)
    log.close()
    assert verify_log(path).lines == 6
    assert path.with_name("log.jsonl.torn").read_text() == '{"seq":6,"half\n'


def test_two_writers_share_one_chain_and_its_segments(path: Path) -> None:
    logs = [log_at(path, segment_bytes=4000) for _ in range(2)]
    for n in range(20):
        logs[n % 2].append({"n": n}, "c").result(timeout=60)
    waiting = [log.append({"n": n}, "c") for n in range(50) for log in logs]
    for done in waiting:
        done.result(timeout=60)
    for log in logs:
        log.close()
    found = verify_log(path)
    segments = len(closed_segments(path))
    assert segments >= 3 and found.lines == 125 + segments
    records, at = follow(path, limit=10_000)
    taken = list(records)
    while True:
        records, further = follow(path, at, limit=7)
        if further == at:
            break
        taken, at = taken + records, further
    assert [r["hash"] for r in taken] and len(taken) == 125
    assert at == sum(p.stat().st_size for p in [path, *closed_segments(path)])


def test_a_segment_ends_with_its_day(path: Path, monkeypatch) -> None:
    log = log_at(path)
    tomorrow = dt.datetime.now(dt.UTC) + dt.timedelta(days=1)
    monkeypatch.setattr(audit, "_moment", lambda: tomorrow.isoformat().replace("+00:00", "Z"))
    log.append({}, "c").result(timeout=60)
    log.append({}, "c").result(timeout=60)
    log.close()
    assert len(closed_segments(path)) == 1 and verify_log(path).lines == 8
    # A crash between closing a segment and beginning the next one loses nothing.
    os.rename(path, path.with_name("log.000002.jsonl"))
    assert verify_log(path).lines == 8 and follow(path, events=True)[1] > 0
    log = log_at(path)
    log.append({}, "c").result(timeout=60)
    log.close()
    assert verify_log(path).lines == 10
    # Archived segments are missed by name, not silently.
    path.with_name("log.000001.jsonl").unlink()
    found = verify_log(path)
    assert (found.first, found.last) == (6, 10)
    with pytest.raises(ConfigError, match="archived"):
        follow(path, 0)
    path.with_name("log.000002.jsonl").rename(path.with_name("log.000001.jsonl"))
    path.with_name("log.000001.jsonl").unlink()
    assert verify_log(path).first == 9


def test_following_finds_each_decision_once(path: Path) -> None:
    log = log_at(path, segment_bytes=3000)
    seen, at = [], 0
    for n in range(40):
        record = {"event": "erasure"} if n % 10 == 9 else {"n": n}
        log.append(record, "c").result(timeout=60)
        records, at = follow(path, at, limit=3)
        seen += records
    while len(seen) < 41:
        records, at = follow(path, at, limit=3)
        seen += records
    log.close()
    assert [r.get("n") for r in seen[5:]] == [n for n in range(40) if n % 10 != 9]
    assert follow(path, at) == ([], at)
    everything, end = follow(path, 0, limit=1, events=True)
    assert everything[0]["seq"] == 1 and end > 0
    with pytest.raises(ArtifactError, match="ends at byte"):
        follow(path, at + 1)
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"tenant":"default"', b'"tenant":"another"', 1))
    with pytest.raises(ArtifactError, match="was changed"):
        follow(path, end * 0 + at - len(data), limit=1000)


def test_a_log_that_cannot_be_written_stops_decisions(path: Path, monkeypatch) -> None:
    def full(number: int) -> None:
        raise OSError("no space left")

    log = log_at(path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InternalError):
        log.append({}, "c").result(timeout=60)
    with pytest.raises(InternalError, match="cannot be written"):
        log.append({}, "c")
    log.close()
    # Whoever asked was told no, so the line must not be counted.
    assert len(follow(path)[0]) == 5


WRITER = """
import sys
from pathlib import Path
from serving.audit import DecisionLog
from serving.safety.hashing import EntityHasher
from serving.safety.secrets import open_secrets
from tests.contracts.tree import ROOT
path = Path(sys.argv[1])
hasher = EntityHasher(open_secrets(path.parent / "master.key", "development"))
log = DecisionLog(path, hasher, segment_bytes=20_000)
for n in range(10**9):
    log.append({"n": n}, "c").result()
    print(n, flush=True)
"""


def test_what_a_killed_writer_promised_is_there(path: Path) -> None:
    hasher_in(path.parent)
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as writer:
        assert writer.stdout is not None
        seen, at = [], 0
        while len(seen) < 150:
            records, at = follow(path, at)
            seen += records
        writer.kill()
        promised = int(writer.stdout.read().split()[-1])
    log = log_at(path)
    log.append({"n": -1}, "c").result(timeout=60)
    log.close()
    records, _ = follow(path, at, limit=10**6)
    numbers = [r["n"] for r in [*seen, *records] if "n" in r]
    assert numbers[-1] == -1 and numbers[:-1] == list(range(len(numbers) - 1))
    assert promised < len(numbers) - 1
    verify_log(path)
    assert closed_segments(path)


def test_a_record_that_cannot_be_written_fails_alone(path: Path) -> None:
    log = log_at(path)
    with pytest.raises(InternalError, match="cannot be written"):
        log.append({"score": float("nan")}, "c")
    with pytest.raises(InternalError, match="may not set"):
        log.append({"seq": 1}, "c")
    log.append({"score": 0.5}, "c").result(timeout=60)
    log.close()
    assert verify_log(path).lines == 6


def test_empty_log_and_bad_files(tmp_path: Path) -> None:
    log_at(tmp_path / "log").close()
    assert verify_log(tmp_path / "log").head == FIRST and follow(tmp_path / "log") == ([], 0)
    with pytest.raises(ConfigError, match="no readable decision log"):
        verify_log(tmp_path / "nowhere")
    assert follow(tmp_path / "nowhere") == ([], 0)
