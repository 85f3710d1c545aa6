"""The commands, from a list and a decision file to a case that is closed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from serving.database import Database
from serving.decisions.commands import add_to
from tests.contracts.tree import ROOT
from tests.serving.decisions.small_desk import facts, small

EXAMPLE = str(ROOT / "configs" / "decisions" / "cards.yaml")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RISKFM_DATABASE", f"sqlite:///{tmp_path}/test.db")
    group = click.Group("riskfm")
    add_to(group)

    def call(*words: str) -> Result:
        return CliRunner().invoke(group, list(words))

    return call


def said(result: Result) -> str:
    assert result.exit_code == 0, result.exception
    return result.output


def test_rules_from_check_to_rollback(run) -> None:  # type: ignore[no-untyped-def]
    mine = ("--tenant", "acme", "--channel", "cards")
    assert "9 test cases as expected" in said(run("rules", "check", EXAMPLE))
    assert "draft" in said(run("rules", "add", EXAMPLE, *mine, "--by", "anna", "--draft"))
    assert "challenger" in said(run("rules", "add", EXAMPLE, *mine, "--by", "anna"))
    refused = run("rules", "approve", "1", *mine, "--by", "anna")
    assert "may not approve it" in str(refused.exception)
    assert "approved by ben" in said(run("rules", "approve", "1", *mine, "--by", "ben"))
    assert "acme/cards/1" in said(run("rules", "list", "--tenant", "acme"))
    assert "approved  1  challenger -> champion" in said(run("rules", "list", *mine, "--history"))
    nothing = run("rules", "rollback", *mine, "--by", "ben")
    assert "no earlier champion" in str(nothing.exception)
    assert "retired" in said(run("rules", "retire", "1", *mine, "--by", "ben"))
    assert "champion" in said(run("rules", "rollback", *mine, "--to", "1", "--by", "ben"))


def test_lists_are_kept_imported_and_shown(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    one = ("--tenant", "acme", "--list", "black", "--by", "eve")
    assert "written" in said(run("lists", "add", *one, "--value", "c1", "--expires", "2090-01-01"))
    rows = tmp_path / "phones.csv"
    rows.write_text("kind,value\nphone,138\nphone,\n")
    bad = run("lists", "import", *one, "--file", str(rows))
    assert "1 of 2 rows are bad; nothing was imported" in str(bad.exception)
    done = run("lists", "import", *one, "--file", str(rows), "--skip-bad")
    assert "1 written, 0 were there, 1 bad" in said(done)
    shown = said(run("lists", "show", "--tenant", "acme"))
    assert "2 entries" in shown
    assert "138" not in shown.replace("2090", "")
    assert "was not on it" in said(run("lists", "remove", *one, "--value", "c2"))
    assert "removed" in said(run("lists", "remove", *one, "--value", "c1"))
    assert "removed" in said(run("lists", "show", "--tenant", "acme", "--history"))


def test_a_case_a_replay_and_a_report(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with small(tmp_path, Database(f"sqlite:///{tmp_path}/test.db")) as desk:
        desk.decide("r1", facts(550))
        desk.take_in()
        desk.desk.erase("acme", desk.hash("acme", "c1"), "c1")
    mine = ("--tenant", "acme")
    case = said(run("cases", "list", *mine)).split()[0]
    assert "claimed, eve" in said(run("cases", "claim", case, *mine, "--by", "eve"))
    closed = run("cases", "decide", case, *mine, "--by", "eve", "--outcome", "approve")
    assert "decided approve" in said(closed)
    assert "changed: inputs: not kept, too old or erased" in said(run("replay", "r1", *mine))
    days = ("--from", "2020-01-01", "--until", "2090-01-01")
    report = run("rules", "report", *mine, "--channel", "cards", *days, "-o", "out")
    assert "default.review" in said(report)
    assert (tmp_path / "out" / "rules.html").is_file()


def test_help_needs_no_database() -> None:
    code = "import sys, serving.decisions.commands as c; print('sqlalchemy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "False", done.stderr
