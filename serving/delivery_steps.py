"""The steps of a delivery, each safe to repeat: what is finished is found, never made twice.

    received -> validated -> adapted -> backtested -> documented -> judged -> packaged -> shadow

Steps write `runs/JOB/STEP/` by one rename. Same samples, store version, backbone and settings give
the same bytes, whatever was interrupted: moments come from when the job was handed in.
"""

from __future__ import annotations

import datetime as dt
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from foundation import strict
from foundation.errors import ArtifactError, UserError
from serving.durable import place_directory, place_tree, require_digest
from serving.gates import DeliverySettings, judge, refusals, verdict_lines
from serving.jobs import Job, JobBook
from serving.progress import Reporter
from serving.registry import Registry
from serving.workspace import Workspace

EVERY_SECONDS = 0.5


class Stopped(Exception):
    """The job was cancelled while a step ran."""


class Refused(Exception):
    """A gate failed; the message names every one that did."""


@dataclass
class Context:
    """What a step works with."""

    workspace: Workspace
    registry: Registry
    book: JobBook
    job: Job
    reporter: JobReporter

    @property
    def settings(self) -> DeliverySettings:
        """Gates and adaptation as they stood when the job was handed in."""
        given = self.job.request["settings"]
        return strict.convert(DeliverySettings, given, f"job {self.job.id}")

    @property
    def samples(self) -> Path:
        """The sample file in the workspace."""
        return self.workspace.root / self.job.request["samples"]["file"]

    @property
    def test(self) -> Path | None:
        """The test file in the workspace."""
        test = self.job.request["test"]
        return None if test is None else self.workspace.root / test["file"]

    def out(self, step: str) -> Path:
        """Directory of a step's output."""
        return self.workspace.runs / self.job.id / step

    def store(self) -> Any:
        """The event store as it stood when the job was handed in."""
        from foundation.store import EventStore

        request = self.job.request
        return EventStore.open(request["store"]).at(request["store_version"])


class JobReporter:
    """Progress of a step: into the job's row and log, and to the terminal of the worker.

    Raises:
        Stopped: from any of its methods, once the job is cancelled.
    """

    def __init__(self, book: JobBook, job: str, shown: Reporter) -> None:
        self._book, self._job, self._shown = book, job, shown
        self._told = 0.0

    def say(self, text: str) -> None:
        """One line."""
        self._shown.say(text)
        self._book.say(self._job, text)
        self._tell(0, 0, text[:200])

    @contextmanager
    def bar(self, title: str) -> Iterator[Callable[..., None]]:
        """A bar fed by calling it with (done, total)."""
        self._tell(0, 0, title)
        with self._shown.bar(title) as shown:

            def update(done: int, total: int, note: str = "") -> None:
                shown(done, total, note)
                if time.monotonic() - self._told > EVERY_SECONDS:
                    self._tell(done, total, f"{title} {note}".strip())

            yield update

    def _tell(self, done: int, total: int, note: str) -> None:
        self._told = time.monotonic()
        if not self._book.progress(self._job, done, total, note):
            raise Stopped


def received(context: Context) -> dict[str, Any]:
    """The sample files lie whole in the workspace."""
    for kind in ("samples", "test"):
        file = context.job.request[kind]
        if file is not None:
            path = context.workspace.root / file["file"]
            require_digest(path, file["digest"], f"hand the {kind} file in again")
    return {"samples": context.job.request["samples"]["digest"]}


def validated(context: Context) -> dict[str, Any]:
    """The samples are readable, and what they can show is said."""
    from finetune.label_power import power_record
    from finetune.samples import read_samples

    def make(folder: Path) -> dict[str, Any]:
        schema = context.store().schema
        need = context.settings.adapt.recipe != "query"
        samples = read_samples(context.samples, schema, need_labels=need)
        if context.test is not None:
            read_samples(context.test, schema, need_labels=True)
        as_of = samples.frame["as_of"].dt.date()
        labelled = samples.label is not None and not samples.frame["label"].null_count()
        power = power_record(samples.y, samples.weight, None) if labelled else None
        facts = {
            "n": len(samples),
            "bads": int(samples.y.sum()) if labelled else None,
            "first": str(as_of.min()),
            "last": str(as_of.max()),
            "notes": samples.notes,
            "power": power["sentences"] if power else [],
        }
        _write_json(folder / "samples.json", facts)
        return facts

    facts = place_directory(context.out("validated"), make, "validated.inside")
    bads = "no labels" if facts["bads"] is None else f"{facts['bads']:,} bads"
    context.reporter.say(
        f"samples: {facts['n']:,} rows, {bads}, {facts['first']} to {facts['last']}"
    )
    return facts


