"""What happens in a simulated lending world: a YAML file, read strictly.

Everything made from it is synthetic and says so: no person and no lender stands behind a row.
Months count from 0 at `start`.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np

from foundation import strict
from foundation.errors import ConfigError, listing, nearest

GRACE_DAYS = 30
REPORTED_DAYS = 2


class Channel(strict.Strict):
    """One way by which customers come.

    Attributes:
        share: of new customers, relative to the channels that are open.
        opens: month of the first customers.
        income: added to the logarithm of income.
        risk: added to the log-odds of missing an instalment.
        queries: multiplies bureau queries, whatever a customer's state.
        night: added to the share of app use at night, whatever a customer's state.
        activity: multiplies app use.
        cutoff: policy score above which the lender approves.
    """

    share: float
    opens: int = 0
    income: float = 0.0
    risk: float = 0.0
    queries: float = 1.0
    night: float = 0.0
    activity: float = 1.0
    cutoff: float = -1.0


class FraudWave(strict.Strict):
    """Rings of people who share a device, come through one channel and never pay.

    Attributes:
        month, months: when they apply.
        share: of all customers.
        ring_size: people behind one device.
    """

    month: int = 14
    months: int = 2
    share: float = 0.02
    channel: str = ""
    ring_size: int = 8


class Drift(strict.Strict):
    """What changes while the world runs.

    Attributes:
        worsening: added, over 24 months and step by step, to the log-odds of getting worse.
        prices: monthly growth of bills and of amounts asked for.
        new_app_event: month from which the app sends a type of event never seen before.
    """

    worsening: float = 0.0
    prices: float = 0.0
    new_app_event: int = 12


class Delays(strict.Strict):
    """A share of events with a further, exponential delay of so many days in the mean."""

    share: float = 0.0
    mean_days: float = 10.0


class Scenario(strict.Strict):
    """The whole world.

    Attributes:
        name: of the schema; must begin with `synthetic`.
        late_events: events that become known late.
        corrections: bills that are first reported wrongly and corrected by a later row.
        label_instalments: a loan is bad if one of so many first instalments is missed.
    """

    name: str = "synthetic_lending"
    start: dt.date = dt.date(2023, 1, 1)
    channels: dict[str, Channel] = {}
    fraud_wave: FraudWave | None = None
    drift: Drift = Drift()
    late_events: Delays = Delays()
    corrections: Delays = Delays()
    label_instalments: int = 3


def load_scenario(path: str | Path) -> Scenario:
    """Read and check a scenario.

    Raises:
        ConfigError: unknown keys, impossible values, a channel that does not exist.
    """
    scenario = strict.load(Scenario, path)
    where = str(path)
    if not scenario.name.startswith("synthetic"):
        raise ConfigError(
            f"{where}: name '{scenario.name}' must begin with 'synthetic', so that nobody takes "
            "the data for real"
        )
    if scenario.start.day != 1:
        raise ConfigError(f"{where}: start {scenario.start} must be the first day of a month")
    if not scenario.channels or all(c.opens > 0 for c in scenario.channels.values()):
        raise ConfigError(f"{where}: at least one channel must be open from month 0")
    for name, channel in scenario.channels.items():
        if channel.share <= 0 or channel.opens < 0:
            raise ConfigError(f"{where}: channel '{name}' needs a share above 0 and opens >= 0")
        if not name.isidentifier():
            raise ConfigError(f"{where}: channel name '{name}' must be letters, digits and _")
    if not 1 <= scenario.label_instalments <= 3:
        raise ConfigError(f"{where}: label_instalments must be 1, 2 or 3 (the shortest term is 3)")
    for key in ("late_events", "corrections"):
        delays: Delays = getattr(scenario, key)
        if not 0 <= delays.share <= 1 or delays.mean_days <= 0:
            raise ConfigError(f"{where}: {key} needs a share in 0 to 1 and mean_days above 0")
    _check_wave(scenario, where)
    return scenario


def _check_wave(scenario: Scenario, where: str) -> None:
    wave = scenario.fraud_wave
    if wave is None:
        return
    if wave.channel not in scenario.channels:
        raise ConfigError(
            f"{where}: fraud_wave names channel '{wave.channel}'"
            f"{nearest(wave.channel, scenario.channels)}; channels: {listing(scenario.channels)}"
        )
    if not 0 <= wave.share <= 0.5 or wave.ring_size < 2 or wave.months < 1 or wave.month < 1:
        raise ConfigError(
            f"{where}: fraud_wave needs a share in 0 to 0.5, ring_size of 2 or more, month and "
            "months of 1 or more"
        )


def month_starts(scenario: Scenario, months: int) -> np.ndarray:
    """[months + 1] int64 microseconds UTC at which months begin; the last is the end."""
    first = np.datetime64(scenario.start, "M")
    return (first + np.arange(months + 1)).astype("datetime64[us]").astype(np.int64)
