"""Pretraining: from a store to a backbone directory, in one readable sequence.

Everything that is learned (vocabularies, bins, targets, aggregates, forecasters, weights) comes
from events and profile rows known before `until`, of the entities that were asked for.

Shapes: E entities, S cuts, T targets, A activity horizons.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import importlib.metadata
import json
import platform
import shutil
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import polars as pl
import torch

from foundation import strict
from foundation.aggregates import AggregateSpec
from foundation.backbone import RiskBackbone, RiskBackboneConfig
from foundation.boosted import BoostSettings, Forecasters, fit_forecasters
from foundation.checkpoint import AGGREGATES, CARD, RUN, SCHEMA, TOKENIZER, read_json, write_json
from foundation.errors import ArtifactError, ConfigError, DataError
from foundation.history import DAY_US, ProfileHistory, Timeline
from foundation.objectives import ObjectiveConfig, Objectives, TrainingBatch, training_batch
from foundation.schema import Schema, fingerprint, schema_to_dict
from foundation.store import EventStore
from foundation.targets import SLACK, outcome_targets, target_names
from foundation.tokenizer import Tokenizer
from foundation.training import OptimizerConfig, PretrainingModule, train
from foundation.windows import (
    WindowBatches,
    WindowSampler,
    activity_counts,
    build_pool,
    draw_cuts,
    pool_cut,
)

PARTIAL = ".unfinished"
PACKAGES = ("torch", "pytorch-lightning", "transformers", "numpy", "polars", "lightgbm")
SAMPLED_ACTIVITY = 30


class SizeConfig(strict.Strict):
    """Sizes of the network; see `foundation.backbone.RiskBackboneConfig`."""

    width: int = 128
    layers: int = 3
    heads: int = 4
    hidden: int = 256
    fusion_hidden: int = 128
    slot_width: int = 64
    hash_rows: int = 4096
    name_rows: int = 512
    knots: int = 16
    dropout: float = 0.0
    bidirectional: bool = False


class PretrainConfig(strict.Strict):
    """One pretraining run.

    Attributes:
        steps: optimizer steps; 0 derives them from `epochs`, passes over the entities.
        batch_events: events per step, from which the number of windows follows.
        max_events, queries: longest window, query tokens per window.
        cuts: cuts per entity in the pool of targets.
        activity_days: horizons of the automatic targets; empty takes those of the outcomes.
        validation_share: share of entities held out for the validation loss.
        boosted: whether forecasters of declared outcomes are fitted beside the network.
        threads: of torch and of the forecasters.
    """

    name: str = "nano"
    model: SizeConfig = SizeConfig()
    objectives: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    steps: int = 0
    epochs: float = 20.0
    batch_events: int = 4096
    max_events: int = 256
    queries: int = 4
    cuts: int = 24
    activity_days: tuple[int, ...] = ()
    validation_share: float = 0.05
    validation_batches: int = 8
    validate_every: int = 200
    checkpoint_every: int = 200
    boosted: bool = True
    boost: BoostSettings = BoostSettings()
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true"] = "32-true"
    devices: int = 1
    threads: int = 2
    seed: int = 0


def load_pretrain_config(path: str | Path) -> PretrainConfig:
    """Read a YAML strictly and check that its values can be trained with.

    Raises:
        ConfigError: an unknown key, a wrong type or an impossible value.
    """
    return checked(strict.load(PretrainConfig, path), str(path))


def checked(config: PretrainConfig, where: str = "pretraining") -> PretrainConfig:
    """The config itself.

    Raises:
        ConfigError: naming the key whose value cannot work.
    """
    sizes = config.model
    for key, fault in {
        "model.width: must be a multiple of 4 * model.heads": sizes.width % (4 * sizes.heads),
        "batch_events, max_events, queries, cuts, threads, devices: must be at least 1":
            min(config.batch_events, config.max_events, config.queries, config.cuts,
                config.threads, config.devices) < 1,
        "validation_share: must be in [0, 0.5]": not 0 <= config.validation_share <= 0.5,
        "steps, epochs: one must be positive": config.steps <= 0 and config.epochs <= 0,
        "model.bidirectional: events would see the next event; set objectives.next_event: 0 "
        "and queries: 1": sizes.bidirectional
            and (config.objectives.next_event > 0 or config.queries > 1),
    }.items():
        if fault:
            raise ConfigError(f"{where}: {key}")
    return config


def pretrain(
    config: PretrainConfig,
    store_dir: str | Path,
    out_dir: str | Path,
    until: dt.datetime | dt.date | None = None,
    entities: Sequence[str] | pl.Series | None = None,
    exclude_entities: Sequence[str] | pl.Series | None = None,
    resume: bool = False,
    progress: Callable[[str], None] | None = None,
    callbacks: Sequence[Any] = (),
) -> Path:
    """Pretrain a backbone.

    Args:
        until: UTC; nothing known at or after it is read. None reads everything.
        entities, exclude_entities: learn from these only, or from all but these.
        resume: continue an interrupted run of the same configuration and data.
        progress: takes plain progress lines; None is silent.
        callbacks: further Lightning callbacks.

    Returns:
        The finished backbone directory.

    Raises:
        ConfigError: the configuration cannot work.
        DataError: the store holds nothing to learn from.
        ArtifactError: `out_dir` is finished already, or holds another run's state.
    """
    begun, say = time.monotonic(), progress or (lambda line: None)
    checked(config)
    out_dir = Path(out_dir)
    if out_dir.exists():
        raise ArtifactError(f"{out_dir}: exists already; choose another directory or remove it")
    torch.set_num_threads(config.threads)
    store = EventStore.open(store_dir)
    chosen = _chosen(store, entities, exclude_entities)
    until_us = _microseconds(until)
    timeline = store.timeline(entities=chosen, until_us=until_us)
    profile = store.profile_history(entities=chosen, until_us=until_us)
    profile = profile if store.schema.profile_fields else None
    if until_us is None:
        until_us = int(timeline.known_us.max()) + 1 if len(timeline) else 0
    if not len(timeline) and (profile is None or not len(profile.frame)):
        raise DataError(f"{store_dir}: no event and no profile row known before {_iso(until_us)}")
    say(f"{len(timeline):,} events of {len(timeline.entity_ids):,} entities before "
        f"{_iso(until_us)}")
    facts = {
        "config": msgspec.to_builtins(config),
        "store_version": store.version,
        "schema_fingerprint": fingerprint(store.schema),
        "until": _iso(until_us),
        "entity_digest": _digest(chosen),
    }
    work = out_dir.with_name(out_dir.name + PARTIAL)
    _open_work(work, facts, resume)
    tokenizer = Tokenizer.fit(store.schema, timeline, profile)
    spec = AggregateSpec.fit(store.schema, timeline, profile, until_us=until_us, seed=config.seed)
    say(f"tokenizer: {tokenizer.size:,} codes; {len(spec.columns):,} aggregate columns")
    forecasters = _forecasters(config, store.schema, timeline, profile, spec, until_us, say)
    network = None
    if len(timeline):
        network = _network(config, timeline, profile, tokenizer, until_us, work, resume, progress,
                           callbacks)
    else:
        say("no event to learn from: no network, tokenizer and aggregates only")
    (work / TOKENIZER).write_text(tokenizer.to_json(), encoding="utf-8")
    (work / AGGREGATES).write_text(spec.to_json(), encoding="utf-8")
    write_json(work / SCHEMA, schema_to_dict(tokenizer.schema))
    if forecasters is not None:
        forecasters.save(work)
    run = facts | {
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "aggregates_fingerprint": spec.fingerprint,
        "events": len(timeline),
        "entities": len(timeline.entity_ids),
        "network": network,
        "forecasters": list(forecasters.names) if forecasters else [],
        "versions": {p: importlib.metadata.version(p) for p in PACKAGES},
        "python": platform.python_version(),
        "riskfm": _own_version(),
        "code": code_digest(),
        "seconds": round(time.monotonic() - begun, 1),
    }
    (work / CARD).write_text(card(run, store.schema), encoding="utf-8")
    _close_work(work, out_dir, run)
    say(f"backbone written to {out_dir}")
    return out_dir


def prepare(
    config: PretrainConfig, timeline: Timeline, profile: ProfileHistory | None,
    tokenizer: Tokenizer, until_us: int,
) -> tuple[Callable[[int], TrainingBatch], list[TrainingBatch], int]:
    """Encode, draw cuts, compute targets.

    Returns:
        The batch of a training step, the validation batches, and the number of steps.
    """
    outcomes = timeline.schema.parsed_outcomes()
    horizons = activity_horizons(config, timeline.schema)
    shortest = int(min(horizons) * DAY_US * (1 - SLACK))
    entity, cut_us = draw_cuts(timeline, until_us, config.cuts, config.seed, shortest)
    pool = build_pool(
        timeline, entity, cut_us, outcome_targets(timeline, outcomes, entity, cut_us, until_us),
        activity_counts(timeline, entity, cut_us, horizons, until_us),
    )
    queries = tokenizer.encode_query(pool_cut(timeline, pool), timeline, profile)
    batches = WindowBatches(tokenizer.encode_events(timeline), queries, pool)
    held = held_out(timeline.entity_ids, config.validation_share)
    if not (~held).any():
        held[:] = False
    typical = min(config.max_events, len(timeline) / max(len(timeline.entity_ids), 1))
    size = max(4, round(config.batch_events / max(typical, 1.0)))

    def sampler(rows: np.ndarray, seed: int) -> WindowSampler:
        return WindowSampler(timeline, pool, np.flatnonzero(rows), size, config.max_events,
                             config.queries, seed)

    training, checking = sampler(~held, config.seed), sampler(held, config.seed + 1)
    steps = config.steps or max(1, round(config.epochs * training.steps_per_epoch))

    def batch(source: WindowSampler, step: int) -> TrainingBatch:
        return training_batch(batches.arrays(source.plan(step)), step)

    count = min(config.validation_batches, checking.steps_per_epoch)
    validation = [batch(checking, k) for k in range(count)] if len(checking.entities) else []
    return (lambda step: batch(training, step)), validation, steps


def _network(
    config: PretrainConfig, timeline: Timeline, profile: ProfileHistory | None,
    tokenizer: Tokenizer, until_us: int, work: Path, resume: bool,
    say: Callable[[str], None] | None, callbacks: Sequence[Any],
) -> dict[str, Any]:
    """Train and save the network; returns what run.json says about it."""
    make, validation, steps = prepare(config, timeline, profile, tokenizer, until_us)
    model = build_model(config, timeline.schema, tokenizer)
    module = PretrainingModule(
        model, Objectives(config.objectives, model.config), config.optimizer, steps, config.seed
    )
    count = sum(p.numel() for p in model.parameters())
    if say:
        say(f"network: {count:,} weights, {steps:,} steps")
    curve = train(
        module, make, validation, work, steps, config.checkpoint_every, config.validate_every,
        config.precision, config.devices, resume, say, callbacks,
    )
    model.save_pretrained(work)
    return {"parameters": count, "steps": steps, "validation": curve}


def build_model(config: PretrainConfig, schema: Schema, tokenizer: Tokenizer) -> RiskBackbone:
    """A fresh network for a schema, seeded and bound to the tokenizer."""
    torch.manual_seed(config.seed)
    return RiskBackbone(
        RiskBackboneConfig(
            **msgspec.structs.asdict(config.model),
            targets=target_names(schema.parsed_outcomes()),
            activity_days=activity_horizons(config, schema),
            tokenizer_fingerprint=tokenizer.fingerprint,
            schema_fingerprint=fingerprint(schema),
        )
    ).bind(tokenizer)


def activity_horizons(config: PretrainConfig, schema: Schema) -> tuple[int, ...]:
    """Horizons of the automatic targets in days."""
    declared = {h for o in schema.parsed_outcomes() for h in o.horizons} | {*schema.horizons_days}
    return config.activity_days or tuple(sorted(declared)) or (SAMPLED_ACTIVITY,)


def held_out(entity_ids: pl.Series, share: float) -> np.ndarray:
    """[E] bool: entities whose id's CRC-32 falls into the held-out share."""
    lots = np.fromiter((zlib.crc32(e.encode() + b"|held out") for e in entity_ids), np.int64,
                       len(entity_ids))
    return lots < share * 2**32


