"""What crosses the wire about samples, deliveries and the releases they end in."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

_Sample = Annotated[str, Meta(min_length=1, max_length=100)]
_Note = Annotated[str, Meta(max_length=2000, description="Why; kept in the history.")]


class RowsLeftOut(msgspec.Struct, frozen=True):
    """Rows that cannot be used, counted under the first reason that meets them."""

    reason: str
    rows: int
    first: Annotated[list[int], Meta(description="The first of them; the header is not counted")]


class LabelBalance(msgspec.Struct, frozen=True):
    """Labels of the usable rows; the 95 % interval of the bad rate is Wilson's."""

    labels: int
    bads: int
    unknown: Annotated[int, Meta(description="Rows without a label")]
    bad_rate: float | None
    bad_rate_low: float | None
    bad_rate_high: float | None


class StoreCoverage(msgspec.Struct, frozen=True):
    """What the event store knows of these customers, before each as_of."""

    customers_unknown: int
    rows_without_events: int
    median_events: float


class SampleTaken(msgspec.Struct, frozen=True, kw_only=True):
    """What was read, what was left out and why, and the version that was kept."""

    sample: Annotated[str, Meta(description="NAME@VERSION, as POST /v1/jobs takes it")]
    digest: Annotated[str, Meta(description="Of the rows, whatever their order and format")]
    new: Annotated[bool, Meta(description="False where the newest version has the same rows")]
    channel: str
    test: bool
    read: int
    kept: int
    left_out: list[RowsLeftOut]
    customers: int
    first: Annotated[str, Meta(description="First day of as_of")]
    last: str
    balance: LabelBalance
    store: Annotated[
        StoreCoverage | None, Meta(description="Null where there are too many to look up at once")
    ]
    mapping: Annotated[str, Meta(description="Id of the mapping; empty where none was given")]
    notes: list[str]
    mind: Annotated[list[str], Meta(description="What to look at before it is delivered")]


class SampleVersionShown(msgspec.Struct, frozen=True, kw_only=True):
    """A version of a sample set."""

    sample: str
    digest: str
    added_at: str
    channel: str
    test: bool
    rows: int
    customers: int
    labels: int
    bads: int
    first: str
    last: str


class SampleList(msgspec.Struct, frozen=True):
    """Sample sets of the tenant, version by version."""

    samples: list[SampleVersionShown]


class JobRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Deliver a channel from samples that were handed in before."""

    channel: Annotated[str, Meta(max_length=64, description="The channel to deliver.")]
    samples: Annotated[_Sample, Meta(description="`sample` of an answer of POST /v1/samples")]
    test: Annotated[_Sample | None, Meta(description="Labelled samples to measure on")] = None


class GateShown(msgspec.Struct, frozen=True):
    """What a gate said; `passed` is null where there was nothing to measure."""

    gate: str
    passed: bool | None
    number: float | None
    limit: float | None
    sentence: str


class LogLine(msgspec.Struct, frozen=True):
    """A line of a job's log."""

    at: str
    text: str


class JobSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery: how far it is and what came of it."""

    id: str
    channel: str
    state: Annotated[
        str,
        Meta(description="queued, running, interrupted, done, refused, failed or cancelled"),
    ]
    step: str
    done: Annotated[int, Meta(description="Of `total` units of the step; 0 of 0: not counted")]
    total: int
    note: str
    attempt: int
    seconds: float
    created_at: str
    ended_at: str | None
    error: str
    release: Annotated[str, Meta(description="The challenger it made; empty before")]


class JobDetail(JobSummary, frozen=True, kw_only=True):
    """A delivery with its gates, its makers and its log."""

    makers: Annotated[list[str], Meta(description="Who may not approve its release")]
    gates: list[GateShown]
    log: list[LogLine]
    links: Annotated[dict[str, str], Meta(description="What can be read of it by now")]


class JobStarted(JobSummary, frozen=True, kw_only=True):
    """The delivery of these samples; asked for twice it is one job."""

    new: bool


class JobList(msgspec.Struct, frozen=True):
    """Deliveries of the tenant, the latest first."""

    jobs: list[JobSummary]


class ReleaseVerdict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why a release is rejected, or brought back."""

    note: _Note = ""


class ApprovalGiven(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why a challenger becomes the champion."""

    note: _Note = ""
    other_points: Annotated[
        bool, Meta(description="Its points may be on another scale than the champion's.")
    ] = False


class RolloutGiven(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many customers a challenger answers; the same ones for as long as it lasts."""

    percent: Annotated[float, Meta(ge=0, le=99, description="0 ends it")]
    note: _Note = ""
    other_points: Annotated[
        bool, Meta(description="Its points may be on another scale than the champion's.")
    ] = False


class ReleaseChange(msgspec.Struct, frozen=True):
    """One change of a release."""

    at: str
    who: str
    action: str
    before: str
    after: str
    why: str


class ReleaseShown(msgspec.Struct, frozen=True, kw_only=True):
    """A release as the registry has it."""

    release: str
    channel: str
    stage: Annotated[str, Meta(description="shadow, challenger, champion or retired")]
    package: str
    digest: str
    job: str
    at: str
    incumbent: Annotated[str | None, Meta(description="Release it was compared with")]
    approved_at: str | None
    approved_by: str | None
    makers: Annotated[list[str], Meta(description="Who may not approve it")]
    history: list[ReleaseChange]
