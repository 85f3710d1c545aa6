"""The rolling origin: a model made anew at each month with what was known by then, and tested on
the months after it.

At an origin only samples decided before it whose label was known before it are learnt from (the
embargo: a label that matures later does not exist yet). Features are computed once, each sample's
from its own past; what depends on which samples there are, the levels of context columns, is
rebuilt at every origin. Each origin's result is kept under the digest of all that went into it, so
that an interrupted run continues and a repeated one reads.

Shapes: S samples, R rows of one origin. Times are int64 microseconds, UTC.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from finetune.adaptation import training_table
from finetune.backtest import finish, terms_of
from finetune.backtest_origins import (
    Origin,
    RollingSettings,
    embargo_of,
    known_times,
    levels_known,
    origins_of,
    read_origin,
    write_origin,
)
from finetune.backtest_rows import (
    BASELINES,
    INCUMBENT,
    INCUMBENT_COLUMN,
    FrozenBins,
    Given,
    ModelFacts,
    ScoredRows,
    column_facts,
    read_given,
    rows_frame,
)
from finetune.backtest_verdict import BacktestResult
from finetune.building import leak_notes, make_builder
from finetune.calibration import apply_calibration
from finetune.file_scoring import check_same_schema, population_of, require_known
from finetune.modelling import AdaptSettings, Say, check_names, make_model
from finetune.package import Package
from finetune.samples import clustered_note
from finetune.table import FeatureTable
from foundation.checkpoint import Backbone, load_backbone
from foundation.store import EventStore

SUBJECT = "adapted"
FORMAT = 1


def run_rolling_backtest(
    backbone_dir: str | Path,
    store: str | Path,
    samples: str | Path,
    out_dir: str | Path,
    *,
    settings: RollingSettings | None = None,
    incumbent: str | Path | None = None,
    costs: str | Path | None = None,
    approval: float = 0.7,
    draws: int = 500,
    created_at: dt.datetime | None = None,
    store_version: int | None = None,
    reporter: Say,
) -> BacktestResult:
    """Re-adapt at every origin and judge all tested months together; see `run_backtest`.

    `gbdt` and `scorecard` are refitted at every origin on the same rows.

    Raises:
        SampleError: no origin can be judged, or the backbone knew events after one of them.
    """
    settings = settings or RollingSettings()
    terms = terms_of(approval, draws, settings.seed, costs)
    adapt = AdaptSettings(
        recipes=settings.recipes,
        seed=settings.seed,
        folds=settings.folds,
        repeats=settings.repeats,
    )
    check_names(adapt)
    opened = EventStore.open(store)
    opened = opened if store_version is None else opened.at(store_version)
    backbone = load_backbone(backbone_dir)
    check_same_schema(opened, backbone.schema, f"backbone {backbone_dir}")
    given = read_given(samples, backbone.schema, terms.costs)
    embargo, source = embargo_of(settings, backbone)
    known = known_times(given, embargo)
    # An earlier first origin asked for by name is refused below, not skipped.
    free = settings.allow_leak or settings.first is not None
    origins, skipped = origins_of(
        given.samples.as_of_us,
        known,
        given.samples.y,
        settings,
        None if free else backbone.run.get("last_known_us"),
    )
    first = given.samples.take(origins[0].test)
    first.frame = first.frame.with_columns(
        as_of=pl.lit(origins[0].start_us).cast(pl.Datetime("us"))
    )
    notes = [*given.samples.notes]
    learnt = np.unique(np.concatenate([o.train for o in origins]))
    notes += leak_notes(backbone, given.samples.take(learnt), first, settings.allow_leak)
    if given.samples.frame["label_known_at"].null_count():
        notes.append(f"labels without 'label_known_at' count as known after {source}")
    if skipped:
        notes.append(
            f"{sum(s['n'] for s in skipped):,} rows of {len(skipped)} early windows could not be "
            f"tested ({skipped[0]['origin']}: {skipped[0]['reason']})"
        )
    run = _Run(settings, adapt, backbone, opened, given, known, Path(out_dir), reporter)
    found = [run.origin(o, f"{i + 1} of {len(origins)}") for i, o in enumerate(origins)]
    rows, records = _joined(given, origins, found)
    if incumbent is not None:
        _add_incumbent(rows, incumbent, opened, given, origins, notes)
    if given.incumbent is not None:
        at = _rows_of(origins)
        rows.frame = rows.frame.with_columns(
            pl.Series(f"score.{INCUMBENT_COLUMN}", given.incumbent[at]).fill_nan(None)
        )
        rows.models.insert(1 + (incumbent is not None), column_facts(given.incumbent[at]))
    notes += clustered_note(rows.frame["entity_id"])
    total = sum(r["n"] for r in records)
    drop = [r["development"]["ks"] for r in records]
    facts = {
        "kind": "rolling",
        "title": "Rolling back-test",
        "channel": "",
        "package": None,
        "settings": asdict(settings) | {"embargo": source},
        "origins": records,
        "skipped_origins": skipped,
        "development": {
            "ks": sum(r["n"] * k for r, k in zip(records, drop, strict=True)) / total,
            "auc": sum(r["n"] * r["development"]["auc"] for r in records) / total,
            "n": records[-1]["learnt"],
            "bads": records[-1]["learnt_bads"],
            "measured": "cross-validation at each origin, averaged over the rows tested",
        },
        "out_of_time": True,
        "trained_on": None,
        "left_out": [
            {"reason": f"window {s['origin']}: {s['reason']}", "n": s["n"]} for s in skipped
        ],
        "lineage": {
            "store version": str(opened.version),
            "backbone fingerprint": backbone.fingerprint,
            "backbone known until": str(backbone.run.get("until", "")),
            "code version": str(backbone.run.get("riskfm", "")),
        },
    }
    return finish(rows, terms, facts, notes, out_dir, created_at)


@dataclass
class _Run:
    """What every origin needs; features are computed when the first one has to be learnt."""

    settings: RollingSettings
    adapt: AdaptSettings
    backbone: Backbone
    store: EventStore
    given: Given
    known_us: np.ndarray
    out: Path
    reporter: Say
    tables: tuple[FeatureTable, FeatureTable] | None = None
    fitted: dict[str, int] | None = None

    def origin(self, origin: Origin, place: str) -> tuple[dict[str, Any], pl.DataFrame]:
        """The result of an origin, read where it is kept and intact, else made."""
        key = self._key(origin)
        path = self.out / "origins" / f"{key}.json"
        kept = read_origin(path)
        if kept is not None:
            self.reporter.say(f"origin {origin.name} ({place}): kept from an earlier run")
            return kept
        self.reporter.say(
            f"origin {origin.name} ({place}): {len(origin.train):,} known labels, "
            f"{len(origin.test):,} rows to test"
        )
        record, frame = self._make(origin)
        write_origin(path, record, frame)
        return record, frame

    def _key(self, origin: Origin) -> str:
        """A digest of everything the result depends on."""
        frame = self.given.samples.frame
        parts = []
        for rows in (origin.train, origin.test):
            part = frame[rows].select("row", "entity_id", "as_of", "label", "weight", "channel",
                                      *self.backbone.schema.context)  # fmt: skip
            parts.append(hashlib.sha256(part.write_csv().encode()).hexdigest())
        about = {
            "format": FORMAT,
            "origin": origin.name,
            "rows": parts,
            "known": hashlib.sha256(self.known_us[origin.train].tobytes()).hexdigest(),
            "settings": asdict(self.settings),
            "backbone": self.backbone.fingerprint,
            "backbone_run": self.backbone.run.get("riskfm", ""),
            "store": self.store.version,
        }
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]

    def _features(self) -> tuple[tuple[FeatureTable, FeatureTable], dict[str, int]]:
        """Tables of all samples, to learn from (cross-fitted forecasts) and to test on."""
        if self.tables is None or self.fitted is None:
            samples, schema = self.given.samples, self.backbone.schema
            with tempfile.TemporaryDirectory() as scratch:
                builder, _ = make_builder(self.backbone, samples, Path(scratch))
                people = population_of(self.store, schema, samples)
                require_known(people, schema, "samples")
                learn = training_table(builder, self.backbone, people, self.reporter)
                with self.reporter.bar("features to test on") as bar:
                    tuned = learn.histories is not None
                    test = builder.table(people, keep_histories=tuned, progress=bar)
            self.tables = (learn, test)
            self.fitted = {
                c.name: len(c.levels) for c in self.backbone.spec.columns if c.block == "context"
            }
        return self.tables, self.fitted

    def _make(self, origin: Origin) -> tuple[dict[str, Any], pl.DataFrame]:
        """Learn at the origin and score its window with every recipe of interest."""
        tables, fitted = self._features()
        learn, later = levels_known(tables, fitted, origin.train)
        train = self.given.samples.take(origin.train)
        model = make_model(
            self.adapt, self.backbone, train, learn.take(origin.train), self.reporter
        )
        table = later.take(origin.test)
        frame = self.given.samples.frame[origin.test].select("row")
        score = apply_calibration(model.calibration, model.fitted.logit(table))
        frame = frame.with_columns(pl.Series(f"score.{SUBJECT}", score))
        for name in BASELINES:
            if name in model.others:
                baseline = apply_calibration(
                    model.calibrations[name], model.others[name].logit(table)
                )
                frame = frame.with_columns(pl.Series(f"score.{name}", baseline))
        y = train.y
        seen = self.given.samples.entity_ids[origin.test].is_in(train.entity_ids.implode())
        frame = frame.with_columns(seen.alias("seen"))
        assert model.ladder is not None
        tested = model.ladder.tested
        row = model.ladder[model.chosen]
        record = {
            "origin": origin.name,
            "chosen": model.chosen,
            "why": model.why,
            "learnt": len(y),
            "learnt_bads": int(y.sum()),
            "last_label_known": str(np.datetime64(int(self.known_us[origin.train].max()), "us")),
            "n": len(origin.test),
            "seen": int(seen.sum()),
            "frozen_bins": FrozenBins.of(model.score[tested]).to_dict(),
            "development": {
                "ks": None if row.ks is None else row.ks.value,
                "auc": None if row.auc is None else row.auc.value,
            },
            "warnings": model.warnings,
        }
        return record, frame


def _rows_of(origins: list[Origin]) -> np.ndarray:
    """Positions of all tested rows, origin by origin."""
    return np.concatenate([o.test for o in origins])


def _joined(
    given: Given, origins: list[Origin], found: list[tuple[dict[str, Any], pl.DataFrame]]
) -> tuple[ScoredRows, list[dict[str, Any]]]:
    """The tested rows of all origins with their scores."""
    at = _rows_of(origins)
    names = np.concatenate([np.repeat(o.name, len(o.test)) for o in origins])
    scored = pl.concat([frame for _, frame in found], how="diagonal")
    part = given.take(at)
    scores = {}
    models = [ModelFacts(SUBJECT, "the model made at each origin", True)]
    for name in (SUBJECT, *BASELINES):
        if f"score.{name}" in scored.columns:
            scores[name] = scored[f"score.{name}"].fill_null(float("nan")).to_numpy()
            if name != SUBJECT:
                models.append(ModelFacts(name, f"{name} refitted at each origin", True))
    frame = rows_frame(part, scores, names, scored["seen"].to_numpy())
    frozen = {r["origin"]: FrozenBins.from_dict(r["frozen_bins"]) for r, _ in found}
    return ScoredRows(frame, models, frozen), [record for record, _ in found]


def _add_incumbent(
    rows: ScoredRows,
    incumbent: str | Path,
    store: EventStore,
    given: Given,
    origins: list[Origin],
    notes: list[str],
) -> None:
    """Scores of one fixed incumbent package on the tested rows."""
    package = Package.load(incumbent, threads=2)
    check_same_schema(store, package.schema, f"incumbent package {package.id}")
    part = given.samples.take(_rows_of(origins))
    logit = package.logit(package.features(population_of(store, package.schema, part)))
    rows.frame = rows.frame.with_columns(
        pl.Series(f"score.{INCUMBENT}", package.probability(logit))
    )
    rows.models.insert(1, ModelFacts(INCUMBENT, f"incumbent package {package.id}", True))
    last = np.datetime64(package.manifest["label"]["as_of_last"].rstrip("Z"), "us")
    inside = int((part.frame["as_of"].to_numpy() <= last).sum())
    if inside:
        notes.append(
            f"{inside:,} tested rows lie inside the incumbent's own training window (up to "
            f"{str(last)[:10]}): its figures there may flatter it"
        )
