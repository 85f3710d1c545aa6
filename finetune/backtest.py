"""Judging a package on labelled samples of windows after its training window.

samples -> histories as they were at each as_of -> scores of the package, of the incumbent and of
the package's own baselines on the same rows -> numbers -> verdict -> page. Nothing is fitted.

Shapes: S samples.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from finetune.backtest_compare import Terms, compare_rows
from finetune.backtest_page import render_backtest
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
from finetune.backtest_verdict import BacktestResult, judge
from finetune.channels import SURE, shared_entities
from finetune.costs import CostMatrix, load_costs
from finetune.features import Progress
from finetune.file_scoring import check_same_schema, population_of, require_known
from finetune.package import Package
from finetune.samples import clustered_note
from finetune.table import FeatureTable
from foundation.errors import SampleError, UserError
from foundation.store import EventStore
from foundation.strict import plain

FORMAT = 1
HEAD = re.compile(r"^\d+_(?:blend_\d+_)?(\w+?)(?:_\d+)?$")

__all__ = ["BacktestResult", "run_backtest"]


def run_backtest(
    package_dir: str | Path,
    store: str | Path,
    samples: str | Path,
    out_dir: str | Path,
    *,
    incumbent: str | Path | None = None,
    costs: str | Path | None = None,
    approval: float = 0.7,
    draws: int = 500,
    seed: int = 0,
    created_at: dt.datetime | None = None,
    store_version: int | None = None,
    progress: Progress | None = None,
) -> BacktestResult:
    """Judge a package and write `backtest.json`, `rows.parquet` and `backtest.html`.

    Rows decided up to the last training sample are left out where there are later ones.

    Args:
        incumbent: package in use today; a column `incumbent_score` of the samples (higher is
            riskier) is compared too. Without either, the package's own gbdt or scorecard part is
            the opponent, where it has one.
        costs: YAML of a `CostMatrix`.
        approval: share that the opponent approves today.
        created_at: written into the page, with a time zone; None for now. With it the same inputs
            give the same bytes.
        store_version: read the store as it stood after so many imports; None is the latest.
    Raises:
        SampleError: samples without both labels; ArtifactError: a package that is damaged or
            reads another schema than the store's; UserError: an impossible approval rate.
    """
    terms = terms_of(approval, draws, seed, costs)
    package = Package.load(package_dir, threads=2)
    opened = EventStore.open(store)
    opened = opened if store_version is None else opened.at(store_version)
    check_same_schema(opened, package.schema, f"package {package.id}")
    given, window = after_training(read_given(samples, package.schema, terms.costs), package)
    population = population_of(opened, package.schema, given.samples)
    require_known(population, package.schema, samples)
    table = package.features(population, progress)
    subject = ModelFacts("package", f"package {package.id} ({package.manifest['recipe']})", True)
    models = [subject]
    scores = {subject.name: package.probability(package.logit(table))}
    if incumbent is not None:
        old = Package.load(incumbent, threads=2)
        check_same_schema(opened, old.schema, f"incumbent package {old.id}")
        # Read as the incumbent reads it: context columns are those of the same schema.
        people = old.features(population_of(opened, old.schema, given.samples), progress)
        scores[INCUMBENT] = old.probability(old.logit(people))
        models.append(ModelFacts(INCUMBENT, f"incumbent package {old.id}", True))
        window["notes"] += _incumbent_notes(old, given)
    if given.incumbent is not None:
        scores[INCUMBENT_COLUMN] = given.incumbent
        models.append(column_facts(given.incumbent))
    for name, logit in own_baselines(package, table).items():
        scores[name] = logit
        models.append(ModelFacts(name, f"{name} inside the package, ranking only", False))
    frozen = FrozenBins.of(
        np.array(package.manifest["score_quantiles"]), package.manifest["label"]["rows"]
    )
    rows = ScoredRows(rows_frame(given, scores), models, {"development": frozen})
    recipe = package.manifest["metrics"]["recipes"].get(package.manifest["recipe"], {})
    facts = {
        "kind": "fixed",
        "title": f"{package.manifest['channel']}: back-test",
        "channel": package.manifest["channel"],
        "package": {
            "id": package.id,
            "digest": package.manifest["digest"],
            "recipe": package.manifest["recipe"],
            "trained_until": package.manifest["label"]["as_of_last"],
        },
        "development": {
            "ks": recipe.get("cv_ks"),
            "auc": recipe.get("cv_auc"),
            "n": package.manifest["label"]["rows"],
            "bads": package.manifest["label"]["bads"],
            "measured": "cross-validation",
        },
        "out_of_time": window["out_of_time"],
        "trained_on": window["trained_on"],
        "left_out": window["left_out"],
        "origins": [],
        "lineage": {
            "package digest": package.manifest["digest"],
            "store version": str(opened.version),
            "store version at development": str(package.manifest["store_version"]),
            "backbone known until": str(package.manifest["backbone_until"]),
        },
    }
    notes = [*given.samples.notes, *window["notes"]]
    return finish(rows, terms, facts, notes, out_dir, created_at)


def terms_of(approval: float, draws: int, seed: int, costs: str | Path | None) -> Terms:
    """Check how to compare.

    Raises:
        UserError: an approval rate outside (0, 1) or fewer than 100 draws.
    """
    if not 0 < approval < 1:
        raise UserError(f"--approval {approval:g}: write a share between 0 and 1, such as 0.7")
    if draws < 100:
        raise UserError(f"--draws {draws}: an interval needs 100 bootstrap draws or more")
    return Terms(approval, draws, seed, None if costs is None else load_costs(costs))


def after_training(given: Given, package: Package) -> tuple[Given, dict[str, Any]]:
    """The rows decided after the last training sample, and what to know about the windows.

    Returns:
        rows; `out_of_time`, `trained_on` (a sentence where the rows may be those learnt from, else
        None), `left_out` and `notes`.
    """
    label = package.manifest["label"]
    last = _moment(label["as_of_last"])
    later = given.samples.frame["as_of"].to_numpy() > last
    info: dict[str, Any] = {"out_of_time": True, "trained_on": None, "left_out": [], "notes": []}
    if later.any():
        given = given.take(np.flatnonzero(later)) if not later.all() else given
        if n := int((~later).sum()):
            reason = f"decided up to {label['as_of_last'][:10]}, inside the training window"
            info["left_out"].append({"reason": reason, "n": n})
        if len(given.samples.frame["label"].unique()) < 2:
            raise SampleError(
                f"the {len(given.samples)} samples decided after {label['as_of_last'][:10]}, the "
                "end of the package's training window, have one label only; both are needed"
            )
    else:
        info["out_of_time"] = False
        info["notes"].append(
            f"no sample was decided after {label['as_of_last'][:10]}, the end of the training "
            "window: these rows are not out of time"
        )
    known = str(label.get("known_last", label["as_of_last"]))
    early = int((given.samples.frame["as_of"].to_numpy() < _moment(known)).sum())
    if early and info["out_of_time"]:
        info["notes"].append(
            f"{early:,} rows were decided before {known[:10]}, when the last training label became "
            "known: at that time the package could not have been used yet"
        )
    _overlap(given, package, info)
    info["notes"] += clustered_note(given.samples.entity_ids)
    return given, info


def _overlap(given: Given, package: Package, info: dict[str, Any]) -> None:
    """A sentence where the same customers stand behind the training labels."""
    trace = package.manifest["label"].get("trace")
    people = given.samples.entity_ids
    total = people.n_unique()
    if trace is None:
        info["notes"].append(
            "the package does not record whose its labels are: whether it learnt from these "
            "customers is unknown"
        )
        return
    count, error = shared_entities(trace, people, package.manifest["backbone_fingerprint"])
    if count <= SURE * error and count < 0.5 * total:
        info["notes"].append(
            f"no sign that customers of these {total:,} stand behind the training labels"
        )
        return
    text = f"about {min(count, total):.0f} of {total:,} customers stand behind the training labels"
    if info["out_of_time"]:
        info["notes"].append(
            f"{text} with earlier decisions; figures hold for such a mix of known and new customers"
        )
    else:
        info["trained_on"] = f"{text}, of the same period: the model learnt from these outcomes"


def _incumbent_notes(old: Package, given: Given) -> list[str]:
    last = old.manifest["label"]["as_of_last"]
    inside = int((given.samples.frame["as_of"].to_numpy() <= _moment(last)).sum())
    if not inside:
        return []
    return [
        f"{inside:,} rows lie inside the incumbent's own training window (up to {last[:10]}): its "
        "figures there may flatter it"
    ]


def own_baselines(package: Package, table: FeatureTable) -> dict[str, np.ndarray]:
    """[S] log-odds of the gbdt and the scorecard that are parts of a package's blend.

    Uncalibrated: they rank. Empty where the package is one of them itself, or has no such part.
    """
    if package.manifest["recipe"] in BASELINES:
        return {}
    out: dict[str, np.ndarray] = {}
    parts = package.column_logits(table)
    for head in package.heads:
        found = HEAD.match(head.name)
        name = found.group(1) if found else ""
        if name in BASELINES and head.name in parts:
            out[name] = out.get(name, 0.0) + head.weight * parts[head.name]
    return {name: out[name] for name in BASELINES if name in out}


def finish(
    rows: ScoredRows,
    terms: Terms,
    facts: dict[str, Any],
    notes: list[str],
    out_dir: str | Path,
    created_at: dt.datetime | None = None,
) -> BacktestResult:
    """Numbers, verdict and files of scored rows; each file appears whole or not at all."""
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    numbers = {
        "format": FORMAT,
        **facts,
        "created_at": (created_at or dt.datetime.now(dt.UTC)).isoformat(timespec="seconds"),
        "terms": {
            "approval": terms.approval,
            "draws": terms.draws,
            "seed": terms.seed,
            "level": 0.95,
        },
        "costs": None if terms.costs is None else costs_record(terms.costs),
        **compare_rows(rows, terms),
        "notes": notes,
    }
    result = judge(numbers)
    text = json.dumps(result.numbers, indent=1, ensure_ascii=False, allow_nan=False)
    files = {"backtest.html": render_backtest(result.numbers), "backtest.json": text + "\n"}
    rows.write(out / "rows.parquet")
    for name, body in files.items():
        partial = out / f".{name}.part"
        partial.write_text(body, encoding="utf-8")
        partial.replace(out / name)
    return result


def costs_record(costs: CostMatrix) -> dict[str, Any]:
    """A cost matrix as JSON, with its break-even probability."""
    return {"exposure": None, "currency": ""} | plain(costs) | {"break_even": costs.break_even}


def _moment(text: str) -> np.datetime64:
    return np.datetime64(text.rstrip("Z"), "us")
