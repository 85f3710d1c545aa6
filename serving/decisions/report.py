"""How often each rule hit, outcomes by day, and the challenger against the champion.

Shapes: one row a rule, a day, or a pair of outcomes.
"""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import polars as pl

from foundation.errors import UserError
from serving.database import Database
from serving.decisions.decision_file import OUTCOMES
from serving.decisions.jdm import check
from serving.decisions.projection import between
from serving.decisions.rule_book import RuleBook
from serving.decisions.rules import DEFAULT

PAGE = "rules.html"


def rule_report(
    database: Database, tenant: str, channel: str, since: str, until: str
) -> dict[str, Any]:
    """Numbers of a channel's decisions.

    Args:
        since, until: dates in UTC; the first counts, the last does not.
    Returns:
        plain data: `n`, `rules`, `days`, `swaps` and what it was computed on.
    Raises:
        UserError: a date that is none, or no decision between them.
    """
    for text, option in ((since, "--from"), (until, "--until")):
        try:
            dt.date.fromisoformat(text)
        except ValueError:
            raise UserError(f"{option} '{text}': write a date such as 2027-01-31") from None
    rows = [r for r in between(database, tenant, channel, since, until) if r["outcome"]]
    if not rows:
        raise UserError(f"{tenant}/{channel} has no decision from {since} until {until}")
    details = [json.loads(row["detail"]) for row in rows]
    shadows = [detail.get("shadow") or {} for detail in details]
    frame = pl.DataFrame(
        {
            "day": [row["time"][:10] for row in rows],
            "outcome": [row["outcome"] for row in rows],
            "version": [str(d.get("version", DEFAULT)) for d in details],
            "rules": [json.loads(row["rules"]) for row in rows],
            "challenger": [s.get("version") for s in shadows],
            "shadow": [s.get("outcome") for s in shadows],
        },
        schema={
            "day": pl.String, "outcome": pl.String, "version": pl.String,
            "rules": pl.List(pl.String), "challenger": pl.String, "shadow": pl.String,
        },
    )  # fmt: skip
    hits = _counted(frame.explode("rules").drop_nulls("rules"), ["version", "rules"]).rename(
        {"rules": "rule"}
    )
    of = frame.group_by("version").len("decisions")
    hits = hits.join(of, on="version").with_columns(share=pl.col("hits") / pl.col("decisions"))
    silent = _silent(database, tenant, channel, hits)
    swaps = (
        frame.drop_nulls("shadow")
        .group_by("version", "challenger", "outcome", "shadow")
        .len("decisions")
        .sort("version", "challenger", "outcome", "shadow")
    )
    compared = int(swaps["decisions"].sum())
    changed = int(swaps.filter(pl.col("outcome") != pl.col("shadow"))["decisions"].sum())
    return {
        "tenant": tenant,
        "channel": channel,
        "since": since,
        "until": until,
        "n": len(frame),
        "rules": hits.sort("hits", "rule", descending=[True, False]).to_dicts() + silent,
        "days": _counted(frame, ["day"]).sort("day").to_dicts(),
        "swaps": swaps.to_dicts(),
        "compared": compared,
        "changed": changed,
    }


def _counted(frame: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """Rows by keys: `hits`, and how many of each outcome."""
    counts = [(pl.col("outcome") == name).sum().alias(name) for name in OUTCOMES]
    return frame.group_by(keys).agg(pl.len().alias("hits"), *counts)


def _silent(
    database: Database, tenant: str, channel: str, hits: pl.DataFrame
) -> list[dict[str, Any]]:
    """Rules of the files that decided which never hit, and the words of all of them."""
    book = RuleBook(database)
    seen = {(row["version"], row["rule"]) for row in hits.to_dicts()}
    out = []
    for version in hits["version"].unique().sort().to_list():
        file = None if version == DEFAULT else book.file(tenant, channel, version)
        of = int(hits.filter(pl.col("version") == version)["decisions"][0])
        for rule in [] if file is None else check(file.decision):
            if (version, rule) not in seen:
                out.append(
                    {"version": version, "rule": rule, "hits": 0}
                    | dict.fromkeys(OUTCOMES, 0)
                    | {"decisions": of, "share": 0.0}
                )
    return out


def write_rule_report(numbers: dict[str, Any], output: Path) -> list[Path]:
    """The tables as Parquet and the page; what was written."""
    from serving.daily_page import render

    output.mkdir(parents=True, exist_ok=True)
    written = []
    for name in ("rules", "days", "swaps"):
        path = output / f"{name}.parquet"
        pl.DataFrame(numbers[name], infer_schema_length=None).write_parquet(path)
        written.append(path)
    page = output / PAGE
    page.write_text(render("rule_report.html.j2", numbers), encoding="utf-8")
    return [*written, page]


def report_lines(numbers: dict[str, Any]) -> list[str]:
    """The report as lines of text."""
    n = numbers["n"]
    lines = [
        f"{numbers['tenant']}/{numbers['channel']}, {n:,} decisions from {numbers['since']} until "
        f"{numbers['until']}"
    ]
    width = max((len(row["rule"]) for row in numbers["rules"]), default=4)
    lines.append(f"{'rule':<{width}}  {'hits':>8} {'share':>7} " + _head())
    for row in numbers["rules"]:
        lines.append(
            f"{row['rule']:<{width}}  {row['hits']:>8,} {row['share']:>7.1%} " + _outcomes(row)
        )
    lines.append(f"{'day':<10}  {'decisions':>9} " + _head())
    lines += [f"{r['day']:<10}  {r['hits']:>9,} " + _outcomes(r) for r in numbers["days"]]
    if numbers["compared"]:
        lines.append(
            f"challenger against champion: {numbers['changed']:,} of {numbers['compared']:,} "
            "decisions would be others"
        )
        lines += [
            f"  {r['outcome']} -> {r['shadow']}: {r['decisions']:,}"
            for r in numbers["swaps"]
            if r["outcome"] != r["shadow"]
        ]
    return lines


def _head() -> str:
    return " ".join(f"{name:>8}" for name in OUTCOMES)


def _outcomes(row: dict[str, Any]) -> str:
    return " ".join(f"{row[name]:>8,}" for name in OUTCOMES)
