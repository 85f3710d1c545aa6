"""Preparing: a backbone for a store whose schema its network never saw, without pretraining.

The network's weights are carried over as they are; tokens of new fields and values have vectors by
their kind, role and hashed name. What is quick and needs no label is learned from the store itself:
vocabularies and bins, aggregates, boosted forecasters of the declared outcomes. The network's own
forecasts belong to outcomes of other lenders and are left behind; its states stay.

Everything learned comes from events and profile rows known before `until`, of the entities that
were asked for.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from foundation.boosted import BoostSettings
from foundation.checkpoint import CARD, Backbone, load_backbone, save_weights
from foundation.errors import ArtifactError, DataError
from foundation.groundwork import Material, iso, lay_groundwork, read_material
from foundation.history import DAY_US
from foundation.run_record import PARTIAL, close_work, code_digest, open_work, versions
from foundation.schema import fingerprint
from foundation.selection import entity_digest, read_selection
from foundation.shipped import SHIPPED, start_directory
from foundation.store import EventStore
from foundation.targets import SLACK, target_names
from foundation.windows import draw_cuts

CUTS = 8
SEED = 0
THREADS = 2
ACTIVITY_DAYS = 30


@dataclass(frozen=True)
class PreparedBackbone:
    """A prepared backbone: its directory and what run.json says."""

    path: Path
    facts: dict[str, Any]

    def summary(self) -> str:
        """One line for people."""
        facts, network = self.facts, self.facts["network"]
        weights = (
            f"{network['parameters']:,} weights carried over from {facts['prepared_from']['name']}"
            if network
            else "no network, there is no event to read"
        )
        return (
            f"{weights}; tokenizer, aggregates and {len(facts['forecasters'])} boosted forecasters "
            f"learned from {facts['events']:,} events of {facts['entities']:,} entities known "
            f"before {facts['until']}; {facts['seconds']:.0f} s"
        )


def run_preparation(
    store_dir: str | Path,
    out_dir: str | Path,
    until: str,
    exclude_entities: str | Path | None = None,
    start: str | Path = SHIPPED,
    say: Callable[[str], None] | None = None,
) -> PreparedBackbone:
    """Prepare as the command line does.

    Args:
        until: ISO date or time, in the schema's time zone unless it carries an offset.
        exclude_entities: a table with a column `entity_id`, or a text with one id per line.
        start: `shipped`, or the directory of a backbone.

    Raises:
        UserError: a date that cannot be read.
        DataError, ArtifactError: as `prepare_backbone`.
    """
    store = EventStore.open(store_dir)
    chosen = read_selection(store, until, None, exclude_entities)
    assert chosen.until_us is not None
    return prepare_backbone(
        store, out_dir, chosen.until_us, chosen.entities, start_directory(start), say
    )


def prepare_backbone(
    store: EventStore,
    out_dir: str | Path,
    until_us: int,
    entities: pl.Series | None,
    start: str | Path,
    say: Callable[[str], None] | None = None,
) -> PreparedBackbone:
    """Put the network of a backbone on a store.

    Args:
        until_us: UTC microseconds; nothing known at or after it is read.
        entities: learn from these only; None from all.
        start: the backbone directory whose network is carried over.

    Raises:
        DataError: the store holds nothing to learn from.
        ArtifactError: `out_dir` exists, or the backbone has no network or is damaged.
    """
    begun, say, out_dir = time.monotonic(), say or (lambda line: None), Path(out_dir)
    if out_dir.exists():
        raise ArtifactError(f"{out_dir}: exists already; choose another directory or remove it")
    source = load_backbone(start)
    if source.model is None:
        raise ArtifactError(f"{start}: this backbone has no network to carry over")
    material = read_material(store, until_us, entities, say)
    if store.schema.sources and not len(material.timeline):
        raise DataError(f"{store.directory}: no event was known before {iso(until_us)}")
    facts = {
        "config": {
            "name": source.run["config"]["name"],
            "max_events": source.run["config"]["max_events"],
            "seed": SEED,
        },
        "prepared_from": {
            "name": source.run["config"]["name"],
            "fingerprint": source.fingerprint,
            "schema": source.schema.name,
        },
        **material.facts(),
    }
    work = out_dir.with_name(out_dir.name + PARTIAL)
    open_work(work, facts, resume=False)
    ground = lay_groundwork(material, BoostSettings(threads=THREADS), SEED, say)
    ground.write(work)
    network = _carried(source, material, ground.tokenizer, work)
    run = facts | {
        **ground.facts(),
        "events": len(material.timeline),
        "entities": len(material.timeline.entity_ids),
        "network": network,
        **versions(),
        "seconds": round(time.monotonic() - begun, 1),
    }
    (work / CARD).write_text(_card(run, material), encoding="utf-8")
    close_work(work, out_dir, run)
    return PreparedBackbone(out_dir, run)


def preparation_digest(
    store: EventStore, until_us: int, entities: pl.Series | None, start: str | Path
) -> str:
    """16 hex digits of everything a prepared backbone depends on.

    The store's imports by their digests, the schema, the part of it that is read, the start, and
    this code.
    """
    parts = [
        sorted(str(record["digest"]) for record in store.records),
        fingerprint(store.schema),
        until_us,
        entity_digest(entities),
        load_backbone(start, network=False).fingerprint,
        code_digest(),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _carried(
    source: Backbone, material: Material, tokenizer: Any, work: Path
) -> dict[str, Any] | None:
    """Save the network with the store's tokens; what run.json says about it."""
    from foundation.carried import carry
    from foundation.pretraining import unseen_extra

    timeline = material.timeline
    if source.model is None or not len(timeline):
        return None
    declared = {h for o in timeline.schema.parsed_outcomes() for h in o.horizons}
    shortest = int(min(declared or {ACTIVITY_DAYS}) * DAY_US * (1 - SLACK))
    entity, cut_us = draw_cuts(timeline, material.until_us, CUTS, SEED, shortest)
    unseen = unseen_extra(timeline, material.until_us, entity, cut_us)
    model = carry(source.model, tokenizer, timeline.schema, unseen)
    save_weights(model, work)
    count = sum(p.numel() for p in model.parameters())
    return {"parameters": count, "steps": 0, "validation": [], "shares": {}}


def _card(run: dict[str, Any], material: Material) -> str:
    """The card of a prepared backbone."""
    schema, came = material.store.schema, run["prepared_from"]
    lines = [
        f"# Backbone {came['name']} prepared for {schema.name}",
        "",
        f"The network was pretrained elsewhere ({came['name']}, {came['fingerprint']}, on schema "
        f"{came['schema']}) and saw nothing of this store." if run["network"] else "No network.",
        "",
        f"Learned from this store, without labels: vocabularies, bins, aggregates and boosted "
        f"forecasters, from {run['events']:,} events of {run['entities']:,} entities known before "
        f"{run['until']}.",
        "",
        f"- sources: {', '.join(schema.source_names) or 'none'}",
        f"- outcomes: {', '.join(target_names(schema.parsed_outcomes())) or 'none declared'}",
        f"- boosted forecasters: {', '.join(run['forecasters']) or 'none'}",
        f"- tokenizer {run['tokenizer_fingerprint']}, schema {run['schema_fingerprint']}",
        "",
        "Limits: pretraining on this store (`riskfm pretrain`, also from here with `--init`) gives "
        "the network's own forecasts and states that know these sources.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"
