"""The daily run on a synthetic lender: a month, repeats, kills, late files, drift, notices."""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner, Result

from foundation.errors import UserError
from foundation.store import EventStore, import_events
from serving.cli import cli
from serving.daily import read_time, run_days
from serving.daily_settings import days_root, set_daily
from serving.delivery import Delivery
from serving.nightly import Schedule, due_from
from serving.progress import Reporter
from tests.contracts.tree import ROOT
from tests.journeys.daily_world import (
    DailyWorld,
    own_day,
    plant_drift,
    ran,
    set_again,
    settled,
)
from tests.journeys.delivered import content
from tests.serving.listeners import webhook

FOURTH, FIFTH, SIXTH = (dt.date(2024, 6, d) for d in (4, 5, 6))
QUIET = {"psi": 100.0, "input_psi": 100.0}
ALARMED = {"psi": 0.25, "input_psi": 0.25, "min_samples": 30}
WORKER = """
import datetime as dt, os, sys
import finetune.package, serving.daily, serving.scored_rows, serving.monitoring
from serving.daily import run_days
from serving.delivery import Delivery
from serving.nightly import Schedule, due_from
from serving.progress import Reporter
first, last = (dt.date.fromisoformat(a) for a in sys.argv[2:4])
for fault in sys.argv[4:]:
    child = os.fork()
    if not child:
        os.environ["RISKFM_FAULT"] = fault
        run_days(Delivery.open(sys.argv[1]), first, last, Reporter(True))
        os._exit(0)
    print(fault, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def days(delivery: Delivery) -> Path:
    return days_root(delivery.workspace, "acme", "loans")


def read(delivery: Delivery, date: dt.date, file: str) -> Any:
    return json.loads((days(delivery) / str(date) / file).read_text(encoding="utf-8"))


def command(delivery: Delivery, *words: str) -> Result:
    place = ["--workspace", str(delivery.workspace.root), "--quiet"]
    return CliRunner().invoke(cli, [words[0], *place, *words[1:]])


def made(delivery: Delivery) -> dict[str, bytes]:
    """Everything the daily run wrote."""
    return {
        f"{name}/{file}": data
        for name in ("days", "references", "samples")
        for file, data in content(delivery.workspace.root / name).items()
    }


@pytest.mark.timeout(900)
def test_a_month_in_one_command(daily_world: DailyWorld, tmp_path: Path) -> None:
    delivery = settled(daily_world, tmp_path, bounds=QUIET)
    answer = command(delivery, "daily", "--date", "2024-06-01", "--to", "2024-06-30")
    assert answer.exit_code == 0, answer.output
    assert len([line for line in answer.output.splitlines() if line.startswith("2024-06-")]) == 30
    incoming = sorted(daily_world.incoming.glob("2024-06-*"))
    labels = pl.concat([pl.read_parquet(f / "labels.parquet") for f in incoming])
    decided = pl.concat([pl.read_parquet(f / "applications.parquet") for f in incoming])
    document = read(delivery, dt.date(2024, 6, 30), "report/month.json")
    numbers = document["numbers"]
    assert (numbers["month"], numbers["days_run"]) == ("2024-06", 30)
    assert numbers["book"]["labels"] == len(labels) == sum(d["labels"] for d in numbers["days"])
    assert numbers["drift"]["n"] == len(decided) == sum(d["decided"] for d in numbers["days"])
    came = numbers["realised"]
    assert (came["n"], came["bads"]) == (len(labels), labels["label"].sum())
    assert numbers["forecasts"]
    assert not list(days(delivery).glob("*/report/month.html"))[1:]
    world = daily_world.root / "store"
    grown = sum(len(f) for f in EventStore.open(tmp_path / "store").frames().values())
    stored = sum(
        t["stored"] for n in range(30) for t in read(
            delivery, dt.date(2024, 6, 1) + dt.timedelta(days=n), "events/record.json"
        )["facts"]["tables"].values()
    )  # fmt: skip
    profiles = len(EventStore.open(tmp_path / "store").profile()) - len(
        EventStore.open(world).profile()
    )
    assert (
        grown - sum(len(f) for f in EventStore.open(world).frames().values()) + profiles == stored
    )
    store = EventStore.open(tmp_path / "store")
    for name in store.table_names():  # the month's end merged what its days appended
        assert store.files(name).group_by("bucket").len()["len"].max() == 1
    page = (days(delivery) / "2024-06-30" / "report" / "month.html").read_text(encoding="utf-8")
    assert "http" not in page.replace("http-equiv", "")
    assert len(page) < 200_000
    before = made(delivery)
    again = command(delivery, "daily", "--date", "2024-06-01", "--to", "2024-06-30")
    assert again.exit_code == 0, again.output
    assert again.output.count("(done before)") >= 30
    assert made(delivery) == before


FAULTS = (
    "day.opened", "day.opened.after", "day.events", "day.labels", "day.reference", "day.scored",
    "day.measured", "day.judged", "day.report", "day.told", "day.told.after",
)  # fmt: skip


def killed(root: Path, first: dt.date, last: dt.date, faults: Sequence[str]) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", WORKER, str(root), str(first), str(last), *faults],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {line.split()[0]: int(line.split()[1]) for line in done.stdout.splitlines()}


def test_killed_anywhere_a_day_ends_the_same(daily_world: DailyWorld, tmp_path: Path) -> None:
    place, aside = tmp_path / "place", tmp_path / "aside"
    place.mkdir()
    delivery = settled(daily_world, place, bounds=ALARMED, retrain={"when": ["input_psi"]})
    plant_drift(place, FIFTH)
    ran(delivery, FOURTH, 3)
    whole, jobs = made(delivery), [j.id for j in delivery.book.all()]
    assert len(jobs) == 2
    place.rename(aside)
    place.mkdir()
    delivery = settled(daily_world, place, bounds=ALARMED, retrain={"when": ["input_psi"]})
    plant_drift(place, FIFTH)
    assert killed(delivery.workspace.root, FOURTH, SIXTH, FAULTS) == dict.fromkeys(
        FAULTS, -signal.SIGKILL
    )
    ran(delivery, FOURTH, 3)
    resumed = made(delivery)
    assert resumed.keys() == whole.keys()
    assert [name for name in whole if resumed[name] != whole[name]] == []
    assert [j.id for j in delivery.book.all()] == jobs
    assert not [p for p in delivery.workspace.root.rglob(".*") if "part" in p.name]


def test_nothing_of_later_days_is_used(daily_world: DailyWorld, tmp_path: Path) -> None:
    """Files, events and labels of later days are at hand, and change nothing."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plain = settled(daily_world, tmp_path / "a", days=6, bounds=QUIET)
    ran(plain, FIFTH, 2)
    ahead = settled(daily_world, tmp_path / "b", bounds=QUIET)
    for n in (7, 8, 27):
        folder = daily_world.incoming / f"2024-06-{n:02d}"
        import_events(folder / "schema.yaml", tmp_path / "b" / "store")
    ran(ahead, dt.date(2024, 6, 27))
    ran(ahead, FIFTH, 2)
    for date in (FIFTH, SIXTH):
        for step in ("labels", "scored"):
            first, second = (content(days(d) / str(date) / step) for d in (plain, ahead))
            assert first == second
        found = [read(d, date, "measured/numbers.json") for d in (plain, ahead)]
        for numbers in found:
            del numbers["intake"]["events"]["version"]
        assert found[0] == found[1]
        assert found[0]["forecasts"]
    assert found[0]["book"]["labels"] == 2


