"""The command: sections, their results on the disk, the table."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts.bench.hosted.world import World

Figure = Callable[..., None]


def main() -> int:
    """Run the sections that are asked for and not there yet; 1 where a figure misses its bar."""
    from scripts.bench.hosted import (
        channels,
        faults,
        files,
        incremental,
        isolation,
        peer,
        speed,
    )

    sections: dict[str, Callable[[World, Figure], None]] = {
        "speed": speed.run,
        "incremental": incremental.run,
        "files": files.run,
        "channels": channels.run,
        "isolation": isolation.run,
        "overload": faults.run,
    }
    usual = ",".join(sections)
    sections["peer"] = peer.run
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, help="keeps packages and results")
    parser.add_argument("--sections", default=usual, help="some of the default, or peer")
    parser.add_argument("--size", default="nano", help="backbone: a file of configs/pretrain")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each part under load")
    parser.add_argument("--rounds", type=int, default=8, help="turns of what is compared")
    parser.add_argument("--channels", type=int, default=300)
    parser.add_argument("--requests", type=int, default=100_000, help="of `isolation`")
    parser.add_argument("--peer", type=Path, help="another library's graph, of `peer`")
    parser.add_argument("--precision", choices=("float32", "int8"), default="float32",
                        help="of the packages' graphs")  # fmt: skip
    parser.add_argument("--again", action="store_true", help="run sections that are there, too")
    parser.add_argument("--output", type=Path, help="write the table of all results to this file")
    given = parser.parse_args()
    chosen = [name for name in given.sections.split(",") if name]
    unknown = set(chosen) - set(sections)
    if unknown:
        parser.error(f"unknown section {sorted(unknown)}; there are {', '.join(sections)}")
    with _folder(given.work) as work:
        results = work / "results.jsonl"
        world = World(
            work,
            given.size,
            given.seconds,
            given.rounds,
            given.channels,
            given.requests,
            given.peer,
            given.precision,
        )
        for name in chosen:
            if given.again or not any(_is(row, name, world.called) for row in read(results)):
                _run(name, sections[name], world, results)
        rows = read(results)
        if given.output:
            given.output.write_text(page(rows), encoding="utf-8")
    return int(any(misses(row) for row in rows if row["section"] in chosen))


def _run(name: str, section: Callable[[World, Figure], None], world: World, results: Path) -> None:
    """Run one section; its figures take the place of earlier ones once it is done."""
    rows: list[dict[str, Any]] = []
    begin = time.perf_counter()

    def figure(what: str, value: float, unit: str, on: str, bar: float | None = None,
               better: str = "lower") -> None:  # fmt: skip
        row: dict[str, Any] = {"what": what, "value": _shown(value), "unit": unit, "on": on}
        if bar is not None:
            row |= {"bar": bar, "better": better}
        print(json.dumps(row), flush=True)
        load = os.getloadavg()[0]
        at = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        rows.append(
            {"section": name, "size": world.called, **row, "load": round(load, 1), "at": at}
        )

    section(world, figure)
    print(f"-- {name}: {time.perf_counter() - begin:.0f} s", flush=True)
    kept = [row for row in read(results) if not _is(row, name, world.called)]
    text = "".join(json.dumps(row) + "\n" for row in [*kept, *rows])
    fresh = results.with_suffix(".part")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(results)


def read(results: Path) -> list[dict[str, Any]]:
    """Every figure there is."""
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]


def misses(row: dict[str, Any]) -> bool:
    """Whether a figure has a bar and misses it."""
    if "bar" not in row:
        return False
    if row["better"] == "lower":
        return bool(row["value"] > row["bar"])
    return bool(row["value"] < row["bar"])


def page(rows: list[dict[str, Any]]) -> str:
    """The table as Markdown."""
    cores = os.cpu_count()
    lines = [
        "# Hosted scoring, measured",
        "",
        "    python scripts/bench/hosting.py --work DIR --size small --output serving.md",
        "",
        f"{platform.machine()}, {cores} cores, Python {platform.python_version()}. The load comes "
        "from another process on the same machine; the last",
        "column is the machine's load average (1 minute) when the figure was taken. Far above "
        f"{cores}, absolute times are those",
        "of a busy machine: ratios of what took turns in one run hold, bars in milliseconds are "
        "for an idle one.",
        "",
        "| section | backbone | what | value | bar | on | load |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        bar = ""
        if "bar" in row:
            sign = "<=" if row["better"] == "lower" else ">="
            bar = f"{sign} {row['bar']:g}{' **missed**' if misses(row) else ''}"
        lines.append(
            f"| {row['section']} | {row['size']} | {row['what']} | {row['value']:,} {row['unit']} "
            f"| {bar} | {row['on']} | {row['load']} |"
        )
    return "\n".join(lines) + "\n"


def _shown(value: float) -> float:
    """Counts as they are, everything else to four digits: a small difference is not none."""
    return value if isinstance(value, int) else float(f"{value:.4g}")


def _is(row: dict[str, Any], section: str, size: str) -> bool:
    return bool(row["section"] == section and row["size"] == size)


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="riskfm-bench-") as scratch:
        yield Path(scratch)
