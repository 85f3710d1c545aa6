"""A typed client of the scoring service: the standard library and msgspec, nothing else.

    with Client("https://scoring.example.com", key) as client:
        answer = client.score("c1", channel="cards", events={"statement": [...]})
        print(answer.score, answer.decision.outcome)

A `Client` may be shared by threads; each has a kept-alive connection of its own. Scores and
queries carry an idempotency key, so a lost answer is asked for again without a second decision
or a second bill. Refusals are `ApiFailure`, a service that does not answer is `Unreachable`.
"""

from __future__ import annotations

import datetime as dt
import secrets
import ssl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any, Literal, TypeVar

import msgspec

from foundation.errors import RequestError
from serving.client_deliveries import Deliveries
from serving.client_transport import (
    ApiFailure,
    Reply,
    Transport,
    Unreachable,
    decoded,
    part,
    strict_json,
)
from serving.decisions.messages import (
    CasePage,
    CaseShown,
    DecisionShown,
    EntriesChanged,
    EntryGiven,
    EntryPage,
    EntryShown,
    ReplayShown,
)
from serving.messages import (
    CODES,
    ErrorBody,
    PackageDetail,
    PackageList,
    QueryAnswer,
    RowResult,
    ScoreAnswer,
)
from serving.models.messages import ChannelDetail, ChannelList, ReleaseList
from serving.online.messages import PostedAnswer
from serving.tenancy.messages import AuditPage, AuditRow, Me, UsageAnswer

__all__ = ("ApiFailure", "Client", "Unreachable")
T = TypeVar("T")
History = Literal["inline", "stored", "both"]
Moment = str | dt.datetime | None
# Per source a list of events, or an object of equally long columns.
Tables = Mapping[str, Any]
NDJSON = "application/x-ndjson"


