"""Run the speed benchmarks and print one table: `make bench`.

Each script beside this one measures one part and prints, among whatever it likes to say, one JSON
object a line for each figure: {"what": str, "value": number, "unit": str, "bar": number,
"better": "higher" or "lower", "on": str}. `bar` and `better` may be left out. The exit code is 1
when a script fails or a figure misses its bar.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SCRIPTS = ("history", "tokenizer", "backtracking", "pretraining", "engine", "scoring")


def main() -> int:
    """Run what was asked for; print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of: {', '.join(SCRIPTS)} (default: all)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    given = parser.parse_args()
    unknown = set(given.names) - set(SCRIPTS)
    if unknown:
        parser.error(f"unknown benchmark {sorted(unknown)}; there are {', '.join(SCRIPTS)}")

    rows: list[dict[str, Any]] = []
    failed = False
    for name in given.names or SCRIPTS:
        script = HERE / f"{name}.py"
        if not script.exists():
            print(f"-- {name}: no such script, left out", flush=True)
            continue
        started = time.perf_counter()
        print(f"-- {name}", flush=True)
        code, figures = run(script)
        seconds = time.perf_counter() - started
        failed |= code != 0
        print(f"-- {name}: exit {code}, {seconds:.0f} s", flush=True)
        rows += [{"bench": name, **figure} for figure in figures]
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(table(rows))
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return int(failed or any(meets(row) is False for row in rows))


def run(script: Path) -> tuple[int, list[dict[str, Any]]]:
    """A script's exit code and figures; its other lines are passed on as they come."""
    figures: list[dict[str, Any]] = []
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as run:
        for line in run.stdout or ():
            figure = parse(line)
            if figure is None:
                print(f"   {line.rstrip()}", flush=True)
            else:
                figures.append(figure)
    return run.returncode, figures


def parse(line: str) -> dict[str, Any] | None:
    """The figure in a line, or None for a line that is not one."""
    if not line.startswith("{"):
        return None
    try:
        figure = json.loads(line)
    except json.JSONDecodeError:
        return None
    return figure if {"what", "value", "unit"} <= figure.keys() else None


def meets(row: dict[str, Any]) -> bool | None:
    """Whether a figure meets its bar; None without one."""
    if row.get("bar") is None:
        return None
    if row.get("better", "higher") == "higher":
        return bool(row["value"] >= row["bar"])
    return bool(row["value"] <= row["bar"])


def table(rows: list[dict[str, Any]]) -> str:
    """Figures as aligned text."""
    cells = [("bench", "what", "value", "unit", "bar", "", "measured on")]
    for row in rows:
        sign = ">=" if row.get("better", "higher") == "higher" else "<="
        bar = "" if row.get("bar") is None else f"{sign} {number(row['bar'])}"
        verdict = {True: "met", False: "MISSED", None: ""}[meets(row)]
        cells.append(
            (
                row["bench"],
                row["what"],
                number(row["value"]),
                row["unit"],
                bar,
                verdict,
                str(row.get("on", "")),
            )
        )
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
    return "\n".join(line.rstrip() for line in lines)


def number(value: float) -> str:
    """A figure with three or four meaningful digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
