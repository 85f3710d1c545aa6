"""Other channels of a tenant: packages whose models a new channel may start from.

A package may be a source where it stands on the same backbone and schema: then its heads read the
feature table this channel has anyway. Its heads are taken over as they are, so that what is
learnt on top of them needs the package no more.

A source's labels must not tell this channel's: where both know the same people and the source's
labels were not all known before this channel's first decision, out-of-fold figures and tests
would flatter. Packages record when their labels stood and a blurred trace of whose they were.

Shapes: S samples.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from finetune.adapters import AdaptedSession
from finetune.calibration import Platt, VennAbers, calibration_from_dict
from finetune.export import read_heads
from finetune.features import FLOAT32, open_session, run_tuned
from finetune.heads import Head
from finetune.package import Package
from finetune.samples import Samples
from finetune.table import FeatureTable
from foundation.aggregates import AggregateSpec
from foundation.checkpoint import Backbone
from foundation.errors import ArtifactError, SampleError, UserError
from foundation.schema import fingerprint

# A stranger sets off a bit with a chance of about 22 %: nobody can be shown to be in the trace,
# while the shared part of a hundred people or more can be estimated.
BITS_PER_ENTITY = 4
SURE = 3.0


@dataclass
class Source:
    """One other channel's model.

    Attributes:
        heads: its graphs; their weighted sum plus `offset`, times `slope`, plus `intercept`, is
            its calibrated log-odds (as far as a straight line can calibrate).
        label: what the package says about its labels.
    """

    name: str
    heads: list[Head]
    offset: float
    slope: float
    intercept: float
    label: dict[str, Any]
    _sessions: list[Any] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        for head in self.heads:
            session = open_session(head.model.SerializeToString())
            if head.adapter is not None:
                session = AdaptedSession(session, head.adapter, head.name)
            self._sessions.append(session)

    @property
    def reads_histories(self) -> bool:
        """Whether a head reads events itself."""
        return any(not h.columns for h in self.heads)

    def logit(self, table: FeatureTable) -> np.ndarray:
        """[S] float64 calibrated log-odds."""
        total = np.full(len(table), self.offset)
        for head, session in zip(self.heads, self._sessions, strict=True):
            if head.columns:
                x = np.ascontiguousarray(table.matrix(head.columns))
                out = session.run(None, {"x": x})[0]
            else:
                out = run_tuned(session, table.histories)
            total += head.weight * out.reshape(-1).astype(np.float64)
        return self.slope * total + self.intercept

    def scaled(self, weight: float) -> tuple[list[Head], float]:
        """The heads and the constant of `weight` times its log-odds."""
        heads = [
            replace(h, name=f"{self.name}_{h.name}", weight=h.weight * self.slope * weight)
            for h in self.heads
        ]
        return heads, weight * (self.slope * self.offset + self.intercept)


def read_sources(
    paths: Sequence[str | Path],
    backbone: Backbone,
    spec: AggregateSpec,
    precision: str = FLOAT32,
) -> list[Source]:
    """Packages as sources.

    Args:
        spec: the plain columns of this channel's feature table.
        precision: of the graph that makes its states.
    Raises:
        ArtifactError: damaged, or of another backbone, schema or precision.
        UserError: the same package twice.
    """
    out: list[Source] = []
    seen: dict[str, str | Path] = {}
    for path in paths:
        package = Package.load(path)
        manifest = package.manifest
        if package.id in seen:
            raise UserError(f"{path}: package {package.id} is already named as {seen[package.id]}")
        seen[package.id] = path
        if package.builder.precision != precision:
            raise ArtifactError(
                f"{path}: its model was learned on {package.builder.precision} states, this one "
                f"reads {precision}; adapt with --precision {package.builder.precision}, or make "
                f"that package anew with --precision {precision}"
            )
        _check_same_ground(path, manifest, backbone, package.builder.spec, spec)
        calibration = calibration_from_dict(manifest["calibration"])
        straight = calibration if isinstance(calibration, Platt | VennAbers) else Platt()
        out.append(
            Source(
                f"{manifest['channel']}{len(out)}",
                read_heads(path, manifest),
                float(manifest["offset"]),
                straight.slope,
                straight.intercept,
                manifest["label"] | {"package": package.id, "channel": manifest["channel"]},
            )
        )
    return out


def _check_same_ground(
    path: str | Path,
    manifest: dict[str, Any],
    backbone: Backbone,
    theirs: AggregateSpec,
    ours: AggregateSpec,
) -> None:
    """Refuse a package whose heads would read other numbers under the same names."""
    if manifest["schema_fingerprint"] != fingerprint(backbone.schema):
        raise ArtifactError(
            f"{path}: the package reads schema {manifest['schema_fingerprint']}, this backbone "
            f"{fingerprint(backbone.schema)}; start from packages of the same schema"
        )
    if manifest.get("backbone_fingerprint") != backbone.fingerprint:
        raise ArtifactError(
            f"{path}: the package stands on backbone {manifest.get('backbone_fingerprint')}, this "
            f"one is {backbone.fingerprint}; start from packages of the same backbone"
        )
    used = {c for h in manifest["heads"] for c in h["columns"]}
    mine = {c.name: c for c in ours.columns}
    for column in theirs.columns:
        if column.name not in used or column.kind != "code":
            continue
        here = mine[column.name].levels
        both = min(len(here), len(column.levels))
        if here[:both] != column.levels[:both]:
            raise ArtifactError(
                f"{path}: column '{column.name}' has its levels in another order than in these "
                "samples; pretrain on decisions that show every level, then adapt both channels"
            )


def label_record(samples: Samples, salt: str) -> dict[str, Any]:
    """What a manifest says about the labels: how many, when, and a blurred trace of whose.

    Args:
        salt: makes traces of one backbone comparable; its fingerprint.
    """
    label = samples.label
    last = samples.as_of_us.copy()
    known = samples.frame["label_known_at"].cast(pl.Int64)
    if known.null_count() < len(known):
        last = np.maximum(last, known.fill_null(0).to_numpy())
    return {
        "labelled": 0 if label is None else len(label) - label.null_count(),
        "bads": None if label is None or label.null_count() else int(samples.y.sum()),
        "known_last": _iso(int(last.max())),
        "says_when_known": bool(known.null_count() == 0),
        "trace": entity_trace(samples.entity_ids, salt),
    }


def _iso(moment_us: int) -> str:
    return f"{np.datetime_as_string(np.datetime64(moment_us, 'us'), unit='us')}Z"


def entity_trace(entity_ids: pl.Series, salt: str) -> str:
    """A bit map with one of `4 * entities` bits set for each entity, in base 64."""
    names = entity_ids.unique().to_list()
    bits = np.zeros(BITS_PER_ENTITY * max(len(names), 1), bool)
    bits[_places(names, salt, len(bits))] = True
    return f"{len(bits)}:{base64.b64encode(np.packbits(bits).tobytes()).decode()}"


def _places(names: list[str], salt: str, size: int) -> np.ndarray:
    """[names] bit of each name."""
    key = salt.encode()[:64]
    digests = [hashlib.blake2b(n.encode(), digest_size=8, key=key).digest() for n in names]
    return (np.frombuffer(b"".join(digests), dtype=">u8") % size).astype(np.int64)


def shared_entities(trace: str, entity_ids: pl.Series, salt: str) -> tuple[float, float]:
    """How many of these entities stand behind a trace, estimated, and its standard error."""
    size, text = trace.split(":", 1)
    raw = np.frombuffer(base64.b64decode(text), dtype=np.uint8)
    bits = np.unpackbits(raw)[: int(size)].astype(bool)
    names = entity_ids.unique().to_list()
    hits = float(bits[_places(names, salt, len(bits))].sum())
    chance = float(bits.mean())
    count = (hits - chance * len(names)) / (1 - chance)
    return max(count, 0.0), float(np.sqrt(len(names) * chance / (1 - chance)))


def source_notes(
    sources: Sequence[Source], samples: Samples, test: Samples | None, salt: str, allowed: bool
) -> list[str]:
    """What to know about when and whose the labels of the sources are.

    Raises:
        SampleError: a source learnt from labels of the same people that were not known before
            these samples were decided on, and that was not allowed.
    """
    notes: list[str] = []
    first = min([int(samples.as_of_us.min())] + ([int(test.as_of_us.min())] if test else []))
    people = (
        samples.entity_ids if test is None else pl.concat([samples.entity_ids, test.entity_ids])
    )
    for source in sources:
        label = source.label
        known = str(label.get("known_last", label["as_of_last"]))
        name = f"source {label['package']} (channel '{label['channel']}')"
        trace = label.get("trace")
        early = known < _iso(first)
        if early and label.get("says_when_known"):
            continue
        if early:
            notes.append(
                f"{name} was decided before these samples, up to {known[:10]}; its labels do not "
                "say when they were known, and what was known later would flatter the figures"
            )
            continue
        when = f"labels up to {known[:10]}, these samples begin on {_iso(first)[:10]}"
        if trace is None:
            notes.append(f"{name} has {when}, and does not record whose they are: the figures may "
                         "flatter where it knows the same people")  # fmt: skip
            continue
        count, error = shared_entities(trace, people, salt)
        if count <= SURE * error and count < 0.5 * people.n_unique():
            notes.append(
                f"{name} has {when}: at that time it could not have been used yet; no sign that "
                "it knows the same people"
            )
            continue
        text = f"{name} has {when}, and about {count:.0f} of these people are behind its labels"
        if not allowed:
            raise SampleError(
                f"{text}; start from a package adapted on earlier labels or on other people, or "
                "measure anyway with --allow-leak (the report will say so)"
            )
        notes.append(f"{text}: the figures flatter")
    return notes