class Client:
    """Calls of one service with one API key.

    Args:
        url, key, timeout, retries, longest_wait, allow_http, tls: see `Transport`.
        transport: an own one instead of those.
    Attributes:
        deliveries: samples up, jobs, reports.
    """

    def __init__(
        self,
        url: str,
        key: str,
        timeout: float = 30.0,
        *,
        retries: int = 4,
        longest_wait: float = 30.0,
        allow_http: bool = False,
        tls: ssl.SSLContext | None = None,
        transport: Transport | None = None,
    ) -> None:
        self._transport = transport or Transport(
            url, key, timeout, retries, longest_wait, allow_http, tls
        )
        self.deliveries = Deliveries(self._transport)

    def __repr__(self) -> str:
        return f"Client({self._transport.url!r})"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; harmless twice."""
        self._transport.close()

    # scores

    def score(
        self,
        entity_id: str,
        *,
        as_of: Moment = None,
        channel: str | None = None,
        package: str | None = None,
        events: Tables | None = None,
        profile: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] | None = None,
        history: History | None = None,
        reasons: bool = False,
        request_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> ScoreAnswer:
        """Score one customer and decide.

        Args:
            as_of: the moment of the decision; None: now.
            idempotency_key: of the business case, such as the application's number; None makes
                one that protects this call alone.
        Raises:
            ApiFailure, Unreachable: see there. RequestError: a number that is not finite.
        """
        body = _request(
            entity_id=entity_id, as_of=as_of, channel=channel, package=package, events=events,
            profile=profile, context=context, history=history, reasons=reasons or None,
        )  # fmt: skip
        return self._post("/v1/score", body, ScoreAnswer, request_id, idempotency_key)

    def score_many(
        self, requests: Iterable[Mapping[str, Any]], chunk: int = 500
    ) -> Iterator[RowResult]:
        """Score many customers, a chunk at a time, in their order.

        Args:
            requests: each with the arguments of `score`, at least `entity_id`.
        Yields:
            one result for each, its `row` counted from 0: an answer, or the error of that row
            alone. Rows with an error are not billed.
        Raises:
            ApiFailure, Unreachable: a whole chunk was refused; results given before stay good.
        """
        rows, begin = iter(requests), 0
        while rows_now := list(islice(rows, chunk)):
            results: list[RowResult | None] = [None] * len(rows_now)
            lines, places = [], []
            for place, row in enumerate(rows_now):
                try:
                    lines.append(_request(**row))
                    places.append(place)
                except RequestError as exc:
                    error = ErrorBody(CODES[422], str(exc), exc.field, "")
                    results[place] = RowResult(begin + place, None, error)
            if lines:
                reply = self._transport.send(
                    "POST", "/v1/score/batch", body=b"\n".join(lines), media=NDJSON,
                    idempotency_key=secrets.token_hex(16),
                )  # fmt: skip
                for place, one in zip(places, _rows(reply, len(places)), strict=True):
                    results[place] = msgspec.structs.replace(one, row=begin + place)
            yield from (result for result in results if result is not None)
            begin += len(rows_now)

    def query(
        self,
        entity_id: str,
        *,
        forecasts: Iterable[str] | None = None,
        as_of: Moment = None,
        channel: str | None = None,
        package: str | None = None,
        events: Tables | None = None,
        profile: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] | None = None,
        history: History | None = None,
        request_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> QueryAnswer:
        """Forecasts of one customer, without a decision.

        Args:
            forecasts: names; None: every one the package makes.
        """
        body = _request(
            entity_id=entity_id, as_of=as_of, channel=channel, package=package, events=events,
            profile=profile, context=context, history=history,
            forecasts=None if forecasts is None else list(forecasts),
        )  # fmt: skip
        return self._post("/v1/query", body, QueryAnswer, request_id, idempotency_key)

    def post_events(
        self,
        entity_id: str,
        events: Tables,
        *,
        ids: Mapping[str, list[str]] | None = None,
        channel: str | None = None,
        package: str | None = None,
        request_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> PostedAnswer:
        """Store new events of one customer, all or none; the next score sees them.

        Args:
            ids: per source one id for each of its events; what was stored before is not again.
        """
        body = _request(
            entity_id=entity_id, events=events, ids=ids, channel=channel, package=package
        )
        return self._post("/v1/events", body, PostedAnswer, request_id, idempotency_key)

    # what answers

    def packages(self) -> PackageList:
        """The packages a request may name."""
        return self._get("/v1/packages", PackageList)

    def package(self, package: str) -> PackageDetail:
        """One package: the fields it reads, its bands, its measured quality."""
        return self._get(f"/v1/packages/{part(package)}", PackageDetail)

    def channels(self) -> ChannelList:
        """The channels a request may name."""
        return self._get("/v1/channels", ChannelList)

    def channel(self, channel: str) -> ChannelDetail:
        """One channel with its releases."""
        return self._get(f"/v1/channels/{part(channel)}", ChannelDetail)

    def releases(self) -> ReleaseList:
        """Releases that answer, and those that could not be loaded."""
        return self._get("/v1/releases", ReleaseList)

    # who asks, what was used, what was decided

    def me(self) -> Me:
        """Whom the key speaks for, what it may do and how much is left."""
        return self._get("/v1/me", Me)

    def usage(
        self,
        since: dt.date | str | None = None,
        until: dt.date | str | None = None,
        channel: str | None = None,
    ) -> UsageAnswer:
        """Usage from a UTC day until before another; this month where nothing is said."""
        query = {"from": _text(since), "until": _text(until), "channel": channel}
        return self._get("/v1/usage", UsageAnswer, query)

    def audit(self, since: Moment = None, until: Moment = None) -> Iterator[AuditRow]:
        """Every decision from a moment until before another, oldest first, page by page."""
        query = {"from": _text(since), "until": _text(until), "cursor": None}
        while True:
            page = self._get("/v1/audit", AuditPage, query)
            yield from page.decisions
            if page.next is None:
                return
            query["cursor"] = page.next

    def decision(self, request_id: str) -> DecisionShown:
        """The decision given on a request (readable about a second after it was given)."""
        return self._get(f"/v1/decisions/{part(request_id)}", DecisionShown)

    def replay(self, request_id: str) -> ReplayShown:
        """The decision made again: reproduced, or what changed since."""
        return self._step(f"/v1/decisions/{part(request_id)}/replay", ReplayShown)

    # the review queue and the lists

    def cases(
        self, state: str | None = None, channel: str | None = None, claimed_by: str | None = None
    ) -> Iterator[CaseShown]:
        """The review queue, oldest first, page by page."""
        query = {"state": state, "channel": channel, "claimed_by": claimed_by, "after": None}
        while True:
            page = self._get("/v1/cases", CasePage, query)
            yield from page.cases
            if not page.next:
                return
            query["after"] = page.next

    def claim(self, case: str) -> CaseShown:
        """Take a case on; needs a person's key."""
        return self._step(f"/v1/cases/{part(case)}/claim", CaseShown)

    def decide(self, case: str, outcome: str, note: str = "") -> CaseShown:
        """Approve or refuse a claimed case, or take the second look; needs a person's key."""
        body = strict_json({"outcome": outcome, "note": note})
        return self._step(f"/v1/cases/{part(case)}/decide", CaseShown, body)

    def list_entries(
        self, list: str | None = None, kind: str | None = None
    ) -> Iterator[EntryShown]:
        """Entries of the black, grey and white lists, page by page."""
        query = {"list": list, "kind": kind, "after": None}
        while True:
            page = self._get("/v1/lists", EntryPage, query)
            yield from page.entries
            if not page.next:
                return
            query["after"] = page.next

    def change_lists(
        self, add: Iterable[EntryGiven] = (), remove: Iterable[EntryGiven] = ()
    ) -> EntriesChanged:
        """Add entries and take entries off; all or none."""
        body = strict_json({"add": [*add], "remove": [*remove]})
        return decoded(self._transport.send("PUT", "/v1/lists", body=body), EntriesChanged)

    def _get(
        self, path: str, kind: type[T], query: Mapping[str, str | int | None] | None = None
    ) -> T:
        return decoded(self._transport.send("GET", path, query), kind)

    def _post(
        self, path: str, body: bytes, kind: type[T], request_id: str | None, key: str | None
    ) -> T:
        key = secrets.token_hex(16) if key is None else key
        reply = self._transport.send(
            "POST", path, body=body, request_id=request_id, idempotency_key=key
        )
        return decoded(reply, kind)

    def _step(self, path: str, kind: type[T], body: bytes | None = None) -> T:
        """A change that is made once: sent once."""
        return decoded(self._transport.send("POST", path, body=body), kind)


_ROW = msgspec.json.Decoder(RowResult)


def _rows(reply: Reply, count: int) -> list[RowResult]:
    """The rows of a batch.

    Raises:
        ApiFailure: it is none of the API's.
    """
    with suppress(msgspec.DecodeError, UnicodeDecodeError):
        found = [_ROW.decode(line) for line in reply.body.splitlines()]
        if len(found) == count:
            return found
    raise ApiFailure(reply.status, f"the answer is none of {count} rows")


def _request(**members: Any) -> bytes:
    """A request's body: members that are None are left out, moments become ISO 8601."""
    return strict_json({name: value for name, value in members.items() if value is not None})


def _text(moment: dt.date | str | None) -> str | None:
    return moment.isoformat() if isinstance(moment, dt.date) else moment
