"""The command `riskfm`.

Every command prints what it made, shows progress on long work, and exits 0 when done, 2 when the
input is at fault (one sentence says what to change) and 1 when we are.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import click
import msgspec

from foundation.allocator import keep_freed_memory
from foundation.errors import RiskfmError, UserError
from serving.backbone_commands import backbone_group, schema_map, tokenizer_extend
from serving.backtest_commands import backtest
from serving.backtrack_commands import backtrack
from serving.daily_commands import add_to as add_daily
from serving.decisions.commands import add_to as add_decisions
from serving.delivery_commands import add_to as add_delivery
from serving.document_commands import document
from serving.label_commands import labels, reject_options
from serving.ladder_options import ladder_options, read_directions
from serving.models.commands import add_to as add_models
from serving.progress import Reporter
from serving.safety.commands import add_to as add_safety
from serving.sample_commands import add_to as add_samples
from serving.sample_commands import reads_mapping
from serving.serve_commands import add_to as add_serve
from serving.settings_commands import add_to as add_settings
from serving.simulate_commands import simulate
from serving.store_commands import events_compact, events_index
from serving.tenancy.commands import add_to as add_tenancy

FILE = click.Path(path_type=Path, dir_okay=False)
DIR = click.Path(path_type=Path, file_okay=False)
ANY = click.Path(path_type=Path)


class _Group(click.Group):
    """Turns errors into one sentence and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["standalone_mode"] = False
        try:
            return super().main(*args, **kwargs)
        except click.exceptions.Exit as exc:
            sys.exit(exc.exit_code)
        except click.Abort:
            click.echo("interrupted", err=True)
            sys.exit(130)
        except click.ClickException as exc:
            exc.show()
            sys.exit(exc.exit_code)
        except RiskfmError as exc:
            kind = "error" if isinstance(exc, UserError) else "internal error"
            click.echo(f"{kind}: {exc}", err=True)
            sys.exit(exc.exit_code)
        except BrokenPipeError:
            sys.exit(0)
        except KeyboardInterrupt:
            click.echo("interrupted; the same command continues or repeats safely", err=True)
            sys.exit(130)
        except Exception as exc:
            if os.environ.get("RISKFM_DEBUG"):
                traceback.print_exc()
            click.echo(
                f"internal error: {type(exc).__name__}: {exc} (RISKFM_DEBUG=1 shows where)",
                err=True,
            )
            sys.exit(1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="riskfm")
def cli() -> None:
    """A pretrained risk foundation model: pretrain, adapt, prove, package and serve."""
    keep_freed_memory()


def _quiet(function: Any) -> Any:
    return click.option("--quiet", is_flag=True, help="No progress on standard error.")(function)


def _population(function: Any) -> Any:
    """Options that say which events and entities may be read."""
    for option in (
        click.option("--until", help="Read only what was known before this date, e.g. 2017-09-01."),
        click.option("--entities", type=FILE, help="Read only the ids of this file."),
        click.option("--exclude-entities", type=FILE, help="Leave out the ids of this file."),
    ):
        function = option(function)
    return function


@cli.group()
def schema() -> None:
    """Describe the event tables."""


@schema.command("infer")
@click.argument("files", nargs=-1, required=True, type=ANY)
@click.option("-o", "--output", type=FILE, required=True, help="The YAML file to write.")
@click.option("--entity", help="Name of the entity column; found by itself if left out.")
@click.option("--name", default="data", show_default=True, help="Name of the data.")
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
def schema_infer(
    files: tuple[Path, ...], output: Path, entity: str | None, name: str, force: bool
) -> None:
    """Draft a schema from Parquet, CSV or Delta tables; a person reads and corrects it."""
    from foundation.infer import infer_schema, schema_yaml

    if output.exists() and not force:
        raise UserError(f"{output} exists; --force overwrites it")
    draft, notes = infer_schema(list(files), entity=entity, name=name)
    text = schema_yaml(draft, notes, relative_to=output.parent)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    for note in notes:
        click.echo(f"note: {note}")
    click.echo(
        f"wrote {output}: {len(draft.sources)} sources, "
        f"{sum(len(s.fields) for s in draft.sources.values())} event fields, "
        f"{len(draft.profile_fields)} profile fields, {len(draft.outcomes)} outcomes"
    )


@cli.group()
def events() -> None:
    """Bring event tables into the store."""


@events.command("import")
@click.option("--schema", "schema_path", type=FILE, required=True, help="The schema YAML.")
@click.option("--store", type=DIR, required=True, help="The event store; created if missing.")
@click.option("--data-dir", type=DIR, help="Where the schema's relative paths start.")
@click.argument("files", nargs=-1)
@_quiet
def events_import(
    schema_path: Path, store: Path, data_dir: Path | None, files: tuple[str, ...], quiet: bool
) -> None:
    """Validate and append events; FILES are SOURCE=PATH, otherwise the schema's own paths.

    The import is atomic and repeat-safe: a half-written or repeated one changes nothing.
    """
    from foundation.store import import_events

    overrides: dict[str, Path] = {}
    for item in files:
        source, _, path = item.rpartition("=")
        overrides[source or Path(path).stem] = Path(path)
    with Reporter(quiet).bar("import") as bar:
        summary = import_events(
            schema_path, store, overrides or None, data_dir=data_dir, progress=bar
        )
    for line in summary.lines():
        click.echo(line)


