"""Commands of the daily run: daily, channel daily, backbone impact."""

from __future__ import annotations

import os
from pathlib import Path

import click

from foundation.errors import InternalError, UserError
from serving.backbone_commands import backbone_group
from serving.delivery_commands import _by, _workspace, channel
from serving.progress import Reporter

FILE = click.Path(path_type=Path, dir_okay=False)
DIR = click.Path(path_type=Path, file_okay=False)


def add_to(cli: click.Group) -> None:
    """Add the commands to the group `riskfm`; `channel` and `backbone` get theirs on import."""
    cli.add_command(daily)


@click.command()
@click.option("--date", required=True, help="The day, UTC, such as 2024-06-01.")
@click.option("--to", help="Every day up to this one.")
@click.option("--tenant", help="Only this tenant's channels.")
@click.option("--channel", "only", help="Only this channel.")
@_workspace
@click.option("--quiet", is_flag=True, help="No progress.")
def daily(
    date: str, to: str | None, tenant: str | None, only: str | None, workspace: Path, quiet: bool
) -> None:
    """Append a day's events and labels, watch the champion, report; again changes nothing."""
    from serving.daily import BEFORE, FAILED, read_day, run_days
    from serving.daily_settings import daily_channels
    from serving.delivery import Delivery

    opened = Delivery.open(workspace)
    first = read_day("--date", date)
    last = first if to is None else read_day("--to", to)
    channels = None
    if tenant is not None or only is not None:
        every = daily_channels(opened.workspace, opened.registry)
        channels = [c for c in every if tenant in (None, c[0]) and only in (None, c[1])]
        if not channels:
            raise UserError(
                f"no channel of {tenant or 'any tenant'}/{only or 'any name'} has a daily run; set "
                "one with riskfm channel daily"
            )
    try:
        ended = run_days(opened, first, last, Reporter(quiet), channels)
    except KeyboardInterrupt:
        click.echo("interrupted; the same command continues", err=True)
        os._exit(130)
    for each in ended:
        if each.state == FAILED:
            continue
        for line in each.lines:
            click.echo(f"{line} (done before)" if each.state == BEFORE else line)
    reported = [each for each in ended if each.state != FAILED]
    if reported:
        end = reported[-1]
        folder = opened.workspace.root / "days" / end.tenant / end.channel / str(end.date)
        click.echo(f"report  {folder / 'report' / 'report.html'}")
    if any(each.job for each in ended):
        click.echo("next: riskfm worker makes the new deliveries; a different person approves")
    failed = [each for each in ended if each.state == FAILED]
    if failed:
        text = "; ".join(f"{e.date} {e.tenant}/{e.channel}: {e.error}" for e in failed)
        ours = all(e.exit_code == 1 for e in failed)
        raise InternalError(text) if ours else UserError(text)


@channel.command("daily")
@click.option("--tenant", required=True, help="Whose channel.")
@click.option("--channel", "name", required=True, help="The channel.")
@click.option("--settings", type=FILE, help="A YAML such as configs/delivery/daily.yaml.")
@click.option("--incoming", help="A day's folder, such as incoming/{date}.")
@click.option("--rows-of", help="Only rows whose column `channel` says this.")
@_by
@_workspace
def channel_daily(
    tenant: str,
    name: str,
    settings: Path | None,
    incoming: str | None,
    rows_of: str | None,
    by: str,
    workspace: Path,
) -> None:
    """Set a channel's daily run: where a day's files lie, bounds, retraining, notices."""
    import msgspec

    from serving.daily_settings import DailySettings, check, load_daily_settings, set_daily
    from serving.delivery import Delivery

    opened = Delivery.open(workspace)
    chosen = DailySettings() if settings is None else load_daily_settings(settings)
    given = {"incoming": incoming, "rows_of": rows_of}
    chosen = msgspec.structs.replace(chosen, **{k: v for k, v in given.items() if v is not None})
    check(chosen, "--incoming")
    changed = set_daily(opened.workspace, opened.registry, tenant, name, chosen, by)
    click.echo(f"daily run of {tenant}/{name}: {'written' if changed else 'nothing changed'}")


@backbone_group.command("impact")
@click.option("--backbone", type=DIR, required=True, help="The backbone that may come.")
@click.option("-o", "--output", type=DIR, required=True, help="Directory for report and models.")
@_workspace
@click.option("--quiet", is_flag=True, help="No progress.")
def backbone_impact(backbone: Path, output: Path, workspace: Path, quiet: bool) -> None:
    """Re-adapt every channel on another backbone, in shadow; list gains and losses."""
    from serving.delivery import Delivery
    from serving.impact import run_impact

    opened = Delivery.open(workspace)
    numbers = run_impact(opened, backbone, output, Reporter(quiet))
    for row in numbers["rows"]:
        click.echo(row["sentence"])
    click.echo(f"report  {output / 'impact.html'}")