def test_planted_drift_alerts_and_queues_a_delivery(
    daily_world: DailyWorld, tmp_path: Path
) -> None:
    delivery = settled(daily_world, tmp_path, bounds=ALARMED, retrain={"when": ["input_psi"]})
    plant_drift(tmp_path, FIFTH)
    (outcome,) = ran(delivery, FIFTH)
    alerts = {a["bound"]: a for a in read(delivery, FIFTH, "report/report.json")["alerts"]}
    assert "input_psi" in alerts
    drifted = read(delivery, FIFTH, "measured/numbers.json")["drift"]["inputs"]
    amount = next(i for i in drifted if i["name"].startswith("context.amount"))
    assert amount["psi"] > 1
    assert amount["grown_to"] == 1.0
    job = delivery.book.get(outcome.job)
    assert (job.state, job.who) == ("queued", "daily run")
    assert job.created_at == "2024-06-06T00:00:00+00:00"
    handed = pl.read_parquet(delivery.workspace.root / job.request["samples"]["file"])
    before = pl.read_parquet(daily_world.root / "samples.parquet")
    assert len(handed) == len(before) + 1  # one label matured on the day
    assert handed["label_known_at"].max().replace(tzinfo=None) < dt.datetime(2024, 6, 6)
    assert "daily run" in delivery.registry.makers(job.id)
    number = len(delivery.book.all())
    assert ran(delivery, FIFTH)[0].job == job.id
    (next_day,) = ran(delivery, SIXTH)
    assert next_day.job == ""
    assert any("a pause of 28 days follows" in line for line in next_day.lines)
    assert len(delivery.book.all()) == number
    assert delivery.registry.champion("acme", "loans").id == "acme/loans/1"


