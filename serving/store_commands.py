"""The command `riskfm events compact`."""

from __future__ import annotations

from pathlib import Path

import click

from serving.progress import Reporter

DIR = click.Path(path_type=Path, file_okay=False)


@click.command("compact")
@click.option("--store", type=DIR, required=True, help="The event store.")
@click.option(
    "--keep-days", default=7, show_default=True, help="Days that files no longer read stay."
)
@click.option("--quiet", is_flag=True, help="No progress on standard error.")
def events_compact(store: Path, keep_days: int, quiet: bool) -> None:
    """Merge the small files of daily imports; every version reads as before, only faster."""
    from foundation.compaction import compact

    with Reporter(quiet).bar("compact") as bar:
        summary = compact(store, keep_days, bar)
    click.echo(summary.line())
