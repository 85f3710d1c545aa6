"""Commands that bring a backbone to a schema: `backbone prepare`, `tokenizer extend`,
`schema map`."""

from __future__ import annotations

from pathlib import Path

import click

from foundation.errors import UserError
from serving.progress import Reporter

FILE = click.Path(path_type=Path, dir_okay=False)
DIR = click.Path(path_type=Path, file_okay=False)


@click.group("backbone")
def backbone_group() -> None:
    """Backbones that come with riskfm, on stores they never saw."""


@backbone_group.command("prepare")
@click.option("--store", type=DIR, required=True)
@click.option("-o", "--output", type=DIR, required=True, help="The backbone directory to make.")
@click.option("--until", required=True, help="Read only what was known before this date.")
@click.option("--exclude-entities", type=FILE, help="Leave out the ids of this file.")
@click.option(
    "--from", "start", default="shipped", show_default=True, help="'shipped', or a directory."
)
@click.option("--quiet", is_flag=True, help="No progress on standard error.")
def backbone_prepare(
    store: Path, output: Path, until: str, exclude_entities: Path | None, start: str, quiet: bool
) -> None:
    """Put a pretrained network on a store of another schema, without pretraining."""
    from foundation.preparation import run_preparation

    reporter = Reporter(quiet)
    made = run_preparation(store, output, until, exclude_entities, start, reporter.say)
    click.echo(f"wrote {output}: {made.summary()}")


@click.command("extend")
@click.option("--tokenizer", type=DIR, required=True, help="Directory of the tokenizer.json.")
@click.option("--store", type=DIR, required=True)
@click.option("-o", "--output", type=DIR, required=True, help="Directory for tokenizer.json.")
@click.option("--until", help="Read only what was known before this date, e.g. 2017-09-01.")
@click.option("--entities", type=FILE, help="Read only the ids of this file.")
@click.option("--exclude-entities", type=FILE, help="Leave out the ids of this file.")
def tokenizer_extend(
    tokenizer: Path,
    store: Path,
    output: Path,
    until: str | None,
    entities: Path | None,
    exclude_entities: Path | None,
) -> None:
    """Add a store's new sources, fields and values to a tokenizer; old ids stay."""
    from foundation.selection import read_selection
    from foundation.store import EventStore
    from foundation.tokenizer import Tokenizer

    path = tokenizer / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; make one with: riskfm tokenizer fit")
    old = Tokenizer.from_json(path.read_text(encoding="utf-8"), str(path))
    opened = EventStore.open(store)
    chosen = read_selection(opened, until, entities, exclude_entities)
    timeline = opened.timeline(entities=chosen.entities, until_us=chosen.until_us)
    profile = opened.profile_history(entities=chosen.entities, until_us=chosen.until_us)
    new = old.extend(opened.schema, timeline, profile, until_us=chosen.until_us)
    output.mkdir(parents=True, exist_ok=True)
    partial = output / ".tokenizer.json.part"
    partial.write_text(new.to_json(), encoding="utf-8")
    partial.replace(output / "tokenizer.json")
    click.echo(
        f"wrote {output / 'tokenizer.json'}: fingerprint {new.fingerprint}, "
        f"{new.size - old.size:,} codes of {new.size:,} are new, "
        f"{len(new.sources) - len(old.sources)} sources of {len(new.sources)}"
    )


@click.command("map")
@click.argument("schema_path", metavar="SCHEMA", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="The YAML file to write.")
@click.option("--source", default="", help="Only this source, 'profile' or 'context'.")
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
def schema_map(schema_path: Path, output: Path, source: str, force: bool) -> None:
    """Guess the roles of fields that have none, and write them into the schema."""
    from foundation.infer import schema_yaml
    from foundation.role_mapping import UNKNOWN, anchored, map_roles
    from foundation.schema import load_schema

    if output.exists() and not force:
        raise UserError(f"{output} exists; --force overwrites it")
    made, fields = map_roles(load_schema(schema_path), source)
    for one in fields:
        word = "guessed" if one.guessed else "none found" if one.role == UNKNOWN else "kept"
        click.echo(f"{one.field:<40} {one.kind:<10} {one.role:<14} {word}")
    output.parent.mkdir(parents=True, exist_ok=True)
    made = anchored(made, schema_path.parent)
    text = schema_yaml(made, ["roles were guessed by riskfm schema map"], output.parent)
    output.write_text(text, encoding="utf-8")
    guessed = sum(one.guessed for one in fields)
    click.echo(f"wrote {output}: {guessed} roles guessed of {len(fields)} fields")