def adapted(context: Context) -> dict[str, Any]:
    """Back-tracked, recipes compared, tested, exported with proof, reported."""
    from finetune.adaptation import run_adaptation
    from finetune.modelling import AdaptSettings
    from foundation.checkpoint import load_backbone
    from foundation.shipped import start_directory
    from serving.comparison import DEVELOPMENT, development_frame

    request, adapt = context.job.request, context.settings.adapt

    def make(folder: Path) -> dict[str, Any]:
        found = load_backbone(start_directory(request["backbone"]), network=False).fingerprint
        if found != request["backbone_fingerprint"]:
            raise ArtifactError(
                f"backbone {request['backbone']} changed since the samples were handed in "
                f"({request['backbone_fingerprint']}, now {found}); hand them in again"
            )
        settings = AdaptSettings(
            **msgspec.structs.asdict(adapt),
            channel=context.job.channel,
            created_at=dt.datetime.fromisoformat(context.job.created_at),
            store_version=request["store_version"],
        )
        result = run_adaptation(
            _backbone(context),
            request["store"],
            context.samples,
            folder,
            settings,
            context.test,
            context.reporter,
        )
        frame = development_frame(result.samples, result.model.score)
        frame.write_parquet(folder / DEVELOPMENT)
        metrics = _timeless(json.loads((folder / "metrics.json").read_text(encoding="utf-8")))
        _write_json(folder / "metrics.json", metrics)
        return {"package": result.package_id, "chosen": metrics["chosen"], "why": metrics["why"]}

    facts = place_directory(context.out("adapted"), make, "adapted.inside")
    context.reporter.say(f"package {facts['package']}: recipe {facts['chosen']}, {facts['why']}")
    return facts


def _backbone(context: Context) -> Path:
    """The backbone the job adapts: the channel's, or the shipped one prepared for the samples.

    That one lies in `backbones/` of the workspace; the next delivery of the same store version and
    dates finds it there.
    """
    from finetune.starting import FOLDER, shipped_start
    from foundation.shipped import SHIPPED

    given = context.job.request["backbone"]
    if given != SHIPPED:
        return Path(given)
    # One worker in a workspace: what a killed one was preparing belongs to nobody.
    for left in (context.workspace.root / FOLDER).glob("*.*"):
        shutil.rmtree(left, ignore_errors=True)
    need = context.settings.adapt.recipe != "query"
    beside = context.workspace.root / "runs"
    return shipped_start(
        context.store(), context.samples, context.test, None, need, beside, context.reporter
    )


def backtested(context: Context) -> dict[str, Any]:
    """The challenger beside the champion of this moment, on the same rows."""
    from serving.comparison import against_incumbent, challenger_rows

    job = context.job
    champion = context.registry.champion(job.tenant, job.channel)
    digest = "" if champion is None else champion.package
    # Its name says against whom: a later champion asks for another comparison.
    folder_name = f"backtested-{digest[:12] or 'alone'}"

    def make(folder: Path) -> dict[str, Any]:
        store = context.store()
        with context.reporter.bar("back-test") as bar:
            rows = challenger_rows(
                context.out("adapted"), store, context.samples, context.test, bar
            )
            incumbent: dict[str, Any] | None = None
            if champion is not None:
                incumbent = {"release": champion.id, "low": None}
                old = context.workspace.packages / digest
                if rows is not None:
                    incumbent = against_incumbent(rows, old, champion.id, store, bar)
        facts = {"psi": None if rows is None else rows.psi, "incumbent": incumbent}
        _write_json(folder / "comparison.json", facts)
        if context.test is not None:
            _write_backtest(context, folder / "report", digest)
        return facts | {"folder": folder_name}

    return place_directory(context.out(folder_name), make, "backtested.inside")