def _forecasters(
    config: PretrainConfig, schema: Schema, timeline: Timeline, profile: ProfileHistory | None,
    spec: AggregateSpec, until_us: int, say: Callable[[str], None],
) -> Forecasters | None:
    if not config.boosted or not schema.outcomes or not len(timeline):
        return None
    settings = msgspec.structs.replace(config.boost, threads=config.threads)
    found = fit_forecasters(schema, timeline, profile, spec, until_us, config.seed, settings)
    for one in found.cards:
        say(f"forecaster {one.name}: AUC {one.auc:.3f} on {one.rows:,} earlier cuts, cross-fitted")
    for one in found.skipped:
        say(f"forecaster {one.name} skipped: {one.reason}")
    return found


def _chosen(
    store: EventStore, entities: Sequence[str] | pl.Series | None,
    excluded: Sequence[str] | pl.Series | None,
) -> pl.Series | None:
    """The entities to learn from, None for all."""
    if entities is None and excluded is None:
        return None
    wanted = store.entity_ids() if entities is None else pl.Series("entity_id", entities)
    wanted = wanted.cast(pl.String).unique().sort()
    if excluded is not None:
        out = pl.Series("entity_id", excluded).cast(pl.String)
        wanted = wanted.filter(~wanted.is_in(out.implode()))
    if not len(wanted):
        raise DataError("no entity is left to learn from; check the entity files")
    return wanted