def test_labels_that_come_late_or_are_corrected(daily_world: DailyWorld, tmp_path: Path) -> None:
    delivery = settled(daily_world, tmp_path, bounds=QUIET)
    ran(delivery, FIFTH)
    came = pl.read_parquet(daily_world.incoming / str(FIFTH) / "labels.parquet")
    folder = own_day(tmp_path, SIXTH)
    today = pl.read_parquet(folder / "labels.parquet")
    corrected = came.with_columns(
        label=1 - pl.col("label"), label_known_at=pl.lit(dt.datetime(2024, 6, 6, 9))
    )
    late = today.with_columns(
        entity_id=pl.lit("synthetic-0000001"), label_known_at=pl.lit(dt.datetime(2024, 6, 3))
    )
    both = today.with_columns(entity_id=pl.lit("synthetic-0000002"))
    two = pl.concat([both, both.with_columns(label=1 - pl.col("label"))])
    future = today.with_columns(
        entity_id=pl.lit("synthetic-0000003"), label_known_at=pl.lit(dt.datetime(2024, 6, 7))
    )
    parts = [f.with_columns(pl.col("label").cast(pl.Int8)) for f in (corrected, late, two, future)]
    pl.concat([today, *parts], how="vertical_relaxed").write_parquet(folder / "labels.parquet")
    ran(delivery, SIXTH)
    document = read(delivery, SIXTH, "report/report.json")["numbers"]
    facts = document["intake"]["labels"]
    assert (facts["corrected"], facts["late"], facts["future"]) == (1, 1, 1)
    assert len(facts["conflicts"]) == 1
    row = len(today) + 3
    assert any(f"rows {row} and {row + 1} give one customer" in n for n in document["notes"])
    assert document["book"]["labels"] == len(came) + len(today) + 1
    old = read(delivery, FIFTH, "measured/numbers.json")["realised"]
    assert old["bads"] == came["label"].sum()
    # The day before stays as it was reported; its row stays in the book.
    first = pl.read_parquet(days(delivery) / str(FIFTH) / "labels" / "labels.parquet")
    assert first["label"].to_list() == came["label"].to_list()


def test_a_webhook_is_told_and_a_dead_one_stops_nothing(
    daily_world: DailyWorld, tmp_path: Path
) -> None:
    delivery = settled(daily_world, tmp_path, bounds=ALARMED, retrain={"when": []})
    plant_drift(tmp_path, FIFTH)
    notices = {"timeout_seconds": 5, "tries": 1}
    with webhook(200) as (url, got):
        set_again(
            delivery, tmp_path, bounds=ALARMED, retrain={"when": []},
            notices=notices | {"webhook": url},
        )  # fmt: skip
        ran(delivery, FIFTH)
        ran(delivery, FIFTH)
    assert len(got) == 1
    body = got[0][1]
    assert (body["kind"], body["date"]) == ("day", "2024-06-05")
    assert "input_psi" in {a["bound"] for a in body["alerts"]}
    assert "synthetic-0" not in json.dumps(body)
    (outcome,) = ran(delivery, SIXTH)
    assert "webhook of the day not sent: ConnectionRefusedError (1 tries)" in outcome.lines
    assert read(delivery, SIXTH, "told/record.json")["facts"]["day"]["webhook"]["sent"] is False
    assert read(delivery, SIXTH, "report/report.json")["alerts"]
    assert url not in json.dumps(read(delivery, SIXTH, "told/record.json"))


def test_days_wait_for_their_files_and_closed_days_stay(
    daily_world: DailyWorld, tmp_path: Path
) -> None:
    delivery = settled(daily_world, tmp_path, bounds=QUIET)
    (tmp_path / "incoming" / str(FIFTH)).unlink()
    answer = command(delivery, "daily", "--date", "2024-06-04", "--to", "2024-06-06")
    assert answer.exit_code == 2
    assert "2024-06-05: not there yet, so 2024-06-05 waits" in answer.output.replace("\n", " ")
    assert (days(delivery) / str(FOURTH) / "told").is_dir()
    assert not (days(delivery) / str(SIXTH)).exists()
    folder = daily_world.incoming / str(FIFTH)
    shutil.copytree(folder, tmp_path / "incoming" / str(FIFTH))
    ran(delivery, FIFTH)
    before = made(delivery)
    (tmp_path / "incoming" / str(FIFTH) / "labels.parquet").unlink()
    (outcome,) = ran(delivery, FIFTH)
    assert outcome.state == "done before"
    assert "corrections belong in the folder of a later day" in outcome.lines[-1]
    assert made(delivery) == before
    set_again(delivery, tmp_path, bounds=QUIET, missing="skip")
    (tmp_path / "incoming" / str(SIXTH)).unlink()
    ran(delivery, SIXTH)
    assert read(delivery, SIXTH, "events/record.json")["facts"]["tables"] == {}


