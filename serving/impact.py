"""What another backbone would do to every channel, found out in shadow before it is put in.

Each channel is re-adapted from the samples of its champion's delivery (without one, of its last
release) and compared with that release on the same rows: the test file both have not learned from,
else both out of fold. Registry, jobs and packages stay as they are; everything made lies in the
output directory, and a run that was interrupted continues.
"""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl

from finetune.adaptation import run_adaptation
from finetune.bootstrap import bootstrap_difference
from finetune.file_scoring import check_same_schema
from finetune.metrics import ks
from finetune.modelling import AdaptSettings
from finetune.package import Package, read_manifest
from finetune.samples import Samples, read_samples
from foundation import strict
from foundation.checkpoint import load_backbone
from foundation.errors import ArtifactError, RiskfmError, SampleError, UserError
from foundation.store import EventStore
from serving.comparison import DEVELOPMENT, development_frame, package_scores
from serving.daily_page import render
from serving.delivery import Delivery
from serving.durable import place_directory, place_file
from serving.gates import DeliverySettings
from serving.progress import Reporter
from serving.releases import Release

GAIN, LOSS, EVEN, NOT_COMPARED = "gain", "loss", "even", "not compared"
DRAWS = 1000


def run_impact(
    delivery: Delivery, backbone: Path, output: Path, reporter: Reporter
) -> dict[str, Any]:
    """Write `impact.html`, `impact.json` and one directory a channel.

    Returns:
        the content of `impact.json`: `backbone`, `rows`, `counts`.
    Raises:
        ArtifactError: no backbone there. UserError: no channel was delivered yet.
    """
    fingerprint = load_backbone(backbone, network=False).fingerprint
    subjects = [
        (tenant, channel, _subject(delivery, tenant, channel))
        for tenant, channel, _ in delivery.registry.channels()
    ]
    if not any(release for _, _, release in subjects):
        raise UserError(
            f"{delivery.workspace.root}: no channel has a delivered model to compare with; deliver "
            "samples first with riskfm deliver"
        )
    rows = []
    for tenant, channel, release in subjects:
        row: dict[str, Any] = {"tenant": tenant, "channel": channel, "n": 0, "why": ""}
        row |= {"release": None if release is None else release.id, "verdict": NOT_COMPARED}
        if release is None:
            row["why"] = "it has no release"
        else:
            reporter.say(f"{tenant}/{channel}: {release.id} against {backbone}")
            name = f"{release.number}-{release.package[:8]}-{fingerprint[:8]}"
            folder = output / tenant / channel / name
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                row |= _compare(delivery, release, backbone, fingerprint, folder, reporter)
            except RiskfmError as exc:
                row["why"] = str(exc).rstrip(".")
        rows.append(row | {"sentence": _sentence(row)})
    counts = Counter(row["verdict"] for row in rows)
    numbers: dict[str, Any] = {
        "backbone": {"path": backbone.name, "fingerprint": fingerprint},
        "rows": rows,
        "counts": {name: counts[name] for name in (GAIN, LOSS, EVEN, NOT_COMPARED)},
    }
    text = json.dumps(numbers, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    place_file(output / "impact.json", text.encode())
    place_file(output / "impact.html", render("impact.html.j2", numbers).encode())
    return numbers


def _subject(delivery: Delivery, tenant: str, channel: str) -> Release | None:
    """The champion, else the last release."""
    champion = delivery.registry.champion(tenant, channel)
    if champion is not None:
        return champion
    releases = delivery.registry.releases(tenant, channel)
    return releases[-1] if releases else None


def _compare(
    delivery: Delivery,
    release: Release,
    backbone: Path,
    fingerprint: str,
    folder: Path,
    reporter: Reporter,
) -> dict[str, Any]:
    """Adapt a release's samples on the backbone; figures of both on the same rows."""
    workspace = delivery.workspace
    request = delivery.book.get(release.job).request
    files = {
        kind: None if request[kind] is None else workspace.root / request[kind]["file"]
        for kind in ("samples", "test")
    }
    samples = files["samples"]
    if samples is None:
        raise ArtifactError(f"{release.id}: its delivery names no samples")

    def make(partial: Path) -> dict[str, Any]:
        given = strict.convert(DeliverySettings, request["settings"], release.job)
        settings = AdaptSettings(
            **msgspec.structs.asdict(given.adapt),
            channel=release.channel,
            created_at=dt.datetime.fromisoformat(delivery.book.get(release.job).created_at),
            store_version=request["store_version"],
        )
        result = run_adaptation(
            backbone, request["store"], samples, partial, settings, files["test"], reporter
        )
        frame = development_frame(result.samples, result.model.score)
        frame.write_parquet(partial / DEVELOPMENT)
        return {"backbone": fingerprint}

    place_directory(folder, make, "impact.inside")
    store = EventStore.open(request["store"]).at(request["store_version"])
    old = workspace.packages / release.package
    if files["test"] is None:
        adapted = workspace.runs / release.job / "adapted"
        rows, mine, theirs = _out_of_fold(folder, adapted, samples, store)
        on = "the samples, both out of fold"
    else:
        rows, mine, theirs = _on_test(folder, old, files["test"], store, release, reporter)
        on = "the test file"
    y, weight = rows.y, rows.weight
    gaps = {m: bootstrap_difference(y, mine, theirs, m, weight, DRAWS, 0) for m in ("ks", "auc")}
    found = {m: {"difference": g.difference, "low": g.low, "high": g.high} for m, g in gaps.items()}
    verdict = GAIN if gaps["ks"].low > 0 else LOSS if gaps["ks"].high < 0 else EVEN
    return {
        "on": on, "n": len(y), "bads": int(y.sum()), "verdict": verdict, **found,
        "ks_now": ks(y, theirs, weight), "ks_new": ks(y, mine, weight),
        "recipe_now": read_manifest(old)["recipe"],
        "recipe_new": read_manifest(folder / "package")["recipe"],
    }  # fmt: skip


def _on_test(
    folder: Path, old: Path, test: Path, store: EventStore, release: Release, reporter: Reporter
) -> tuple[Samples, np.ndarray, np.ndarray]:
    """Test rows with the scores of the new and of the present package."""
    packages = [Package.load(path, threads=2) for path in (folder / "package", old)]
    scores = []
    rows = read_samples(test, packages[0].schema, need_labels=True)
    for package in packages:
        check_same_schema(store, package.schema, f"package {package.id} of {release.id}")
        with reporter.bar("scores") as bar:
            scores.append(package_scores(package, store, rows, bar))
    return rows, scores[0], scores[1]


def _out_of_fold(
    new: Path, old: Path, samples: Path, store: EventStore
) -> tuple[Samples, np.ndarray, np.ndarray]:
    """Samples with out-of-fold scores of both.

    Raises:
        ArtifactError: the scores of the present release are gone.
        SampleError: there are no labels.
    """
    if not (old / DEVELOPMENT).is_file():
        raise ArtifactError(f"{old / DEVELOPMENT}: gone; deliver the samples again to compare")
    frames = [pl.read_parquet(path / DEVELOPMENT) for path in (new, old)]
    if any(f["label"].null_count() for f in frames):
        raise SampleError("its samples have no labels to compare on")
    both = frames[0].join(frames[1], on="row", suffix="_old").sort("row")
    both = both.filter(pl.col("score").is_finite() & pl.col("score_old").is_finite())
    rows = read_samples(samples, store.schema, need_labels=True)
    place = pl.Series(rows.frame["row"]).search_sorted(both["row"])
    kept = rows.take(np.asarray(place, dtype=np.int64))
    return kept, both["score"].to_numpy(), both["score_old"].to_numpy()


def _sentence(row: dict[str, Any]) -> str:
    name = f"{row['tenant']}/{row['channel']}"
    if not row["n"]:
        return f"{name}: {NOT_COMPARED}: {row['why']}"
    gap = row["ks"]
    return (
        f"{name}: {row['verdict']}: KS {row['ks_now']:.3f} -> {row['ks_new']:.3f} "
        f"({gap['difference']:+.3f}, {gap['low']:+.3f} to {gap['high']:+.3f}) "
        f"on {row['n']:,} rows, {row['bads']:,} bad, {row['on']}"
    )
