"""Times of a request: ISO 8601 texts to microseconds since the epoch, UTC.

Columns written alike (one length, one suffix), as machines write them, are parsed by numpy at
once; anything else one by one, with the same result.
"""

from __future__ import annotations

import datetime as dt
import functools
import zoneinfo
from collections.abc import Callable, Sequence

import numpy as np

from serving.messages import ApiError

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)
_BODIES = (10, 16, 19, 23, 26)  # a date, minutes, seconds, milliseconds, microseconds
_ZULU, _PLUS, _MINUS, _COLON, _DASH, _NINE, _ZERO = (ord(c) for c in "Z+-:-90")


class Clock:
    """Reads the times of one zone.

    A local time that occurs twice when clocks go back is read as the later one (what may have been
    known later was not known earlier), one that never occurs with the offset before the change:
    as at import.
    """

    def __init__(self, zone: str) -> None:
        self._zone = _zone(zone)
        self._bounds, self._offsets = _changes(zone)

    def read(self, texts: Sequence[str], at: Callable[[int], str]) -> np.ndarray:
        """[n] int64 microseconds.

        Args:
            at: names the place of the n-th text, for the message.
        Raises:
            ApiError: 422 at the first text that is no time.
        """
        alike = self._read_alike(texts) if len(texts) > 1 else None
        if alike is not None:
            return alike
        return np.array([self._one(t, at, i) for i, t in enumerate(texts)], dtype=np.int64)

    def moment(self, text: str, place: str) -> int:
        """One moment of decision: of an hour that occurs twice the earlier."""
        return self._one(text, lambda _: place, 0, earlier=True)

    def _one(self, text: str, at: Callable[[int], str], index: int, earlier: bool = False) -> int:
        try:
            if text[4:5] != "-" or text[7:8] != "-" or text[10:11] not in ("", "T", "t", " "):
                raise ValueError
            moment = dt.datetime.fromisoformat(text)
            if moment.tzinfo is not None:
                return (moment - _EPOCH) // _MICROSECOND
            moment = moment.replace(tzinfo=self._zone)
            folds = (0,) if earlier else (0, 1)
            return max((moment.replace(fold=f) - _EPOCH) // _MICROSECOND for f in folds)
        except (ValueError, OverflowError):
            raise ApiError(
                422, "expected an ISO 8601 time such as 2017-09-01T12:30:00Z", at(index)
            ) from None

    def _read_alike(self, texts: Sequence[str]) -> np.ndarray | None:
        """The whole column, or None where it must be read one by one."""
        length = len(texts[0])
        if not 10 <= length <= 32 or len(set(map(len, texts))) != 1:
            return None
        column = np.array(texts)
        codes = column.view(np.uint32).reshape(len(column), -1)
        if codes.shape[1] != length:
            return None
        first = codes[0]
        offset_us: int | None = None
        if first[-1] == _ZULU:
            suffix, offset_us = 1, 0
        elif length > 16 and first[-3] == _COLON and first[-6] in (_PLUS, _MINUS):
            suffix = 6
            hours, minutes = texts[0][-5:-3], texts[0][-2:]
            if not (hours.isdecimal() and minutes.isdecimal() and hours < "24" and minutes < "60"):
                return None
            sign = -1 if first[-6] == _MINUS else 1
            offset_us = sign * (int(hours) * 60 + int(minutes)) * 60_000_000
        else:
            suffix = 0
        body = length - suffix
        if body not in _BODIES or (suffix and body == 10):
            return None
        if suffix and (codes[:, body:] != first[body:]).any():
            return None
        digits = codes[:, [0, 1, 2, 3, body - 2, body - 1]]
        shaped = (codes[:, [4, 7]] == _DASH).all() and (digits <= _NINE).all()
        if not shaped or (digits < _ZERO).any():
            return None
        try:
            local = column.astype(f"U{body}").astype("datetime64[us]").astype(np.int64)
        except ValueError:
            return None
        if offset_us is not None:
            return local - offset_us
        return local - self._offsets[np.searchsorted(self._bounds, local, side="right")]


def iso(moment_us: int) -> str:
    """A moment as ISO 8601 with Z."""
    return (_EPOCH + dt.timedelta(microseconds=moment_us)).isoformat().replace("+00:00", "Z")


def _zone(name: str) -> dt.tzinfo:
    return dt.UTC if name == "UTC" else zoneinfo.ZoneInfo(name)


@functools.cache
def _changes(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Offsets of a zone between 1900 and 2100, and the local times from which each holds.

    From a change at the moment T to the offset o, local times of T + o and later have o: that is
    the later reading of a repeated hour and the offset before of a skipped one.

    Returns:
        bounds: [c] int64 us, local. offsets: [c + 1] int64 us.
    """

    zone = _zone(name)

    def offset(second: int) -> int:
        moment = _EPOCH + dt.timedelta(seconds=second)
        delta = moment.astimezone(zone).utcoffset() or dt.timedelta(0)
        return delta // _MICROSECOND

    # Weekly steps find every change that lasts; bisection finds its second.
    step = 7 * 86_400
    low, end = -2_208_988_800, 4_102_444_800
    offsets, bounds = [offset(low)], []
    while low < end and zone is not dt.UTC:
        high = low + step
        if offset(high) != offsets[-1]:
            before, after = low, high
            while after - before > 1:
                middle = (before + after) // 2
                if offset(middle) == offsets[-1]:
                    before = middle
                else:
                    after = middle
            offsets.append(offset(after))
            bounds.append(after * 1_000_000 + offsets[-1])
            low = after
        else:
            low = high
    return np.array(bounds, dtype=np.int64), np.array(offsets, dtype=np.int64)
