"""A wall clock that jumps where a test says, in everything that tells the time here."""

from __future__ import annotations

import datetime as real
import time
from types import SimpleNamespace
from typing import Any

import pytest

from serving import daily, database, jobs, nightly


class Clock:
    """Offset of the wall clock from the real one; time that really passes is not touched."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.offset = real.timedelta(0)
        outer, wall = self, time.time

        class Moment(real.datetime):
            @classmethod
            def now(cls, tz: real.tzinfo | None = None) -> real.datetime:  # type: ignore[override]
                return real.datetime.now(tz) + outer.offset

        names = {k: v for k, v in vars(real).items() if not k.startswith("_")}
        fake = SimpleNamespace(**names | {"datetime": Moment})
        for module in (daily, database, jobs, nightly):
            patch.setattr(module, "dt", fake)
        # What the workflow engine reads.
        patch.setattr(time, "time", lambda: wall() + outer.offset.total_seconds())

    def jump(self, **by: Any) -> None:
        """Set the clock forward or back, such as `days=31` or `hours=-1`."""
        self.offset += real.timedelta(**by)
