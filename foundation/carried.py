"""A network's weights on another tokenizer: of an extended schema, or of one it never saw.

Tokens are embedded by kind, role and hashed name (foundation.event_encoder), so every weight but
those of the forecasts belongs to any schema. The forecasts belong to the outcomes they were trained
on, and are left behind.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from foundation.backbone import RiskBackbone
from foundation.errors import ConfigError
from foundation.schema import Schema, fingerprint
from foundation.tokenizer import Tokenizer

HEADS = ("forecast_head.", "readout.")
SIZES = (
    "width",
    "layers",
    "heads",
    "hidden",
    "fusion_hidden",
    "slot_width",
    "hash_rows",
    "name_rows",
    "knots",
    "extra",
    "query_extra",
    "bidirectional",
)


def carry(
    source: RiskBackbone, tokenizer: Tokenizer, schema: Schema, ignored_extra: Sequence[str] = ()
) -> RiskBackbone:
    """A copy without forecasts, bound to another tokenizer, in evaluation mode.

    Args:
        ignored_extra: extra columns to read as zero, beside those the source never learned to read.
    """
    config = copy.deepcopy(source.config)
    config.targets, config.based, config.distilled = [], [], []
    config.ignored_extra = sorted({*config.ignored_extra, *ignored_extra})
    config.tokenizer_fingerprint = tokenizer.fingerprint
    config.schema_fingerprint = fingerprint(schema)
    model = RiskBackbone(config)
    return start_from(model, source).bind(tokenizer).eval()


@torch.no_grad()
def start_from(model: RiskBackbone, source: RiskBackbone) -> RiskBackbone:
    """Give a network the weights of another of the same sizes, all but the forecasts'.

    Raises:
        ConfigError: the sizes differ; names the first.
    """
    for name in SIZES:
        mine, other = getattr(model.config, name), getattr(source.config, name)
        if mine != other:
            raise ConfigError(
                f"model.{name}: {mine}, but the backbone to start from has {other}; use the sizes "
                "of its config.json"
            )
    given = source.state_dict()
    for name, weight in model.named_parameters():
        if not name.startswith(HEADS):
            weight.copy_(given[name])
    return model
