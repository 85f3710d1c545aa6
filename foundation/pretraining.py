"""Pretraining: from a store to a backbone directory, in one readable sequence.

Everything that is learned (vocabularies, bins, targets, aggregates, forecasters, weights) comes
from events and profile rows known before `until`, of the entities that were asked for.

Shapes: E entities, S cuts, T targets, A activity horizons.
"""

from __future__ import annotations

import datetime as dt
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import torch

from foundation.backbone import RiskBackbone, RiskBackboneConfig
from foundation.carried import start_from
from foundation.checkpoint import CARD, Backbone, load_backbone, save_weights
from foundation.decisions import context_at, decision_cuts
from foundation.errors import ArtifactError
from foundation.groundwork import Groundwork, Material, lay_groundwork, read_material
from foundation.history import DAY_US, ProfileHistory, Timeline
from foundation.objectives import Objectives, TrainingBatch, training_batch
from foundation.pretrain_config import (
    PretrainConfig,
    activity_horizons,
    checked,
    load_pretrain_config,
    shards_of,
)
from foundation.residual import boosted_margins, settle
from foundation.run_record import PARTIAL, card, close_work, open_work, versions
from foundation.schema import Schema, fingerprint
from foundation.selection import chosen_entities, read_selection
from foundation.shipped import start_directory
from foundation.store import EventStore
from foundation.targets import SLACK, outcome_targets, target_names
from foundation.tokenizer import Tokenizer
from foundation.training import PretrainingModule, Progress, train
from foundation.windows import (
    CutPool,
    WindowBatches,
    WindowSampler,
    activity_counts,
    build_pool,
    draw_cuts,
    pool_cut,
)

SEASONS_DAYS = 395
# What a network adds to a boosted forecast is proved on the last quarter of the cuts, which its
# forecasts were not trained on, and on at most so many batches of held-out entities.
LATE_SHARE, SETTLING = 0.25, 32
# So many cuts of every entity reach up to `until`, one of them lies there, where its samples will:
# no outcome has matured there, but what the boosted forecasters say can be distilled.
PRESENT_CUTS = 4
__all__ = ["PretrainConfig", "PretrainRun", "load_pretrain_config", "pretrain", "run_pretraining"]


@dataclass(frozen=True)
class PretrainRun:
    """A finished run: its directory and what run.json says."""

    path: Path
    facts: dict[str, Any]

    def summary(self) -> str:
        """One line for people."""
        facts, network = self.facts, self.facts["network"]
        parts = [f"{facts['events']:,} events of {facts['entities']:,} entities"]
        if network is None:
            parts.append("no network, there was no event to learn from")
        else:
            parts.append(f"{network['parameters']:,} weights, {network['steps']:,} steps")
            if network["validation"]:
                parts.append(f"held-out loss {network['validation'][-1]['loss']:.4f}")
        parts.append(f"{len(facts['forecasters'])} boosted forecasters")
        return "; ".join([*parts, f"{facts['seconds']:.0f} s"])


def run_pretraining(
    config: PretrainConfig,
    store_dir: str | Path,
    out_dir: str | Path,
    until: str | None = None,
    entities: str | Path | None = None,
    exclude_entities: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
    init: str | Path | None = None,
) -> PretrainRun:
    """Pretrain as the command line does.

    Args:
        until: ISO date or time, in the schema's time zone unless it carries an offset.
        entities, exclude_entities: tables (CSV, Parquet) with a column `entity_id`, or texts with
            one id per line; at most one of the two.
        progress: called with (steps done, steps in all). say: takes plain lines.
        init: `shipped` or a backbone directory whose network is the start instead of chance.

    Raises:
        UserError: a date that cannot be read, or both entity files.
        ConfigError, DataError, ArtifactError: as `pretrain`.
    """
    chosen = read_selection(EventStore.open(store_dir), until, entities, exclude_entities)
    return pretrain(
        config,
        store_dir,
        out_dir,
        None if chosen.until_us is None else _moment(chosen.until_us),
        chosen.entities,
        None,
        resume,
        progress,
        say,
        init=None if init is None else start_directory(init),
    )


