"""Packages of several channels on one untrained backbone, made in a second and without labels."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model

from finetune.calibration import Platt
from finetune.export import PackageParts, write_package
from finetune.features import FLOAT32, INT8, FeatureBuilder, Population, open_session
from finetune.finetuned import LORA_MODULES, FittedTuned, TunedBackbone, _adapter, _merged
from finetune.fusion import WeightedRecipes
from finetune.heads import LinearHead, NumberTerm
from finetune.history_graph import export_history
from finetune.incremental_graph import export_incremental
from finetune.package import Package
from finetune.quantized import TOLERANCE, export_quantised, int8_products
from finetune.reasons import reference_row
from finetune.recipes import FittedLinear
from foundation.aggregates import AggregateSpec
from foundation.backbone import RiskBackbone, RiskBackboneConfig
from foundation.tokenizer import Tokenizer
from tests.foundation.small_lender import SCHEMA, UNTIL_US, small_lender

SIZES = {
    "width": 16,
    "layers": 2,
    "heads": 2,
    "hidden": 16,
    "fusion_hidden": 16,
    "slot_width": 8,
    "hash_rows": 32,
    "name_rows": 16,
    "targets": ["late_31d"],
}


@dataclass
class Lender:
    """A backbone, its feature builder and the customers to score."""

    backbone: RiskBackbone
    builder: FeatureBuilder
    history: Path
    population: Population


def lender(folder: Path, precision: str = FLOAT32) -> Lender:
    """Everything a package of this lender stands on; the history graph is written to `folder`."""
    schema, timeline, profile = small_lender(30)
    tokenizer = Tokenizer.fit(schema, timeline, profile)
    spec = AggregateSpec.fit(schema, timeline, profile, max_columns=20)
    torch.manual_seed(0)
    backbone = RiskBackbone(RiskBackboneConfig(**SIZES)).bind(tokenizer).eval()
    backbone.requires_grad_(False)
    history, incremental = folder / "history.onnx", folder / "incremental.onnx"
    if precision == INT8:
        export_quantised(backbone, tokenizer, history)
        export_incremental(backbone, tokenizer, incremental, int8_products, TOLERANCE)
    else:
        export_history(backbone, tokenizer, history)
        export_incremental(backbone, tokenizer, incremental)
    builder = FeatureBuilder(
        schema,
        tokenizer,
        spec,
        history=open_session(str(history)),
        network_targets=("late_31d",),
        max_events=64,
        precision=precision,
    )
    entities = timeline.entity_ids
    population = Population(timeline, profile, entities, np.full(len(entities), UNTIL_US), None)
    return Lender(backbone, builder, history, population)


def tuned(backbone: RiskBackbone, kind: str, seed: int, size: int = 3) -> FittedTuned:
    """A `prompt` or `lora` as after some training: nothing of it is zero."""
    torch.manual_seed(seed)
    width = backbone.config.width
    inner = copy.deepcopy(backbone)
    model = TunedBackbone(inner, size if kind == "prompt" else 0, torch.rand(width) + 0.5)
    if kind == "lora":
        config = LoraConfig(r=size, lora_alpha=2 * size, target_modules=LORA_MODULES)
        inject_adapter_in_model(config, inner)
    with torch.no_grad():
        model.bias.fill_(0.3)
        model.weight.normal_(std=0.3)
        if model.prompt is not None:
            model.prompt.normal_()
        for name, parameter in inner.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    adapter = _adapter(model)
    return FittedTuned(kind, _merged(model), backbone, adapter)


def linear(columns: list[str], seed: int) -> FittedLinear:
    """A linear recipe with random weights."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(0, 0.3, len(columns)).tolist()
    terms = tuple(NumberTerm(c, w) for c, w in zip(columns, weights, strict=True))
    return FittedLinear("linear", LinearHead(terms, 0.1))


def write(lender: Lender, path: Path, seed: int, kinds: tuple[str, ...] = ()) -> Package:
    """A package of two linear heads and tuned ones of some kinds; every seed another channel."""
    table = lender.builder.table(lender.population, keep_histories=True)
    names = [c.name for c in table.columns]
    members = [linear(names[-30:], seed), linear(names[:5], seed + 1000)]
    members += [tuned(lender.backbone, kind, seed) for kind in kinds]
    model = WeightedRecipes("blend", [*members], [0.5] * len(members))
    calibration = Platt(0.7, -0.2)
    parts = PackageParts(
        name=f"channel{seed}",
        channel=f"channel{seed}",
        recipe="blend",
        why="a test",
        schema=SCHEMA,
        tokenizer=lender.builder.tokenizer,
        spec=lender.builder.spec,
        columns=table.columns,
        heads=model.heads(),
        offset=0.25,
        calibration=calibration.to_dict(),
        points={"base": 600.0, "pdo": 20.0, "odds": 50.0},
        bands=[{"name": "approve", "below": 0.5}, {"name": "refuse", "below": 1.01}],
        reference=reference_row(table),
        max_events=64,
        history=lender.history,
        incremental=lender.history.with_name("incremental.onnx"),
        precision=lender.builder.precision,
        network_targets=("late_31d",),
    )
    expected = calibration.apply(model.logit(table) + 0.25)
    return write_package(path, parts, lender.population, expected)[0]


def scores(package: Package, population: Population) -> np.ndarray:
    """[S] scores."""
    return np.array([row.score for row in package.score_population(population)])
