"""T+1: a sample file becomes a challenger, and by a different person's word the champion."""

from __future__ import annotations

import errno
import json
import shutil
import threading
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner, Result

from finetune.package import Package, read_manifest
from foundation.errors import UserError
from foundation.store import import_events
from serving.champions import champion_packages
from serving.cli import cli
from serving.delivery import Delivery, add_channel, hand_in, run_jobs
from serving.delivery_steps import JobReporter
from serving.jobs import CANCELLED, DONE, FAILED, QUEUED, REFUSED, Job
from serving.progress import Reporter
from tests.journeys.delivered import (
    CREATED_AT,
    content,
    handed_in,
    killed,
    worked,
    workspace,
)
from tests.journeys.small_world import World


@pytest.fixture(scope="module")
def first(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Delivery, Job]:
    """A workspace with one delivery that nothing disturbed."""
    delivery = workspace(world, tmp_path_factory.mktemp("delivery") / "workspace")
    handed_in(delivery, world)
    (job,) = worked(delivery)
    return delivery, job


def run(delivery: Delivery, *words: str) -> Result:
    """A command as a user types it."""
    names = {"jobs": 2, "channel": 2}.get(words[0], 1)
    place = ["--workspace", str(delivery.workspace.root)]
    return CliRunner().invoke(cli, [*words[:names], *place, *words[names:]])


def package_digest(delivery: Delivery, job: Job) -> str:
    """Digest of the package a job made."""
    package = delivery.workspace.runs / job.id / "adapted" / "package"
    return str(read_manifest(package)["digest"])


def test_a_challenger_stands_with_its_artefacts(first: tuple[Delivery, Job]) -> None:
    delivery, job = first
    assert (job.state, job.error, job.exit_code) == (DONE, "", 0)
    release = delivery.registry.release(job.release)
    assert (release.stage, release.job, release.incumbent) == ("challenger", job.id, None)
    package = Package.load(delivery.workspace.packages / release.package)
    assert package.manifest["created_at"] == CREATED_AT
    verdicts = job.facts["judged"]["verdicts"]
    assert {v["gate"] for v in verdicts if v["passed"]} >= {"bads", "ks", "ks_low", "psi", "parity"}
    out = delivery.workspace.runs / job.id
    metrics = json.loads((out / "adapted" / "metrics.json").read_text())
    psi = next(v["number"] for v in verdicts if v["gate"] == "psi")
    comparison = json.loads((out / "backtested-alone" / "comparison.json").read_text())
    assert psi == comparison["psi"]
    ks = next(v["number"] for v in verdicts if v["gate"] == "ks")
    assert ks == metrics["recipes"][metrics["chosen"]]["ks"]
    assert not [p for p in delivery.workspace.root.rglob(".*") if "part" in p.name]


def test_the_commands_show_it(first: tuple[Delivery, Job], world: World) -> None:
    delivery, job = first
    assert job.release in run(delivery, "jobs", "list").output
    shown = run(delivery, "jobs", "show", job.id[:6]).output
    assert "anna" in shown
    assert "passed  ks " in shown
    assert "step adapted" in run(delivery, "jobs", "log", job.id).output
    assert "acme/cards  no champion" in run(delivery, "channel", "list").output
    assert "challenger" in run(delivery, "releases").output
    again = run(
        delivery, "deliver", "--tenant", "acme", "--channel", "cards", "--by", "Anna", "--quiet",
        "--samples", str(world.samples), "--test", str(world.test),
    )  # fmt: skip
    assert again.exit_code == 0, again.output
    assert f"job {job.id}: handed in before, done" in again.output
    assert f"riskfm approve {job.release}" in again.output
    assert len(delivery.book.all()) == 1
    assert "0 jobs ended" in run(delivery, "worker").output
    wrong = run(delivery, "jobs", "show", "zzz")
    assert isinstance(wrong.exception, SystemExit) or wrong.exit_code
    refused = run(delivery, "approve", job.release, "--by", "anna")
    assert refused.exit_code == 2
    assert "anna handed in the samples" in refused.output
    assert run(delivery, "jobs", "retry", job.id).exit_code == 2
    assert run(delivery, "jobs", "cancel", job.id).exit_code == 2


