"""How a channel's daily run is set: where a day's files lie, bounds, retraining, notices.

The settings are kept beside the days themselves, in `days/TENANT/CHANNEL/settings.json`; every
change is a row of the channel's history. Secrets never stand in them: `${NAME}` in a webhook's
address is filled in from the environment at the moment of sending.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from foundation import strict
from foundation.errors import ConfigError, UserError
from serving.durable import place_file
from serving.registry import Registry
from serving.releases import person, record
from serving.workspace import Workspace

DAYS = "days"
SETTINGS = "settings.json"
Positive = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=1)]
Ratio = Annotated[float, Meta(gt=1)]
Bound = Literal["psi", "input_psi", "ks_drop", "calibration", "forecast", "unknown", "thin"]


class Bounds(strict.Strict):
    """What is still normal; each number, once crossed, becomes an alert.

    Attributes:
        psi, input_psi: of score and inputs against frozen bins; chance must be exceeded too.
        ks_drop: held against the lower end of the 95 % interval of the drop.
        calibration, forecast: observed over expected; the interval must lie wholly outside
            1 / bound to bound.
        unknown, thin: shares above those of the development samples.
        min_bads, min_samples: with fewer, nothing is judged.
    """

    psi: Positive = 0.25
    input_psi: Positive = 0.25
    ks_drop: Share = 0.10
    calibration: Ratio = 1.5
    forecast: Ratio = 2.0
    unknown: Share = 0.05
    thin: Share = 0.20
    min_bads: Count = 20
    min_samples: Count = 100


class Retrain(strict.Strict):
    """When labels are handed in for a new delivery.

    Attributes:
        when: bounds that ask for it once crossed.
        pause_days: from one to the next.
        test_share: latest share of the labels, by as_of, to measure on.
    """

    when: tuple[Bound, ...] = ("psi", "ks_drop", "calibration")
    min_bads: Count = 30
    pause_days: Count = 28
    test_share: Annotated[float, Meta(ge=0, le=0.5)] = 0.25


class Email(strict.Strict):
    """Where e-mail goes; user and password come from RISKFM_SMTP_USER and RISKFM_SMTP_PASSWORD.

    Attributes:
        tls: STARTTLS before anything is said; needed for a password.
        always: every day, not only with alerts and at a month's end.
    """

    host: str
    sender: str
    to: tuple[str, ...]
    port: Annotated[int, Meta(ge=1, le=65535)] = 587
    tls: bool = True
    always: bool = False


class Notices(strict.Strict):
    """Who is told."""

    webhook: str = ""
    timeout_seconds: Positive = 10.0
    tries: Annotated[int, Meta(ge=1, le=10)] = 3
    email: Email | None = None


class DailySettings(strict.Strict):
    """Content of configs/delivery/daily.yaml.

    Attributes:
        incoming: folder of a day, with {date}, {tenant} and {channel}.
        labels, applications: files in it.
        rows_of: only rows whose column `channel` says this; empty takes all.
        missing: what happens while there is no folder.
        window_days, label_days: how far back drift and realised figures look.
    """

    incoming: str = "incoming/{date}"
    labels: str = "labels.parquet"
    applications: str = "applications.parquet"
    rows_of: str = ""
    missing: Literal["wait", "skip"] = "wait"
    window_days: Count = 30
    label_days: Count = 92
    bounds: Bounds = msgspec.field(default_factory=Bounds)
    retrain: Retrain = msgspec.field(default_factory=Retrain)
    notices: Notices = msgspec.field(default_factory=Notices)

    def folder(self, tenant: str, channel: str, date: dt.date) -> Path:
        """The folder of a day."""
        return Path(self.incoming.format(date=date, tenant=tenant, channel=channel))


def load_daily_settings(path: str | Path) -> DailySettings:
    """Read a YAML such as configs/delivery/daily.yaml, strictly.

    Raises:
        ConfigError: unknown keys (with the nearest), wrong types, impossible values.
    """
    return check(strict.load(DailySettings, path), str(path))


def check(settings: DailySettings, where: str) -> DailySettings:
    """What types cannot say.

    Raises:
        ConfigError: an incoming folder without {date}, a webhook that is no plain address.
    """
    names = set(re.findall(r"\{(\w*)\}", settings.incoming))
    if "date" not in names or names - {"date", "tenant", "channel"}:
        raise ConfigError(
            f"{where}: incoming '{settings.incoming}' must hold {{date}} and may hold {{tenant}} "
            "and {channel}, such as incoming/{date}"
        )
    address = urlsplit(settings.notices.webhook)
    if settings.notices.webhook and (
        address.scheme not in ("http", "https") or "@" in address.netloc or not address.netloc
    ):
        raise ConfigError(
            f"{where}: notices.webhook must be http:// or https:// without a password in it; "
            "write ${NAME} for what only the environment knows"
        )
    email = settings.notices.email
    if email is not None and not email.to:
        raise ConfigError(f"{where}: notices.email.to is empty")
    return settings


def days_root(workspace: Workspace, tenant: str, channel: str) -> Path:
    """Directory of a channel's days."""
    return workspace.root / DAYS / tenant / channel


def set_daily(
    workspace: Workspace,
    registry: Registry,
    tenant: str,
    channel: str,
    settings: DailySettings,
    by: str,
) -> bool:
    """Keep a channel's settings; a relative incoming folder starts where the command runs.

    Returns:
        whether anything changed.
    Raises:
        UserError: no such channel.
    """
    registry.channel(tenant, channel)
    by = person(by)
    fixed = msgspec.structs.replace(settings, incoming=os.path.abspath(settings.incoming))
    text = json.dumps(strict.plain(fixed), indent=1, sort_keys=True) + "\n"
    path = days_root(workspace, tenant, channel) / SETTINGS
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    with registry.database.transaction() as connection:
        record(connection, by, "daily run set", tenant, channel, why=json.dumps(json.loads(text)))
    place_file(path, text.encode())
    return True


def daily_settings(workspace: Workspace, tenant: str, channel: str) -> DailySettings:
    """A channel's settings.

    Raises:
        UserError: the channel has none.
    """
    path = days_root(workspace, tenant, channel) / SETTINGS
    if not path.is_file():
        raise UserError(
            f"{tenant}/{channel} has no daily run; set one with riskfm channel daily "
            f"--tenant {tenant} --channel {channel} --incoming 'incoming/{{date}}'"
        )
    data = strict.read_yaml(path)
    return check(strict.convert(DailySettings, data, str(path)), str(path))


def daily_channels(workspace: Workspace, registry: Registry) -> list[tuple[str, str]]:
    """Tenant and channel of every channel with a daily run, sorted."""
    return [
        (tenant, channel)
        for tenant, channel, _ in registry.channels()
        if (days_root(workspace, tenant, channel) / SETTINGS).is_file()
    ]
