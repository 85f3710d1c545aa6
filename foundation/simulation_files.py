"""A simulated world as files: events, profile, schema, samples, and what no model may see.

Synthetic, and said in the schema's name and notes, in the ids and in the README of every folder.
A folder appears whole or not at all.
"""

from __future__ import annotations

import datetime as dt
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from foundation.errors import ConfigError
from foundation.schema import schema_from_dict, schema_to_dict
from foundation.simulation import (
    PART_CUSTOMERS,
    Known,
    WorldSize,
    known_between,
    known_by,
    simulate,
    world_end,
)
from foundation.simulation_scenario import GRACE_DAYS, REPORTED_DAYS, Scenario, month_starts

Progress = Callable[[int, int, str], None]
NOTE = (
    "SYNTHETIC data, made by `riskfm simulate`. No person, no lender and no transaction stands "
    "behind any row. Figures measured on it say how the software works, not how good it is."
)
_AUTHORIZATION = {"by": "nobody: synthetic data of riskfm simulate", "use": "demos and tests"}
_WITH_SHARING = {"kind": "identifier", "role": "device", "grade": "personal", "sharing": True}


@dataclass
class Written:
    """What was written.

    Attributes:
        rows: table to number of rows. channels: channel to labels and bads.
        labels: all matured labels; truth: the hidden table, not in days.
        days: folders of single days.
    """

    directory: Path
    rows: dict[str, int] = field(default_factory=dict)
    channels: dict[str, tuple[int, int]] = field(default_factory=dict)
    labels: pl.DataFrame = field(default_factory=pl.DataFrame)
    truth: pl.DataFrame = field(default_factory=pl.DataFrame)
    splits: dict[str, int] = field(default_factory=dict)
    days: int = 0


def write_world(
    scenario: Scenario,
    size: WorldSize,
    out_dir: Path,
    until: dt.date | None = None,
    progress: Progress | None = None,
) -> Written:
    """Write everything that had become known before `until` (default: the world's end).

    Files: `schema.yaml`, `events/synthetic_<source>-<part>.parquet`, `profile-<part>.parquet`
    beside them, `samples/<channel>.parquet` (matured labels), `pending.parquet`,
    `refused.parquet`, `development.parquet` and `test.parquet` (a split out of time and by
    customer), `truth.parquet` (hidden) and `README.md`.

    Raises:
        ConfigError: the folder is not empty, or `until` lies outside the world.
    """
    end = world_end(scenario, size.months)
    moment = end if until is None else _midnight(until, scenario, end, "--until")
    out = Written(out_dir)
    kept: dict[str, list[pl.DataFrame]] = {n: [] for n in ("labels", "pending", "refused", "truth")}
    with _whole(out_dir) as folder:
        for index, part in enumerate(simulate(scenario, size)):
            known = known_by(part, moment)
            _write_tables(folder / "events", known, index, out.rows)
            for name in ("labels", "pending", "refused"):
                kept[name].append(getattr(known, name))
            kept["truth"].append(part.applications.filter(pl.col("as_of") < moment))
            _step(progress, index, size)
        tables = {n: pl.concat(f).sort("as_of", "entity_id") for n, f in kept.items()}
        out.labels, out.truth = tables["labels"], tables["truth"].drop("label_known_at")
        _write_samples(folder, scenario, tables, out)
        _write_split(folder, scenario, size, out.labels, out.splits)
        _write(out.truth.rename({"label": "label_if_approved"}), folder / "truth.parquet")
        _write_schema(folder, scenario, "events/")
        text = _readme(scenario, size, moment, out)
        (folder / "README.md").write_text(text, encoding="utf-8")
    return out


def write_days(
    scenario: Scenario,
    size: WorldSize,
    out_dir: Path,
    first: dt.date,
    last: dt.date,
    progress: Progress | None = None,
) -> Written:
    """Write one folder a day, `first` to `last`, of what became known on it (UTC).

    A folder such as `2024-06-01/` holds `schema.yaml`, `events/` as a whole world has them,
    `labels.parquet` (matured that day) and `applications.parquet` (decided that day).

    Raises:
        ConfigError: the folder is not empty, or a day lies outside the world.
    """
    end = world_end(scenario, size.months)
    start = _midnight(first, scenario, end, "--days-from")
    stop = _midnight(last, scenario, end, "--days-to")
    if stop < start:
        raise ConfigError(f"--days-to {last} lies before --days-from {first}")
    days = [start + dt.timedelta(days=n) for n in range((stop - start).days + 1)]
    out = Written(out_dir, days=len(days))
    labels: list[pl.DataFrame] = []
    slices: dict[dt.datetime, list[Known]] = {day: [] for day in days}
    with _whole(out_dir) as folder:
        for index, part in enumerate(simulate(scenario, size)):
            for day in days:
                known = known_between(part, day, day + dt.timedelta(days=1))
                _write_tables(folder / str(day.date()) / "events", known, index, out.rows)
                slices[day].append(_without_events(known))
            _step(progress, index, size)
        for day, knowns in slices.items():
            inside = folder / str(day.date())
            asked = pl.concat([k.applications for k in knowns]).sort("as_of", "entity_id")
            matured = pl.concat([k.labels for k in knowns]).sort("as_of", "entity_id")
            _write(asked, inside / "applications.parquet")
            _write(matured, inside / "labels.parquet")
            _write_schema(inside, scenario, "events/")
            labels.append(matured)
        out.labels = pl.concat(labels)
        out.channels = _counts(out.labels)
        text = f"# One folder a day of a synthetic lending world\n\n{NOTE}\n"
        (folder / "README.md").write_text(text, encoding="utf-8")
    return out


