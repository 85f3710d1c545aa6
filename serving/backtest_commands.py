"""The command `riskfm backtest`: one package, or a model made anew at every month."""

from __future__ import annotations

from pathlib import Path

import click

from foundation.errors import UserError
from serving.progress import Reporter
from serving.sample_commands import reads_mapping

FILE = click.Path(path_type=Path, dir_okay=False)
DIR = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.option("--package", "package_path", type=DIR, help="The package to judge.")
@click.option("--store", type=DIR, required=True)
@click.option("--samples", type=FILE, required=True, help="Labelled samples of later windows.")
@click.option("-o", "--output", type=DIR, required=True)
@click.option("--incumbent", type=DIR, help="Package in use today, compared on the same rows.")
@click.option("--costs", type=FILE, help="Cost matrix, e.g. configs/backtest/costs.yaml.")
@click.option(
    "--approval", default=0.7, show_default=True, help="Share approved today, where risk is held."
)
@click.option("--draws", default=500, show_default=True, help="Bootstrap draws.")
@click.option("--seed", default=0, show_default=True)
@click.option("--rolling", is_flag=True, help="Adapt anew at every month, from --backbone.")
@click.option("--backbone", type=DIR, help="With --rolling: the backbone to adapt.")
@click.option("--recipes", help="With --rolling: recipes to compare; cheap ones if left out.")
@click.option("--test-months", default=1, show_default=True, help="With --rolling: months tested.")
@click.option("--embargo-days", type=int, help="With --rolling: days until a label is known.")
@click.option("--first", help="With --rolling: the first origin, e.g. 2024-03.")
@click.option("--allow-leak", is_flag=True, help="With --rolling: though the backbone knew later.")
@reads_mapping("samples")
@click.option("--quiet", is_flag=True, help="No progress on standard error.")
def backtest(
    package_path: Path | None,
    store: Path,
    samples: Path,
    output: Path,
    incumbent: Path | None,
    costs: Path | None,
    approval: float,
    draws: int,
    seed: int,
    rolling: bool,
    backbone: Path | None,
    recipes: str | None,
    test_months: int,
    embargo_days: int | None,
    first: str | None,
    allow_leak: bool,
    quiet: bool,
) -> None:
    """Judge a package, or a way of adapting, on later windows against incumbent and baselines."""
    reporter = Reporter(quiet)
    if rolling:
        from finetune.backtest_origins import CHEAP, RollingSettings
        from finetune.backtest_rolling import run_rolling_backtest

        if package_path is not None:
            raise UserError("--rolling adapts anew; name the package as --incumbent to compare it")
        if backbone is None:
            raise UserError("--rolling adapts a backbone at every month: name it with --backbone")
        chosen = tuple(r.strip() for r in recipes.split(",")) if recipes else CHEAP
        result = run_rolling_backtest(
            backbone,
            store,
            samples,
            output,
            settings=RollingSettings(
                recipes=chosen,
                test_months=test_months,
                embargo_days=embargo_days,
                first=first,
                seed=seed,
                allow_leak=allow_leak,
            ),
            incumbent=incumbent,
            costs=costs,
            approval=approval,
            draws=draws,
            reporter=reporter,
        )
    else:
        from finetune.backtest import run_backtest

        if package_path is None:
            raise UserError("name the package to judge with --package, or roll with --rolling")
        given = [
            name
            for name, there in (
                ("--backbone", backbone),
                ("--recipes", recipes),
                ("--embargo-days", embargo_days),
                ("--first", first),
                ("--allow-leak", allow_leak),
            )
            if there
        ]
        if given:
            raise UserError(f"{given[0]} belongs to --rolling; a package is judged as it is")
        with reporter.bar("score") as bar:
            result = run_backtest(
                package_path,
                store,
                samples,
                output,
                incumbent=incumbent,
                costs=costs,
                approval=approval,
                draws=draws,
                seed=seed,
                progress=bar,
            )
    click.echo("\n".join(result.lines()))
    click.echo(f"page {output / 'backtest.html'}")