def test_the_second_is_held_against_the_first(
    world: World, first: tuple[Delivery, Job], tmp_path: Path
) -> None:
    delivery = workspace(world, tmp_path / "workspace")
    handed_in(delivery, world)
    # The first delivery's outputs are the same bytes; they are not made a second time.
    (delivery.workspace.runs / first[1].id).symlink_to(first[0].workspace.runs / first[1].id)
    worked(delivery)
    assert run(delivery, "approve", "acme/cards/1", "--by", "bob").exit_code == 0
    frame = pl.read_csv(world.samples)
    frame[:120].write_csv(tmp_path / "fewer.csv")
    hand_in(delivery, "acme", "cards", tmp_path / "fewer.csv", None, "anna", CREATED_AT)
    (job,) = worked(delivery)
    assert job.state == DONE, job.error
    verdict = next(v for v in job.facts["judged"]["verdicts"] if v["gate"] == "incumbent")
    assert "acme/cards/1 on the same 120 rows (the samples, out of fold" in verdict["sentence"]
    assert verdict["passed"] is True
    assert delivery.registry.release("acme/cards/2").incumbent == "acme/cards/1"
    approved = run(delivery, "approve", "acme/cards/2", "--by", "bob", "--note", "better")
    assert "acme/cards/2: champion" in approved.output
    digest = delivery.registry.release("acme/cards/2").package
    assert champion_packages(delivery.workspace.root) == [delivery.workspace.packages / digest]
    back = run(delivery, "rollback", "--tenant", "acme", "--channel", "cards", "--by", "carol")
    assert "acme/cards/1: champion" in back.output
    told = run(delivery, "releases", "--tenant", "acme", "--channel", "cards", "--history").output
    assert "better" in told
    assert "carol" in told


def test_a_failed_gate_registers_nothing(
    world: World, first: tuple[Delivery, Job], tmp_path: Path
) -> None:
    delivery = workspace(world, tmp_path / "workspace", min_ks=0.99)
    job = handed_in(delivery, world)
    folder = delivery.workspace.runs / job.id
    folder.mkdir()
    (folder / "adapted").symlink_to(first[0].workspace.runs / first[1].id / "adapted")
    answer = run(
        delivery, "deliver", "--tenant", "acme", "--channel", "cards", "--by", "anna", "--quiet",
        "--samples", str(world.samples), "--test", str(world.test),
    )  # fmt: skip
    assert answer.exit_code == 2
    assert f"job {job.id} refused: ks: KS on the test file (n = 110)" in answer.output
    assert delivery.book.get(job.id).state == REFUSED
    assert delivery.registry.releases() == []
    assert list(delivery.workspace.packages.iterdir()) == []
    assert "would be again" in run(delivery, "jobs", "retry", job.id).output