def schema_document(scenario: Scenario, folder: str = "") -> dict[str, Any]:
    """The schema of every simulated world as plain data; tables lie in `folder`."""

    def source(name: str, fields: dict[str, Any]) -> dict[str, Any]:
        return {
            "path": f"{folder}synthetic_{name}-*.parquet",
            "known_at": "known_at",
            "fields": fields,
            "authorization": _AUTHORIZATION,
        }

    money = {"kind": "money", "currency": "CNY", "role": "amount"}
    person = {"kind": "category", "role": "person", "grade": "personal"}
    document = {
        "name": scenario.name,
        "time_zone": "UTC",
        "sources": {
            "app": source("app", {
                "event": {"kind": "category", "role": "type", "description": "synthetic"},
                "device": _WITH_SHARING,
                "seconds": {"kind": "number", "role": "duration"},
            }),
            "application": source("application", {
                "channel": {"kind": "category", "role": "channel"},
                "amount": money,
                "term": {"kind": "number", "role": "duration"},
                "decision": {"kind": "category", "role": "status"},
            }),
            "bill": source("bill", {
                "bill_type": {"kind": "category", "role": "type"},
                "amount": money | {"role": "balance"},
                "paid": money,
                "due": {"kind": "timestamp", "role": "date"},
                "status": {"kind": "category", "role": "status"},
                "corrected": {"kind": "boolean", "role": "flag"},
            }),
            "bureau": source("bureau", {
                "institution": {"kind": "category", "role": "merchant_type"},
                "amount": money,
            }),
            "repayment": source("repayment", {
                "due": {"kind": "timestamp", "role": "date"},
                "amount_due": money | {"role": "balance"},
                "paid": money,
                "instalment": {"kind": "number", "role": "count"},
                "status": {"kind": "category", "role": "status"},
            }),
        },
        "profile": {
            "path": f"{folder}synthetic_profile-*.parquet",
            "valid_time": "stated_at",
            "fields": {
                "birth_year": {"kind": "number", "role": "person", "grade": "personal"},
                "sex": person,
                "region": {"kind": "category", "role": "place"},
                "education": person,
                "employment": person,
                "stated_income": money | {"grade": "personal"},
            },
            "authorization": _AUTHORIZATION,
        },
        "context": {"amount": money, "term": {"kind": "number", "role": "duration"}},
        "outcomes": {
            "late": "repayment.event_time > due + 3d within 31d, 93d",
            "missed": "repayment.status = 'missed' within 93d, 124d",
            "bill_late": "bill.status in ('late', 'unpaid') within 31d, 93d",
            "bill_unpaid": "bill.status = 'unpaid' within 93d",
            "looked_up": "count(bureau) >= 2 within 31d",
            "app_silent": "silence(app) within 31d",
        },
        "windows_days": [31, 93, 186],
        "ratios": [["repayment.paid", "repayment.amount_due"],
                   ["bill.amount", "profile.stated_income"]],
    }  # fmt: skip
    return schema_to_dict(schema_from_dict(document, scenario.name))


def _write_tables(folder: Path, known: Known, index: int, rows: dict[str, int]) -> None:
    for name, frame in {**known.events, "profile": known.profile}.items():
        _write(frame, folder / f"synthetic_{name}-{index:03d}.parquet")
        rows[name] = rows.get(name, 0) + len(frame)


def _write_samples(
    folder: Path, scenario: Scenario, tables: dict[str, pl.DataFrame], out: Written
) -> None:
    for name in ("pending", "refused"):
        _write(tables[name], folder / f"{name}.parquet")
        out.rows[name] = len(tables[name])
    for channel in scenario.channels:
        rows = out.labels.filter(pl.col("channel") == channel)
        _write(rows, folder / "samples" / f"{channel}.parquet")
    out.channels = _counts(out.labels)


