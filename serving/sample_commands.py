"""Commands around sample files: `riskfm samples ...` and `riskfm variables`."""

from __future__ import annotations

import datetime as dt
import tempfile
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from foundation.errors import SampleError, UserError
from serving.progress import Reporter

FILE = click.Path(path_type=Path, dir_okay=False)
DIR = click.Path(path_type=Path, file_okay=False)


def mapping_option(function: Any) -> Any:
    """The option that says what a file calls its columns."""
    return click.option(
        "--mapping", type=FILE, help="What the files call their columns; see riskfm samples map."
    )(function)


def reads_mapping(*names: str) -> Callable[[Any], Any]:
    """Let a command with `store` take --mapping: its files of these names come with our columns."""

    def decorate(function: Any) -> Any:
        @mapping_option
        @wraps(function)
        def run(mapping: Path | None, **given: Any) -> Any:
            if mapping is None:
                return function(**given)
            from finetune.sample_report import mapped_copy

            with tempfile.TemporaryDirectory() as folder:
                files: dict[str, str] = {}
                for name in names:
                    if given[name] is not None:
                        file, place = given[name], Path(folder) / name
                        given[name] = mapped_copy(file, given["store"], mapping, place)
                        files[str(given[name])] = str(file)
                try:
                    return function(**given)
                except UserError as exc:
                    text = str(exc)  # speaks of the copy; the person knows the file
                    for copy, file in files.items():
                        text = text.replace(copy, file)
                    raise type(exc)(text) from None

        return run

    return decorate


@click.group()
def samples() -> None:
    """Sample files: columns, review, versions."""