def _write_backtest(context: Context, folder: Path, champion: str) -> None:
    """The back-test's page and numbers on the test file, beside the champion."""
    from finetune.backtest import run_backtest

    with context.reporter.bar("back-test report") as bar:
        run_backtest(
            context.out("adapted") / "package",
            context.job.request["store"],
            context.test or context.samples,
            folder,
            incumbent=context.workspace.packages / champion if champion else None,
            created_at=dt.datetime.fromisoformat(context.job.created_at),
            store_version=context.job.request["store_version"],
            progress=bar,
        )


def documented(context: Context, backtest: dict[str, Any]) -> dict[str, Any]:
    """The model document in every language, numbers from the artefacts."""
    from finetune.model_document import write_documents

    report = context.out(backtest["folder"]) / "report"

    def make(folder: Path) -> dict[str, Any]:
        files = write_documents(
            context.out("adapted"), folder, backtest_dir=report if report.is_dir() else None
        )
        return {"files": sorted(str(f.relative_to(folder)) for f in files)}

    return place_directory(
        context.out(f"documented-{backtest['folder']}"), make, "documented.inside"
    )


def judged(context: Context, backtest: dict[str, Any]) -> dict[str, Any]:
    """Every gate's verdict.

    Raises:
        Refused: a gate failed.
    """
    metrics = json.loads((context.out("adapted") / "metrics.json").read_text(encoding="utf-8"))
    verdicts = judge(context.settings.gates, metrics, backtest["psi"], backtest["incumbent"])
    for line in verdict_lines(verdicts):
        context.reporter.say(line)
    facts = {"verdicts": [msgspec.structs.asdict(v) for v in verdicts]}
    context.book.note_facts(context.job.id, "judged", facts)
    failed = refusals(verdicts)
    if failed:
        raise Refused("; ".join(failed))
    return facts


def packaged(context: Context, backtest: dict[str, Any]) -> dict[str, Any]:
    """The package is installed under its digest and registered as shadow."""
    from finetune.package import read_manifest, verify_files

    job, source = context.job, context.out("adapted") / "package"
    manifest = read_manifest(source)
    verify_files(source, manifest)
    target = context.workspace.packages / manifest["digest"]
    if target.exists():
        try:
            verify_files(target, read_manifest(target))
        except ArtifactError as exc:
            context.reporter.say(f"installed again: {exc}")
            shutil.rmtree(target)
    place_tree(source, target, "packaged.inside")
    incumbent = backtest["incumbent"]
    release = context.registry.submit(
        job.tenant,
        job.channel,
        manifest,
        job.id,
        job.who,
        incumbent["release"] if incumbent else None,
    )
    context.reporter.say(f"release {release.id}: package {release.package_name} as shadow")
    return {"release": release.id, "digest": manifest["digest"]}


def shadow(context: Context, installed: dict[str, Any]) -> dict[str, Any]:
    """The installed package proves itself where it lies, and waits for approval.

    Raises:
        ArtifactError: it is damaged; ParityError: it does not reproduce its golden rows.
    """
    from finetune.package import Package

    package = Package.load(context.workspace.packages / installed["digest"])
    release = context.registry.challenge(
        installed["release"], context.job.who, f"{package.id}: digests and golden rows hold"
    )
    context.book.note_facts(context.job.id, "shadow", {"stage": release.stage}, release.id)
    return {"release": release.id, "stage": release.stage}


def perform(context: Context, step: str, before: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Run one step on what the steps before it found."""
    if step == "documented":
        return documented(context, before["backtested"])
    if step == "judged":
        return judged(context, before["backtested"])
    if step == "packaged":
        return packaged(context, before["backtested"])
    if step == "shadow":
        return shadow(context, before["packaged"])
    plain: dict[str, Callable[[Context], dict[str, Any]]] = {
        "received": received,
        "validated": validated,
        "adapted": adapted,
        "backtested": backtested,
    }
    if step not in plain:
        raise UserError(f"no step '{step}'")
    return plain[step](context)


STEPS = (
    "received", "validated", "adapted", "backtested", "documented", "judged", "packaged", "shadow",
)  # fmt: skip


def _timeless(metrics: dict[str, Any]) -> dict[str, Any]:
    """The record without seconds; those stand in the job's log."""
    for row in metrics["recipes"].values():
        row.pop("seconds", None)
    return metrics


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1, allow_nan=False), encoding="utf-8")
