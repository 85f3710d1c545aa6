"""Routes about the tenant itself: who am I, what was used, what was decided."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import json
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.responses import Response

from foundation.errors import ConfigError
from serving.messages import ApiError
from serving.routes.call import Call, answer
from serving.routes.operation import Operation, Parameter
from serving.tenancy.keys import moment
from serving.tenancy.messages import AuditPage, AuditRow, Me, SpentQuota, UsageAnswer, UsageRow
from serving.tenancy.metering import read_decisions, read_usage

PAGE = 1000
_DAY = Annotated[str, Meta(pattern=r"^\d{4}-\d{2}-\d{2}$")]
_Page = Annotated[int, Meta(ge=1, le=PAGE)]

_AUDITED = tuple(field.name for field in msgspec.structs.fields(AuditRow))


async def me(call: Call) -> Response:
    """Who asks, and what is left of limits and quotas."""
    call.only_queries()
    who, front = call.principal, call.runtime.front
    limits = front.keys.limits(who.tenant)
    look = front.rates.remaining
    left = await asyncio.to_thread(look, who) if front.rates_block else look(who)
    names = {"": limits.quota} | limits.channels
    spent = {
        name: SpentQuota(used[0], quota.day, used[1], quota.month)
        for name, quota in names.items()
        for used in [front.quotas.used(who.tenant, name)]
    }
    return answer(
        Me(
            tenant=who.tenant,
            key_id=who.key_id,
            name=who.name,
            person=who.person,
            scopes=sorted(who.scopes),
            sandbox=who.sandbox,
            rate={k.removeprefix("RateLimit-").lower(): int(v) for k, v in left.items()},
            quota=spent.pop(""),
            channels=spent,
        )
    )


async def usage(call: Call) -> Response:
    """Usage of the caller's tenant between two UTC days."""
    call.only_queries("from", "until", "channel")
    front = call.runtime.front
    today = dt.datetime.now(dt.UTC).date()
    since = _day(call, "from", today.replace(day=1))
    until = _day(call, "until", today + dt.timedelta(days=1))
    if until <= since:
        raise ApiError(422, "'until' must be later than 'from'", "until")
    await asyncio.to_thread(front.people.permit, call.principal, "see_usage")
    used = await asyncio.to_thread(
        read_usage, front.database, call.tenant, since, until, call.query("channel")
    )
    total: dict[str, int] = {}
    for row in used:
        total[row.kind] = total.get(row.kind, 0) + row.units
    rows = [UsageRow(row.channel, row.day, row.kind, row.units) for row in used]
    return answer(UsageAnswer(call.tenant, since, until, rows, total))


async def audit(call: Call) -> Response:
    """Decisions of the caller's tenant, a page at a time."""
    call.only_queries("from", "until", "limit", "cursor")
    who, front = call.principal, call.runtime.front
    if not who.person and "admin" not in who.scopes:
        raise ApiError(403, "the API key lacks the scope 'admin'")
    await asyncio.to_thread(front.people.permit, who, "see_audit")
    limit = call.number("limit", 100, 1, PAGE)
    since, until = _time(call, "from"), _time(call, "until")
    after = _cursor(call.query("cursor"))
    found = await asyncio.to_thread(
        read_decisions, front.database, who.tenant, since, until, after, limit + 1
    )
    rows = [AuditRow(**{name: row[name] for name in _AUDITED}) for row in found[:limit]]
    more = len(found) > limit
    return answer(AuditPage(rows, _place(rows[-1]) if more else None))


def _day(call: Call, name: str, default: dt.date) -> str:
    text = call.query(name)
    if text is None:
        return default.isoformat()
    try:
        found = dt.date.fromisoformat(text)
    except ValueError:
        raise ApiError(422, "expected a day such as 2027-01-31", name) from None
    if found.isoformat() != text:
        raise ApiError(422, "expected a day such as 2027-01-31", name)
    return text


def _time(call: Call, name: str) -> str:
    """A moment as the decision log writes them, so that texts compare as moments do."""
    text = call.query(name)
    if text is None:
        return ""
    try:
        found = moment(text)
    except (ConfigError, OverflowError):
        raise ApiError(422, "expected a moment such as 2027-01-31T00:00:00Z", name) from None
    return found.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _place(row: AuditRow) -> str:
    text = json.dumps([row.time, row.node, row.seq], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode()


def _cursor(text: str | None) -> tuple[str, str, int] | None:
    if text is None:
        return None
    try:
        data: Any = json.loads(base64.b64decode(text.encode("ascii"), b"-_", validate=True))
        return msgspec.convert(data, tuple[str, str, Annotated[int, Meta(ge=0, le=2**62)]])
    except (ValueError, msgspec.ValidationError, RecursionError):
        raise ApiError(422, "no cursor of this route; take 'next' of a page", "cursor") from None


_FROM = Parameter(name="from", description="First UTC day; the first of this month if left out.",
                  kind=_DAY)  # fmt: skip
OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/me",
        name="me",
        scope="read",
        summary="Whom the API key speaks for, what it may do and how much is left.",
        answer=Me,
        handler=me,
        errors=(422,),
    ),
    Operation(
        method="GET",
        path="/v1/usage",
        name="usage",
        scope="read",
        summary="What the tenant used by channel, UTC day and kind.",
        answer=UsageAnswer,
        handler=usage,
        parameters=(
            _FROM,
            Parameter(
                name="until",
                description="UTC day after the last one; tomorrow if left out.",
                kind=_DAY,
            ),
            Parameter(name="channel", description="This channel only."),
        ),
    ),
    Operation(
        method="GET",
        path="/v1/audit",
        name="audit",
        scope="read",
        summary="The tenant's decisions, oldest first; for the scope admin or an auditor's key.",
        answer=AuditPage,
        handler=audit,
        parameters=(
            Parameter(name="from", description="First moment, ISO 8601."),
            Parameter(name="until", description="Moment after the last one, ISO 8601."),
            Parameter(name="limit", description="Decisions of a page.", kind=_Page),
            Parameter(name="cursor", description="`next` of the page before."),
        ),
    ),
)
