"""What an adaptation found, laid out for its report."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from finetune.calibration import points
from finetune.fairness import group_values
from finetune.features import Histories
from finetune.history_reasons import field_effects
from finetune.modelling import Model
from finetune.package import Package
from finetune.reasons import Reason, group_effects, reference_row, top_reasons
from finetune.report import (
    EvaluationFacts,
    ExampleFacts,
    ForecastFacts,
    LadderRow,
    ReasonGroupFacts,
    ReportContent,
    SampleFacts,
    WindowFacts,
    write_report,
)
from finetune.samples import Samples
from finetune.table import FeatureTable
from finetune.variable_analysis import Rows, VariableAnalysis, analyse
from finetune.variable_report import (
    SHOWN,
    findings_note,
    variable_facts,
    variable_findings,
    write_tables,
)

if TYPE_CHECKING:
    from finetune.adaptation import Adaptation

EXPLAINED_ROWS = 400
TUNED_ROWS = 64


def write_adaptation_report(result: Adaptation, output: Path) -> list[str]:
    """Write `report.html`, `report.json` and the tables of variables beside the package.

    Returns:
        what the analysis of variables found that a person must look at before using the model.
    """
    variables = _variables(result)
    if variables is not None:
        write_tables(variables, output)
    content = assemble(result, output, variables)
    write_report(content, output / "report.html", output / "report.json")
    return findings_note(variables) if variables is not None else []


def assemble(
    result: Adaptation, output: Path, variables: VariableAnalysis | None = None
) -> ReportContent:
    """The report's content; everything shown is computed from what the adaptation holds."""
    model, samples, table = result.model, result.samples, result.table
    package = Package.load(output / "package", verify=False)
    reasons, examples = _explain(package, model, table, samples)
    labelled = samples.label is not None
    forecast_table = result.test.table if result.test is not None else table
    forecast_y = result.test.y if result.test is not None else (samples.y if labelled else None)
    basis = "the test file" if result.test is not None else "the labelled sample"
    return ReportContent(
        title=f"{result.settings.channel}: model report",
        channel=result.settings.channel,
        package_id=result.package_id,
        created_at=result.settings.created_at or dt.datetime.now(dt.UTC),
        recipe=model.chosen,
        why=model.why,
        sample=_sample_facts(
            samples,
            table,
            bool(result.backbone.schema.sources),
            selected=samples.approved_only or result.rejects is not None,
        ),
        windows=_windows(result),
        ladder=_ladder(result),
        ladder_basis=_basis(model, samples),
        evaluation=_evaluation(result),
        forecasts=_forecasts(forecast_table),
        forecast_basis=basis,
        forecast_y=forecast_y,
        variables=variable_facts(variables) if variables else (),
        variables_note=_variables_note(result, variables),
        variable_findings=variable_findings(variables) if variables else None,
        reasons=reasons,
        reasons_note=(
            "mean absolute change of the log-odds when a group of inputs is set to the "
            f"development sample's typical value, on {min(len(table), EXPLAINED_ROWS)} rows of it"
        ),
        examples=examples,
        limits=[*result.notes, *(findings_note(variables) if variables else [])],
        label_power=result.power,
        reject_inference=result.rejects,
        lineage=_lineage(result),
    )


def _sample_facts(
    samples: Samples, table: FeatureTable, has_events: bool, selected: bool
) -> SampleFacts:
    label = samples.frame["label"].cast(pl.Float64).fill_null(float("nan")).to_numpy()
    channels = samples.frame["channel"]
    several = channels.n_unique() > 1
    return SampleFacts(
        y=label,
        as_of_us=samples.as_of_us,
        channel=channels.fill_null("none").to_list() if several else None,
        thin=table.thin if has_events else None,
        approved_only=selected,
    )


def _windows(result: Adaptation) -> list[WindowFacts]:
    out = []
    until = result.backbone.run.get("until")
    if until and result.backbone.run.get("last_known_us") is not None:
        out.append(
            WindowFacts(
                name="pretraining",
                start="",
                end=str(until)[:10],
                note="events known before this day, without labels",
            )
        )
    out.append(_window("development sample", result.samples))
    if result.test is not None:
        out.append(_window("test sample", result.test.samples))
    return out


