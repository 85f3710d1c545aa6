"""How long the scores of a package take, by how much history they read."""

from __future__ import annotations

_WEIGHT = 0.1


class Pace:
    """Decaying means of processor seconds, one for each doubling of the history's bytes."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[int, bool], float] = {}

    def note(self, size: int, reasons: bool, seconds: float) -> None:
        """A score took this long in its thread.

        Args:
            size: bytes of the history it read.
            reasons: whether it was asked for reasons.
        """
        key = (size.bit_length(), reasons)
        before = self._seconds.get(key, seconds)
        self._seconds[key] = before + _WEIGHT * (seconds - before)

    def expected(self, size: int, reasons: bool) -> float:
        """Seconds the next score like this will take; infinite where none was seen."""
        return self._seconds.get((size.bit_length(), reasons), float("inf"))