def _open_work(work: Path, facts: dict[str, Any], resume: bool) -> None:
    """An empty work directory, or the one of the same interrupted run."""
    mark = work / "started.json"
    if resume and mark.is_file():
        before = read_json(mark)
        other = sorted(k for k in facts if before.get(k) != json.loads(json.dumps(facts[k])))
        if other:
            raise ArtifactError(
                f"{work}: belongs to a run with another {other[0]}; start without --resume"
            )
        return
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    write_json(mark, facts)


def _close_work(work: Path, out_dir: Path, run: dict[str, Any]) -> None:
    """Drop what only the run needed, write run.json last, rename."""
    for name in ("started.json", "trainer.safetensors"):
        (work / name).unlink(missing_ok=True)
    write_json(work / RUN, run)
    work.rename(out_dir)


def card(run: dict[str, Any], schema: Schema) -> str:
    """The model card."""
    network = run["network"]
    lines = [
        f"# Backbone {run['config']['name']} on {schema.name}", "",
        f"Pretrained without labels on {run['events']:,} events of {run['entities']:,} entities, "
        f"known before {run['until']}.", "",
        f"- sources: {', '.join(schema.source_names) or 'none'}",
        f"- forecasts: {', '.join(target_names(schema.parsed_outcomes())) or 'none declared'}",
        f"- boosted forecasters: {', '.join(run['forecasters']) or 'none'}",
        f"- tokenizer {run['tokenizer_fingerprint']}, schema {run['schema_fingerprint']}",
        f"- {run['seconds']:.0f} seconds, seed {run['config']['seed']}, code {run['code']}",
    ]
    if network is None:
        lines.append("- no network: there was no event to learn from")
    else:
        last = network["validation"][-1] if network["validation"] else {}
        losses = ", ".join(f"{k} {v:.4f}" for k, v in last.items() if k != "step")
        lines.append(f"- network: {network['parameters']:,} weights, {network['steps']:,} steps; "
                     f"held-out losses: {losses or 'not measured'}")
    lines += ["", "Limits: it knows only behaviour that stood in these sources; forecasts are as "
              "good as the declared outcomes; check it on each population before use."]
    return "\n".join(lines) + "\n"


def code_digest() -> str:
    """Digest of the source of this package: 16 hex digits."""
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def _own_version() -> str:
    try:
        return importlib.metadata.version("riskfm")
    except importlib.metadata.PackageNotFoundError:
        return "source"


def _digest(chosen: pl.Series | None) -> str:
    if chosen is None:
        return "all"
    return hashlib.sha256("\n".join(chosen.to_list()).encode()).hexdigest()[:16]


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


def _iso(moment_us: int) -> str:
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    return (epoch + dt.timedelta(microseconds=moment_us)).isoformat()
