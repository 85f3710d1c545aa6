"""From a sample file to a tested, packaged model: the second journey, in one readable sequence.

sample -> history (point in time) -> features -> ladder of recipes -> choice -> calibration ->
package with parity proof -> report. Nothing of the test file touches a fit.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from finetune.building import GraphFiles, cross_fitted, leak_notes, make_builder
from finetune.calibration import apply_calibration
from finetune.channels import label_record, read_sources, source_notes
from finetune.evaluation import TestResult, evaluate, ladder_lines, metrics_record
from finetune.export import PackageParts, Parity, write_package
from finetune.features import FLOAT32, FeatureBuilder, Population
from finetune.file_scoring import check_same_schema, population_of, require_known
from finetune.label_power import power_record
from finetune.modelling import AdaptSettings, Model, Say, check_names, make_model
from finetune.reasons import reference_row
from finetune.refused import check_reject_settings, read_refused, second_model
from finetune.reject_inference import inference_lines
from finetune.report_assembly import write_adaptation_report
from finetune.samples import Samples, clustered_note, read_samples
from finetune.starting import shipped_start, start_notes
from finetune.table import FeatureTable
from foundation.checkpoint import Backbone, load_backbone
from foundation.importing import declared_authorizations
from foundation.store import EventStore

POINTS = {"base": 600.0, "pdo": 20.0, "odds": 50.0}


@dataclass
class Adaptation:
    """Everything an adaptation found, for the package and the report.

    Attributes:
        power: what the labels can show, said before training; None with too few of a class.
        rejects: reject inference beside the plain model; None where it was not asked for.
        sources: ids of the packages that `transfer` started from.
        authorizations: per table of the store, who allowed what use until when.
    """

    settings: AdaptSettings
    backbone: Backbone
    store_version: int
    samples: Samples
    table: FeatureTable
    model: Model
    test: TestResult | None
    notes: list[str] = field(default_factory=list)
    package_id: str = ""
    parity: Parity | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    power: dict[str, Any] | None = None
    rejects: dict[str, Any] | None = None
    sources: list[str] = field(default_factory=list)
    authorizations: dict[str, Any] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Power of the labels, the ladder and reject inference for a terminal."""
        out = [*self.power["sentences"]] if self.power else []
        out += ladder_lines(self.metrics)
        if self.rejects is not None:
            skipped = self.rejects.get("skipped")
            out += [skipped] if skipped else inference_lines(self.rejects)
        return out


