"""Routes about stored histories: events in, what is stored of a customer, erasure, bounds.

Events are read by the schema of the channel's champion, as a score would read them: what a score
refuses is refused here. A post is stored whole or not at all; in a batch a bad one fails alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import msgspec
from starlette.responses import Response

from foundation.errors import RequestError
from foundation.schema import Schema
from serving.messages import CODES, ApiError, Envelope, ErrorBody, refusal
from serving.models.loaded import Loaded
from serving.online.bounds import Bound
from serving.online.events import Events
from serving.online.messages import (
    EXAMPLE,
    BoundAnswer,
    BoundGiven,
    EntityAnswer,
    ErasedAnswer,
    EventPost,
    EventPostEnvelope,
    EventPosts,
    PostedAnswer,
    PostedRow,
    PostedRows,
    StoredSource,
)
from serving.online.writing import Post, Posted
from serving.routes.call import JSON, Call, answer, decode
from serving.routes.operation import Operation
from serving.times import iso

NDJSON = "application/x-ndjson"


class _Rows(msgspec.Struct, forbid_unknown_fields=True):
    posts: list[msgspec.Raw]


_POST = msgspec.json.Decoder(EventPostEnvelope)
_MEMBERS = tuple(member.name for member in msgspec.structs.fields(EventPostEnvelope))
_ROWS = msgspec.json.Decoder(_Rows)
_BOUND = msgspec.json.Decoder(BoundGiven)
_BOUND_MEMBERS = tuple(member.name for member in msgspec.structs.fields(BoundGiven))


async def post_events(call: Call) -> Response:
    """Store new events of one customer."""
    body = await call.body()
    return answer(await asyncio.to_thread(_one, call, body))


async def post_many(call: Call) -> Response:
    """Store new events of many customers."""
    settings = call.runtime.settings
    body = await call.body(settings.max_batch_bytes, (JSON, NDJSON))
    return answer(await asyncio.to_thread(_many, call, body, settings.max_batch_rows))


async def entity(call: Call) -> Response:
    """What is stored of a customer."""
    return answer(await asyncio.to_thread(_entity, call))


async def erase(call: Call) -> Response:
    """Erase the stored history of a customer, and note it in the decision log."""
    name, hidden = _customer(call)
    erased = await asyncio.to_thread(call.runtime.histories.erase, call.tenant, hidden)
    line = {
        "event": "erasure", "tenant": call.tenant, "request_id": call.request_id,
        "by": call.principal.person or call.principal.key_id, "stores": {"stored events": erased},
    }  # fmt: skip
    await asyncio.wrap_future(call.runtime.audit.append(line, name))
    return answer(ErasedAnswer(name, erased))


async def bound(call: Call) -> Response:
    """What holds for the stored histories of a channel."""
    return answer(await asyncio.to_thread(_bound, call))


async def set_bound(call: Call) -> Response:
    """Bound the stored histories of a channel."""
    _real(call)
    given: BoundGiven = decode(_BOUND, await call.body(), _BOUND_MEMBERS)
    channel = _channel(call)
    wanted = Bound(given.max_age_seconds, given.fallback)
    by = call.principal.person or call.principal.key_id
    await asyncio.to_thread(call.runtime.histories.bounds.set, call.tenant, channel, wanted, by)
    return answer(BoundAnswer(channel, wanted.max_age_seconds, wanted.fallback))


def _one(call: Call, body: bytes) -> PostedAnswer:
    _real(call)
    found = call.runtime.histories.store.append([_read(call, body)])[0]
    if isinstance(found, ApiError):
        raise found
    return _posted(found)


def _many(call: Call, body: bytes, limit: int) -> PostedRows:
    _real(call)
    bodies = _bodies(call.media_type, body, limit)
    results: list[PostedRow | None] = [None] * len(bodies)
    rows, posts = [], []
    for row, one in enumerate(bodies):
        try:
            posts.append(_read(call, one))
            rows.append(row)
        except RequestError as exc:
            results[row] = _refused(call, row, exc)
    for row, found in zip(rows, call.runtime.histories.store.append(posts), strict=True):
        if isinstance(found, ApiError):
            results[row] = _refused(call, row, found)
        else:
            results[row] = PostedRow(row, _posted(found))
    every = [result for result in results if result is not None]
    done = [result.answer for result in every if result.answer is not None]
    return PostedRows(
        call.request_id,
        len(done),
        len(every) - len(done),
        sum(one.stored for one in done),
        sum(one.repeated for one in done),
        every,
    )


def _read(call: Call, body: bytes) -> Post:
    """A post as it is stored.

    Raises:
        ApiError: 400, 404, 413, 422 or 503, as a score would.
    """
    given: EventPostEnvelope = decode(_POST, body, _MEMBERS)
    name = given.entity_id.strip()
    if not name:
        raise ApiError(422, "the entity id is empty", "entity_id")
    reader = _loaded(call, given).model.reader
    envelope = Envelope(entity_id=name, events=given.events)
    key = call.runtime.hasher.identifier_key(call.tenant)
    tables = reader.read(envelope, time.time_ns() // 1000, key).tables
    schema: Schema = reader.schema
    sources = {s: Events.read(table, schema.sources[s].fields) for s, table in tables.items()}
    for source, ids in given.ids.items():
        count = len(sources.get(source, ()))
        if len(ids) != count:
            raise ApiError(422, f"{len(ids)} ids for {count} events", f"ids.{source[:80]}")
    return Post(call.tenant, call.runtime.hasher.hash(call.tenant, name), sources, given.ids)


def _loaded(call: Call, given: EventPostEnvelope) -> Loaded:
    """The release whose schema reads a post: never a challenger, for that would differ by customer.

    Raises:
        ApiError: as for a score.
    """
    tenant = call.runtime.deployments.tenant(call.tenant)
    if given.channel is None and given.package is None and tenant.packages:
        every = list(tenant.packages.values())
        if len({id(loaded.model.reader) for loaded in every}) == 1:
            return every[0]
    return tenant.pick(given.channel, given.package, "")


def _bodies(media: str, body: bytes, limit: int) -> list[bytes]:
    """Posts as JSON objects.

    Raises:
        ApiError: 400 for anything but JSON, 413 for too many, 422 for none.
    """
    if media == NDJSON:
        found: Sequence[bytes] = [line for line in body.splitlines() if line.strip()]
    else:
        try:
            found = [bytes(row) for row in _ROWS.decode(body).posts]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise refusal(exc, "", ("posts",)) from None
    if not found:
        raise ApiError(422, "there are no posts", "posts")
    if len(found) > limit:
        raise ApiError(413, f"more than {limit} posts in one batch", "posts")
    return list(found)


def _entity(call: Call) -> EntityAnswer:
    name, hidden = _customer(call)
    found = call.runtime.histories.store.summary(call.tenant, hidden)
    if found is None:
        raise ApiError(404, "nothing is stored about this customer", "id")
    newest = max((s.last_known_us for s in found.sources.values()), default=None)
    return EntityAnswer(
        entity_id=name,
        events=found.events,
        dropped=found.dropped,
        age_seconds=None if newest is None else time.time() - newest / 1e6,
        version=found.version,
        changed_at=iso(found.version),
        sources={
            source: StoredSource(
                s.events, iso(s.first_event_us), iso(s.last_event_us), iso(s.last_known_us)
            )
            for source, s in found.sources.items()
        },
    )


def _bound(call: Call) -> BoundAnswer:
    channel = _channel(call)
    found = call.runtime.histories.bounds.of(call.tenant, channel)
    return BoundAnswer(channel, found.max_age_seconds, found.fallback)


def _customer(call: Call) -> tuple[str, str]:
    """Id and keyed hash of the customer in the path.

    Raises:
        ApiError: 422 for no id, 403 for a sandbox key.
    """
    _real(call)
    name = call.path("id").strip()
    if not name:
        raise ApiError(422, "the entity id is empty", "id")
    return name, call.runtime.hasher.hash(call.tenant, name)


def _channel(call: Call) -> str:
    """The channel in the path.

    Raises:
        ApiError: 404 for one the tenant does not have.
    """
    name = call.path("channel")
    tenant = call.runtime.deployments.tenant(call.tenant)
    if name not in tenant.channels and name not in tenant.pending:
        tenant.pick(name, None, "")
    return name


def _real(call: Call) -> None:
    """Refuse a sandbox key: its entities have no history.

    Raises:
        ApiError: 403.
    """
    if call.principal.sandbox:
        raise ApiError(403, "a sandbox key stores no events; its test entities need none")


def _posted(found: Posted) -> PostedAnswer:
    return PostedAnswer(found.stored, found.repeated, found.version or None)


def _refused(call: Call, row: int, exc: RequestError) -> PostedRow:
    status = exc.status if isinstance(exc, ApiError) else 422
    request_id = f"{call.request_id}.{row}"
    return PostedRow(row, None, ErrorBody(CODES[status], str(exc), exc.field, request_id))


OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/events",
        name="post_events",
        scope="events",
        summary="Store new events of one customer; the next score sees them.",
        answer=PostedAnswer,
        handler=post_events,
        request=EventPost,
        errors=(404, 409),
        examples={"EventPost": EXAMPLE},
        repeatable=True,
    ),
    Operation(
        method="POST",
        path="/v1/events/batch",
        name="post_events_batch",
        scope="events",
        summary="Store new events of many customers; a post that is at fault fails alone.",
        answer=PostedRows,
        handler=post_many,
        request=EventPosts,
        media=(JSON, NDJSON),
        errors=(404,),
        repeatable=True,
        largest="max_batch_bytes",
    ),
    Operation(
        method="GET",
        path="/v1/entities/{id}",
        name="entity",
        scope="read",
        summary="How much is stored about a customer, and how old it is; no values.",
        answer=EntityAnswer,
        handler=entity,
    ),
    Operation(
        method="DELETE",
        path="/v1/entities/{id}",
        name="erase_entity",
        scope="admin",
        summary="Erase the stored history of a customer.",
        answer=ErasedAnswer,
        handler=erase,
    ),
    Operation(
        method="GET",
        path="/v1/channels/{channel}/history",
        name="history_bound",
        scope="read",
        summary="How old stored histories of a channel may be.",
        answer=BoundAnswer,
        handler=bound,
    ),
    Operation(
        method="PUT",
        path="/v1/channels/{channel}/history",
        name="set_history_bound",
        scope="admin",
        summary="Say how old stored histories of a channel may be, and what happens beyond that.",
        answer=BoundAnswer,
        handler=set_bound,
        request=BoundGiven,
    ),
)
