"""The commands `riskfm events compact` and `riskfm events index`."""

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


@click.command("index")
@click.option("--store", type=DIR, required=True, help="The event store.")
@click.option("--drop", is_flag=True, help="Remove the index; nothing else changes.")
@click.option("--quiet", is_flag=True, help="No progress on standard error.")
def events_index(store: Path, drop: bool, quiet: bool) -> None:
    """Lay the events open beside the store's files, so that back-tracking reads some quickly."""
    from foundation.indexing import drop_index, make_index

    if drop:
        click.echo("index removed" if drop_index(store) else "the store has no index")
        return
    with Reporter(quiet).bar("index") as bar:
        summary = make_index(store, bar)
    click.echo(summary.line())
