"""The command `riskfm backtrack`: features of many samples over a store."""

from __future__ import annotations

from pathlib import Path

import click

from foundation.errors import UserError
from serving.progress import Reporter

FILE = click.Path(path_type=Path, dir_okay=False)
DIR = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.option("--store", type=DIR, help="The event store.")
@click.option("--samples", type=FILE, help="entity_id, as_of, ...")
@click.option("-o", "--output", type=DIR, help="Directory of the features and the certificate.")
@click.option("--backbone", type=DIR, help="Adds its forecasts and states.")
@click.option("--aggregates", type=FILE, help="Columns of another job instead of fitted ones.")
@click.option("--blocks", help="Of aggregates,forecasts,embeddings; all there are if left out.")
@click.option("--workers", type=click.IntRange(1), help="Threads; one a core if left out.")
@click.option("--verify", type=DIR, help="Check a finished directory by brute force instead.")
@click.option("--rows", type=click.IntRange(1), default=50, show_default=True, help="To verify.")
@click.option("--seed", default=0, show_default=True, help="Which rows are verified.")
@click.option("--quiet", is_flag=True, help="No progress on standard error.")
def backtrack(
    store: Path | None,
    samples: Path | None,
    output: Path | None,
    backbone: Path | None,
    aggregates: Path | None,
    blocks: str | None,
    workers: int | None,
    verify: Path | None,
    rows: int,
    seed: int,
    quiet: bool,
) -> None:
    """Write point-in-time features of any number of samples, with a leak certificate."""
    if verify is not None:
        from finetune.backtrack_check import verify_backtrack

        with Reporter(quiet).bar("verify") as bar:
            found = verify_backtrack(
                verify, rows, seed, store=store, samples=samples, backbone=backbone, progress=bar
            )
        click.echo("\n".join(found))
        return
    if store is None or samples is None or output is None:
        raise UserError("give --store, --samples and -o, or --verify with a finished directory")
    from finetune.backtracking import BacktrackInputs, run_backtrack
    from finetune.leak_certificate import CERTIFICATE, lines

    chosen = tuple(b.strip() for b in blocks.split(",") if b.strip()) if blocks else ()
    inputs = BacktrackInputs(store, samples, backbone, aggregates, chosen)
    with Reporter(quiet).bar("backtrack") as bar:
        certificate = run_backtrack(inputs, output, workers, progress=bar)
    click.echo(
        f"wrote {output}: {certificate['columns']:,} columns in {len(certificate['parts'])} parts"
    )
    click.echo("\n".join(lines(certificate)))
    click.echo(f"certificate {output / CERTIFICATE}")
