"""What crosses the wire about lists, decision files, decisions and cases."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

Short = Annotated[str, Meta(max_length=500)]
Name = Annotated[str, Meta(max_length=64)]
Moment = Annotated[str, Meta(max_length=64)]


class EntryGiven(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An entry for a list; only a keyed hash of the value is kept."""

    list: Annotated[str, Meta(max_length=64, description="black, grey or white")]
    kind: Annotated[
        str, Meta(max_length=64, description="entity, or a profile or context field such as phone")
    ]
    value: Annotated[str, Meta(min_length=1, max_length=256)]
    channel: Annotated[Name, Meta(description="empty: every channel")] = ""
    reason: Short = ""
    source: Short = ""
    expires_at: Annotated[Moment | None, Meta(description="ISO 8601; left out: never")] = None


class EntriesGiven(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Entries to add and entries to take off; all or none."""

    add: Annotated[list[EntryGiven], Meta(max_length=1000)] = []
    remove: Annotated[list[EntryGiven], Meta(max_length=1000)] = []


class EntriesChanged(msgspec.Struct, frozen=True):
    """How many entries changed; it holds everywhere within a second."""

    added: int
    removed: int


class EntryShown(msgspec.Struct, frozen=True):
    """An entry of a list: the keyed hash stands for the value."""

    list: str
    kind: str
    hash: str
    channel: str
    reason: str
    source: str
    expires_at: str | None
    added_at: str
    added_by: str


class EntryPage(msgspec.Struct, frozen=True):
    """A page of entries; `next` goes into `after`, empty at the end."""

    entries: list[EntryShown]
    next: str


class FileGiven(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A decision file: the decision, the test cases it must pass, its queue, its actions."""

    channel: Name
    decision: Annotated[dict[str, Any], Meta(description="A zen-engine decision (JDM).")]
    tests: Annotated[
        list[dict[str, Any]], Meta(description="Test cases: name, facts and what to expect.")
    ]
    review: Annotated[dict[str, Any], Meta(description="hours and second_look of cases.")] = {}
    actions: Annotated[
        dict[str, dict[str, Any]], Meta(description="Per action url and the secret's name.")
    ] = {}


class FileShown(msgspec.Struct, frozen=True):
    """A version of a channel's decision file."""

    channel: str
    number: int
    digest: str
    stage: str
    at: str
    maker: str
    approved_at: str | None
    approved_by: str | None


class FileList(msgspec.Struct, frozen=True):
    """Versions, oldest first."""

    files: list[FileShown]


class StageGiven(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to happen to a version."""

    step: Annotated[str, Meta(max_length=20, description="challenge, approve, retire or rollback")]
    note: Annotated[str, Meta(max_length=1000)] = ""


class DecisionShown(msgspec.Struct, frozen=True):
    """A decision that was given."""

    id: str
    request_id: str
    time: str
    channel: str
    release: str
    package: str
    digest: str
    as_of: str
    score: float | None
    points: float | None
    band: str
    outcome: str
    rules: list[str]
    version: str
    reasons: list[str]
    actions: list[str]
    lists: list[str]
    limit: float | None
    price: float | None
    shadow_version: str
    shadow_outcome: str


class ChangeShown(msgspec.Struct, frozen=True):
    """Something that is not as it was."""

    what: str
    before: str
    after: str


class ReplayShown(msgspec.Struct, frozen=True):
    """A decision replayed; `reproduced` is null where its input is no longer there."""

    decision: DecisionShown
    reproduced: bool | None
    now: str
    changes: list[ChangeShown]


class CaseShown(msgspec.Struct, frozen=True):
    """A decision that waits, or waited, for a person."""

    id: str
    request_id: str
    channel: str
    opened_at: str
    expires_at: str
    state: str
    claimed_by: str
    outcome: str
    decided_by: str
    decided_at: str
    note: str
    confirmed_by: str
    second_look: list[str]
    score: float | None
    rules: list[str]
    version: str


class CasePage(msgspec.Struct, frozen=True):
    """A page of cases, oldest first; `next` goes into `after`, empty at the end."""

    cases: list[CaseShown]
    next: str


class Verdict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a reviewer decides."""

    outcome: Annotated[str, Meta(max_length=20, description="approve or refuse")]
    note: Annotated[str, Meta(max_length=4000)] = ""