def test_a_broken_file_stops_its_day_with_a_sentence_and_heals(
    daily_world: DailyWorld, tmp_path: Path
) -> None:
    delivery = settled(daily_world, tmp_path, bounds=QUIET)
    folder = own_day(tmp_path, FOURTH)
    whole = (folder / "labels.parquet").read_bytes()
    (folder / "labels.parquet").write_bytes(whole[:-20])
    answer = command(delivery, "daily", "--date", "2024-06-04")
    assert answer.exit_code == 2
    assert "labels.parquet" in answer.output
    version = EventStore.open(tmp_path / "store").version
    (folder / "labels.parquet").write_bytes(whole)
    ran(delivery, FOURTH)
    assert EventStore.open(tmp_path / "store").version == version  # imported once
    assert read(delivery, FOURTH, "labels/record.json")["facts"]["labels"]["conflicts"] == []


def test_what_cannot_be_run_is_said(daily_world: DailyWorld, tmp_path: Path) -> None:
    delivery = settled(daily_world, tmp_path, days=0)
    today = dt.datetime.now(dt.UTC).date()
    with pytest.raises(UserError, match="is not over yet"):
        run_days(delivery, today, today, Reporter(True))
    with pytest.raises(UserError, match="lies before"):
        run_days(delivery, FIFTH, FOURTH, Reporter(True))
    assert command(delivery, "daily", "--date", "June").exit_code == 2
    assert "no channel of acme/cards" in command(
        delivery, "daily", "--date", "2024-06-04", "--tenant", "acme", "--channel", "cards"
    ).output  # fmt: skip
    place = ["--workspace", str(delivery.workspace.root), "--by", "root"]
    given = ["channel", "daily", *place, "--tenant", "acme", "--channel", "loans"]
    wrong = CliRunner().invoke(cli, [*given, "--incoming", "incoming"])
    assert wrong.exit_code == 2
    assert "must hold {date}" in wrong.output
    written = CliRunner().invoke(cli, [*given, "--incoming", str(tmp_path / "{date}")])
    assert "daily run of acme/loans: written" in written.output
    again = CliRunner().invoke(cli, [*given, "--incoming", str(tmp_path / "{date}")])
    assert "nothing changed" in again.output
    told = [row["action"] for row in delivery.registry.history("acme", "loans")]
    assert told[-2:] == ["daily run set", "daily run set"]
    with pytest.raises(UserError, match="did you mean 'acme/loans'"):
        set_daily(delivery.workspace, delivery.registry, "acme", "loan", read_settings(), "root")
    assert CliRunner().invoke(cli, ["worker", *place[:2], "--daily-at", "02:00"]).exit_code == 2


def read_settings() -> Any:
    from serving.daily_settings import load_daily_settings

    return load_daily_settings(ROOT / "configs" / "delivery" / "daily.yaml")


def test_a_schedule_runs_yesterday_and_what_was_missed(
    daily_world: DailyWorld, tmp_path: Path
) -> None:
    delivery = settled(daily_world, tmp_path, days=6, bounds=QUIET)
    schedule = Schedule(read_time("02:00"), Reporter(True))

    def at(day: int, hour: int, minute: int = 0) -> list[str]:
        now = dt.datetime(2024, 6, day, hour, minute, tzinfo=dt.UTC)
        return [f"{o.date.day} {o.state}" for o in schedule(delivery, now)]

    assert at(4, 1, 59) == []
    assert at(4, 2) == ["3 done"]
    assert at(4, 2, 1) == []
    assert at(5, 1) == []
    assert at(7, 3) == ["4 done", "5 done", "6 done"]
    assert at(8, 3) == ["7 failed"]  # its files are not there yet
    assert at(8, 3, 29) == []
    os.symlink(daily_world.incoming / "2024-06-07", tmp_path / "incoming" / "2024-06-07")
    assert at(8, 3, 30) == ["7 done"]
    assert at(6, 3) == []  # a clock that jumps back makes nothing twice
    assert due_from(days(delivery), dt.date(2024, 6, 9)) == dt.date(2024, 6, 8)
    assert due_from(days(delivery), dt.date(2025, 6, 9)) == dt.date(2025, 4, 8)
    with pytest.raises(UserError, match="no time of day"):
        read_time("25:00")
