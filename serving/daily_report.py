"""Steps `report` and `told` of a day: page and numbers, at a month's end the month's too."""

from __future__ import annotations

import calendar
import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec

from serving.bounds import crossed, unjudged
from serving.daily_figures import month_figures, read_numbers
from serving.daily_page import render
from serving.daily_steps import Day, Facts
from serving.durable import place_directory
from serving.notices import tell


def report(day: Day) -> Facts:
    """`report.html` and `report.json`; on the last day of a month `month.html` and `month.json`."""

    def make(folder: Path) -> Facts:
        judged = day.facts("judged")
        document = {
            "numbers": read_numbers(day),
            "today": {"date": str(day.date), **day.facts("measured")},
            **judged,
            **_bounds(day),
        }
        _write(folder, "report", document)
        if not last_of_month(day):
            return {"month": None}
        numbers = month_figures(day)
        bounds = day.settings().bounds
        month = {
            "numbers": numbers,
            "alerts": crossed(numbers, bounds),
            "unjudged": unjudged(numbers, bounds),
            "retrain": None,
            **_bounds(day),
        }
        _write(folder, "month", month)
        return {"month": numbers["month"]}

    return place_directory(day.out("report"), make, "day.report")


def told(day: Day) -> Facts:
    """Webhook and e-mail; what fails is written down and fails nothing."""

    def make(folder: Path) -> Facts:
        judged, made = day.facts("judged"), day.facts("report")
        settings = day.settings()
        page = day.out("report") / "report.html"
        urgent = bool(judged["alerts"])
        facts: Facts = {"day": tell(settings.notices, message(day), page, urgent)}
        if made["month"]:
            page = day.out("report") / "month.html"
            facts["month"] = tell(settings.notices, month_message(day), page, True)
        return facts

    return place_directory(day.out("told"), make, "day.told")


def message(day: Day) -> Facts:
    """What is sent of a day: counts, figures and sentences, no customer."""
    judged, figures = day.facts("judged"), day.facts("measured")
    lines = summary(day)
    job = judged["retrain"]["job"] if judged["retrain"] else None
    return {
        "id": _id(day, "day"),
        "kind": "day",
        "tenant": day.tenant,
        "channel": day.channel,
        "date": str(day.date),
        "subject": f"riskfm {day.tenant}/{day.channel} {day.date}: {len(judged['alerts'])} alerts",
        "alerts": judged["alerts"],
        "unjudged": judged["unjudged"],
        "job": job,
        "figures": figures,
        "lines": lines,
    }


def month_message(day: Day) -> Facts:
    """What is sent of a month."""
    path = day.out("report") / "month.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    numbers = document["numbers"]
    alerts = numbers["alerts_by_day"]
    title = f"riskfm {day.tenant}/{day.channel} {numbers['month']}: {len(alerts)} alerts"
    lines = [
        title,
        f"{numbers['days_run']} of {numbers['days_of_month']} days run",
        *(f"{a['date']}: {a['sentence']}" for a in alerts),
    ]
    return {
        "id": _id(day, "month"),
        "kind": "month",
        "tenant": day.tenant,
        "channel": day.channel,
        "month": numbers["month"],
        "subject": title,
        "alerts": alerts,
        "unjudged": document["unjudged"],
        "jobs": numbers["jobs"],
        "lines": lines,
    }


def summary(day: Day) -> list[str]:
    """A day in a few lines, for a terminal and an e-mail."""
    judged, figures = day.facts("judged"), day.facts("measured")
    psi = "" if figures["psi"] is None else f", PSI {figures['psi']:.3f} (n = {figures['n']:,})"
    ks = ""
    if figures["ks"] is not None:
        ks = f", KS {figures['ks']:.3f} on {figures['matured']:,} labels, {figures['bads']:,} bad"
    lines = [
        f"{day.date} {day.tenant}/{day.channel}: {figures['decided']:,} decided, "
        f"{figures['labels']:,} labels{psi}{ks}"
    ]
    lines += [f"alert {a['bound']}: {a['sentence']}" for a in judged["alerts"]]
    retrain = judged["retrain"]
    if retrain and retrain["job"]:
        lines.append(f"job {retrain['job']}: {retrain['n']:,} labels handed in for a new delivery")
    elif retrain:
        lines.append(f"no new delivery: {retrain['why']}")
    return lines


def last_of_month(day: Day) -> bool:
    """Whether the day ends a calendar month."""
    return day.date.day == calendar.monthrange(day.date.year, day.date.month)[1]


def _bounds(day: Day) -> Facts:
    return {"bounds": msgspec.structs.asdict(day.settings().bounds)}


def _id(day: Day, kind: str) -> str:
    """The same for the same report, however often it is sent."""
    text = json.dumps([kind, day.tenant, day.channel, str(day.date), day.facts("measured")])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _write(folder: Path, name: str, document: dict[str, Any]) -> None:
    text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    (folder / f"{name}.json").write_text(text, encoding="utf-8")
    (folder / f"{name}.html").write_text(render("daily.html.j2", document), encoding="utf-8")
