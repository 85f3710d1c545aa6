"""Commands around few labels: `riskfm labels power`, `riskfm labels vintages`, reject options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from foundation.errors import UserError

FILE = click.Path(path_type=Path, dir_okay=False)
DIR = click.Path(path_type=Path, file_okay=False)


def reject_options(function: Any) -> Any:
    """Options of `adapt` about refused applicants."""
    for option in (
        click.option("--rejects", type=FILE, help="Refused applicants: entity_id, as_of, ..."),
        click.option(
            "--reject-factor",
            default=1.0,
            show_default=True,
            help="Odds of bad of a refused applicant against an approved one of the same score.",
        ),
        click.option(
            "--reject-inference",
            type=click.Choice(["fuzzy", "parcelling"]),
            help="Also learn with refused applicants, beside the plain model.",
        ),
    ):
        function = option(function)
    return function


@click.group()
def labels() -> None:
    """What labels can show, and when they are ripe."""


@labels.command("power")
@click.option("--samples", type=FILE, help="Labelled samples to count.")
@click.option("--labels", "count", type=click.IntRange(1), help="Number of labels instead.")
@click.option("--bads", type=click.IntRange(0), help="Bads among --labels.")
@click.option("--auc", type=float, help="Assumed true AUC; 0.75 without --auc and --ks.")
@click.option("--ks", type=float, help="Assumed true KS instead of --auc.")
@click.option(
    "--correlation",
    default=0.8,
    show_default=True,
    help="Of the scores of two models to be compared, inside bads and inside goods.",
)
def labels_power(
    samples: Path | None,
    count: int | None,
    bads: int | None,
    auc: float | None,
    ks: float | None,
    correlation: float,
) -> None:
    """Say how much labels can show before anything is trained, and what more would buy."""
    from finetune import label_power

    if auc is not None and ks is not None:
        raise UserError("give --auc or --ks, not both")
    if ks is not None and not 0 < ks < 1:
        raise UserError(f"a KS must lie between 0 and 1, {ks:g} does not")
    if samples is not None:
        if count is not None or bads is not None:
            raise UserError("give --samples, or --labels and --bads, not both")
        from finetune.samples import read_label_counts

        count, bads, notes = read_label_counts(samples)
    elif count is None or bads is None:
        raise UserError("give --samples FILE, or --labels N and --bads B")
    else:
        notes = []
    assumed = label_power.auc_of_ks(ks) if ks is not None else auc
    table = label_power.power_table(
        count, bads, label_power.AUC if assumed is None else assumed, correlation
    )
    click.echo(label_power.power_sentence(table[0], "when measured on them"))
    click.echo("\n".join(label_power.table_lines(table)))
    click.echo(label_power.assumption_sentence(table[0]))
    for note in notes:
        click.echo(f"note: {note}")


@labels.command("vintages")
@click.option("--store", type=DIR, required=True)
@click.option("-o", "--output", type=DIR, required=True, help="Directory for page and tables.")
@click.option("--outcome", help="A declared outcome about single events, instead of a field.")
@click.option("--source", help="Event source; the only one if left out.")
@click.option("--field", help="A status, days late, or a due date.")
@click.option("--bad", help="Bad values of a status, separated by commas.")
@click.option("--bad-from", type=float, help="Days late (or number) from which it is bad.")
@click.option("--order", help="Values of a status from best to worst, separated by commas.")
@click.option("--edges", help="Bucket edges of days late; 1,30,60,90 if left out.")
@click.option("--samples", type=FILE, help="Samples whose windows are to be judged.")
@click.option(
    "--since",
    type=click.Choice(["booking", "as-of"]),
    default="booking",
    show_default=True,
    help="Follow customers from their first event, or samples from as_of.",
)
@click.option("--window", type=int, help="Performance window of the labels in months.")
@click.option(
    "--mature", default=0.9, show_default=True, help="Share of the final bads that counts as ripe."
)
@click.option("--until", help="Read only what was known before this date, e.g. 2017-09-01.")
@click.option("--entities", type=FILE, help="Read only the ids of this file.")
@click.option("--exclude-entities", type=FILE, help="Leave out the ids of this file.")
def labels_vintages(
    store: Path,
    output: Path,
    outcome: str | None,
    source: str | None,
    field: str | None,
    bad: str | None,
    bad_from: float | None,
    order: str | None,
    edges: str | None,
    samples: Path | None,
    since: str,
    window: int | None,
    mature: float,
    until: str | None,
    entities: Path | None,
    exclude_entities: Path | None,
) -> None:
    """Vintages, roll rates and maturity of a bad definition, as a page and tables."""
    from finetune.bad_definition import given_rule
    from finetune.vintage_report import VintageSettings, run_vintages, vintage_lines
    from foundation.store import EventStore

    rule = given_rule(
        EventStore.open(store).schema,
        outcome=outcome,
        source=source,
        field=field,
        bad=_listed(bad),
        bad_from=bad_from,
        order=_listed(order),
        edges=_numbers(edges),
    )
    settings = VintageSettings(
        since=since,
        share=mature,
        window_months=window,
        until=until,
        entities=entities,
        exclude_entities=exclude_entities,
    )
    numbers = run_vintages(store, rule, output, settings, samples)
    click.echo("\n".join(vintage_lines(numbers)))
    click.echo(f"page {output / 'vintages.html'}")


def _listed(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text else ()


def _numbers(text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in _listed(text))
    except ValueError:
        raise UserError(f"--edges '{text}': write numbers such as 1,30,60,90") from None