@samples.command("map")
@click.argument("file", type=FILE)
@click.option("--store", type=DIR, required=True, help="Where the customers are looked up.")
@click.option(
    "-o", "--output", type=FILE, default=Path("mapping.yaml"), show_default=True,
    help="The YAML file to write.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
def samples_map(file: Path, store: Path, output: Path, force: bool) -> None:
    """Propose which column of a file is which of ours; a person reads and corrects it."""
    from finetune.sample_columns import mapping_yaml
    from finetune.sample_report import propose_for_file
    from foundation.store import EventStore

    if output.exists() and not force:
        raise UserError(f"{output} exists; --force overwrites it")
    proposal = propose_for_file(file, EventStore.open(store))
    click.echo("\n".join(proposal.lines()))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(mapping_yaml(proposal), encoding="utf-8")
    click.echo(f"wrote {output}")


@samples.command("check")
@click.argument("file", type=FILE)
@click.option("--store", type=DIR, required=True, help="Where customers and events are looked up.")
@mapping_option
@click.option("--now", help="Labels known from this moment on are not known yet; default: now.")
@click.option("--window", type=click.IntRange(1), help="Performance window of the labels in days.")
@click.option("-o", "--output", type=DIR, help="Directory for usable rows, review and page.")
def samples_check(
    file: Path,
    store: Path,
    mapping: Path | None,
    now: str | None,
    window: int | None,
    output: Path | None,
) -> None:
    """Review a sample file: rows left out and why, labels, maturity, what the store knows."""
    from finetune.sample_report import review_lines, run_review
    from finetune.sample_review import ReviewSettings

    review = run_review(file, store, ReviewSettings(_moment(now, store), window), mapping, output)
    click.echo("\n".join(review_lines(review.numbers)))
    if output is not None:
        if review.kept is not None:
            click.echo(f"samples {output / 'samples.parquet'}")
        click.echo(f"page {output / 'review.html'}")
    if not review.numbers["usable"]:
        raise SampleError(f"{file}: {review.numbers['verdict'][0]}")


def _moment(text: str | None, store: Path) -> dt.datetime:
    """A moment in the schema's time zone, or now; naive UTC."""
    if text is None:
        return dt.datetime.now(dt.UTC).replace(tzinfo=None)
    import polars as pl

    from foundation.store import EventStore
    from foundation.tables import parse_times

    zone = EventStore.open(store).schema.time_zone
    try:
        return parse_times(pl.Series([text]), zone, "--now", strict=True)[0]
    except Exception:
        raise UserError(f"--now '{text}' is no time; write 2017-01-31 10:00:00") from None


@samples.command("add")
@click.argument("file", type=FILE)
@click.option("--name", required=True, help="Name of the sample set.")
@click.option("--workspace", type=DIR, required=True, help="Where versions are kept.")
@click.option("--store", type=DIR, help="Whose schema reads the file; first version: needed.")
@mapping_option
def samples_add(
    file: Path, name: str, workspace: Path, store: Path | None, mapping: Path | None
) -> None:
    """Keep a sample file as the next version of a set; the same rows again change nothing."""
    from finetune.sample_sets import add_version, schema_of, versions
    from finetune.samples import read_samples
    from foundation.store import EventStore

    before = versions(workspace, name)
    if store is None and not before:
        raise UserError(f"'{name}' is new: say which store its customers are in with --store DIR")
    schema = schema_of(before[-1]) if store is None else EventStore.open(store).schema
    read = read_samples(file, schema, need_labels=False, mapping=mapping)
    for note in read.notes:
        click.echo(f"note: {note}")
    version, new = add_version(workspace, name, read, schema, file.name, store)
    click.echo(("added " if new else "already there: ") + version.line())
    click.echo(f"samples {version.path}")


@samples.command("list")
@click.option("--workspace", type=DIR, required=True, help="Where versions are kept.")
@click.option("--name", help="Only this set.")
def samples_list(workspace: Path, name: str | None) -> None:
    """List the versions of the sample sets of a workspace."""
    from finetune.sample_sets import find_version, set_names, versions

    if name is not None:
        find_version(workspace, name)
    names = [name] if name is not None else set_names(workspace)
    for each in names:
        for version in versions(workspace, each):
            click.echo(version.line())
    if not names:
        click.echo("no sample sets")


@samples.command("diff")
@click.argument("before")
@click.argument("after")
@click.option("--workspace", type=DIR, required=True, help="Where versions are kept.")
@click.option("-o", "--output", type=FILE, help="CSV file of every changed row.")
def samples_diff(before: str, after: str, workspace: Path, output: Path | None) -> None:
    """Say what changed between two versions, each NAME, NAME@2 or NAME@DIGEST."""
    from finetune.sample_sets import diff_lines, diff_versions, find_version

    first, second = find_version(workspace, before), find_version(workspace, after)
    diff = diff_versions(first, second)
    click.echo(f"from {first.line()}\nto   {second.line()}")
    click.echo("\n".join(diff_lines(diff)))
    if output is not None:
        partial = output.with_name(f".{output.name}.part")
        diff.rows.write_csv(partial)
        partial.replace(output)
        click.echo(f"wrote {output}")


@click.command()
@click.option("--backbone", type=DIR, required=True)
@click.option("--store", type=DIR, required=True)
@click.option("--samples", "samples_path", type=FILE, required=True, help="Labelled samples.")
@click.option("--test", "test_path", type=FILE, help="Later samples to compare with.")
@mapping_option
@click.option("-o", "--output", type=DIR, required=True, help="Directory for tables and page.")
@click.option("--quiet", is_flag=True, help="No progress on standard error.")
def variables(
    backbone: Path,
    store: Path,
    samples_path: Path,
    test_path: Path | None,
    mapping: Path | None,
    output: Path,
    quiet: bool,
) -> None:
    """Analyse every variable of labelled samples alone: IV, KS, PSI, bins, leaks."""
    from finetune.variable_report import run_variables, variable_lines

    numbers = run_variables(
        backbone, store, samples_path, output, Reporter(quiet), test_path, mapping
    )
    click.echo("\n".join(variable_lines(numbers)))
    click.echo(f"page {output / 'variables.html'}")


def add_to(cli: click.Group) -> None:
    """Register the commands."""
    cli.add_command(samples)
    cli.add_command(variables)
