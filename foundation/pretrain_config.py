"""What a user may set about pretraining, read strictly from YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec
import torch

from foundation import strict
from foundation.boosted import BoostSettings
from foundation.errors import ConfigError
from foundation.objectives import ObjectiveConfig
from foundation.schema import Schema
from foundation.training import OptimizerConfig

DEFAULT_ACTIVITY = 30


class SizeConfig(strict.Strict):
    """Sizes of the network; see `foundation.backbone.RiskBackboneConfig`."""

    width: int = 128
    layers: int = 2
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
        products: `bfloat16` rounds what goes into matrix products to bfloat16, which a CPU with
            AMX units multiplies three times as fast; everything else stays float32.
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
    products: Literal["float32", "bfloat16"] = "float32"
    devices: int = 1
    threads: int = 2
    seed: int = 0


def load_pretrain_config(path: str | Path, steps: int | None = None) -> PretrainConfig:
    """Read a YAML strictly and check that its values can be trained with.

    Args:
        steps: replaces the configuration's number of steps.

    Raises:
        ConfigError: an unknown key, a wrong type or an impossible value.
    """
    config = strict.load(PretrainConfig, path)
    if steps is not None:
        config = msgspec.structs.replace(config, steps=steps)
    return checked(config, str(path))


def checked(config: PretrainConfig, where: str = "pretraining") -> PretrainConfig:
    """The config itself.

    Raises:
        ConfigError: naming the key whose value cannot work.
    """
    sizes = config.model
    for key, fault in {
        "model.width: must be a multiple of 4 * model.heads": sizes.width % (4 * sizes.heads),
        "batch_events, max_events, queries, cuts, threads, devices: must be at least 1": min(
            config.batch_events,
            config.max_events,
            config.queries,
            config.cuts,
            config.threads,
            config.devices,
        )
        < 1,
        "validation_share: must be in [0, 0.5]": not 0 <= config.validation_share <= 0.5,
        "steps, epochs: one must be positive": config.steps <= 0 and config.epochs <= 0,
        "model.bidirectional: events would see the next event; set objectives.next_event: 0 "
        "and queries: 1": sizes.bidirectional
        and (config.objectives.next_event > 0 or config.queries > 1),
    }.items():
        if fault:
            raise ConfigError(f"{where}: {key}")
    return config


def activity_horizons(config: PretrainConfig, schema: Schema) -> tuple[int, ...]:
    """Horizons of the automatic targets in days."""
    declared = {h for o in schema.parsed_outcomes() for h in o.horizons} | {*schema.horizons_days}
    return config.activity_days or tuple(sorted(declared)) or (DEFAULT_ACTIVITY,)


def shards_of(config: PretrainConfig) -> int:
    """Parts of a batch for a configuration: its threads on a CPU, 1 where a batch stays whole.

    Dropout draws from one generator for all threads, which would make runs differ; mixed precision
    and accelerators have better use for a whole batch.
    """
    whole = (
        config.model.dropout or config.precision != "32-true" or torch.accelerator.is_available()
    )
    return 1 if whole else config.threads
