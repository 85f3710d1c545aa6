"""A tenant verifies the chain without seeing others, and sees when something is withheld."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundation.errors import ArtifactError, ConfigError, UserError
from serving.audit import DecisionLog, verify_log
from serving.cli import cli
from serving.safety.audit_export import (
    export_tenant,
    make_head,
    moment,
    noted_head,
    verify_export,
)
from serving.safety.chain import lines_of
from serving.safety.hashing import EntityHasher
from serving.safety.secrets import make_secrets, open_secrets

TENANTS = ("acme", "brix", "acme", "acme", "coin", "brix", "acme", "coin")


@pytest.fixture
def hasher(tmp_path: Path) -> EntityHasher:
    make_secrets(tmp_path / "master.key")
    return EntityHasher(open_secrets(tmp_path / "master.key", "production", {}))


@pytest.fixture
def log(tmp_path: Path, hasher: EntityHasher) -> Path:
    path = tmp_path / "decisions.jsonl"
    written = DecisionLog(path, hasher, segment_bytes=1500)
    for n, tenant in enumerate(TENANTS):
        written.append({"tenant": tenant, "score": n / 8, "note": f"{tenant}'s"}, "c").result(5)
    written.close()
    return path


def test_an_export_verifies_and_hides_the_others(log: Path, hasher: EntityHasher) -> None:
    out = log.with_name("acme.jsonl")
    made = export_tenant(log, hasher, "acme", "", "", out)
    whole = verify_log(log)
    assert made.own == 4 and made.own + made.others == whole.lines and made.head == whole.head
    text = out.read_text()
    assert "brix" not in text and "coin" not in text and text.count("acme's") == 4
    assert verify_export(out, whole.head) == made
    assert "4 of its own in full" in made.line()
    # Neither the marks nor anything else tells the others apart.
    others = [json.loads(t) for t in text.splitlines()[1:] if "content" in t]
    assert len({r["mark"] for r in others}) == len(others)
    with pytest.raises(UserError, match="nothing is written"):
        export_tenant(log, hasher, "nobody", "", "", log.with_name("x"))
    with pytest.raises(UserError, match="nothing is written"):
        export_tenant(log, hasher, "acme", "2001-01-01", "2002-01-01", log.with_name("x"))
    assert not log.with_name("x").exists()


def test_an_export_of_a_time_holds_what_lies_in_it(log: Path, hasher: EntityHasher) -> None:
    times = [line.record["time"] for _, line in lines_of(log) if "event" not in line.record]
    out = log.with_name("part.jsonl")
    made = export_tenant(log, hasher, "acme", times[2], times[6], out)
    assert made.own == 2 and made.header.since == times[2]
    assert verify_export(out).head == made.head != verify_log(log).head


def _redacted(lines: list[str], log: Path, at: int) -> list[str]:
    """What a service would write that withholds a tenant's line."""
    for _, line in lines_of(log):
        if line.text.decode() == lines[at] + "\n":
            found = {"seq": line.seq, "content": line.content, "mark": line.mark}
            found |= {"previous": line.previous, "hash": line.hash}
            return [*lines[:at], json.dumps(found, separators=(",", ":")), *lines[at + 1 :]]
    raise AssertionError


def test_what_is_withheld_or_changed_is_named(log: Path, hasher: EntityHasher) -> None:
    out = log.with_name("acme.jsonl")
    export_tenant(log, hasher, "acme", "", "", out)
    lines = out.read_text().splitlines()
    own = next(n for n, text in enumerate(lines) if n and "acme's" in text)
    other = next(n for n, text in enumerate(lines) if "content" in text)
    changes = {
        f"line {own + 1}: a line of acme was withheld": _redacted(lines, log, own),
        f"line {own + 1}: was changed": [
            *lines[:own], lines[own].replace("acme's", "acme'z"), *lines[own + 1 :]
        ],
        f"line {other + 1}: was changed": [
            *lines[:other], lines[other].replace('"content":"', '"content":"0', 1),
            *lines[other + 1 :],
        ],
        f"line {other + 1}: does not follow": [*lines[:other], *lines[other + 1 :]],
        "ends at line": lines[:-1],
        "line 2: not a line": [lines[0], "{}", *lines[2:]],
    }  # fmt: skip
    for why, changed in changes.items():
        assert changed != lines
        out.write_text("\n".join(changed) + "\n")
        with pytest.raises(ArtifactError, match=why):
            verify_export(out)
    with pytest.raises(ConfigError, match="not an export"):
        verify_export(log)
    # In the log itself a digest is no line: contents cannot be taken out of it.
    segment = log.with_name("decisions.000001.jsonl")
    own_log = segment.read_text().splitlines()
    segment.write_text("\n".join(_redacted(own_log, log, 0)) + "\n")
    with pytest.raises(ArtifactError, match="line 1: was changed"):
        verify_log(log)


@given(st.data())
@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_changed_byte_passes(log: Path, hasher: EntityHasher, data: st.DataObject) -> None:
    out = log.with_name("acme.jsonl")
    made = export_tenant(log, hasher, "acme", "", "", out)
    text = bytearray(out.read_bytes())
    start = text.index(b"\n") + 1
    at = data.draw(st.integers(start, len(text) - 1))
    text[at] ^= data.draw(st.integers(1, 255))
    out.write_bytes(text)
    with pytest.raises((ArtifactError, ConfigError)):
        verify_export(out, made.head)


def test_heads_are_signed_and_found(log: Path, hasher: EntityHasher) -> None:
    head = make_head(log, hasher)
    file = log.with_name("head.json")
    file.write_bytes(msgspec.json.encode(head))
    assert noted_head(str(file), hasher) == head.hash == verify_log(log).head
    assert noted_head(head.hash, hasher) == head.hash
    forged = msgspec.structs.replace(head, hash="0" * 64)
    file.write_bytes(msgspec.json.encode(forged))
    with pytest.raises(ArtifactError, match="not signed"):
        noted_head(str(file), hasher)
    with pytest.raises(ConfigError, match="neither"):
        noted_head("abc", hasher)
    assert make_head(log, None).signature == ""
    with pytest.raises(UserError, match="no moment"):
        moment("yesterday")
    assert moment("2026-01-31T08:00+08:00") == "2026-01-31T00:00:00.000000Z"


def test_commands_verify_and_name_the_broken_line(log: Path) -> None:
    key, run = str(log.with_name("master.key")), CliRunner()

    def call(*words: str) -> tuple[int, str]:
        result = run.invoke(cli, ["audit", *words])
        return result.exit_code, result.output

    head, out = log.with_name("head.json"), log.with_name("acme.jsonl")
    assert call("head", str(log), "--secrets", key, "-o", str(head))[0] == 0
    code, text = call("verify", str(log), "--head", str(head), "--secrets", key)
    assert code == 0 and "the noted head is line" in text
    code, text = call("export", str(log), "--tenant", "acme", "--secrets", key, "-o", str(out))
    assert code == 0 and "4 of its own" in text
    code, text = call("verify", str(out), "--export", "--head", verify_log(log).head)
    assert code == 0 and text.startswith("whole: export of acme")
    log.write_text(log.read_text().replace('"score":0.', '"score":1.', 1))
    code, text = call("verify", str(log))
    assert code == 2 and "line 2: was changed" in text
