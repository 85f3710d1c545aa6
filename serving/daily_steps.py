"""The steps of a channel's day, each a directory that is whole or absent.

    opened -> events -> labels -> scored -> measured -> judged -> report -> told

`opened` writes down what the day is about: its files by digest, its settings, and the champion and
challenger of that moment. The steps after it read nothing else that may change, so a day that was
interrupted ends with the same bytes, and a finished day is found, never made twice.
"""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl

from foundation import strict
from foundation.errors import ArtifactError, DataError, InternalError, UserError
from foundation.schema import Schema
from foundation.store import EventStore
from serving.daily_settings import DailySettings, daily_settings, days_root
from serving.delivery import Delivery
from serving.durable import digest_file, place_directory, whole_directory
from serving.label_book import (
    bounds_of,
    decided,
    known_labels,
    microseconds,
    read_rows,
    take_decided,
    take_labels,
)
from serving.progress import Reporter
from serving.registry_tables import CHALLENGER
from serving.scored_rows import TABLES, Scored

STEPS = ("opened", "events", "labels", "scored", "measured", "judged", "report", "told")
REFERENCES = "references"
MONTH = 31
Facts = dict[str, Any]


@dataclass(frozen=True)
class Day:
    """One day of one channel.

    Attributes:
        patient: it waits for its folder, even where the settings would skip it.
    """

    delivery: Delivery
    tenant: str
    channel: str
    date: dt.date
    reporter: Reporter
    patient: bool = False

    @property
    def root(self) -> Path:
        """Directory of the channel's days."""
        return days_root(self.delivery.workspace, self.tenant, self.channel)

    def out(self, step: str, date: dt.date | None = None) -> Path:
        """Directory of a step."""
        return self.root / str(date or self.date) / step

    @property
    def end(self) -> dt.datetime:
        """First moment of the next day, naive UTC."""
        return bounds_of(self.date)[1]

    def facts(self, step: str) -> Facts:
        """What a finished step found.

        Raises:
            InternalError: it is not finished.
        """
        found = whole_directory(self.out(step))
        if found is None:
            raise InternalError(f"{self.out(step)}: not finished")
        return found

    def settings(self) -> DailySettings:
        """The settings as they stood when the day was opened."""
        given = self.facts("opened")["settings"]
        return strict.convert(DailySettings, given, str(self.out("opened")))

    def folder(self) -> Path:
        """Where the day's files lie."""
        return self.settings().folder(self.tenant, self.channel, self.date)

    def store(self) -> EventStore:
        """The channel's events as they stood after this day's import."""
        return _store(self.facts("opened")["store"], self.facts("events")["version"])

    def earlier(self, step: str, days: int | None) -> Iterator[tuple[dt.date, Facts]]:
        """Finished outputs of a step on the days before, oldest first.

        Args:
            days: how far to look back; None for all there are.
        """
        first = None if days is None else self.date - dt.timedelta(days=days)
        for date in finished_days(self.root, step):
            if date < self.date and (first is None or date >= first):
                facts = whole_directory(self.out(step, date))
                if facts is None:
                    raise ArtifactError(
                        f"{self.out(step, date)}: damaged; riskfm daily --date {date} makes it "
                        "again, then this day can run"
                    )
                yield date, facts


def finished_days(root: Path, step: str) -> list[dt.date]:
    """Days of a channel with an output of a step, oldest first."""
    found = []
    for path in root.glob(f"*/{step}"):
        try:
            found.append(dt.date.fromisoformat(path.parent.name))
        except ValueError:
            continue
    return sorted(found)


def incoming_digests(folder: Path) -> dict[str, str]:
    """Every file of a day's folder and its digest."""
    files = (f for f in sorted(folder.rglob("*")) if f.is_file() and not f.name.startswith("."))
    return {str(f.relative_to(folder)): digest_file(f) for f in files}


