"""The directory of a pretraining run: in the making, resumed, finished, and its model card."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from foundation.checkpoint import RUN, read_json, write_json
from foundation.errors import ArtifactError
from foundation.schema import Schema
from foundation.targets import target_names
from foundation.training import STATE

PARTIAL = ".unfinished"
STARTED = "started.json"
PACKAGES = ("torch", "pytorch-lightning", "transformers", "numpy", "polars", "lightgbm")


def versions() -> dict[str, Any]:
    """What the run was made with: packages, Python, this code."""
    return {
        "versions": {p: importlib.metadata.version(p) for p in PACKAGES},
        "python": platform.python_version(),
        "riskfm": _own_version(),
        "code": code_digest(),
    }


def open_work(work: Path, facts: dict[str, Any], resume: bool) -> None:
    """An empty work directory, or the one of the same interrupted run."""
    mark = work / STARTED
    if resume and mark.is_file():
        before = read_json(mark)
        other = sorted(k for k in facts if before.get(k) != json.loads(json.dumps(facts[k])))
        if other:
            raise ArtifactError(
                f"{work}: belongs to a run with another {other[0]}; start without --resume"
            )
        return
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    write_json(mark, facts)


def close_work(work: Path, out_dir: Path, run: dict[str, Any]) -> None:
    """Drop what only the run needed, write run.json last, rename."""
    for name in (STARTED, STATE):
        (work / name).unlink(missing_ok=True)
    write_json(work / RUN, run)
    work.rename(out_dir)


def card(run: dict[str, Any], schema: Schema) -> str:
    """The model card."""
    network = run["network"]
    lines = [
        f"# Backbone {run['config']['name']} on {schema.name}",
        "",
        f"Pretrained without labels on {run['events']:,} events of {run['entities']:,} entities, "
        f"known before {run['until']}.",
        "",
        f"- sources: {', '.join(schema.source_names) or 'none'}",
        f"- forecasts: {', '.join(target_names(schema.parsed_outcomes())) or 'none declared'}",
        f"- boosted forecasters: {', '.join(run['forecasters']) or 'none'}",
        f"- tokenizer {run['tokenizer_fingerprint']}, schema {run['schema_fingerprint']}",
        f"- {run['seconds']:.0f} seconds, seed {run['config']['seed']}, code {run['code']}",
    ]
    if network is None:
        lines.append("- no network: there was no event to learn from")
    else:
        last = network["validation"][-1] if network["validation"] else {}
        losses = ", ".join(f"{k} {v:.4f}" for k, v in last.items() if k != "step")
        lines.append(
            f"- network: {network['parameters']:,} weights, {network['steps']:,} steps; "
            f"held-out losses: {losses or 'not measured'}"
        )
    lines += [
        "",
        "Limits: it knows only behaviour that stood in these sources; forecasts are as "
        "good as the declared outcomes; check it on each population before use.",
    ]
    return "\n".join(lines) + "\n"


@cache
def code_digest() -> str:
    """Digest of the source of this package as it was first asked for: 16 hex digits."""
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def _own_version() -> str:
    try:
        return importlib.metadata.version("riskfm")
    except importlib.metadata.PackageNotFoundError:
        return "source"
