"""What a worker does at night: nights that fail, clocks that jump; no day lost, none twice."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from foundation.store import EventStore
from serving import daily, notices
from serving.daily import DONE, read_time
from serving.daily_settings import days_root
from serving.daily_steps import Day
from serving.delivery import Delivery
from serving.nightly import FAILURE, Schedule, due_from, failure_message
from serving.progress import Reporter
from tests.journeys.daily_world import DailyWorld, own_day, ran, set_again, settled
from tests.journeys.delivered import content
from tests.serving.fake_clock import Clock
from tests.serving.listeners import webhook

QUIET = {"psi": 100.0, "input_psi": 100.0}
HOUR = 3600.0


class Night:
    """A schedule, the wall clock it reads and the time that really passes."""

    def __init__(self, delivery: Delivery) -> None:
        self.delivery, self.passed = delivery, 0.0
        self.said: list[str] = []
        reporter = Reporter(True)
        reporter.say = self.said.append  # type: ignore[method-assign]
        self.schedule = Schedule(read_time("02:00"), reporter, lambda: self.passed)

    def at(self, day: int, hour: int, minute: int = 0, after: float | None = None) -> list[str]:
        """What is run at a moment of June; `after` hours that really passed."""
        now = dt.datetime(2024, 6, 1, hour, minute, tzinfo=dt.UTC) + dt.timedelta(days=day - 1)
        self.passed += (24.0 if after is None else after) * HOUR
        return [f"{o.date.day} {o.state}" for o in self.schedule(self.delivery, now)]


def days(delivery: Delivery) -> Path:
    return days_root(delivery.workspace, "acme", "loans")


def failure(delivery: Delivery, day: int) -> dict[str, object]:
    path = days(delivery) / f"2024-06-{day:02d}" / FAILURE
    return dict(json.loads(path.read_text(encoding="utf-8")))


def test_a_failed_night_is_told_and_the_next_one_catches_up(
    daily_world: DailyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "WAIT_SECONDS", 0.0)
    with webhook(200) as (url, got):
        told = {"timeout_seconds": 5, "tries": 1, "webhook": url}
        delivery = settled(daily_world, tmp_path, days=8, bounds=QUIET, notices=told)
        folder = own_day(tmp_path, dt.date(2024, 6, 4))
        whole = (folder / "labels.parquet").read_bytes()
        (folder / "labels.parquet").write_bytes(whole[:-20])
        night = Night(delivery)
        assert night.at(5, 2) == ["4 failed"]  # the very first night, nothing finished before
        assert [body["kind"] for _, body in got] == ["failure"]
        body = got[0][1]
        assert (body["step"], body["date"], body["channel"]) == ("labels", "2024-06-04", "loans")
        assert "labels.parquet" in body["error"]
        assert "riskfm daily --date 2024-06-04 --tenant acme --channel loans" in body["action"]
        assert body["lines"][0] == body["subject"]
        assert night.at(5, 2, 31, after=0.52) == ["4 failed"]
        assert len(got) == 1  # the same cause in the same night is told once
        assert failure(delivery, 4)["tries"] == 2
        assert night.at(6, 2) == ["4 failed"]
        assert len(got) == 2  # another night: told again
        (folder / "labels.parquet").write_bytes(whole)
        assert night.at(7, 2) == ["4 done", "5 done", "6 done"]
        assert [body["kind"] for _, body in got[2:]] == ["day"] * 3
    assert not list(days(delivery).glob(f"*/{FAILURE}"))


def test_files_that_come_late_are_told_at_the_second_try(
    daily_world: DailyWorld, tmp_path: Path
) -> None:
    with webhook(200) as (url, got):
        told = {"timeout_seconds": 5, "tries": 1, "webhook": url}
        delivery = settled(daily_world, tmp_path, days=3, bounds=QUIET, notices=told)
        night = Night(delivery)
        assert night.at(5, 2) == ["4 failed"]
        assert got == []
        assert night.at(5, 2, 30, after=0.5) == ["4 failed"]
        assert [(b["step"], b["date"]) for _, b in got] == [("opened", "2024-06-04")]


def test_a_hole_is_caught_up_and_broken_settings_stop_nobody(
    daily_world: DailyWorld, tmp_path: Path
) -> None:
    delivery = settled(daily_world, tmp_path, days=6, bounds=QUIET)
    root = days(delivery)
    (root / "2024-06-03").mkdir(parents=True)
    (root / "2024-06-03" / FAILURE).write_text("{}")
    (root / "2024-06-05" / "told").mkdir(parents=True)
    assert due_from(root, dt.date(2024, 6, 6)) == dt.date(2024, 6, 3)
    shutil.rmtree(root / "2024-06-05")
    shutil.rmtree(root / "2024-06-03")
    kept = (root / "settings.json").read_text()
    (root / "settings.json").write_text(kept.replace("bounds", "bouns"))
    night = Night(delivery)
    assert night.at(5, 2) == ["4 failed"]
    assert "did you mean" in night.said[-1]
    (root / "settings.json").write_text(kept)
    assert night.at(6, 2) == ["4 done", "5 done"]


def test_what_is_told_names_no_customer() -> None:
    failed = daily.Outcome(
        dt.date(2024, 6, 4), "acme", "loans", daily.FAILED, (), "labels",
        "labels.parquet, rows 3 and 9: entity 'k-17' at 2024-06-01 has two labels", 2,
    )  # fmt: skip
    message = failure_message(failed, dt.date(2024, 6, 4))
    assert "k-17" not in json.dumps(message)
    assert "rows 3 and 9: an entity at 2024-06-01" in message["error"]


def test_a_months_last_day_merges_the_files_of_the_store(
    daily_world: DailyWorld, tmp_path: Path
) -> None:
    delivery = settled(daily_world, tmp_path, bounds=QUIET)

    def files() -> int:
        store = EventStore.open(tmp_path / "store")
        return sum(len(store.files(name)) for name in store.table_names())

    ran(delivery, dt.date(2024, 6, 28), 2)
    before, held = files(), rows(tmp_path)
    ran(delivery, dt.date(2024, 6, 30))
    assert files() < before
    assert rows(tmp_path) > held
    store = EventStore.open(tmp_path / "store")
    assert sum(len(f) for f in store.at(store.version - 1).frames().values()) == held


def straight(world: DailyWorld, root: Path) -> tuple[dict[str, bytes], int]:
    """Days 4 to 6 as an undisturbed clock runs them: what they wrote, rows in the store."""
    root.mkdir()
    delivery = settled(world, root, days=6, bounds=QUIET)
    night = Night(delivery)
    assert [night.at(day, 2) for day in (5, 6, 7)] == [["4 done"], ["5 done"], ["6 done"]]
    return content(days(delivery)), rows(root)


def rows(root: Path) -> int:
    return sum(len(f) for f in EventStore.open(root / "store").frames().values())


def test_clock_jumps_between_nights_and_inside_them_change_nothing(
    daily_world: DailyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "place"  # paths stand in the facts of days: both runs use the same one
    wanted, stored = straight(daily_world, place)
    place.rename(tmp_path / "aside")
    place.mkdir()
    delivery = settled(daily_world, place, days=6, bounds=QUIET)
    night, clock = Night(delivery), Clock(monkeypatch)
    jumps = iter([{"hours": -1}, {"days": 31}, {"hours": -1}, {"days": -31}] * 6)
    for step, plain in list(daily._STEPS.items()):

        def jumping(day: Day, plain=plain):  # type: ignore[no-untyped-def]
            clock.jump(**next(jumps))
            return plain(day)

        monkeypatch.setitem(daily._STEPS, step, jumping)
    assert night.at(5, 2) == ["4 done"]
    assert night.at(5, 1, after=0.1) == []  # back an hour: nothing twice
    assert night.at(5, 2, 5, after=1.0) == []
    assert night.at(36, 2, after=0.1) == ["5 done", "6 done", "7 failed"]  # a month forward
    assert any("the clock jumped forward by 30 days" in line for line in night.said)
    assert night.at(6, 2, after=24.0) == []  # and back: what is done is done
    assert night.at(7, 2) == [] and night.at(8, 2) == ["7 failed"]  # its files are not there yet
    shutil.rmtree(days(delivery) / "2024-06-07")
    assert content(days(delivery)) == wanted
    assert rows(place) == stored


def test_days_that_may_be_skipped_are_not_skipped_by_a_jump(
    daily_world: DailyWorld, tmp_path: Path
) -> None:
    delivery = settled(daily_world, tmp_path, days=4, bounds=QUIET, missing="skip")
    night = Night(delivery)
    assert night.at(5, 2) == ["4 done"]
    # A month in an hour: no day without files is closed, since none of them was.
    assert night.at(36, 3, after=1.0) == ["5 failed"]
    assert "jumped forward" in str(failure(delivery, 5)["error"])
    assert due_from(days(delivery), dt.date(2024, 6, 5)) == dt.date(2024, 6, 5)
    # The clock is set right; the night comes, the day had no files and is skipped as set.
    assert night.at(6, 2, after=24.0) == [f"5 {DONE}"]
    set_again(delivery, tmp_path, bounds=QUIET)
    labels = [pl.read_parquet(p) for p in days(delivery).glob("*/labels/labels.parquet")]
    assert len(labels) == 2
