"""What crosses the wire: the request, the answers and the errors of the scoring API.

The OpenAPI document is generated from these types. Requests refuse unknown members; answers hold
finite numbers only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from foundation.errors import RequestError, listing, nearest

ID_LIMIT = 256
TEXT_LIMIT = 4096
# A category code may come as a number or a boolean: 1 is read as "1", true as "true".
Value = bool | int | float | str | None
HistorySource = Annotated[
    Literal["inline", "stored", "both"],
    Meta(
        description="Which events count: those of the request, those posted to /v1/events before, "
        "or both, each event once."
    ),
]
EntityId = Annotated[str, Meta(min_length=1, max_length=ID_LIMIT, description="The customer.")]
_UNKNOWN = re.compile(r"unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"missing required field `(.*)`")
_EXPECTED = re.compile(r"Expected `(.*)`, got `(.*)`")
_PLACE = re.compile(r" - at `(.*)`$", re.DOTALL)
NOTHING = msgspec.Raw(b"null")
UNWRITTEN = "decisions cannot be written down at the moment, so none is given"


Rows = list[dict[str, Value]] | dict[str, list[Value]] | None


class Asked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of whom, as of when and by what: what a score and a query ask alike."""

    entity_id: EntityId
    as_of: Annotated[
        str | None,
        Meta(
            description="ISO 8601 moment of the decision; default now. Only what was known "
            "before it counts. Without a zone it is read in the schema's."
        ),
    ] = None
    channel: Annotated[
        str | None,
        Meta(description="Channel whose model answers; may be left out where there is one only."),
    ] = None
    package: Annotated[
        str | None,
        Meta(description="A package by its id instead; no rollout changes it."),
    ] = None
    events: Annotated[
        dict[str, Rows],
        Meta(
            description="Per source a list of events, or one object of equally long columns. "
            "Each event has event_time, optionally known_at, and the source's "
            "fields; a field left out is missing. Times without a zone are read in "
            "the source's zone."
        ),
    ] = {}
    profile: Annotated[
        dict[str, Value] | None,
        Meta(description="Attributes of the customer, optionally with known_at."),
    ] = None
    context: Annotated[
        dict[str, Value] | None,
        Meta(description="What is being decided on, such as amount and term."),
    ] = None
    history: HistorySource = "inline"


