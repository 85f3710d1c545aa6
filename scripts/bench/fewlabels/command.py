"""The command line of the few-label benchmark."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from foundation.allocator import keep_freed_memory
from foundation.errors import UserError, listing, nearest
from scripts.bench.fewlabels.opponents import FORECAST, PLAIN
from scripts.bench.fewlabels.sets import ROOT, RULES, SETS, SIZES, SYNTHETIC
from scripts.bench.fewlabels.tasks import (
    SEQUENCE,
    RunSettings,
    features_of,
    opponents_of,
    plan,
    run_tasks,
    set_of,
)

PARTS = ("opponents", "ours", "sequence", "table")
DATA = ROOT.parent / "shared" / "data"
QUICK_SIZES, QUICK_DRAWS, DRAWS = (100, 300), 10, 20


def main(arguments: list[str] | None = None) -> int:
    """Make what is missing, then the tables; exit code 2 for a wrong argument."""
    given = parser().parse_args(arguments)
    keep_freed_memory()  # as the commands do
    try:
        settings = read_settings(given)
        run(settings, given.part, given.output, given.quick)
    except UserError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return exc.exit_code
    return 0


def parser() -> argparse.ArgumentParser:
    """Every option there is."""
    out = argparse.ArgumentParser(description="Few labels against tuned opponents.")
    out.add_argument("--quick", action="store_true", help="n 100 and 300, 10 draws, 1 repeat")
    out.add_argument(
        "--sets",
        default="",
        help=f"of {', '.join((*SETS, *SYNTHETIC))}, or folders of your own in the same form; "
        "default: those prepared, no synthetic one",
    )
    out.add_argument("--part", choices=PARTS, help="only this part; all without")
    out.add_argument("--work", type=Path, default=Path("few_labels_work"), help="cache folder")
    out.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmarks")
    out.add_argument("--data", type=Path, help="instead of $RISKFM_DATA")
    out.add_argument("--draws", type=int, help=f"of each label count (default {DRAWS})")
    out.add_argument("--n", default="", help="label counts, such as 100,300")
    out.add_argument("--track", choices=("H", "S"), default="H", help="what may be pretrained on")
    out.add_argument("--rule", choices=RULES, default="stratified", help="how labels are drawn")
    out.add_argument("--learners", default="", help="only these opponents")
    out.add_argument("--pretrain", type=Path, default=ROOT / "configs" / "pretrain" / "nano.yaml")
    out.add_argument("--repeats", type=int, help="of the ladder's folds (default 3, quick 1)")
    out.add_argument("--slow", action="store_true", help="also prompt and lora, 5 draws at 300")
    out.add_argument(
        "--sequence-python",
        type=Path,
        metavar="PYTHON",
        help="of an environment with pragmatiq and pytorch-lifestream; without it they do not run",
    )
    out.add_argument(
        "--sequence-seconds", type=float, help="their pretraining (default: as long as ours took)"
    )
    out.add_argument(
        "--sequence-cells",
        type=Path,
        metavar="PARQUET",
        help="of an earlier run: its sequence models are shown beside, where nothing they depend "
        "on has changed since",
    )
    out.add_argument("--no-ceilings", action="store_true", help="leave out all-label opponents")
    out.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    return out


def read_settings(given: argparse.Namespace) -> RunSettings:
    """Options as settings.

    Raises:
        UserError: an unknown set or opponent, or a number that cannot be.
    """
    data = (given.data or Path(os.environ.get("RISKFM_DATA", DATA))) / "prepared"
    sets = tuple(filter(None, given.sets.split(","))) or sets_there(data)
    learners = tuple(filter(None, given.learners.split(",")))
    opponents = [*PLAIN, *FORECAST, *SEQUENCE]
    own = sorted(file.parent.name for file in data.glob("*/meta.json"))
    there = tuple(dict.fromkeys((*SETS, *SYNTHETIC, *own)))
    named = (sets, there, "set"), (learners, opponents, "opponent")
    for chosen, known, what in named:
        for name in chosen:
            if name not in known:
                raise UserError(
                    f"unknown {what} '{name}'{nearest(name, known)}; {what}s: {listing(known)}"
                )
    try:
        sizes = tuple(int(n) for n in given.n.split(",") if n)
    except ValueError:
        raise UserError(f"--n: expected numbers such as 100,300, found '{given.n}'") from None
    sizes = sizes or (QUICK_SIZES if given.quick else SIZES)
    draws = given.draws or (QUICK_DRAWS if given.quick else DRAWS)
    if min(sizes) < 1 or draws < 1 or given.workers < 1:
        raise UserError("--n, --draws and --workers must be positive")
    python, seconds = given.sequence_python, given.sequence_seconds
    if python is not None and not python.is_file():
        raise UserError(f"--sequence-python: no such file: {python}")
    cells = given.sequence_cells
    if cells is not None and not cells.is_file():
        raise UserError(f"--sequence-cells: no such file: {cells}")
    if seconds is not None and not seconds > 0:
        raise UserError(f"--sequence-seconds must be positive, found {seconds:g}")
    return RunSettings(
        data=data,
        work=given.work,
        sets=sets,
        sizes=sizes,
        draws=draws,
        track=given.track,
        rule=given.rule,
        learners=learners,
        workers=given.workers,
        pretrain=given.pretrain,
        repeats=given.repeats or (1 if given.quick else 3),
        slow=given.slow,
        ceilings=not given.no_ceilings,
        # Absolute, but not resolved: the link into an environment is what makes it one.
        sequence_python=python.absolute() if python else None,
        sequence_seconds=seconds,
        sequence_cells=cells,
    )


def sets_there(prepared: Path) -> tuple[str, ...]:
    """The real sets whose folders are there; every one where none is, so that one is missed."""
    found = tuple(name for name in SETS if (prepared / name / "meta.json").is_file())
    if found and found != SETS:
        missing = [name for name in SETS if name not in found]
        print(f"left out, as {prepared} has none: {listing(missing)}", flush=True)
    return found or SETS


def run(settings: RunSettings, part: str | None, output: Path, quick: bool) -> None:
    """Features and backbones first, then cells in worker processes, then the tables."""
    began = time.monotonic()
    if part in (None, "opponents"):
        for name in settings.sets:
            bench = set_of(name, settings.data, settings.work)
            features = features_of(name, settings.data, settings.work, settings.seed)
            print(
                f"{name}: {len(features.columns)} columns; opponents "
                f"{', '.join(opponents_of(bench, settings))}",
                flush=True,
            )
        run_tasks(settings, plan(settings, "opponents"))
    if part in (None, "ours"):
        from scripts.bench.fewlabels.ours import prepare_ours

        for name in settings.sets:
            prepare_ours(settings, set_of(name, settings.data, settings.work))
        run_tasks(settings, plan(settings, "ours"))
    if part in (None, "sequence"):
        from scripts.bench.fewlabels.sequence_models import prepare_sequences

        for name in settings.sets:
            prepare_sequences(settings, set_of(name, settings.data, settings.work))
        run_tasks(settings, plan(settings, "sequence"))
    from scripts.bench.fewlabels.outputs import write_outputs

    write_outputs(settings, output, quick)
    print(f"done in {(time.monotonic() - began) / 60:.1f} min", flush=True)
