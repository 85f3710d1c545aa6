"""The certificate of a back-tracking job: what was read, and that nothing later was.

It pins the store's version, states the as-of rule, counts samples, events used and events left out
because they became known too late, and gives the digest of every part. `finetune.backtrack_check`
checks all of it against the store by brute force.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from finetune.backtrack_rows import Counts, counts_from
from finetune.samples import Samples
from foundation.errors import SampleError
from foundation.store import EventStore

CERTIFICATE = "certificate.json"
FORMAT = 1
RULE = "a row reads what has known_at < as_of of its own entity, and nothing else"


@dataclass(frozen=True)
class Sources:
    """Where the features come from.

    Attributes:
        store, samples, backbone: as they were given.
        aggregates: `given`, `backbone`, or `fitted on what was known before` the earliest as_of.
        schema, spec, backbone_id, tokenizer: fingerprints; spec is that of the aggregates.
        knew_until_us: last moment of the events the backbone was trained on.
    """

    store: str
    samples: str
    backbone: str | None
    aggregates: str
    schema: str
    spec: str
    backbone_id: str | None = None
    tokenizer: str | None = None
    knew_until_us: int | None = None

    @property
    def fingerprints(self) -> dict[str, str | None]:
        """What the columns mean."""
        return {
            "schema": self.schema,
            "aggregates": self.spec,
            "tokenizer": self.tokenizer,
            "backbone": self.backbone_id,
        }


def make_certificate(
    job: dict[str, Any],
    store: EventStore,
    samples: Samples,
    sources: Sources,
    parts: list[dict[str, Any]],
) -> dict[str, Any]:
    """The certificate of a job whose parts are all there.

    Raises:
        SampleError: the store knows nobody of these samples.
    """
    total = Counts()
    for part in parts:
        total = total.plus(counts_from(part["counts"]))
    if store.schema.sources and not (total.events or total.profile_rows):
        raise SampleError(
            f"{sources.samples}: none of {total.entities:,} customers has an event or a profile "
            "row in this store; is it the store of these samples, and are their entity ids "
            "written alike?"
        )
    as_of_us = samples.as_of_us
    pins = store.records[-1]["tables"] if store.records else {}
    return {
        "format": FORMAT,
        "rule": RULE,
        "job": job,
        "inputs": {k: getattr(sources, k) for k in ("store", "samples", "backbone")},
        "store": {
            "version": store.version,
            "import": store.records[-1]["digest"] if store.records else None,
            "schema": store.schema.name,
            "tables": {name: pins[name] for name in sorted(pins)},
        },
        "earliest_as_of": moment(int(as_of_us.min())),
        "latest_as_of": moment(int(as_of_us.max())),
        "counts": asdict(total),
        "fingerprints": sources.fingerprints,
        "aggregates": sources.aggregates
        + (f" {moment(int(as_of_us.min()))}" if sources.aggregates.startswith("fitted") else ""),
        "backbone_knew_until": None
        if sources.knew_until_us is None
        else moment(sources.knew_until_us),
        "samples_the_backbone_knew_later_events_than": 0
        if sources.knew_until_us is None
        else int(np.sum(as_of_us <= sources.knew_until_us)),
        "columns": parts[0]["columns"],
        "parts": [
            {"file": p["file"], "rows": p["counts"]["samples"], "sha256": p["sha256"]}
            for p in parts
        ],
    }


def lines(certificate: dict[str, Any]) -> list[str]:
    """What a person should know, one sentence each."""
    counts = certificate["counts"]
    out = [
        f"{counts['samples']:,} samples of {counts['entities']:,} entities, as of "
        f"{certificate['earliest_as_of'][:10]} to {certificate['latest_as_of'][:10]}; "
        f"{counts['thin_samples']:,} without an event",
        f"store version {certificate['store']['version']}: {counts['events_used']:,} events used, "
        f"{counts['events_excluded']:,} left out, known at or after as_of",
    ]
    if counts["smallest_margin_us"] is not None:
        seconds = counts["smallest_margin_us"] / 1e6
        out.append(f"the latest row read was known {seconds:,.6g} s before its as_of")
    knew = certificate["samples_the_backbone_knew_later_events_than"]
    if knew:
        out.append(
            f"the backbone was trained on events up to {certificate['backbone_knew_until'][:10]}: "
            f"{knew:,} samples were decided before that"
        )
    return out


def moment(us: int) -> str:
    """Microseconds since the epoch as ISO 8601, UTC."""
    time = pl.select(pl.lit(us).cast(pl.Datetime("us")).dt.to_string("iso:strict")).item()
    return f"{time}Z"


@cache
def code_version() -> str:
    """Version of this package and a digest of the source that makes features."""
    found = hashlib.sha256()
    here = Path(__file__).parent
    for path in [*sorted((here.parent / "foundation").glob("*.py")), *sorted(here.glob("*.py"))]:
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    try:
        version = importlib.metadata.version("riskfm")
    except importlib.metadata.PackageNotFoundError:
        version = "source"
    return f"{version}+{found.hexdigest()[:16]}"
