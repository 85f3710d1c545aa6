"""What the routes about stored events take and answer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from serving.messages import EntityId, ErrorBody, Rows

MAX_ID = 200
EventId = Annotated[str, Meta(min_length=1, max_length=MAX_ID)]
_IDS = Annotated[
    dict[str, list[EventId]],
    Meta(
        description="Per source one id for each of its events, unique for the customer. An event "
        "whose id was stored before is not stored again. Without ids equal events are one, as at "
        "import."
    ),
]
_CHANNEL = Annotated[
    str | None,
    Meta(
        description="Channel whose schema reads the events; may be left out where all of the "
        "tenant's packages read alike."
    ),
]


class EventPost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """New events of one customer: all of them are stored, or none."""

    entity_id: EntityId
    events: Annotated[
        dict[str, Rows],
        Meta(description="As in a request to /v1/score."),
    ]
    ids: _IDS = {}
    channel: _CHANNEL = None
    package: Annotated[str | None, Meta(description="A package by its id instead.")] = None


class EventPostEnvelope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`EventPost` as it is decoded."""

    entity_id: EntityId
    events: dict[str, msgspec.Raw]
    ids: dict[str, list[EventId]] = {}
    channel: str | None = None
    package: str | None = None


class EventPosts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """New events of many customers; a post that is at fault fails alone."""

    posts: list[EventPost]


class PostedAnswer(msgspec.Struct, frozen=True):
    """Events that were stored, those that were there already, and the history's new version.

    `version` is null where nothing is stored of the customer.
    """

    stored: int
    repeated: int
    version: int | None


class PostedRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of one post, or what was wrong with it."""

    row: int
    answer: PostedAnswer | None = None
    error: ErrorBody | None = None


class PostedRows(msgspec.Struct, frozen=True):
    """Every post in its order; what has an answer is on the disk."""

    request_id: str
    accepted: int
    failed: int
    stored: int
    repeated: int
    results: list[PostedRow]


class StoredSource(msgspec.Struct, frozen=True):
    """Events of a source; moments are ISO 8601, UTC."""

    events: int
    first_event: str
    last_event: str
    last_known: str


class EntityAnswer(msgspec.Struct, frozen=True):
    """What is stored of a customer: how much and how old, no values.

    `age_seconds` is from when the newest event was known to now (negative where it is still to
    become known); `dropped` counts events that left because there were more than are kept.
    """

    entity_id: str
    events: int
    dropped: int
    age_seconds: float | None
    version: int
    changed_at: str
    sources: dict[str, StoredSource]


class ErasedAnswer(msgspec.Struct, frozen=True):
    """How many events of the customer were erased."""

    entity_id: str
    erased: int


class BoundGiven(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How old stored histories of a channel may be, and what happens beyond that."""

    max_age_seconds: Annotated[
        Annotated[float, Meta(gt=0, le=1e10)] | None,
        Meta(description="From when the newest stored event was known to as_of; null: any age."),
    ] = None
    fallback: Annotated[
        Literal["score", "without", "refuse"],
        Meta(
            description="For a stale or missing history: score with a flag, score without the "
            "stored events and with a flag, or refuse with 409."
        ),
    ] = "score"


class BoundAnswer(msgspec.Struct, frozen=True):
    """What holds for a channel."""

    channel: str
    max_age_seconds: float | None
    fallback: str


EXAMPLE: dict[str, Any] = {
    "entity_id": "c1",
    "events": {
        "statement": [{"event_time": "2017-08-01T00:00:00Z", "status": "1", "bill_amt": 260.0}]
    },
    "ids": {"statement": ["s-2017-08"]},
}