def opened(day: Day) -> Facts:
    """What the day is about.

    A day whose files changed before they were all read is opened anew.

    Raises:
        UserError: the folder of the day is not there and the settings wait for it.
    """
    before = whole_directory(day.out("opened"))
    unread = before is not None and not day.out("labels").exists()
    if before is not None and unread and incoming_digests(day.folder()) != before["files"]:
        day.reporter.say(f"{day.date}: its files changed before they were read; begun again")
        for step in ("events", "opened"):
            shutil.rmtree(day.out(step), ignore_errors=True)

    def make(folder: Path) -> Facts:
        workspace, registry = day.delivery.workspace, day.delivery.registry
        settings = daily_settings(workspace, day.tenant, day.channel)
        incoming = settings.folder(day.tenant, day.channel, day.date)
        if not incoming.is_dir() and day.patient and settings.missing == "skip":
            raise UserError(
                f"{incoming}: not there, and the clock of this machine jumped forward, so "
                f"{day.date} waits; put the day's files there, or close it without any by riskfm "
                f"daily --date {day.date}"
            )
        if not incoming.is_dir() and settings.missing == "wait":
            raise UserError(
                f"{incoming}: not there yet, so {day.date} waits; put the day's files there, or "
                "set missing: skip for days without any"
            )
        config = registry.channel(day.tenant, day.channel)
        champion = registry.champion(day.tenant, day.channel)
        waiting = [r for r in registry.releases(day.tenant, day.channel) if r.stage == CHALLENGER]
        models = {"champion": champion, "challenger": waiting[-1] if waiting else None}
        return {
            "tenant": day.tenant,
            "channel": day.channel,
            "date": str(day.date),
            "settings": strict.plain(settings),
            "files": incoming_digests(incoming),
            "store": config["store"],
            **{
                name: None if r is None else {"release": r.id, "package": r.package, "job": r.job}
                for name, r in models.items()
            },
        }

    return place_directory(day.out("opened"), make, "day.opened")


def events(day: Day) -> Facts:
    """The day's events are in the store; the same files again change nothing."""
    from serving.daily_import import import_day

    def make(folder: Path) -> Facts:
        with day.reporter.bar("events") as bar:
            facts = import_day(Path(day.facts("opened")["store"]), day.folder(), day.end, bar)
        _require_unchanged(day)
        return facts

    return place_directory(day.out("events"), make, "day.events")


def labels(day: Day) -> Facts:
    """The day's labels and decisions are in the book."""

    def make(folder: Path) -> Facts:
        settings, source, schema = day.settings(), day.folder(), day.store().schema
        rows = read_rows(source / settings.labels, schema, settings.rows_of)
        taken, facts = take_labels(rows, label_book(day, schema, before=True), day.date)
        taken.write_parquet(folder / "labels.parquet")
        rows = read_rows(source / settings.applications, schema, settings.rows_of)
        fresh, more = take_decided(rows, decision_book(day, schema, before=True), day.date)
        fresh.write_parquet(folder / "decided.parquet")
        _require_unchanged(day)
        return {"labels": facts, "decided": more}

    return place_directory(day.out("labels"), make, "day.labels")


def label_book(day: Day, schema: Schema, before: bool = False) -> pl.DataFrame:
    """The labels that hold by the end of the day (or of the day before it)."""
    return known_labels(_brought(day, "labels.parquet", None, before), schema)


def decision_book(day: Day, schema: Schema, before: bool = False) -> pl.DataFrame:
    """Decisions that the days so far brought, as far back as figures look."""
    return decided(_brought(day, "decided.parquet", _span(day), before), schema)


def _span(day: Day) -> int:
    """How many days back the day's figures may read: its windows, a month, and some lateness."""
    settings = day.settings()
    return max(settings.window_days, settings.label_days, MONTH) + MONTH


def _brought(day: Day, file: str, days: int | None, before: bool) -> list[pl.DataFrame]:
    dates = [date for date, _ in day.earlier("labels", days)]
    dates += [] if before else [day.date]
    return [pl.read_parquet(day.out("labels", date) / file) for date in dates]


def scored(day: Day) -> Facts:
    """Decisions of the window and matured labels have a score of champion and challenger.

    What an earlier day scored with the same package is not scored again.
    """

    def make(folder: Path) -> Facts:
        facts: Facts = {}
        for role in ("champion", "challenger"):
            model = day.facts("opened")[role]
            if model is None:
                continue
            found = _score(day, model)
            for name, frame in found.frames().items():
                frame.write_parquet(folder / f"{role}_{name}.parquet")
            facts[role] = {"package": model["package"], "rows": len(found.rows)}
        return facts

    return place_directory(day.out("scored"), make, "day.scored")