@cli.group()
def tokenizer() -> None:
    """Fit and look at tokenizers."""


@tokenizer.command("fit")
@click.option("--store", type=DIR, required=True)
@click.option("-o", "--output", type=DIR, required=True, help="Directory for tokenizer.json.")
@_population
def tokenizer_fit(
    store: Path,
    output: Path,
    until: str | None,
    entities: Path | None,
    exclude_entities: Path | None,
) -> None:
    """Fit vocabularies and bins on what was known before --until."""
    from foundation.selection import read_selection
    from foundation.store import EventStore
    from foundation.tokenizer import Tokenizer

    opened = EventStore.open(store)
    selection = read_selection(opened, until, entities, exclude_entities)
    timeline = opened.timeline(entities=selection.entities, until_us=selection.until_us)
    profile = opened.profile_history(entities=selection.entities, until_us=selection.until_us)
    fitted = Tokenizer.fit(opened.schema, timeline, profile, until_us=selection.until_us)
    output.mkdir(parents=True, exist_ok=True)
    (output / "tokenizer.json").write_text(fitted.to_json(), encoding="utf-8")
    click.echo(
        f"wrote {output / 'tokenizer.json'}: fingerprint {fitted.fingerprint}, fitted on "
        f"{len(timeline):,} events of {len(timeline.entity_ids):,} entities"
    )


@cli.command()
@click.option(
    "--config", type=FILE, required=True, help="A YAML such as configs/pretrain/nano.yaml."
)
@click.option("--store", type=DIR, required=True)
@click.option("-o", "--output", type=DIR, required=True, help="The backbone directory to make.")
@click.option("--resume", is_flag=True, help="Continue an interrupted run at its last checkpoint.")
@click.option("--epochs", type=float, help="Overrides the configuration's passes over the data.")
@click.option("--init", help="Start from a network: a backbone directory, or 'shipped'.")
@_population
@_quiet
def pretrain(
    config: Path,
    store: Path,
    output: Path,
    resume: bool,
    epochs: float | None,
    init: str | None,
    until: str | None,
    entities: Path | None,
    exclude_entities: Path | None,
    quiet: bool,
) -> None:
    """Pretrain a backbone on unlabelled histories."""
    from foundation.pretraining import load_pretrain_config, run_pretraining

    settings = load_pretrain_config(config)
    if epochs is not None:
        settings = msgspec.structs.replace(settings, epochs=epochs, steps=0)
    reporter = Reporter(quiet)
    with reporter.bar("pretrain") as bar:
        run = run_pretraining(
            settings,
            store,
            output,
            until=until,
            entities=entities,
            exclude_entities=exclude_entities,
            resume=resume,
            progress=bar,
            say=reporter.say,
            init=init,
        )
    click.echo(f"wrote {output}: {run.summary()}")


@cli.command()
@click.option("--backbone", type=DIR, required=True)
@click.option("--store", type=DIR, required=True)
@click.option("--samples", type=FILE, required=True)
@click.option("-o", "--output", type=FILE, required=True, help="The Parquet file to write.")
@_quiet
def embed(backbone: Path, store: Path, samples: Path, output: Path, quiet: bool) -> None:
    """Write aggregates, forecasts and states of samples as Parquet, point in time."""
    from finetune.building import embed_samples

    with Reporter(quiet).bar("embed") as bar:
        rows, columns = embed_samples(backbone, store, samples, output, progress=bar)
    click.echo(f"wrote {output}: {rows:,} samples, {columns:,} columns")


