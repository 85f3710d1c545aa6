"""The command `riskfm settings`."""

from __future__ import annotations

import os
from pathlib import Path

import click

FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("settings")
@click.option("--config", type=FILE, help="A YAML file; RISKFM_CONFIG if left out.")
@click.option("--host", default="127.0.0.1", show_default=True, help="What serve will listen on.")
@click.option("--changed", is_flag=True, help="Only what differs from the default.")
def settings(config: Path | None, host: str, changed: bool) -> None:
    """Show the service's settings, where each comes from, and check them; secrets are hidden."""
    from serving.settings import sourced_settings
    from serving.settings_check import problems, require_safe, shown, unknown_variables

    found, sources = sourced_settings(str(config) if config else None)
    rows = [row for row in shown(found, sources) if not changed or row[2] != "default"]
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    for name, value, source in rows:
        click.echo(f"{name:<{widths[0]}}  {value:<{widths[1]}}  {source}".rstrip())
    for name in unknown_variables(list(os.environ)):
        click.echo(f"note: {name} is no setting and is not read")
    require_safe(found, host)
    for text in problems(found, host):
        click.echo(f"note: production would refuse: {text}")


def add_to(cli: click.Group) -> None:
    """Register the command."""
    cli.add_command(settings)
