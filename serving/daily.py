"""The daily run: any day of any channel, once; a back-fill over many.

A day is over once its last step is finished; running it again finds everything and changes
nothing. A day that fails leaves its finished steps, and the channel waits there: the days after it
build on its labels. One process at a time runs a channel's days.
"""

from __future__ import annotations

import datetime as dt
import errno
import fcntl
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from foundation.errors import RiskfmError, UserError
from serving import daily_figures, daily_report, daily_steps
from serving.daily_settings import daily_channels, daily_settings
from serving.daily_steps import STEPS, Day, Facts, incoming_digests
from serving.delivery import Delivery
from serving.durable import fault_point, whole_directory
from serving.progress import Reporter

DONE, BEFORE, FAILED = "done", "done before", "failed"
_STEPS: dict[str, Callable[[Day], Facts]] = {
    "opened": daily_steps.opened,
    "events": daily_steps.events,
    "labels": daily_steps.labels,
    "scored": daily_steps.scored,
    "measured": daily_figures.measured,
    "judged": daily_figures.judged,
    "report": daily_report.report,
    "told": daily_report.told,
}


@dataclass(frozen=True)
class Outcome:
    """How a day of a channel ended.

    Attributes:
        state: `done`, `done before` or `failed`.
        lines: for people. step, error, exit_code: of a failed day; step is empty before the first.
        job: a delivery that was handed in.
    """

    date: dt.date
    tenant: str
    channel: str
    state: str
    lines: tuple[str, ...] = ()
    step: str = ""
    error: str = ""
    exit_code: int = 0
    job: str = ""


def run_days(
    delivery: Delivery,
    first: dt.date,
    last: dt.date,
    reporter: Reporter,
    channels: Sequence[tuple[str, str]] | None = None,
    patient: bool = False,
) -> list[Outcome]:
    """Run days `first` to `last` of some channels (None: of all that have a daily run).

    Args:
        patient: a day without a folder waits, even where the settings would skip it.
    Returns:
        what became of each; after a failed day a channel's later days are not run.
    Raises:
        UserError: no channel has a daily run, a day is not over yet, or the days lie backwards.
    """
    if last < first:
        raise UserError(f"--to {last} lies before --date {first}")
    today = dt.datetime.now(dt.UTC).date()
    if last >= today:
        raise UserError(
            f"{last} is not over yet (UTC); the last day that can run is before {today}"
        )
    if channels is None:
        channels = daily_channels(delivery.workspace, delivery.registry)
    if not channels:
        raise UserError(
            "no channel has a daily run; set one with riskfm channel daily --tenant T --channel C "
            "--incoming 'incoming/{date}'"
        )
    for tenant, channel in channels:
        daily_settings(delivery.workspace, tenant, channel)
    out: list[Outcome] = []
    stopped: set[tuple[str, str]] = set()
    dates = [first + dt.timedelta(days=n) for n in range((last - first).days + 1)]
    for date in dates:
        for tenant, channel in channels:
            if (tenant, channel) in stopped:
                continue
            ended = run_day(Day(delivery, tenant, channel, date, reporter, patient))
            out.append(ended)
            if ended.state == FAILED:
                stopped.add((tenant, channel))
    return out


def run_day(day: Day) -> Outcome:
    """One day of one channel, every step in order; what is finished is found."""
    about: dict[str, Any] = {"date": day.date, "tenant": day.tenant, "channel": day.channel}
    step = ""
    try:
        with _alone(day):
            over = all(whole_directory(day.out(each)) is not None for each in STEPS)
            if not over:
                day.out("opened").parent.mkdir(parents=True, exist_ok=True)
                for step in STEPS:
                    _STEPS[step](day)
                    fault_point(f"day.{step}.after")
                    if step == "events" and daily_report.last_of_month(day):
                        _merge_files(day)
            lines = tuple(daily_report.summary(day) + _sent(day) + (_changed(day) if over else []))
            retrain = day.facts("judged")["retrain"]
    except RiskfmError as exc:
        return Outcome(**about, state=FAILED, step=step, error=str(exc), exit_code=exc.exit_code)
    except OSError as exc:
        room = "make room on the disk, then " if exc.errno == errno.ENOSPC else ""
        error = f"{exc}; {room}run the day again, it continues where it stopped"
        return Outcome(**about, state=FAILED, step=step, error=error, exit_code=1)
    except Exception as exc:
        error = f"internal error: {type(exc).__name__}: {exc}"
        return Outcome(**about, state=FAILED, step=step, error=error, exit_code=1)
    job = retrain["job"] if retrain and retrain["job"] else ""
    return Outcome(**about, state=BEFORE if over else DONE, lines=lines, job=job)


def _merge_files(day: Day) -> None:
    """A month of small files merged; the rows stay, so it is no step with a result."""
    from foundation.compaction import compact

    with day.reporter.bar("compact") as bar:
        summary = compact(day.facts("opened")["store"], progress=bar)
    day.reporter.say(f"store: {summary.line()}")


def _sent(day: Day) -> list[str]:
    """Notices that did not get through."""
    return [
        f"{way} of the {what} not sent: {answer['error']} ({answer['tries']} tries)"
        for what, ways in day.facts("told").items()
        for way, answer in ways.items()
        if not answer["sent"]
    ]


def _changed(day: Day) -> list[str]:
    """A word where a finished day's files are not what they were."""
    gone = not day.folder().is_dir()  # put away since, which is nobody's mistake
    if gone or incoming_digests(day.folder()) == day.facts("opened")["files"]:
        return []
    return [
        f"{day.folder()} changed since the day was run and was not read again: corrections belong "
        "in the folder of a later day"
    ]


@contextmanager
def _alone(day: Day) -> Iterator[None]:
    """Hold the channel's days; the lock goes with the process.

    Raises:
        UserError: another process runs them.
    """
    day.root.mkdir(parents=True, exist_ok=True)
    handle = os.open(day.root / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process runs the days of {day.tenant}/{day.channel}; try again later"
            ) from None
        yield
    finally:
        os.close(handle)


def read_time(text: str) -> dt.time:
    """A time of day such as 02:00.

    Raises:
        UserError: it is none.
    """
    if not re.fullmatch(r"\d{2}:\d{2}", text):
        raise UserError(f"--daily-at '{text}' is no time of day; write 02:00 (UTC)")
    try:
        return dt.time.fromisoformat(text)
    except ValueError:
        raise UserError(f"--daily-at '{text}' is no time of day; write 02:00 (UTC)") from None


def read_day(option: str, text: str) -> dt.date:
    """A day such as 2024-06-01.

    Raises:
        UserError: it is none.
    """
    try:
        return dt.date.fromisoformat(text)
    except ValueError:
        raise UserError(f"{option} '{text}' is no day; write 2024-06-01") from None
