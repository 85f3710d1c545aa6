"""Calendar and gap columns beside an event's and a query's tokens.

Everything looks backward: an event's columns follow from its own time and from events known before
it, a query's from its as_of and from events known before that. Sines and cosines come out of
tables, so that an event has the same bytes whatever else is encoded with it.

Shapes: N events, S samples, n any number of moments. Times are int64 microseconds since the epoch,
UTC; calendar columns are in the time zone of the source (of the schema for queries).
"""

from __future__ import annotations

import datetime as dt
from functools import lru_cache

import numpy as np
import polars as pl

from foundation.history import DAY_US, Cut, Timeline

CALENDAR = (
    "hour_sin",
    "hour_cos",
    "weekday_sin",
    "weekday_cos",
    "day_of_month_sin",
    "day_of_month_cos",
    "month_sin",
    "month_cos",
)
EVENT_EXTRA = ("log_gap", "log_gap_of_source", "first_event", "first_of_source", *CALENDAR)
QUERY_EXTRA = (
    "log_since_last",
    "log_since_first",
    "log_events",
    "no_events",
    "few_events",
    *CALENDAR,
)
FEW_EVENTS = 5
_HOUR_US = 3_600_000_000
_SECOND_US = 1_000_000
# Logarithms are divided by that of a year, so that columns stay within about [0, 1.2].
_GAP_SCALE = float(np.log1p(365 * 86_400.0))
_COUNT_SCALE = float(np.log1p(1000.0))
# The Gregorian calendar repeats after 400 years, which are also whole weeks.
_CYCLE_DAYS = 146_097


def event_extra(timeline: Timeline, zones: tuple[str, ...], entity: np.ndarray) -> np.ndarray:
    """Columns `EVENT_EXTRA` of every event.

    Gaps are of event times, to the event known just before (of any source, of the same source);
    a late-arriving older event has gap zero. The first has gap zero and its flag set.

    Args:
        zones: IANA zone per source of the timeline's schema.
        entity: [N] the timeline's entity index of every event.

    Returns:
        [N, X] float32.
    """
    out = np.zeros((len(timeline), len(EVENT_EXTRA)), dtype=np.float32)
    first = np.zeros(len(timeline), dtype=bool)
    starts = timeline.offsets[:-1]
    first[starts[starts < timeline.offsets[1:]]] = True
    out[:, 0], out[:, 2] = _log_gaps(timeline.event_us, first), first
    for source, zone in enumerate(zones):
        rows = timeline.positions(source) if len(zones) > 1 else slice(None)
        at = timeline.event_us[rows]
        if not len(at):
            continue
        owner = entity[rows]
        first = np.ones(len(at), dtype=bool)
        np.not_equal(owner[1:], owner[:-1], out=first[1:])
        out[rows, 1], out[rows, 3] = _log_gaps(at, first), first
        out[rows, 4:] = calendar(at, zone)
    return out


def event_days(timeline: Timeline) -> np.ndarray:
    """[N] float32 days from the entity's first known event to the event, at least 0."""
    counts = np.diff(timeline.offsets)
    starts = timeline.offsets[:-1]
    first = timeline.event_us[starts[counts > 0]]
    since = timeline.event_us - np.repeat(first, counts[counts > 0])
    return _days(since)


def query_extra(timeline: Timeline, cut: Cut, zone: str) -> tuple[np.ndarray, np.ndarray]:
    """Days and columns `QUERY_EXTRA` of every sample, from its history alone.

    Returns:
        days: [S] float32 from the first known event to as_of, 0 without events.
        extra: [S, Y] float32.
    """
    count = cut.stop - cut.start
    some = count > 0
    since_first = np.zeros(len(cut), dtype=np.int64)
    since_last = np.zeros(len(cut), dtype=np.int64)
    since_first[some] = cut.as_of_us[some] - timeline.event_us[cut.start[some]]
    since_last[some] = cut.as_of_us[some] - timeline.event_us[cut.stop[some] - 1]
    extra = np.zeros((len(cut), len(QUERY_EXTRA)), dtype=np.float32)
    extra[:, 0], extra[:, 1] = _log_seconds(since_last), _log_seconds(since_first)
    extra[:, 2] = np.log1p(count.astype(np.float64)) / _COUNT_SCALE
    extra[:, 3], extra[:, 4] = ~some, count < FEW_EVENTS
    extra[:, 5:] = calendar(cut.as_of_us, zone)
    return _days(since_first), extra


