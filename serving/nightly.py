"""What a worker does every night: yesterday of every channel, and what was missed before it.

Which days are due follows from the days that are finished and from those that failed, never from
what this process remembers: a clock that jumps, a worker that dies or a night that fails loses no
day and runs none twice. A failed day is written down in `days/TENANT/CHANNEL/DATE/failed.json`,
told once a night for each cause, and tried again until it is done.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foundation.errors import RiskfmError
from serving.daily import FAILED, Outcome, run_days
from serving.daily_settings import daily_channels, daily_settings, days_root
from serving.daily_steps import STEPS, Facts, finished_days
from serving.delivery import Delivery
from serving.durable import place_file
from serving.notices import tell
from serving.progress import Reporter

CATCH_UP_DAYS = 62
RETRY = dt.timedelta(minutes=30)
# Less is a clock being set right.
JUMP = dt.timedelta(hours=1)
FAILURE = "failed.json"
_ENTITY = re.compile(r"entity '[^']*'")


def elapsed() -> float:
    """Seconds that really passed, asleep or awake; no change of the wall clock moves them."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Schedule:
    """What a worker does every day from a time on.

    Args:
        at: time of day, UTC. Days are of UTC too.
        elapsed: seconds that really passed, to tell a jump of the clock from a night.
    """

    def __init__(
        self, at: dt.time, reporter: Reporter, elapsed: Callable[[], float] = elapsed
    ) -> None:
        self.at, self.reporter, self._elapsed = at, reporter, elapsed
        self._seen: tuple[dt.datetime, float] | None = None
        self._ahead = dt.timedelta(0)
        self._settled: dt.date | None = None
        self._failed: dt.datetime | None = None

    def __call__(self, delivery: Delivery, now: dt.datetime | None = None) -> list[Outcome]:
        """Run what is due at a moment (None: this one); nothing where nothing is.

        Never raises for a day that fails: that is tried again half an hour later.
        """
        now = now or dt.datetime.now(dt.UTC)
        jumped = self._jumped(now)
        yesterday = now.date() - dt.timedelta(days=1)
        if now.time() < self.at or self._rests(now, yesterday):
            return []
        out: list[Outcome] = []
        for tenant, channel in daily_channels(delivery.workspace, delivery.registry):
            ended = self._channel(delivery, tenant, channel, yesterday, jumped)
            out += ended
            for each in ended:
                for line in each.lines or (f"{each.date} {tenant}/{channel}: {each.error}",):
                    self.reporter.say(line)
        failed = any(each.state == FAILED for each in out)
        self._failed, self._settled = (now, None) if failed else (None, yesterday)
        return out

    def _channel(
        self, delivery: Delivery, tenant: str, channel: str, yesterday: dt.date, patient: bool
    ) -> list[Outcome]:
        """Every day that is due; what fails is told and keeps the other channels from nothing."""
        root = days_root(delivery.workspace, tenant, channel)
        first = due_from(root, yesterday)
        if first > yesterday:
            return []
        here = [(tenant, channel)]
        try:
            ended = run_days(delivery, first, yesterday, self.reporter, here, patient)
        except RiskfmError as exc:  # settings that cannot be read, a clock that just went back
            ended = [Outcome(first, tenant, channel, FAILED, (), "", str(exc), exc.exit_code)]
        for each in ended:
            if each.state == FAILED:
                note_failure(delivery, each, yesterday)
            else:
                (root / str(each.date) / FAILURE).unlink(missing_ok=True)
        return ended

    def _rests(self, now: dt.datetime, yesterday: dt.date) -> bool:
        """Whether everything was run up to yesterday, or failed less than half an hour ago."""
        if self._failed is not None:
            return self._failed <= now < self._failed + RETRY
        return self._settled == yesterday

    def _jumped(self, now: dt.datetime) -> bool:
        """Whether the clock stands ahead of the time that really passed since the beginning."""
        passed = self._elapsed()
        if self._seen is not None:
            step = (now - self._seen[0]) - dt.timedelta(seconds=passed - self._seen[1])
            before = self._ahead
            if abs(step) >= JUMP:
                self._ahead = max(dt.timedelta(0), before + step)
            if self._ahead > before:
                self.reporter.say(
                    f"the clock jumped forward by {step}: days without a folder wait; restart the "
                    "worker if the clock is right now"
                )
        self._seen = (now, passed)
        return self._ahead >= JUMP


def due_from(root: Path, yesterday: dt.date) -> dt.date:
    """First day to run, within the last two months: the first that failed, or the one after the
    last finished day."""
    over = [date for date in finished_days(root, STEPS[-1]) if date <= yesterday]
    failed = [date for date in finished_days(root, FAILURE) if date <= yesterday]
    after = over[-1] + dt.timedelta(days=1) if over else yesterday
    return max(min([after, *failed]), yesterday - dt.timedelta(days=CATCH_UP_DAYS))


def note_failure(delivery: Delivery, failed: Outcome, night: dt.date) -> Facts:
    """Write a failed day down and tell people, once a night for each cause.

    A day that waits for its files is told at its second try: files often come late.

    Args:
        night: the last day that was due.
    Returns:
        what stands in `failed.json`: `step`, `error`, `action`, `tries`, `told`.
    """
    root = days_root(delivery.workspace, failed.tenant, failed.channel)
    path = root / str(failed.date) / FAILURE
    before = _read(path)
    message = failure_message(failed, night)
    tries = before.get("tries", 0) + 1
    record = {
        "step": failed.step, "error": failed.error, "action": message["action"], "tries": tries,
        "told": before.get("told", {}), "told_id": before.get("told_id", ""),
    }  # fmt: skip
    waits = failed.step == STEPS[0] and tries == 1
    if not waits and record["told_id"] != message["id"]:
        try:
            notices = daily_settings(delivery.workspace, failed.tenant, failed.channel).notices
            record |= {"told": tell(notices, message, None, True), "told_id": message["id"]}
        except RiskfmError as exc:
            record["told"] = {"error": str(exc)}
    path.parent.mkdir(parents=True, exist_ok=True)
    place_file(path, json.dumps(record, indent=1, sort_keys=True).encode())
    return record


def failure_message(failed: Outcome, night: dt.date) -> Facts:
    """What is sent of a day that failed: the day, the step, the cause, what to do; no customer."""
    error = _ENTITY.sub("an entity", failed.error)
    where = f"--tenant {failed.tenant} --channel {failed.channel}"
    again = f"riskfm daily --date {failed.date} {where}"
    action = (
        f"mend what is named above; the worker tries every {RETRY.seconds // 60} minutes and runs "
        f"the days after it then, or run at once: {again}"
    )
    if failed.exit_code == 1:
        action = f"read the worker's log and make sure the machine is well; {action}"
    step = failed.step or "begin"
    subject = f"riskfm {failed.tenant}/{failed.channel} {failed.date}: failed at step {step}"
    parts = [failed.tenant, failed.channel, str(failed.date), step, error, str(night)]
    return {
        "id": hashlib.sha256(json.dumps(["failure", *parts]).encode()).hexdigest()[:24],
        "kind": "failure",
        "tenant": failed.tenant,
        "channel": failed.channel,
        "date": str(failed.date),
        "step": step,
        "subject": subject,
        "error": error,
        "action": action,
        "lines": [subject, error, f"to do: {action}"],
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
