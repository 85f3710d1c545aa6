"""The rule-hit report: counts add up, silent rules show, the challenger is compared."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from foundation.errors import UserError
from serving.decisions.report import report_lines, rule_report, write_rule_report
from tests.serving.decisions.small_desk import Small, facts, file


def test_rules_days_and_swaps(desk: Small, tmp_path: Path) -> None:
    desk.crown(file(600))
    files = desk.desk.files
    number = files.add("acme", "cards", file(540), "anna").number
    files.challenge("acme", "cards", number, "anna")
    desk.desk.decider.refresh()
    for i, points in enumerate([450, 550, 551, 650, 651, 652]):
        desk.decide(f"r{i}", facts(float(points)))
    desk.decide("r9", facts(550), tenant="other")
    desk.take_in()
    numbers = rule_report(desk.desk.database, "acme", "cards", "2020-01-01", "2090-01-01")
    assert numbers["n"] == 6
    hits = {row["rule"]: (row["hits"], row["share"]) for row in numbers["rules"]}
    assert hits == {"high": (3, 0.5), "rest": (2, 2 / 6), "low": (1, 1 / 6), "black": (0, 0.0)}
    assert sum(row["hits"] for row in numbers["days"]) == 6
    assert (numbers["compared"], numbers["changed"]) == (6, 2)
    swaps = {(r["outcome"], r["shadow"]): r["decisions"] for r in numbers["swaps"]}
    assert swaps == {("approve", "approve"): 3, ("refuse", "refuse"): 1, ("review", "approve"): 2}
    text = "\n".join(report_lines(numbers))
    assert "2 of 6 decisions would be others" in text
    assert "review -> approve: 2" in text
    page = write_rule_report(numbers, tmp_path / "out")[-1].read_text(encoding="utf-8")
    assert "2 of 6 decisions would be others" in page
    assert "规则报告" in page
    assert "http" not in page.replace("http-equiv", "")
    assert pl.read_parquet(tmp_path / "out" / "rules.parquet")["hits"].sum() == 6


def test_bands_alone_are_reported_too(desk: Small, tmp_path: Path) -> None:
    for i, points in enumerate([450, 550, 650]):
        desk.decide(f"r{i}", facts(float(points)))
    desk.take_in()
    numbers = rule_report(desk.desk.database, "acme", "cards", "2020-01-01", "2090-01-01")
    assert {row["rule"] for row in numbers["rules"]} == {
        "default.approve", "default.review", "default.refuse",
    }  # fmt: skip
    assert numbers["swaps"] == []
    assert len(write_rule_report(numbers, tmp_path / "out")) == 4
    for since, said in (("2080-01-01", "has no decision"), ("soon", "write a date")):
        with pytest.raises(UserError, match=said):
            rule_report(desk.desk.database, "acme", "cards", since, "2090-01-01")