def calendar(at_us: np.ndarray, zone: str) -> np.ndarray:
    """[n, 8] float32 columns `CALENDAR` of moments, on the clock of `zone`."""
    local = at_us + _offsets_us(at_us, zone)
    day = local // DAY_US
    hour = (local - day * DAY_US) // _HOUR_US
    hours, days = _calendar_tables()
    out = np.empty((len(at_us), len(CALENDAR)), dtype=np.float32)
    out[:, :2] = hours[hour]
    out[:, 2:] = days[day % _CYCLE_DAYS]
    return out


def _days(since_us: np.ndarray) -> np.ndarray:
    return (np.maximum(since_us, 0) / DAY_US).astype(np.float32)


def _log_gaps(at_us: np.ndarray, first: np.ndarray) -> np.ndarray:
    gap = np.zeros(len(at_us), dtype=np.int64)
    np.subtract(at_us[1:], at_us[:-1], out=gap[1:])
    gap[first] = 0
    return _log_seconds(gap)


def _log_seconds(gap_us: np.ndarray) -> np.ndarray:
    """[n] float64 log(1 + seconds) over that of a year."""
    return np.log1p(np.maximum(gap_us, 0) / _SECOND_US) / _GAP_SCALE


@lru_cache(maxsize=1)
def _calendar_tables() -> tuple[np.ndarray, np.ndarray]:
    """[24, 2] of hours and [cycle, 6] of days since 1970-01-01: sine and cosine in float32."""
    days = np.arange(_CYCLE_DAYS).astype("datetime64[D]")
    months = days.astype("datetime64[M]")
    weekday = (np.arange(_CYCLE_DAYS) + 3) % 7
    of_month = (days - months).astype(np.int64)
    of_year = months.astype(np.int64) % 12
    parts = [_wheel(weekday, 7), _wheel(of_month, 31), _wheel(of_year, 12)]
    return _wheel(np.arange(24), 24), np.concatenate(parts, axis=1)


def _wheel(step: np.ndarray, steps: int) -> np.ndarray:
    angle = 2 * np.pi * step / steps
    return np.stack([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


def _offsets_us(at_us: np.ndarray, zone: str) -> np.ndarray | int:
    """Microseconds to add for the local clock."""
    if zone == "UTC":
        return 0
    moments, offsets = _transitions(zone)
    return offsets[np.searchsorted(moments, at_us, side="right")]


@lru_cache(maxsize=64)
def _transitions(zone: str) -> tuple[np.ndarray, np.ndarray]:
    """Moments at which a zone's offset from UTC changes, 1900 to 2100, found to the minute.

    Returns:
        moments: [c] int64; offsets: [c + 1] int64 microseconds, offsets[i] before moments[i].
    """
    begin, end = (
        int(dt.datetime(y, 1, 1, tzinfo=dt.UTC).timestamp()) * _SECOND_US for y in (1900, 2100)
    )
    days = np.arange(begin, end, DAY_US)
    by_day = _zone_offsets(days, zone)
    changed = np.flatnonzero(by_day[1:] != by_day[:-1])
    minute = 60 * _SECOND_US
    fine = (days[changed][:, None] + np.arange(0, DAY_US + minute, minute)).ravel()
    by_minute = _zone_offsets(fine, zone)
    steps = np.flatnonzero(by_minute[1:] != by_minute[:-1]) + 1
    offsets = np.concatenate([by_day[:1], by_minute[steps]])
    return fine[steps], offsets


def _zone_offsets(at_us: np.ndarray, zone: str) -> np.ndarray:
    """[n] int64 microseconds from UTC to local time, by polars."""
    moments = pl.Series(at_us).cast(pl.Datetime("us", "UTC")).dt.convert_time_zone(zone)
    local = moments.dt.replace_time_zone(None).cast(pl.Int64).to_numpy()
    return local - at_us