class ScoreRequest(Asked, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One customer to score: the history inline, the profile and what is being decided on."""

    reasons: Annotated[
        bool, Meta(description="Also explain the score; costs additional model runs.")
    ] = False


class QueryRequest(Asked, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One customer to forecast: as `ScoreRequest`, with the forecasts that are wanted."""

    forecasts: Annotated[
        list[str] | None, Meta(description="Names of forecasts; left out: every one there is.")
    ] = None


class AskedEnvelope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`Asked` as it is decoded: tables stay raw until the package's schema is known."""

    entity_id: EntityId
    as_of: str | None = None
    channel: str | None = None
    package: str | None = None
    events: dict[str, msgspec.Raw] = {}
    profile: msgspec.Raw = NOTHING
    context: msgspec.Raw = NOTHING
    history: Literal["inline", "stored", "both"] = "inline"


class Envelope(AskedEnvelope, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`ScoreRequest` as it is decoded."""

    reasons: bool = False


class QueryEnvelope(AskedEnvelope, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`QueryRequest` as it is decoded."""

    forecasts: list[str] | None = None

    def envelope(self) -> Envelope:
        """The part that is scored."""
        shared = (member.name for member in msgspec.structs.fields(AskedEnvelope))
        return Envelope(**{name: getattr(self, name) for name in shared})


class ReasonAnswer(msgspec.Struct, frozen=True):
    """One reason: what moved the score, and by how much on the log-odds scale (+ raises risk)."""

    name: str
    title: str
    value: str
    effect: float


class PackageRef(msgspec.Struct, frozen=True):
    """Which package answered, as which release of the channel, on which backbone."""

    id: str
    name: str
    channel: str
    digest: str
    release: str = ""
    backbone: str = ""


class EventCounts(msgspec.Struct, frozen=True):
    """Events of the request: used, and ignored because they were not known before as_of."""

    used: int
    ignored: int


class HistoryAnswer(msgspec.Struct, frozen=True):
    """The stored history a score was given on: its events known before as_of, and their age.

    `age_seconds` is from when the newest of them was known to as_of; null where there is none.
    `version` names the history as it was; null where nothing is stored of the customer.
    """

    source: str
    events: int
    age_seconds: float | None = None
    version: int | None = None


class DecisionAnswer(msgspec.Struct, frozen=True):
    """What follows from the score by the channel's rules: approve, review or refuse, and why.

    `version` is the digest of the decision file, `default` where the package's bands decide.
    """

    outcome: str
    reasons: list[str]
    rules: list[str]
    actions: list[str]
    version: str
    limit: float | None = None
    price: float | None = None


class ScoreAnswer(msgspec.Struct, frozen=True):
    """A score: probability of label 1, points, band, decision, and on demand the reasons."""

    request_id: str
    package: PackageRef
    entity_id: str
    as_of: str
    score: Annotated[float, Meta(ge=0, le=1)]
    points: int
    band: str
    decision: DecisionAnswer
    reasons: list[ReasonAnswer]
    forecasts: dict[str, float]
    events: EventCounts
    flags: list[str]
    history: HistoryAnswer | None = None


class ForecastAnswer(msgspec.Struct, frozen=True):
    """Probability of a declared outcome after as_of, learned without labels."""

    name: str
    title: str
    probability: Annotated[float, Meta(ge=0, le=1)]


class QueryAnswer(msgspec.Struct, frozen=True):
    """What is expected of a customer by the outcomes of the schema; no decision."""

    request_id: str
    package: PackageRef
    entity_id: str
    as_of: str
    forecasts: list[ForecastAnswer]
    events: EventCounts
    flags: list[str]
    history: HistoryAnswer | None = None


class PackageSummary(msgspec.Struct, frozen=True):
    """One loaded package."""

    id: str
    name: str
    channel: str
    digest: str
    recipe: str
    created_at: str
    default: bool


class PackageList(msgspec.Struct, frozen=True):
    """The packages this service answers with."""

    packages: list[PackageSummary]
    default: str | None


class TableShape(msgspec.Struct, frozen=True):
    """Fields a request may give for a source, the profile or the context, each with its kind."""

    fields: dict[str, str]
    time_zone: str = "UTC"
    delay: str = "0d"


class PackageDetail(msgspec.Struct, frozen=True):
    """A package: what a request to it may contain, and what its manifest says about it."""

    id: str
    name: str
    channel: str
    digest: str
    recipe: str
    created_at: str
    default: bool
    sources: dict[str, TableShape]
    profile: TableShape
    context: TableShape
    label: Any
    points: Any
    bands: Any
    metrics: Any


class Health(msgspec.Struct, frozen=True):
    """Whether the process lives or is ready to score."""

    status: str
    packages: int = 0


class ErrorBody(msgspec.Struct, frozen=True):
    """What went wrong: a stable code, one sentence, and the part of the request at fault."""

    code: str
    message: str
    field: str
    request_id: str


class RowResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """One row of a batch: its answer, or what was wrong with it alone."""

    row: int
    answer: ScoreAnswer | None = None
    error: ErrorBody | None = None


class BatchAnswer(msgspec.Struct, frozen=True):
    """Every row of a batch in its order; only rows with an answer are billed."""

    request_id: str
    scored: int
    failed: int
    results: list[RowResult]


class BatchRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Many customers to score; a bad one fails alone."""

    requests: list[ScoreRequest]


class ErrorAnswer(msgspec.Struct, frozen=True):
    """Every answer with a status of 400 or more."""

    error: ErrorBody


CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "too_slow",
    409: "conflict",
    413: "too_large",
    415: "unsupported_media_type",
    422: "invalid",
    429: "too_many_requests",
    500: "internal",
    503: "unavailable",
}


class ApiError(RequestError):
    """A request answered with an error status.

    Attributes:
        status: HTTP status, a key of `CODES`.
        headers: further response headers.
        shed: why a request is turned away with which nothing is wrong, one of `metrics.REASONS`;
            empty for every other refusal.
    """

    def __init__(
        self,
        status: int,
        message: str,
        field: str = "",
        headers: dict[str, str] | None = None,
        shed: str = "",
    ) -> None:
        super().__init__(message, field)
        self.status = status
        self.headers = headers or {}
        self.shed = shed


def refusal(exc: Exception, path: str, names: Iterable[str]) -> ApiError:
    """A decoder's complaint as a 422 (or 400 for broken JSON) with the place it is about.

    Args:
        path: where the decoded part stands in the request; empty for the whole body.
        names: members that exist there, for a hint.
    """
    text = str(exc)
    if not isinstance(exc, msgspec.ValidationError):
        return ApiError(400, "the body is not valid JSON; NaN and Infinity are none either", path)
    found = _PLACE.search(text)
    place = found.group(1)[1:] if found else ""
    where = f"{path}{place}" if path else place.removeprefix(".")
    head = _PLACE.sub("", text)
    unknown, missing = _UNKNOWN.search(head), _MISSING.search(head)
    if unknown:
        name = unknown.group(1)[:80]
        message = f"unknown field '{name}'{nearest(name, names)}; fields: {listing(names)}"
        return ApiError(422, message, f"{where}.{name}" if where else name)
    if missing:
        name = missing.group(1)
        return ApiError(422, f"'{name}' is required", f"{where}.{name}" if where else name)
    wrong = _EXPECTED.search(head)
    if wrong:
        expected = wrong.group(1).replace(" | null", "").replace(" | ", " or ")
        return ApiError(422, f"expected {expected}, found {wrong.group(2)}", where)
    if "out of range" in head:
        return ApiError(422, "the number is too large; numbers must be finite", where)
    return ApiError(422, head.lower(), where)