def test_handed_in_twice_at_once_is_one_job(world: World, tmp_path: Path) -> None:
    delivery = workspace(world, tmp_path / "workspace")
    found: list[tuple[Job, bool]] = []

    def once(by: str) -> None:
        opened = Delivery.open(delivery.workspace.root)
        found.append(hand_in(opened, "acme", "cards", world.samples, world.test, by))

    threads = [threading.Thread(target=once, args=(by,)) for by in ("anna", "bob")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({job.id for job, _ in found}) == 1
    assert sorted(new for _, new in found) == [False, True]
    assert delivery.registry.makers(found[0][0].id) == {"anna", "bob"}
    assert len(delivery.book.all()) == 1
    assert len(list(delivery.workspace.samples.iterdir())) == 2


def test_a_torn_sample_file_fails_and_heals(world: World, tmp_path: Path) -> None:
    delivery = workspace(world, tmp_path / "workspace")
    job = handed_in(delivery, world)
    file = delivery.workspace.root / job.request["samples"]["file"]
    file.write_bytes(file.read_bytes()[:-10])
    (ended,) = worked(delivery)
    assert (ended.state, ended.exit_code) == (FAILED, 2)
    assert "damaged" in ended.error
    assert "hand the samples file in again" in ended.error
    handed_in(delivery, world)
    assert delivery.book.retry(job.id, "anna").state == QUEUED
    assert delivery.book.cancel(job.id, "anna").state == CANCELLED
    assert worked(delivery) == []
    assert file.read_bytes() == world.samples.read_bytes()


def test_bad_samples_fail_with_their_sentence(world: World, tmp_path: Path) -> None:
    delivery = workspace(world, tmp_path / "workspace")
    frame = pl.read_csv(world.samples).rename({"requested": "asked"})
    frame.write_csv(tmp_path / "wrong.csv")
    hand_in(delivery, "acme", "cards", tmp_path / "wrong.csv", None, "anna")
    (job,) = worked(delivery)
    assert (job.state, job.exit_code) == (FAILED, 2)
    assert job.error.startswith("validated: ")
    assert "context column 'requested' is missing" in job.error
    with pytest.raises(UserError, match="no such file"):
        hand_in(delivery, "acme", "cards", tmp_path / "none.csv", None, "anna")
    with pytest.raises(UserError, match="did you mean 'acme/cards'"):
        hand_in(delivery, "acme", "card", world.samples, None, "anna")


def test_cancelled_in_the_middle_retried_after_the_store_grew(
    world: World, first: tuple[Delivery, Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "world"
    copy.mkdir()
    for file in world.root.iterdir():
        if file.is_file():
            shutil.copy(file, copy)
    shutil.copytree(world.store, copy / "store")
    delivery = workspace(world, tmp_path / "workspace")
    settings = tmp_path / "workspace.yaml"
    add_channel(delivery, "acme", "cards", copy / "store", world.backbone, settings, "root")
    job = handed_in(delivery, world)
    plain = JobReporter.say

    def cancelling(self: JobReporter, text: str) -> None:
        if "labels with" in text:
            delivery.book.cancel(job.id, "anna")
        plain(self, text)

    monkeypatch.setattr(JobReporter, "say", cancelling)
    (ended,) = worked(delivery)
    assert (ended.state, ended.error) == (CANCELLED, "cancelled by anna")
    assert delivery.registry.releases() == []
    monkeypatch.undo()
    later = pl.read_parquet(copy / "statement.parquet").with_columns(
        pl.col("event_time") - pl.duration(days=3), amount=pl.lit(1e6)
    )
    later.write_parquet(copy / "statement.parquet")
    import_events(copy / "schema.yaml", copy / "store")
    assert delivery.book.retry(job.id, "anna").attempt == 2
    (ended,) = worked(delivery)
    assert ended.state == DONE, ended.error
    assert package_digest(delivery, ended) == package_digest(*first)


def test_a_full_disk_fails_with_what_to_do(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivery = workspace(world, tmp_path / "workspace")
    handed_in(delivery, world)

    def full(*_: object) -> dict[str, object]:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("serving.delivery.perform", full)
    (job,) = worked(delivery)
    assert (job.state, job.exit_code) == (FAILED, 1)
    assert "make room on the disk" in job.error
    assert f"riskfm jobs retry {job.id}" in job.error
    again = run(delivery, "jobs", "retry", job.id, "--by", "carol")
    assert again.exit_code == 0
    assert delivery.registry.makers(job.id) == {"anna", "carol"}


def test_there_is_one_worker_at_a_time(world: World, tmp_path: Path) -> None:
    delivery = workspace(world, tmp_path / "workspace")
    handed_in(delivery, world)
    with delivery.workspace.working() as alone:
        assert alone
        assert delivery.workspace.has_worker()
        with pytest.raises(UserError, match="a worker is already running"):
            run_jobs(delivery, Reporter(True))
    assert not delivery.workspace.has_worker()


FAULTS = (
    "received.end", "validated.inside", "validated.after", "adapted.inside", "adapted.end",
    "backtested.inside", "documented.inside", "judged.end", "packaged.inside", "packaged.end",
    "shadow.end", "shadow.after",
)  # fmt: skip


def test_killed_in_and_after_every_step_it_ends_the_same(
    world: World, first: tuple[Delivery, Job], tmp_path: Path
) -> None:
    delivery = workspace(world, tmp_path / "workspace")
    job = handed_in(delivery, world)
    codes = killed(delivery.workspace.root, FAULTS)
    assert codes == dict.fromkeys(FAULTS, -9)
    assert "interrupted" in run(delivery, "jobs", "list").output
    (ended,) = worked(delivery)
    assert (ended.id, ended.state, ended.attempt) == (job.id, DONE, 1)
    whole, resumed = first[0].workspace, delivery.workspace
    assert package_digest(delivery, ended) == package_digest(*first)
    assert content(resumed.packages) == content(whole.packages)
    assert content(resumed.runs) == content(whole.runs)
    steps = [text for _, text in delivery.book.log(job.id) if text.endswith(" s")]
    assert sum(text.startswith("step adapted:") for text in steps) == 2  # finished, then found
    assert [r.stage for r in delivery.registry.releases()] == ["challenger"]
    actions = [row["action"] for row in delivery.registry.history("acme", "cards")]
    assert actions == ["channel added", "submitted", "challenger"]


def test_on_postgresql_it_survives_too(
    world: World,
    first: tuple[Delivery, Job],
    postgres_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Registry, jobs and workflow in PostgreSQL; the artefacts are those of the first delivery."""
    monkeypatch.setenv("RISKFM_REGISTRY_URL", postgres_url)
    monkeypatch.setenv("RISKFM_JOBS_URL", postgres_url)
    delivery = workspace(world, tmp_path / "workspace")
    job = handed_in(delivery, world)
    (delivery.workspace.runs / job.id).symlink_to(first[0].workspace.runs / first[1].id)
    faults = ("packaged.inside", "shadow.end")
    assert killed(delivery.workspace.root, faults, imports="") == dict.fromkeys(faults, -9)
    assert "interrupted" in run(delivery, "jobs", "list").output
    (ended,) = worked(delivery)
    assert (ended.id, ended.state, ended.attempt) == (job.id, DONE, 1), ended.error
    assert package_digest(delivery, ended) == package_digest(*first)
    assert content(delivery.workspace.packages) == content(first[0].workspace.packages)
    assert run(delivery, "approve", "acme/cards/1", "--by", "bob").exit_code == 0
    actions = [row["action"] for row in delivery.registry.history("acme", "cards")]
    assert actions[:4] == ["channel added", "submitted", "challenger", "approved"]
    assert not list(delivery.workspace.root.glob("*.db"))
