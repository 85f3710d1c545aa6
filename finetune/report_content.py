"""What a report says: plain data, measured elsewhere, shown by `finetune.report`.

Shapes: S samples. Arrays of labels are float: 1 bad, 0 good, NaN unknown. Times are int64
microseconds since the epoch, UTC. Scores are probabilities of label 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np

from finetune.reasons import Reason


@dataclass(frozen=True, kw_only=True)
class WindowFacts:
    """One period of data: `start` and `end` are ISO dates (UTC), both included."""

    name: str
    start: str
    end: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class SampleFacts:
    """The labelled sample that the model was made from, after checks.

    Attributes:
        y: [S] 1 bad, 0 good, NaN unknown.
        as_of_us: [S] moment of decision, microseconds UTC.
        channel: [S] channel names, or None where the sample has one channel only.
        thin: [S] bool, entity without any known event at as_of; None without event sources.
        dropped: reason -> rows left out before anything was computed.
        ignored_columns: columns of the file that no schema declares.
        approved_only: labels exist for approved customers only (selection).
    """

    y: np.ndarray
    as_of_us: np.ndarray
    channel: Sequence[str] | None = None
    thin: np.ndarray | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    ignored_columns: Sequence[str] = ()
    approved_only: bool = False


@dataclass(frozen=True, kw_only=True)
class LadderRow:
    """One recipe as cross-validation and, where there is one, the test sample judged it.

    `status` is `ok`, `skipped` or `failed`; `reason` says why, for people. Numbers that were not
    measured are None. `*_low` and `*_high` bound a 95 % bootstrap interval. `gap` is the paired
    difference of log-loss to the best recipe, `gap_se` its standard error.
    """

    name: str
    status: str = "ok"
    reason: str = ""
    cv_log_loss: float | None = None
    gap: float | None = None
    gap_se: float | None = None
    auc: float | None = None
    auc_low: float | None = None
    auc_high: float | None = None
    ks: float | None = None
    ks_low: float | None = None
    ks_high: float | None = None
    test_auc: float | None = None
    test_auc_low: float | None = None
    test_auc_high: float | None = None
    test_ks: float | None = None
    test_ks_low: float | None = None
    test_ks_high: float | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluationFacts:
    """Labels and calibrated scores (probability of bad) of the sample a model is judged on.

    Attributes:
        name: for people: `test file, out of time` or `out-of-fold predictions`.
        kind: `test` or `out-of-fold`.
        out_of_time: every as_of lies after the last one of the development sample.
        y, as_of_us: [S]; rows with unknown labels are left out of metrics.
        score: [S] of the chosen recipe.
        baseline: [S] of the opponent on the same rows, or None.
        baseline_name: name of the opponent.
        reference_score: scores of the development sample, any length, for PSI; None where the
            evaluation is the development sample itself (PSI is then against its first month).
        weight: [S] positive, or None where every row counts once.
        groups: field -> [S] group of each row as text, for fairness by declared groups.
        approve_below: scores below it are approved; None leaves approval by group out.
    """

    name: str
    kind: str
    y: np.ndarray
    as_of_us: np.ndarray
    score: np.ndarray
    out_of_time: bool = False
    baseline: np.ndarray | None = None
    baseline_name: str = "gbdt"
    reference_score: np.ndarray | None = None
    weight: np.ndarray | None = None
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    approve_below: float | None = None


@dataclass(frozen=True, kw_only=True)
class ForecastFacts:
    """One forecast: probabilities [S], NaN where there is none, on the rows of
    `ReportContent.forecast_y`; `realised` [S] is 1 where the outcome came true, 0 where not, NaN
    where that is not yet known."""

    name: str
    title: str
    values: np.ndarray
    realised: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class VariableFacts:
    """One input column on the development sample, alone.

    Attributes:
        iv_chance: the IV that a column without meaning exceeds once in twenty times.
        auc: of "higher is worse", with its 95 % interval; `auc_test` on the test sample.
        psi: against the test sample, else `psi_month`, the largest of any month.
        alike: how many further columns say the same (rank correlation above 0.8).
        suspect: why it may know the outcome, or nothing.
    """

    name: str
    title: str = ""
    block: str = ""
    missing: float | None = None
    iv: float | None = None
    ks: float | None = None
    psi: float | None = None
    iv_chance: float | None = None
    auc: float | None = None
    auc_low: float | None = None
    auc_high: float | None = None
    auc_test: float | None = None
    psi_month: float | None = None
    alike: int = 0
    suspect: str = ""


@dataclass(frozen=True, kw_only=True)
class ReasonGroupFacts:
    """Mean absolute effect of a group of inputs on the score, in log-odds."""

    title: str
    importance: float


@dataclass(frozen=True, kw_only=True)
class ExampleFacts:
    """One customer; `band` is `approved`, `middle` or `refused`; strongest reason first."""

    band: str
    score: float
    reasons: Sequence[Reason]
    points: float | None = None
    label: str = "example customer"
    as_of: str = ""


@dataclass(frozen=True, kw_only=True)
class ReportContent:
    """All a report says; parts that are None or empty are left out with a sentence.

    Attributes:
        recipe, why: the chosen recipe and one sentence why.
        label_meaning: what label 1 means, in words.
        ladder_basis: what cross-validation numbers were computed on, such as
            `pooled out-of-fold, 5 folds x 4 repeats, n = 300`.
        forecast_basis, forecast_y: name and labels [S] of the rows the forecasts were computed on.
        limits: sentences beside those the report derives itself (few bads, thin files, no
            out-of-time test, approved-only labels, dropped rows).
        variable_findings: as of `finetune.variable_report.variable_findings`, or None.
        label_power: as of `finetune.label_power.power_record`, or None.
        reject_inference: as of `finetune.reject_inference.inference_record`, or None.
        lineage: store version, fingerprints, code version, seeds.
        seed, resamples: of the bootstrap intervals; those of `finetune.evaluation`, so that the
            page and metrics.json show the same ones.
    """

    title: str
    channel: str
    package_id: str
    created_at: datetime
    recipe: str
    why: str
    sample: SampleFacts
    label_meaning: str = ""
    windows: Sequence[WindowFacts] = ()
    ladder: Sequence[LadderRow] = ()
    ladder_basis: str = ""
    evaluation: EvaluationFacts | None = None
    forecasts: Sequence[ForecastFacts] = ()
    forecast_basis: str = ""
    forecast_y: np.ndarray | None = None
    variables: Sequence[VariableFacts] = ()
    variables_note: str = ""
    variable_findings: Mapping[str, Any] | None = None
    reasons: Sequence[ReasonGroupFacts] = ()
    reasons_note: str = ""
    examples: Sequence[ExampleFacts] = ()
    limits: Sequence[str] = ()
    label_power: Mapping[str, Any] | None = None
    reject_inference: Mapping[str, Any] | None = None
    lineage: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    resamples: int = 500
