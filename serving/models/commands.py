"""Commands about releases on trial: `riskfm rollout`, `riskfm shadow`."""

from __future__ import annotations

import getpass
import json
from pathlib import Path

import click

from foundation.errors import UserError

DIR = click.Path(path_type=Path, file_okay=False)
_workspace = click.option(
    "--workspace", type=DIR, default=Path("workspace"), show_default=True,
    envvar="RISKFM_WORKSPACE", help="Directory of the delivery (RISKFM_WORKSPACE).",
)  # fmt: skip
_note = click.option("--note", default="", help="Why; kept in the history.")


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


_by = click.option("--by", default=_login, help="Who you are; the login name if left out.")


def add_to(cli: click.Group) -> None:
    """Add the commands to the group `riskfm`."""
    cli.add_command(rollout)
    cli.add_command(shadow)


@click.command()
@click.argument("channel")
@click.argument("release")
@click.option("--percent", type=float, required=True, help="Customers it answers, 0 to 99.")
@click.option("--other-points", is_flag=True, help="Accept another scale of points.")
@_by
@_note
@_workspace
def rollout(
    channel: str,
    release: str,
    percent: float,
    other_points: bool,
    by: str,
    note: str,
    workspace: Path,
) -> None:
    """Let a challenger answer a part of the customers of TENANT/CHANNEL; 0 ends it."""
    from serving.delivery import Delivery
    from serving.tenancy.people import require

    name = _release(channel, release)
    registry = Delivery.open(workspace).registry
    if percent > 0:
        require(registry.database, by, *_action(channel, "approve"))
    registry.rollout(name, percent, by, note, other_points)
    click.echo(f"release {name}: answers {percent:g} percent of the customers of {channel}")


@click.group()
def shadow() -> None:
    """Releases that score along without being seen."""


@shadow.command("start")
@click.argument("channel")
@click.argument("release")
@click.option("--share", type=float, help="Share of the requests; the service's if left out.")
@_by
@_note
@_workspace
def shadow_start(
    channel: str, release: str, share: float | None, by: str, note: str, workspace: Path
) -> None:
    """Let a release of TENANT/CHANNEL score along."""
    from serving.delivery import Delivery
    from serving.tenancy.people import require

    name = _release(channel, release)
    if share == 0:
        raise UserError("a share of 0 scores nothing; riskfm shadow stop ends it")
    registry = Delivery.open(workspace).registry
    require(registry.database, by, *_action(channel, "hand_in"))
    registry.shadow(name, share, by, note)
    said = "the share the service is set to" if share is None else f"a share of {share:g}"
    click.echo(f"release {name}: in shadow for {said} of the requests")


@shadow.command("stop")
@click.argument("channel")
@click.argument("release")
@_by
@_note
@_workspace
def shadow_stop(channel: str, release: str, by: str, note: str, workspace: Path) -> None:
    """End that."""
    from serving.delivery import Delivery

    name = _release(channel, release)
    Delivery.open(workspace).registry.shadow(name, 0.0, by, note)
    click.echo(f"release {name}: no longer in shadow")


@shadow.command("report")
@click.argument("channel")
@click.option("--release", help="The release; the one that scored last if left out.")
@click.option("--since", default="", help="From this moment on, ISO 8601 in UTC.")
@click.option("--database", help="URL of the hosting database; that of the settings if left out.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def shadow_report(
    channel: str, release: str | None, since: str, database: str | None, as_json: bool
) -> None:
    """Compare a release in shadow of TENANT/CHANNEL with what answered."""
    from serving.database import Database
    from serving.models.shadow_report import compare, lines
    from serving.models.shadow_store import ShadowStore
    from serving.settings import load_settings

    tenant, name = _channel(channel)
    store = ShadowStore(Database(database or load_settings().database_url))
    known = store.releases(tenant, name)
    if not known:
        raise UserError(f"{channel} has no scores in shadow; riskfm shadow start begins with them")
    wanted = known[0] if release is None else _release(channel, release)
    if wanted not in known:
        raise UserError(f"{wanted} has no scores in shadow; there are some of {', '.join(known)}")
    found = compare(store.pairs(tenant, name, wanted, since))
    click.echo(json.dumps(found, indent=1) if as_json else "\n".join(lines(found)))


def _channel(text: str) -> tuple[str, str]:
    tenant, _, channel = text.partition("/")
    if not tenant or not channel or "/" in channel:
        raise UserError(f"'{text}' is no channel; write TENANT/CHANNEL")
    return tenant, channel


def _action(channel: str, action: str) -> tuple[str, str, str]:
    """Tenant, action and channel of TENANT/CHANNEL, as roles are asked for."""
    tenant, _, name = channel.partition("/")
    return tenant, action, name


def _release(channel: str, release: str) -> str:
    """The release's whole id; a bare number is one of the channel's."""
    _channel(channel)
    name = release if "/" in release else f"{channel}/{release}"
    if not name.startswith(f"{channel}/"):
        raise UserError(f"{release} is no release of {channel}")
    return name