def _window(name: str, samples: Samples) -> WindowFacts:
    as_of = samples.frame["as_of"]
    return WindowFacts(
        name=name,
        start=str(as_of.dt.date().min()),
        end=str(as_of.dt.date().max()),
        note=f"n = {len(samples):,}",
    )


def _basis(model: Model, samples: Samples) -> str:
    if model.ladder is None:
        return "no labels, nothing was cross-validated"
    repeats = max(s.repeat for s in model.ladder.splits) + 1
    folds = max(s.fold for s in model.ladder.splits) + 1
    return f"pooled out-of-fold, {folds} folds x {repeats} repeats, n = {len(samples):,}"


def _ladder(result: Adaptation) -> list[LadderRow]:
    rows = []
    differences: dict[str, tuple[float, float]] = {}
    ladder = result.model.ladder
    if ladder is not None and result.settings.recipe == "auto":
        differences = ladder.choose().differences
    for name, row in result.metrics["recipes"].items():
        gap, error = differences.get(name, (None, None))
        test = result.test.intervals.get(name, {}) if result.test is not None else {}
        rows.append(
            LadderRow(
                name=name,
                status=row["status"],
                reason=row.get("reason", ""),
                cv_log_loss=row.get("cv_log_loss"),
                gap=gap,
                gap_se=error,
                auc=row.get("cv_auc"),
                auc_low=row.get("cv_auc_low"),
                auc_high=row.get("cv_auc_high"),
                ks=row.get("cv_ks"),
                ks_low=row.get("cv_ks_low"),
                ks_high=row.get("cv_ks_high"),
                **{
                    f"test_{m}{end}": getattr(test[m], attribute)
                    for m in test
                    for end, attribute in (("", "value"), ("_low", "low"), ("_high", "high"))
                },
            )
        )
    return rows


def _evaluation(result: Adaptation) -> EvaluationFacts | None:
    model, samples = result.model, result.samples
    if result.test is not None:
        test = result.test
        later = int(test.samples.as_of_us.min()) > int(samples.as_of_us.max())
        return EvaluationFacts(
            name="test file, out of time" if later else "test file",
            kind="test",
            y=test.y,
            as_of_us=test.samples.as_of_us,
            score=test.scores[model.chosen],
            out_of_time=later,
            baseline=test.scores.get("gbdt") if model.chosen != "gbdt" else None,
            reference_score=model.score[~np.isnan(model.score)],
            weight=test.samples.weight,
            groups=group_values(test.table, result.settings.groups),
            approve_below=float(model.bands[0]["below"]),
        )
    if model.ladder is None:
        return None
    rows = model.ladder.tested
    baseline = None
    ok = model.ladder.ok()
    if "gbdt" in ok and model.chosen != "gbdt":
        from finetune.calibration import apply_calibration

        baseline = apply_calibration(model.calibrations["gbdt"], ok["gbdt"].logit)[rows]
    return EvaluationFacts(
        name="out-of-fold predictions of the labelled sample",
        kind="out-of-fold",
        y=samples.y[rows],
        as_of_us=samples.as_of_us[rows],
        score=model.score[rows],
        baseline=baseline,
        weight=samples.weight[rows],
        groups=group_values(result.table.take(np.flatnonzero(rows)), result.settings.groups),
        approve_below=float(model.bands[0]["below"]),
    )


def _forecasts(table: FeatureTable) -> list[ForecastFacts]:
    block = table.block("forecast")
    return [
        ForecastFacts(
            name=c.name,
            title=c.title.removeprefix("forecast: ")
            + (" (network)" if c.name.startswith("network.") else ""),
            values=block.values[:, i],
        )
        for i, c in enumerate(block.columns)
    ]


def _variables(result: Adaptation) -> VariableAnalysis | None:
    """Every column alone, on the development sample and against the test sample."""
    if result.samples.label is None or result.samples.frame["label"].null_count():
        return None
    test = None
    if result.test is not None:
        found = result.test
        test = Rows(found.table, found.y, found.samples.weight, found.samples.as_of_us)
    samples = result.samples
    rows = Rows(result.table, samples.y, samples.weight, samples.as_of_us)
    return analyse(rows, result.backbone.schema, test, optimal=SHOWN)