@cli.command()
@click.option("--backbone", type=DIR, help="Left out: the shipped one, prepared for the store.")
@click.option("--store", type=DIR, required=True)
@click.option("--samples", type=FILE, required=True, help="entity_id, as_of, label, ...")
@click.option("-o", "--output", type=DIR, required=True)
@click.option(
    "--recipe",
    default="auto",
    show_default=True,
    help="auto, or one recipe: query, scorecard, linear, gbdt, forecast, probe, fusion, "
    "prompt, lora, transfer, blend.",
)
@click.option("--recipes", help="With auto: only these, separated by commas.")
@click.option("--test", "test_path", type=FILE, help="Labelled samples to measure on.")
@click.option("--channel", default="default", show_default=True, help="Name of the population.")
@click.option("--seed", default=0, show_default=True)
@click.option("--budget", type=float, help="Minutes for comparing recipes.")
@ladder_options
@reject_options
@reads_mapping("samples", "test_path", "rejects")
@click.option(
    "--allow-leak",
    is_flag=True,
    help="Measure although the backbone knew later events; the report says so.",
)
@_quiet
def adapt(
    backbone: Path | None,
    store: Path,
    samples: Path,
    output: Path,
    recipe: str,
    recipes: str | None,
    test_path: Path | None,
    channel: str,
    seed: int,
    budget: float | None,
    sources: tuple[Path, ...],
    monotone: tuple[str, ...],
    seeds: int | None,
    groups: str | None,
    precision: str,
    allow_leak: bool,
    reject_inference: str | None,
    reject_factor: float,
    rejects: Path | None,
    quiet: bool,
) -> None:
    """Turn a few hundred labels into a tested, packaged model with a report."""
    from finetune.adaptation import AdaptSettings, run_adaptation
    from finetune.reject_inference import RejectSettings

    reporter = Reporter(quiet)
    chosen = tuple(r.strip() for r in recipes.split(",")) if recipes else ()
    settings = AdaptSettings(
        recipe=recipe,
        recipes=chosen,
        channel=channel,
        seed=seed,
        budget_minutes=budget,
        sources=sources,
        monotone=read_directions(monotone),
        seeds=seeds,
        groups=tuple(g.strip() for g in groups.split(",")) if groups else (),
        precision=precision,
        allow_leak=allow_leak,
        rejects=RejectSettings(reject_inference, reject_factor) if reject_inference else None,
    )
    result = run_adaptation(
        backbone, store, samples, output, settings, test_path, reporter, rejects
    )
    if backbone is None:
        came = result.backbone.run["prepared_from"]["name"]
        click.echo(f"backbone {result.backbone.path}, prepared from the shipped {came}")
    click.echo("\n".join(result.lines()))
    click.echo(f"package {output / 'package'} ({result.package_id})")
    if result.rejects is not None and "package" in result.rejects:
        beside = output / result.rejects["path"]
        click.echo(f"package {beside} ({result.rejects['package']}), with refused applicants")
    click.echo(f"report  {output / 'report.html'}")


@cli.command()
@click.option("--package", "package_path", type=DIR, required=True)
@click.option("--store", type=DIR, required=True)
@click.option("--samples", type=FILE, required=True)
@click.option("-o", "--output", type=FILE, required=True, help="Parquet or CSV by its ending.")
@click.option("--reasons", is_flag=True, help="Add the strongest reasons of every score.")
@reads_mapping("samples")
@_quiet
def score(
    package_path: Path, store: Path, samples: Path, output: Path, reasons: bool, quiet: bool
) -> None:
    """Score a file of samples with a package."""
    from finetune.file_scoring import score_file

    with Reporter(quiet).bar("score") as bar:
        summary = score_file(package_path, store, samples, output, reasons, progress=bar)
    click.echo(summary)


@cli.group()
def package() -> None:
    """Look at packages."""


@package.command("verify")
@click.argument("path", type=DIR)
def package_verify(path: Path) -> None:
    """Check every digest and reproduce the golden rows."""
    from finetune.package import Package

    opened = Package.load(path)
    worst = opened.check_golden()
    click.echo(
        f"{opened.id}: {len(opened.manifest['files'])} files intact, golden rows within "
        f"{worst:.1e} of the recorded scores"
    )


@package.command("show")
@click.argument("path", type=DIR)
def package_show(path: Path) -> None:
    """Print the manifest's summary."""
    from finetune.package import read_manifest

    manifest = read_manifest(path)
    keys = (
        "id",
        "channel",
        "recipe",
        "why",
        "created_at",
        "code_version",
        "store_version",
        "backbone_fingerprint",
        "tokenizer_fingerprint",
        "schema_fingerprint",
        "precision",
        "metrics",
    )
    click.echo(json.dumps({k: manifest.get(k) for k in keys}, indent=1))


cli.add_command(labels)
add_samples(cli)
cli.add_command(backtest)
cli.add_command(backtrack)
cli.add_command(simulate)
cli.add_command(document)
add_delivery(cli)
add_daily(cli)
add_decisions(cli)
add_settings(cli)
add_serve(cli)
add_models(cli)
add_safety(cli)
add_tenancy(cli)
cli.add_command(backbone_group)
events.add_command(events_compact)
events.add_command(events_index)
tokenizer.add_command(tokenizer_extend)
schema.add_command(schema_map)


@cli.command()
@click.option("-o", "--output", type=DIR, default=Path("demo"), show_default=True)
@click.option("--port", default=3117, show_default=True)
@_quiet
def demo(output: Path, port: int, quiet: bool) -> None:
    """The main job on real data, end to end: purchases of a grocer's households."""
    from serving.demo import run_demo

    run_demo(output, port, Reporter(quiet))


def main() -> None:
    """Entry point of the console script."""
    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    cli()