def run_adaptation(
    backbone_dir: str | Path | None,
    store_dir: str | Path,
    samples_path: str | Path,
    output: str | Path,
    settings: AdaptSettings,
    test_path: str | Path | None,
    reporter: Say,
    rejects_path: str | Path | None = None,
) -> Adaptation:
    """Adapt a backbone to a channel and write package, metrics and report to `output`.

    Args:
        backbone_dir: a pretrained backbone of this store's schema; None prepares the one that comes
            with riskfm for this store, see `finetune.starting`.
        rejects_path: refused applicants, with `settings.rejects`; without, those set aside from
            the samples. The plain model is `package`, the one learnt with them `package-METHOD`.
    Raises:
        SampleError: samples that cannot be learnt from, or a test that the backbone has seen.
        ArtifactError: backbone and store do not belong together.
    """
    output = Path(output)
    check_names(settings)
    check_reject_settings(settings, rejects_path)
    store = EventStore.open(store_dir)
    if settings.store_version is not None:
        store = store.at(settings.store_version)
    if backbone_dir is None:
        labelled = settings.recipe != "query"
        backbone_dir = shipped_start(
            store, samples_path, test_path, rejects_path, labelled, output, reporter
        )
    backbone = load_backbone(backbone_dir)
    check_same_schema(store, backbone.schema, f"backbone {backbone_dir}")
    samples = read_samples(samples_path, backbone.schema, need_labels=settings.recipe != "query")
    test = read_samples(test_path, backbone.schema, need_labels=True) if test_path else None
    notes = [*samples.notes, *start_notes(backbone)]
    notes += leak_notes(backbone, samples, test, settings.allow_leak)
    refused = None
    if settings.rejects is not None:
        refused = read_refused(rejects_path, samples, backbone.schema)
        notes += [n for n in refused.notes if n not in notes]
    for note in notes:
        reporter.say(f"note: {note}")
    power = _say_power(samples, test, reporter)
    with tempfile.TemporaryDirectory() as scratch:
        precision = settings.precision
        builder, graphs = make_builder(
            backbone, samples, Path(scratch), packed=True, precision=precision
        )
        if precision != FLOAT32:
            rounded = precision_note(graphs)
            reporter.say(f"note: {rounded}")
            notes.append(rounded)
        sources = read_sources(settings.sources, backbone, builder.spec, precision)
        told = source_notes(sources, samples, test, backbone.fingerprint, settings.allow_leak)
        for note in told:
            reporter.say(f"note: {note}")
        notes += told
        train = population_of(store, backbone.schema, samples)
        require_known(train, backbone.schema, samples_path)
        table = training_table(builder, backbone, train, reporter)
        model = make_model(settings, backbone, samples, table, reporter, sources)
        result = Adaptation(
            settings, backbone, store.version, samples, table, model, None, notes + model.warnings
        )
        result.notes += thin_notes(table, samples, backbone)
        if test is not None:
            result.test = _test(builder, store, backbone, model, test, reporter)
        result.power = power
        result.authorizations = declared_authorizations(store.schema)
        result.sources = [str(s.label["package"]) for s in sources]
        second = None
        if refused is not None:
            people = population_of(store, backbone.schema, refused)
            others = training_table(builder, backbone, people, reporter, "features of the refused")
            second, result.rejects = second_model(
                settings, model, samples, table, refused, others, result.test, reporter
            )
        result.metrics = metrics_record(model, samples, result.test, result.notes)
        result.metrics |= {"label_power": power, "reject_inference": result.rejects}
        reporter.say("package: export and parity proof")
        output.mkdir(parents=True, exist_ok=True)
        _write_package(output / "package", result, builder, graphs, train)
        if second is not None and settings.rejects is not None and result.rejects is not None:
            path = output / f"package-{settings.rejects.method}"
            beside = replace(result, model=second, metrics=dict(result.metrics))
            _write_package(path, beside, builder, graphs, train)
            result.rejects |= {"package": beside.package_id, "path": path.name}
    reporter.say("report")
    for note in write_adaptation_report(result, output):
        reporter.say(f"note: {note}")
    _write_json(output / "metrics.json", result.metrics)
    return result


def _say_power(samples: Samples, test: Samples | None, reporter: Say) -> dict[str, Any] | None:
    """Say what the labels can show before anything is trained; None without both classes."""
    if samples.label is None or samples.frame["label"].null_count():
        return None
    held = None if test is None else (test.y, test.weight)
    power = power_record(samples.y, samples.weight, held)
    if power is not None:
        power["sentences"] += clustered_note(samples.entity_ids)
        for line in (*power["sentences"], power["assumption"]):
            reporter.say(line)
    return power


def training_table(
    builder: FeatureBuilder,
    backbone: Backbone,
    train: Population,
    reporter: Say,
    title: str = "features of the samples",
) -> FeatureTable:
    """Point-in-time features of the labelled samples, forecasts cross-fitted by entity."""
    run = cross_fitted(backbone, train.entity_ids) if builder.boosted_targets else None
    with reporter.bar(title) as bar:
        return builder.table(
            train, boosted=run, keep_histories=backbone.model is not None, progress=bar
        )


