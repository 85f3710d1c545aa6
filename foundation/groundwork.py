"""What is learned from a store before any network: tokenizer, aggregates, boosted forecasters.

Pretraining builds a network on it; preparation puts one on it that was pretrained elsewhere. Both
read the same part of the store, events and profile rows known before `until` of the entities that
were asked for, and write the same files.

Shapes: E entities.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from foundation.aggregates import AggregateSpec
from foundation.boosted import BoostSettings, Forecasters, fit_forecasters
from foundation.checkpoint import AGGREGATES, SCHEMA, TOKENIZER, write_json
from foundation.decisions import context_at, decision_cuts, with_applications
from foundation.errors import DataError
from foundation.history import ProfileHistory, Timeline
from foundation.schema import fingerprint, schema_to_dict
from foundation.selection import entity_digest
from foundation.store import EventStore
from foundation.tokenizer import Tokenizer

Say = Callable[[str], None]


@dataclass(frozen=True)
class Material:
    """The part of a store that may be learned from.

    Attributes:
        timeline: events known before `until_us` of the chosen entities.
        profile: their profile rows, with the applications of recorded decisions; None without.
        entities: [E] digest of the choice, `all` without one.
    """

    store: EventStore
    timeline: Timeline
    profile: ProfileHistory | None
    until_us: int
    entities: str

    def facts(self) -> dict[str, Any]:
        """What a run's record says about it."""
        known = self.timeline.known_us
        return {
            "store_version": self.store.version,
            "schema_fingerprint": fingerprint(self.store.schema),
            "until": iso(self.until_us),
            "last_known_us": int(known.max()) if len(known) else None,
            "entity_digest": self.entities,
        }


@dataclass(frozen=True)
class Groundwork:
    """What was learned from a material; `forecasters` is None where none were asked for."""

    tokenizer: Tokenizer
    spec: AggregateSpec
    forecasters: Forecasters | None

    def facts(self) -> dict[str, Any]:
        """What a run's record says about it."""
        return {
            "tokenizer_fingerprint": self.tokenizer.fingerprint,
            "aggregates_fingerprint": self.spec.fingerprint,
            "forecasters": list(self.forecasters.names) if self.forecasters else [],
        }

    def write(self, work: Path) -> None:
        """Write its files into the directory of a backbone in the making."""
        (work / TOKENIZER).write_text(self.tokenizer.to_json(), encoding="utf-8")
        (work / AGGREGATES).write_text(self.spec.to_json(), encoding="utf-8")
        write_json(work / SCHEMA, schema_to_dict(self.tokenizer.schema))
        if self.forecasters is not None:
            self.forecasters.save(work)


def read_material(
    store: EventStore, until_us: int | None, chosen: pl.Series | None, say: Say
) -> Material:
    """Read events and profile rows, and nothing known at or after `until_us` (None: everything).

    Args:
        chosen: the entities that may be read, None for all.

    Raises:
        DataError: there is nothing to learn from.
    """
    timeline = store.timeline(entities=chosen, until_us=until_us)
    profile: ProfileHistory | None = None
    if store.schema.profile_fields:
        profile = store.profile_history(entities=chosen, until_us=until_us)
    if until_us is None:
        until_us = int(timeline.known_us.max()) + 1 if len(timeline) else 0
    if not len(timeline) and (profile is None or not len(profile.frame)):
        raise DataError(
            f"{store.directory}: no event and no profile row known before {iso(until_us)}"
        )
    say(f"{len(timeline):,} events of {len(timeline.entity_ids):,} entities before {iso(until_us)}")
    profile = with_applications(timeline, profile)
    return Material(store, timeline, profile, until_us, entity_digest(chosen))


def lay_groundwork(
    material: Material, boost: BoostSettings | None, seed: int, say: Say
) -> Groundwork:
    """Fit the tokenizer, the aggregates and, where `boost` says how, the forecasters."""
    schema, timeline, profile = material.store.schema, material.timeline, material.profile
    asked = context_at(timeline, *decision_cuts(timeline))
    tokenizer = Tokenizer.fit(schema, timeline, profile, asked)
    spec = AggregateSpec.fit(
        schema, timeline, profile, asked, until_us=material.until_us, seed=seed
    )
    say(f"tokenizer: {tokenizer.size:,} codes; {len(spec.columns):,} aggregate columns")
    if boost is None or not schema.outcomes or not len(timeline):
        return Groundwork(tokenizer, spec, None)
    found = fit_forecasters(schema, timeline, profile, spec, material.until_us, seed, boost)
    for one in found.cards:
        say(f"forecaster {one.name}: AUC {one.auc:.3f} on {one.rows:,} earlier cuts, cross-fitted")
    for one in found.skipped:
        say(f"forecaster {one.name} skipped: {one.reason}")
    return Groundwork(tokenizer, spec, found)


def iso(moment_us: int) -> str:
    """UTC microseconds as ISO 8601."""
    return (
        dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=moment_us)
    ).isoformat()
