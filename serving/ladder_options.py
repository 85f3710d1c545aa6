"""Options of `riskfm adapt` that shape its recipes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from foundation.errors import UserError

SIGNS = {"+": 1, "-": -1}


def ladder_options(function: Any) -> Any:
    """Other channels to start from, directions of columns, seeds, groups, precision."""
    for option in (
        click.option(
            "--precision",
            type=click.Choice(["float32", "int8"]),
            default="float32",
            show_default=True,
            help="Of the backbone's graphs; int8 is faster, without prompt and lora.",
        ),
        click.option(
            "--groups",
            metavar="FIELD[,FIELD]",
            help="Profile or context fields by which the report looks at fairness.",
        ),
        click.option(
            "--seeds", type=int, help="Average gbdt, fusion, prompt and lora over so many seeds."
        ),
        click.option(
            "--monotone",
            multiple=True,
            metavar="COLUMN=+|-",
            help="More of it is worse (+) or better (-); forecast=+ for all forecasts.",
        ),
        click.option(
            "--from",
            "sources",
            type=click.Path(path_type=Path, file_okay=False),
            multiple=True,
            help="A package of another channel to start from (recipe transfer).",
        ),
    ):
        function = option(function)
    return function


def read_directions(given: Sequence[str]) -> dict[str, int]:
    """Column -> 1 or -1 from texts such as `late_31d=+`.

    Raises:
        UserError: no sign, or a column with both.
    """
    out: dict[str, int] = {}
    for text in given:
        column, _, sign = text.rpartition("=")
        if not column or sign not in SIGNS:
            raise UserError(f"--monotone {text}: write COLUMN=+ (more is worse) or COLUMN=-")
        if out.get(column, SIGNS[sign]) != SIGNS[sign]:
            raise UserError(f"--monotone {column} is given as + and as -; keep one")
        out[column] = SIGNS[sign]
    return out
