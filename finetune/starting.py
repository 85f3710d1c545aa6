"""The backbone of an adaptation that names none: the shipped one, prepared for the store.

Prepared from what was known before the earliest sample, without the entities of the test, and kept
beside the output under a digest of everything it depends on, so that the next adaptation of the
same store and dates finds it:

    OUTPUT/../backbones/NAME-DIGEST/
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import polars as pl

from finetune.modelling import Say
from finetune.samples import read_samples
from foundation.checkpoint import Backbone
from foundation.errors import DataError, SampleError
from foundation.groundwork import iso
from foundation.preparation import preparation_digest, prepare_backbone
from foundation.selection import chosen_entities
from foundation.shipped import DEFAULT, shipped_backbone
from foundation.store import EventStore

FOLDER = "backbones"


def shipped_start(
    store: EventStore,
    samples_path: str | Path,
    test_path: str | Path | None,
    rejects_path: str | Path | None,
    need_labels: bool,
    output: str | Path,
    reporter: Say,
) -> Path:
    """The prepared backbone for a store, made unless it is there already.

    Args:
        samples_path, test_path, rejects_path: what the adaptation reads; nothing known at the
            earliest as_of among them or later is learned from, nor any entity of the test.
        need_labels: whether the samples must carry labels, to be refused before any work.
        output: the directory the adaptation writes.

    Raises:
        SampleError: samples as `read_samples` refuses them, or nothing was known before the
            earliest.
    """
    samples = read_samples(samples_path, store.schema, need_labels=need_labels)
    test = read_samples(test_path, store.schema, need_labels=True) if test_path else None
    refused = samples.refused
    if rejects_path is not None:
        refused = read_samples(rejects_path, store.schema, need_labels=False)
    every = [s for s in (samples, test, refused) if s is not None and len(s)]
    until_us = min(int(s.as_of_us.min()) for s in every)
    excluded = None if test is None else test.entity_ids
    entities = chosen_entities(store, None, excluded)
    start = shipped_backbone()
    digest = preparation_digest(store, until_us, entities, start)
    path = Path(output).parent / FOLDER / f"{DEFAULT}-{digest}"
    left_out = f", without {excluded.n_unique():,} test entities" if excluded is not None else ""
    what = f"the shipped {DEFAULT} on what was known before {iso(until_us)}{left_out}"
    if path.is_dir():
        reporter.say(f"backbone: {what}, prepared before: {path}")
        return path
    reporter.say(f"backbone: none named, so {what}; preparing it: {path}")
    _prepare(store, path, until_us, entities, start, reporter)
    return path


def start_notes(backbone: Backbone) -> list[str]:
    """A sentence about a network that was pretrained on other data."""
    came = backbone.run.get("prepared_from")
    if not came or backbone.model is None:
        return []
    return [
        f"the network is {came['name']} ({came['fingerprint']}), pretrained on other data than "
        "this store; it gives states but no forecasts of its own"
    ]


def _prepare(
    store: EventStore,
    path: Path,
    until_us: int,
    entities: pl.Series | None,
    start: Path,
    reporter: Say,
) -> None:
    """Prepare under a name of this process, then rename: two may do so side by side."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        prepare_backbone(store, own, until_us, entities, start, reporter.say)
        if not path.is_dir():
            own.rename(path)
    except DataError as exc:
        raise SampleError(
            f"{exc}, when the earliest sample is decided on: there is nothing to learn from before "
            "it; leave such early samples out, or name a backbone with --backbone"
        ) from None
    finally:
        for left in path.parent.glob(f"{own.name}*"):
            shutil.rmtree(left, ignore_errors=True)