def pretrain(
    config: PretrainConfig,
    store_dir: str | Path,
    out_dir: str | Path,
    until: dt.datetime | dt.date | None = None,
    entities: Sequence[str] | pl.Series | None = None,
    exclude_entities: Sequence[str] | pl.Series | None = None,
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
    callbacks: Sequence[Any] = (),
    init: Path | None = None,
) -> PretrainRun:
    """Pretrain a backbone.

    Args:
        until: UTC; nothing known at or after it is read. None reads everything.
        entities, exclude_entities: learn from these only, or from all but these.
        resume: continue an interrupted run of the same configuration and data.
        progress: called with (steps done, steps in all) as training goes on.
        say: takes plain lines; None is silent.
        callbacks: further Lightning callbacks.
        init: a backbone directory: its network's weights, all but the forecasts', are the start.

    Raises:
        ConfigError: the configuration cannot work, or asks for other sizes than `init` has.
        DataError: the store holds nothing to learn from.
        ArtifactError: `out_dir` is finished already, or holds another run's state.
    """
    begun, say = time.monotonic(), say or (lambda line: None)
    checked(config)
    out_dir = Path(out_dir)
    if out_dir.exists():
        raise ArtifactError(f"{out_dir}: exists already; choose another directory or remove it")
    torch.set_num_threads(config.threads)
    store = EventStore.open(store_dir)
    chosen = chosen_entities(store, entities, exclude_entities)
    start = None if init is None else _start(init)
    material = read_material(store, _microseconds(until), chosen, say)
    timeline = material.timeline
    facts = {
        "config": msgspec.to_builtins(config),
        "init": None if start is None else start.fingerprint,
        **material.facts(),
    }
    work = out_dir.with_name(out_dir.name + PARTIAL)
    open_work(work, facts, resume)
    boost = msgspec.structs.replace(config.boost, threads=config.threads)
    ground = lay_groundwork(material, boost if config.boosted else None, config.seed, say)
    network = None
    if len(timeline):
        watchers = [Progress(say, progress), *callbacks]
        network = _network(config, material, ground, start, work, resume, say, watchers)
    else:
        say("no event to learn from: no network, tokenizer and aggregates only")
    ground.write(work)
    run = facts | {
        **ground.facts(),
        "events": len(timeline),
        "entities": len(timeline.entity_ids),
        "network": network,
        **versions(),
        "seconds": round(time.monotonic() - begun, 1),
    }
    (work / CARD).write_text(card(run, store.schema), encoding="utf-8")
    close_work(work, out_dir, run)
    return PretrainRun(out_dir, run)


@dataclass(frozen=True)
class Prepared:
    """What training reads.

    Attributes:
        make: step -> its batch. validation: batches of held-out entities. steps: how many.
        settling: the same, with outcomes of cuts in the last part of the history alone, which
            forecasts were not trained on; empty where no forecast is added to a boosted one.
        unseen: extra columns that will leave the range they were trained in.
        base: [S, T] float32 log-odds of every cut that forecasts are added to.
    """

    make: Callable[[int], TrainingBatch]
    validation: list[TrainingBatch]
    settling: list[TrainingBatch]
    steps: int
    unseen: tuple[str, ...]
    base: np.ndarray


