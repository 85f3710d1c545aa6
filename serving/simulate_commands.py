"""`riskfm simulate`: a synthetic lending world for demos, tests and drills."""

from __future__ import annotations

import datetime as dt
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import click

from foundation.errors import UserError
from serving.progress import Reporter

if TYPE_CHECKING:
    import polars as pl

FILE = click.Path(path_type=Path, dir_okay=False)
DIR = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.option("-o", "--output", type=DIR, required=True, help="A new folder.")
@click.option("--customers", default=2000, show_default=True)
@click.option("--months", default=24, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--scenario", type=FILE, help="A YAML; configs/simulation/lending.yaml if left out.")
@click.option("--until", help="Write only what had become known before this day, UTC.")
@click.option("--days-from", help="Instead: one folder a day of what became known, from this day,")
@click.option("--days-to", help="to this day.")
@click.option("--quiet", is_flag=True, help="No progress on standard error.")
def simulate(
    output: Path,
    customers: int,
    months: int,
    seed: int,
    scenario: Path | None,
    until: str | None,
    days_from: str | None,
    days_to: str | None,
    quiet: bool,
) -> None:
    """Write a small lending world, synthetic throughout; the same seed gives the same bytes."""
    from foundation.simulation import WorldSize
    from foundation.simulation_files import write_days, write_world
    from foundation.simulation_scenario import load_scenario

    if (days_from is None) != (days_to is None):
        raise UserError("give --days-from and --days-to together")
    if days_from is not None and until is not None:
        raise UserError("give --until or --days-from and --days-to, not both")
    path = scenario or Path(str(files("configs"))) / "simulation" / "lending.yaml"
    world = load_scenario(path)
    size = WorldSize(customers=customers, months=months, seed=seed)
    with Reporter(quiet).bar("simulate") as bar:
        if days_from is not None and days_to is not None:
            first, last = _day("--days-from", days_from), _day("--days-to", days_to)
            made = write_days(world, size, output, first, last, progress=bar)
        else:
            end = None if until is None else _day("--until", until)
            made = write_world(world, size, output, end, progress=bar)
    what = f"{made.days} days of a" if made.days else "a"
    events = sum(n for name, n in made.rows.items() if name in _SOURCES)
    click.echo(
        f"wrote {output}: {what} SYNTHETIC lending world ({world.name}), {customers:,} customers, "
        f"{months} months from {world.start}, seed {seed}, {events:,} events"
    )
    for channel, (labels, bads) in made.channels.items():
        click.echo(f"{channel}: {labels:,} matured labels, {bads:,} bads")
    if len(made.truth):
        click.echo(_reference_line(made.truth))
        click.echo(
            f"development.parquet {made.splits['development']:,} samples, "
            f"test.parquet {made.splits['test']:,} later samples of other customers"
            if all(made.splits.values())
            else "no development and test split: too few labels have matured"
        )
    click.echo("synthetic data: figures measured on it are no evidence about real customers")


_SOURCES = ("app", "application", "bill", "bureau", "repayment")


def _day(option: str, text: str) -> dt.date:
    try:
        return dt.date.fromisoformat(text)
    except ValueError:
        raise UserError(f"{option} '{text}' is no day; write 2024-06-01") from None


def _reference_line(truth: pl.DataFrame) -> str:
    """How well the approved could be ranked by somebody who sees everything hidden."""
    import polars as pl

    from finetune.metrics import auc

    rows = truth.filter(pl.col("approved") == 1)
    y = rows["label"].cast(pl.Float64).to_numpy()
    if not 0 < y.sum() < len(y):
        return f"{len(rows):,} of {len(truth):,} applications approved"
    best = auc(y, rows["reference"].to_numpy())
    return (
        f"{len(rows):,} of {len(truth):,} applications approved; knowing everything hidden ranks "
        f"the approved with AUC {best:.3f} (n = {len(rows):,}, bad rate {100 * y.mean():.1f} %)"
    )
