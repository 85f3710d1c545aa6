"""Workspaces on the small world, and a worker that dies where it is told to."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from serving.delivery import Delivery, add_channel, hand_in, run_jobs
from serving.jobs import Job
from serving.progress import Reporter
from tests.contracts.tree import ROOT
from tests.journeys.small_world import World

SETTINGS = {
    "adapt": {"recipes": ["query", "forecast"], "repeats": 1, "folds": 2},
    "gates": {"min_ks": 0.05, "min_ks_low": 0.0, "max_psi": 2.0, "incumbent_margin": 0.5},
}
WAIT_SECONDS = 280
CREATED_AT = "2021-01-02T03:04:05+00:00"
# Everything heavy is imported once; each fault gets a child of its own, as a new worker would be.
HEAVY = """
import finetune.adaptation, finetune.backtest, finetune.model_document, serving.comparison
import finetune.history_graph, lightgbm, onnxscript, optbinning, sklearn.linear_model, transformers
"""
WORKER = """
import os, sys
from serving.delivery import Delivery, run_jobs
from serving.progress import Reporter
for fault in sys.argv[2:]:
    child = os.fork()
    if not child:
        os.environ["RISKFM_FAULT"] = fault
        run_jobs(Delivery.open(sys.argv[1]), Reporter(True))
        os._exit(0)
    print(fault, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def workspace(world: World, root: Path, **gates: float) -> Delivery:
    """A workspace with one channel of two fast recipes."""
    chosen = {**SETTINGS, "gates": SETTINGS["gates"] | gates}
    file = root.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(chosen), encoding="utf-8")
    delivery = Delivery.open(root, create=True)
    add_channel(delivery, "acme", "cards", world.store, world.backbone, file, "root")
    return delivery


def handed_in(delivery: Delivery, world: World, by: str = "anna") -> Job:
    """The small world's samples, with its test file."""
    job, _ = hand_in(delivery, "acme", "cards", world.samples, world.test, by, CREATED_AT)
    return job


def worked(delivery: Delivery) -> list[Job]:
    """What a worker in this process ended."""
    return run_jobs(delivery, Reporter(True))


def killed(root: Path, faults: Sequence[str], imports: str = HEAVY) -> dict[str, int]:
    """Run a worker for each fault, one after the other; fault -> exit code, -9 for killed."""
    worker = subprocess.Popen(
        [sys.executable, "-c", imports + WORKER, str(root), *faults],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = worker.communicate(timeout=WAIT_SECONDS)
    finally:
        # A child that outlives its time goes with the worker.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
    assert worker.returncode == 0, err
    return {line.split()[0]: int(line.split()[1]) for line in out.splitlines()}


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its relative path."""
    files = (f for f in sorted(folder.rglob("*")) if f.is_file())
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}