def wanted_rows(day: Day, book: pl.DataFrame, decisions: pl.DataFrame) -> pl.DataFrame:
    """Decisions that the day's figures are about, each once: of the window, and matured ones.

    Args:
        book, decisions: by the end of the day, see `label_book` and `decision_book`.
    """
    settings = day.settings()
    # At least a month, so that a month's report finds its rows scored.
    window = day.end - dt.timedelta(days=max(settings.window_days, MONTH))
    since = day.end - dt.timedelta(days=max(settings.label_days, MONTH))
    rows = pl.concat(
        [
            decisions.filter(pl.col("as_of") >= window),
            book.filter((pl.col("label_known_at") >= since) | (pl.col("as_of") >= window)),
        ]
    )
    key = ["entity_id", "as_of", "channel"]
    return rows.unique(key, keep="first", maintain_order=True).sort(*key)


@lru_cache(maxsize=8)
def _store(path: str, version: int) -> EventStore:
    """A store at a version, which never changes; its schema is read once."""
    return EventStore.open(path).at(version)


@lru_cache(maxsize=4)
def _package(path: Path) -> Any:
    """A verified package; its directory is named by its digest, so a back-fill loads it once."""
    from finetune.package import Package

    return Package.load(path, threads=2)


def _score(day: Day, model: Facts) -> Scored:
    from finetune.file_scoring import check_same_schema
    from serving.scored_rows import score_rows

    store = day.store()
    package = _package(day.delivery.workspace.packages / model["package"])
    check_same_schema(store, package.schema, f"package {package.id}")
    bins = reference(day, model)
    rows = wanted_rows(day, label_book(day, store.schema), decision_book(day, store.schema))
    known = scored_before(day, model["package"], only=("rows",))
    if known is not None:
        key = ["entity_id", "as_of", "channel"]
        rows = rows.join(known.rows.select(key), on=key, how="anti", nulls_equal=True)
    with day.reporter.bar("scores") as bar:
        return score_rows(package, store, rows, microseconds(day.end), bins, bar)


def scored_before(
    day: Day, package: str, today: bool = False, only: tuple[str, ...] = TABLES
) -> Scored | None:
    """Everything the days so far scored with a package; None where nothing.

    Args:
        today: this day too. only: leave the other tables empty.
    """
    found = list(day.earlier("scored", _span(day)))
    if today:
        found.append((day.date, day.facts("scored")))
    parts: dict[str, list[pl.DataFrame]] = {name: [pl.DataFrame()] for name in TABLES}
    for date, facts in found:
        for role, model in facts.items():
            if model["package"] != package:
                continue
            for name in only:
                file = day.out("scored", date) / f"{role}_{name}.parquet"
                parts[name].append(pl.read_parquet(file))
    if len(parts["rows"]) == 1:
        return None
    return Scored(**{name: pl.concat(frames, how="diagonal") for name, frames in parts.items()})


def reference(day: Day, model: Facts) -> Facts:
    """Frozen bins of a package, made once from the samples it was delivered with."""
    from finetune.file_scoring import population_of
    from finetune.samples import read_samples
    from serving.scored_rows import learned_keys, make_reference

    workspace = day.delivery.workspace
    path = workspace.root / REFERENCES / model["package"]

    def make(folder: Path) -> Facts:
        request = day.delivery.book.get(model["job"]).request
        package = _package(workspace.packages / model["package"])
        store = EventStore.open(request["store"]).at(request["store_version"])
        samples = read_samples(
            workspace.root / request["samples"]["file"], package.schema, need_labels=False
        )
        sets = [samples]
        if request["test"] is not None:
            test = workspace.root / request["test"]["file"]
            sets.append(read_samples(test, package.schema, need_labels=False))
        learned_keys(sets).write_parquet(folder / "learned.parquet")
        day.reporter.say(f"frozen bins of {package.id}, from {len(samples):,} samples")
        return make_reference(package, population_of(store, package.schema, samples))

    path.parent.mkdir(exist_ok=True)
    return place_directory(path, make, "day.reference")


def _require_unchanged(day: Day) -> None:
    """Refuse files that changed since the day was opened.

    Raises:
        DataError: names one of them.
    """
    before, now = day.facts("opened")["files"], incoming_digests(day.folder())
    changed = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
    if changed:
        raise DataError(
            f"{day.folder() / changed[0]}: changed while {day.date} was being run; run the day "
            "again once its files are complete"
        )