def _variables_note(result: Adaptation, found: VariableAnalysis | None) -> str:
    if found is None:
        return "no labels, no variable analysis"
    if result.test is None:
        return "PSI is the largest of any month against the whole sample, bins frozen."
    return "PSI is between development and test sample, bins frozen on development."


def _explain(
    package: Package, model: Model, table: FeatureTable, samples: Samples
) -> tuple[list[ReasonGroupFacts], list[ExampleFacts]]:
    """Importance of reason groups, and three customers in words."""
    rows = np.linspace(0, len(table) - 1, min(len(table), EXPLAINED_ROWS)).astype(int)
    part = table.take(np.unique(rows))
    if not package.used:
        return _explain_fields(package, part.take(np.arange(min(len(part), TUNED_ROWS))))
    reference = reference_row(table)

    def logit(values: np.ndarray) -> np.ndarray:
        return model.fitted.logit(FeatureTable(part.columns, values, part.histories))

    groups, effects = group_effects(part.columns, package.used, part.values, reference, logit)
    titles = {c.group: c.title for c in reversed(part.columns) if c.name in package.used}
    order = np.argsort(-np.abs(effects).mean(axis=0))
    importance = [
        ReasonGroupFacts(
            title=_group_title(groups[g], titles), importance=float(np.abs(effects[:, g]).mean())
        )
        for g in order[:15]
    ]
    score = package.probability(logit(part.values))
    ranked = np.argsort(score, kind="stable")
    as_of = samples.frame["as_of"].dt.date().cast(pl.String).to_list()
    examples = []
    for band, at in (("approved", 0.05), ("middle", 0.5), ("refused", 0.97)):
        i = int(ranked[int(at * (len(ranked) - 1))])
        top: tuple[Reason, ...] = top_reasons(
            part.columns, package.used, part.values[i], groups, effects[i], reference
        )
        examples.append(
            ExampleFacts(
                band=band,
                score=float(score[i]),
                reasons=top,
                points=float(points(score[i : i + 1], **package.manifest["points"])[0]),
                as_of=as_of[int(np.unique(rows)[i])],
            )
        )
    return importance, examples


def _explain_fields(
    package: Package, part: FeatureTable
) -> tuple[list[ReasonGroupFacts], list[ExampleFacts]]:
    """Importance of fields for a fine-tuned model; single customers come with the score API."""

    def logit(histories: Histories) -> np.ndarray:
        return package.logit(FeatureTable(part.columns, part.values, histories))

    _, titles, effects = field_effects(package.builder.tokenizer, part.histories, logit)
    mean = np.abs(effects).mean(axis=0)
    order = np.argsort(-mean)[:15]
    return [ReasonGroupFacts(title=titles[g], importance=float(mean[g])) for g in order], []


def _group_title(group: str, titles: dict[str, str]) -> str:
    if group == "behaviour":
        return "behaviour pattern (network state)"
    if group.startswith("forecast."):
        return titles.get(group, group)
    return group.replace(".", ": ").replace("_", " ")


def _lineage(result: Adaptation) -> dict[str, str]:
    run: dict[str, Any] = result.backbone.run
    parity = result.parity
    out = {
        "event store version": str(result.store_version),
        "schema fingerprint": str(run.get("schema_fingerprint", "")),
        "backbone fingerprint": result.backbone.fingerprint,
        "tokenizer fingerprint": result.backbone.tokenizer.fingerprint,
        "backbone known until": str(run.get("until", "")),
        "code version": str(run.get("riskfm", "")),
        "seed": str(result.settings.seed),
    }
    came = run.get("prepared_from")
    if came:
        out["network carried over from"] = f"{came['name']} ({came['fingerprint']})"
    if parity is not None:
        out["parity of the package"] = (
            f"{parity.rows} golden rows, largest difference alone {parity.alone:.1e}, in a batch "
            f"{parity.batch:.1e}"
        )
    return out