def _write_split(
    folder: Path, scenario: Scenario, size: WorldSize, labels: pl.DataFrame, splits: dict[str, int]
) -> None:
    """Samples to learn from and later ones of other customers; labels mature in between."""
    starts = pl.Series(month_starts(scenario, size.months)).cast(pl.Datetime("us"))
    begin, stop = 7 * size.months // 24, size.months // 2
    later = min(stop + scenario.label_instalments + 2, size.months)
    even = pl.col("entity_id").str.slice(-7).cast(pl.Int64) % 2 == 0
    time = pl.col("as_of")
    split = {
        "development": labels.filter(even, time >= starts[begin], time < starts[stop]),
        "test": labels.filter(~even, time >= starts[later]),
    }
    for name, rows in split.items():
        if len(rows):
            _write(rows, folder / f"{name}.parquet")
        splits[name] = len(rows)


def _counts(labels: pl.DataFrame) -> dict[str, tuple[int, int]]:
    grouped = labels.group_by("channel").agg(pl.len(), pl.col("label").sum()).sort("channel")
    return {channel: (int(n), int(bads)) for channel, n, bads in grouped.iter_rows()}


def _without_events(known: Known) -> Known:
    empty = known.profile.clear()
    return Known({}, empty, known.applications, known.labels, known.pending, known.refused)


def _readme(scenario: Scenario, size: WorldSize, moment: dt.datetime, out: Written) -> str:
    lines = [
        f"# A synthetic lending world: {scenario.name}", "", NOTE, "",
        f"{size.customers:,} customers, {size.months} months from {scenario.start}, seed "
        f"{size.seed}; everything that had become known before {moment.date()} (UTC).", "",
        "| table | rows |", "|---|---|",
        *(f"| {name} | {count:,} |" for name, count in out.rows.items()), "",
        f"Label 1: one of the first {scenario.label_instalments} instalments was still unpaid "
        f"{GRACE_DAYS} days after it was due. It is known {GRACE_DAYS + REPORTED_DAYS} days after "
        "the last of them was due. Only approved applications have labels.", "",
        "| channel | labels | bads |", "|---|---|---|",
        *(f"| {name} | {n:,} | {bads:,} |" for name, (n, bads) in out.channels.items()), "",
        "* `samples/<channel>.parquet`: matured labels; `pending.parquet`: approved, not matured; "
        "`refused.parquet`: refused.",
        "* `truth.parquet`: for judging the simulation only, never for learning: how the refused "
        "would have paid, and the probability of the label given everything hidden.", "",
    ]  # fmt: skip
    return "\n".join([*lines, *(_next_steps(scenario, size) if all(out.splits.values()) else [])])


def _next_steps(scenario: Scenario, size: WorldSize) -> list[str]:
    """How a model is made from the split, told where there is one."""
    starts = pl.Series(month_starts(scenario, size.months)).cast(pl.Datetime("us"))
    until = str(starts[7 * size.months // 24])[:10]
    return [
        "`development.parquet` and `test.parquet` hold later samples of other customers, so that "
        "learning and judging are apart in time and by person:", "",
        "```bash",
        "riskfm events import --schema schema.yaml --store store",
        "riskfm pretrain --config configs/pretrain/nano.yaml --store store -o backbone "
        f"--until {until} --exclude-entities test.parquet",
        "riskfm adapt --backbone backbone --store store --samples development.parquet "
        "--test test.parquet -o model",
        "```", "",
    ]  # fmt: skip


def _write_schema(folder: Path, scenario: Scenario, tables: str) -> None:
    text = yaml.safe_dump(schema_document(scenario, tables), sort_keys=False, allow_unicode=True)
    (folder / "schema.yaml").write_text(f"# {NOTE}\n{text}", encoding="utf-8")


def _write(frame: pl.DataFrame, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.rechunk().write_parquet(path, compression="zstd", row_group_size=1 << 18)


def _midnight(day: dt.date, scenario: Scenario, end: dt.datetime, option: str) -> dt.datetime:
    if not scenario.start <= day <= end.date():
        raise ConfigError(
            f"{option} {day} lies outside the world, {scenario.start} to {end.date()}"
        )
    return dt.datetime(day.year, day.month, day.day)


def _step(progress: Progress | None, index: int, size: WorldSize) -> None:
    if progress:
        done = min((index + 1) * PART_CUSTOMERS, size.customers)
        progress(done, size.customers, "customers")


@contextmanager
def _whole(directory: Path) -> Iterator[Path]:
    """A folder beside the wanted one, which takes its place once everything is written."""
    if directory.exists() and any(directory.iterdir()):
        raise ConfigError(f"{directory} is not empty; choose a new folder for the synthetic world")
    making = directory.with_name(f".{directory.name}.{os.getpid()}.part")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    try:
        yield making
        if directory.exists():
            directory.rmdir()
        making.rename(directory)
    finally:
        shutil.rmtree(making, ignore_errors=True)