def prepare(
    config: PretrainConfig,
    timeline: Timeline,
    profile: ProfileHistory | None,
    tokenizer: Tokenizer,
    until_us: int,
    margins: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> Prepared:
    """Encode, draw cuts, compute targets.

    Args:
        margins: entity and cut_us, [S] each -> [S, T] log-odds that forecasts are added to.
    """
    outcomes = timeline.schema.parsed_outcomes()
    horizons = activity_horizons(config, timeline.schema)
    shortest = int(min(horizons) * DAY_US * (1 - SLACK))
    decisions = decision_cuts(timeline)
    entity, cut_us = draw_cuts(timeline, until_us, config.cuts, config.seed, shortest, decisions)
    if config.objectives.distillation and margins is not None:
        present = present_cuts(timeline, until_us, config.seed, decisions)
        entity, cut_us = np.append(entity, present[0]), np.append(cut_us, present[1])
        order = np.lexsort((cut_us, entity))
        entity, cut_us = entity[order], cut_us[order]
    pool = build_pool(
        timeline,
        entity,
        cut_us,
        outcome_targets(timeline, outcomes, entity, cut_us, until_us),
        activity_counts(timeline, entity, cut_us, horizons, until_us),
        None if margins is None else margins(entity, cut_us),
    )
    context = context_at(timeline, entity, cut_us)
    queries = tokenizer.encode_query(pool_cut(timeline, pool), timeline, profile, context)
    events = tokenizer.encode_events(timeline)
    learned, late = pool, None
    if margins is not None:
        days = np.array([h for outcome in outcomes for h in outcome.horizons])
        early, after = split_in_time(pool.outcomes, cut_us, days * DAY_US)
        learned, late = replace(pool, outcomes=early), replace(pool, outcomes=after)
    held = held_out(timeline.entity_ids, config.validation_share)
    if not (~held).any():
        held[:] = False

    def sampler(rows: np.ndarray, seed: int) -> WindowSampler:
        return WindowSampler(
            timeline, pool, np.flatnonzero(rows), config.batch_events, config.max_events,
            config.queries, seed,
        )  # fmt: skip

    training, checking = sampler(~held, config.seed), sampler(held, config.seed + 1)
    steps = config.steps or max(1, round(config.epochs * training.steps_per_epoch))

    def maker(source: WindowSampler, targets: CutPool) -> Callable[[int], TrainingBatch]:
        windows = WindowBatches(events, queries, targets)
        return lambda step: training_batch(windows.arrays(source.plan(step)), step)

    def held_batches(targets: CutPool, most: int) -> list[TrainingBatch]:
        make = maker(checking, targets)
        count = min(most, checking.steps_per_epoch) if len(checking.entities) else 0
        return [make(k) for k in range(count)]

    validation = held_batches(pool, config.validation_batches)
    settling = [] if late is None else held_batches(late, SETTLING)
    unseen = unseen_extra(timeline, until_us, entity, cut_us)
    return Prepared(maker(training, learned), validation, settling, steps, unseen, pool.base)


def present_cuts(
    timeline: Timeline,
    until_us: int,
    seed: int,
    decisions: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts up to `until`, whether or not an outcome can mature; the first of every entity at it.

    Arguments and returns as of `draw_cuts`, but for the order of an entity's cuts.
    """
    entity, cut_us = draw_cuts(timeline, until_us, PRESENT_CUTS, seed + 1, 0, decisions)
    cut_us[::PRESENT_CUTS] = until_us
    return entity, cut_us


def split_in_time(
    outcomes: np.ndarray, cut_us: np.ndarray, horizon_us: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes that forecasts learn from, and the late ones that they are proved on.

    Every target is split where its last `LATE_SHARE` of known outcomes begins; those whose window
    reaches over that moment are in neither part.

    Args:
        outcomes: [S, T] float32, NaN not matured. cut_us: [S] int64. horizon_us: [T] int64.

    Returns:
        Two arrays like `outcomes`, NaN for what belongs to the other.
    """
    known = np.isfinite(outcomes)
    moment = np.full(outcomes.shape[1], np.iinfo(np.int64).max)
    for t in np.flatnonzero(known.any(axis=0)):
        moment[t] = int(np.quantile(cut_us[known[:, t]], 1 - LATE_SHARE))
    before = cut_us[:, None] + horizon_us <= moment
    nothing = np.float32(np.nan)
    return (
        np.where(before, outcomes, nothing),
        np.where(cut_us[:, None] >= moment, outcomes, nothing),
    )


def _start(path: Path) -> Backbone:
    """The backbone whose network training starts from."""
    found = load_backbone(path)
    if found.model is None:
        raise ArtifactError(f"{path}: a backbone without network cannot be started from")
    return found


def _network(
    config: PretrainConfig,
    material: Material,
    ground: Groundwork,
    start: Backbone | None,
    work: Path,
    resume: bool,
    say: Callable[[str], None],
    callbacks: Sequence[Any],
) -> dict[str, Any]:
    """Train and save the network; returns what run.json says about it."""
    timeline, profile, forecasters = material.timeline, material.profile, ground.forecasters
    targets = target_names(timeline.schema.parsed_outcomes())

    def margins(entity: np.ndarray, cut_us: np.ndarray) -> np.ndarray:
        return boosted_margins(forecasters, ground.spec, timeline, profile, entity, cut_us, targets)

    data = prepare(config, timeline, profile, ground.tokenizer, material.until_us, margins)
    based = list(forecasters.names) if forecasters else []
    distilled = based if config.objectives.distillation else []
    model = build_model(config, timeline.schema, ground.tokenizer, data.unseen, distilled)
    if start is not None and start.model is not None:
        start_from(model, start.model)
        say(f"start: the network of backbone {start.fingerprint}")
    steps = data.steps
    model.config.based = based
    goals = Objectives(config.objectives, model.config)
    if distilled:
        goals.measure_base(data.base)
    module = PretrainingModule(
        model,
        goals,
        config.optimizer,
        steps,
        config.seed,
        shards_of(config),
    )
    count = sum(p.numel() for p in model.parameters())
    say(f"network: {count:,} weights, {steps:,} steps")
    curve = train(
        module,
        data.make,
        data.validation,
        work,
        steps,
        config.checkpoint_every,
        config.validate_every,
        config.precision,
        config.products,
        config.devices,
        resume,
        callbacks,
    )
    shares = settle(model, data.settling, model.config.based)
    for name, share in shares.items():
        say(f"forecast {name}: boosted, and {share:.0%} of what the network adds")
    if distilled:
        goals.unscale(model.readout)
    save_weights(model, work)
    return {"parameters": count, "steps": steps, "validation": curve, "shares": shares}


def unseen_extra(
    timeline: Timeline, until_us: int, entity: np.ndarray, cut_us: np.ndarray
) -> tuple[str, ...]:
    """Extra columns that will leave the range they were trained in.

    With less than a year and a month of history the coming months were never seen. Where most
    histories begin together, as where data collection did, those to be scored are longer than
    nearly all that were trained on, and the length of a history tells nothing but the date.

    Args:
        entity, cut_us: [S] int64 cuts that are learned from.
    """
    if not len(timeline) or not len(entity):
        return ()
    out: tuple[str, ...] = ()
    if int(timeline.known_us.max() - timeline.known_us.min()) < SEASONS_DAYS * DAY_US:
        out += ("month_sin", "month_cos")
    first = np.full(len(timeline.entity_ids), until_us)
    some = np.diff(timeline.offsets) > 0
    first[some] = timeline.known_us[timeline.offsets[:-1][some]]
    trained = np.quantile(cut_us - first[entity], 0.95)
    if np.median(until_us - first[np.unique(entity)]) > trained:
        out += ("log_since_first", "log_events", "few_events")
    return out


def build_model(
    config: PretrainConfig,
    schema: Schema,
    tokenizer: Tokenizer,
    ignored_extra: Sequence[str] = (),
    distilled: Sequence[str] = (),
) -> RiskBackbone:
    """A fresh network for a schema, seeded and bound to the tokenizer."""
    torch.manual_seed(config.seed)
    return RiskBackbone(
        RiskBackboneConfig(
            **msgspec.structs.asdict(config.model),
            targets=target_names(schema.parsed_outcomes()),
            activity_days=activity_horizons(config, schema),
            ignored_extra=ignored_extra,
            distilled=distilled,
            tokenizer_fingerprint=tokenizer.fingerprint,
            schema_fingerprint=fingerprint(schema),
        )
    ).bind(tokenizer)


def held_out(entity_ids: pl.Series, share: float) -> np.ndarray:
    """[E] bool: entities whose id's CRC-32 falls into the held-out share."""
    lots = np.fromiter(
        (zlib.crc32(e.encode() + b"|held out") for e in entity_ids), np.int64, len(entity_ids)
    )
    return lots < share * 2**32


def _microseconds(moment: dt.datetime | dt.date | None) -> int | None:
    """A UTC moment as microseconds; a date is its midnight, naive times are UTC."""
    if moment is None:
        return None
    if not isinstance(moment, dt.datetime):
        moment = dt.datetime(moment.year, moment.month, moment.day)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    return (moment - epoch) // dt.timedelta(microseconds=1)


def _moment(moment_us: int) -> dt.datetime:
    return dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=moment_us)