def precision_note(graphs: GraphFiles) -> str:
    """What a reader of the report must know of rounded graphs."""
    parity = graphs.parity[graphs.precision]["history"]
    exact = graphs.parity[FLOAT32]["history"]
    return (
        f"the backbone's products are of {graphs.precision} numbers, in what recipes learn from "
        f"and in the package: states of probes lie within {parity:.2g} of the network "
        f"({exact:.1g} in float32); prompt and lora, whose graphs stay float32, are left out"
    )


def thin_notes(table: FeatureTable, samples: Samples, backbone: Backbone) -> list[str]:
    """A sentence about samples without any event before as_of, where there are event sources."""
    thin = 0 if table.thin is None else int(table.thin.sum())
    if not thin or not backbone.schema.sources:
        return []
    return [
        f"{thin} of {len(samples)} samples have no event before as_of: thin files, scored on "
        "profile and context"
    ]


def _test(
    builder: FeatureBuilder,
    store: EventStore,
    backbone: Backbone,
    model: Model,
    test: Samples,
    reporter: Say,
) -> TestResult:
    """Features of the test file as any later row gets them, and every recipe's figures on it."""
    population = population_of(store, backbone.schema, test)
    used = [model.ladder.recipes[n] for n in model.others] if model.ladder else []
    tuned = any("history" in recipe.needs for recipe in used)
    with reporter.bar("features of the test file") as bar:
        table = builder.table(population, keep_histories=tuned, progress=bar)
    return evaluate(model, test, table)


def _write_package(
    path: Path, result: Adaptation, builder: FeatureBuilder, graphs: GraphFiles, train: Population
) -> None:
    """Export the shipped model and prove it; the package's id and parity join the metrics."""
    backbone, model = result.backbone, result.model
    # Training rows get the mean of all folds here, as every later row will.
    table = builder.table(train, keep_histories=result.table.histories is not None)
    expected = apply_calibration(model.calibration, model.fitted.logit(table))
    parts = PackageParts(
        name=result.settings.channel,
        channel=result.settings.channel,
        recipe=model.chosen,
        why=model.why,
        schema=backbone.schema,
        tokenizer=builder.tokenizer,
        spec=builder.spec,
        columns=table.columns,
        heads=model.fitted.heads(),
        offset=model.fitted.offset,
        calibration=model.calibration,
        points=POINTS,
        bands=model.bands,
        reference=reference_row(table),
        max_events=builder.max_events,
        history=graphs.history,
        incremental=graphs.incremental,
        precision=graphs.precision,
        graph_parity=graphs.parity,
        forecasters=graphs.forecasters,
        boosted_targets=builder.boosted_targets,
        network_targets=builder.network_targets,
        based_targets=builder.based_targets,
        titles=builder.titles,
        created_at=result.settings.created_at,
        metrics=_without_seconds(result.metrics),
        labels=label_record(result.samples, backbone.fingerprint),
        score_quantiles=np.quantile(model.score, np.linspace(0, 1, 101)).tolist(),
        lineage={
            "store_version": result.store_version,
            "authorizations": result.authorizations,
            "backbone_fingerprint": backbone.fingerprint,
            "backbone_until": backbone.run.get("until"),
            "backbone_from": backbone.run.get("prepared_from"),
            "code_version": backbone.run.get("riskfm", ""),
            "seed": result.settings.seed,
            "sources": result.sources,
        },
    )
    package, parity = write_package(path, parts, train, expected)
    result.package_id, result.parity = package.id, parity
    result.metrics["package"] = package.id
    result.metrics["parity"] = {"rows": parity.rows, "alone": parity.alone, "batch": parity.batch}


def _without_seconds(metrics: dict[str, Any]) -> dict[str, Any]:
    """The record without how long recipes took: the same inputs make the same package."""
    recipes = {
        name: {k: v for k, v in row.items() if k != "seconds"}
        for name, row in metrics["recipes"].items()
    }
    return metrics | {"recipes": recipes}


def _write_json(path: Path, data: dict[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(json.dumps(data, indent=1, allow_nan=False), encoding="utf-8")
    partial.replace(path)
