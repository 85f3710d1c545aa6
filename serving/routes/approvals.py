"""/v1/releases/TENANT/CHANNEL/NUMBER: what is decided on a release, by a person.

The rules are the registry's: who handed in the samples decides nothing about their release. Who may
decide follows from the roles of the key's person; the key of a machine decides nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from starlette.responses import Response

from foundation.errors import ArtifactError
from serving.delivery_messages import (
    ApprovalGiven,
    ReleaseChange,
    ReleaseShown,
    ReleaseVerdict,
    RolloutGiven,
)
from serving.messages import ApiError
from serving.releases import Release
from serving.routes.call import Call, answer
from serving.routes.delivery import deliveries, maker, permit, slowly
from serving.routes.operation import Handler, Operation
from serving.routes.reports import own_release

log = logging.getLogger("riskfm.serving")


def _reader(kind: Any) -> tuple[msgspec.json.Decoder[Any], tuple[str, ...]]:
    return msgspec.json.Decoder(kind), tuple(f.name for f in msgspec.structs.fields(kind))


_VERDICT, _APPROVAL, _ROLLOUT = map(_reader, (ReleaseVerdict, ApprovalGiven, RolloutGiven))


async def release(call: Call) -> Response:
    """One release with its history."""
    return answer(await slowly(call, _shown, call, await own_release(call, "read")))


async def approve(call: Call) -> Response:
    """Make a challenger the champion."""
    given: ApprovalGiven = await call.read(*_APPROVAL)
    who, found = await _decider(call, "approve")
    act = deliveries(call).delivery.registry.approve
    return await _decided(call, partial(act, found.id, who, given.note, given.other_points))


async def reject(call: Call) -> Response:
    """Retire a challenger; makers may withdraw their own."""
    given: ReleaseVerdict = await call.read(*_VERDICT)
    who, found = _person(call), await own_release(call, "read")
    registry = deliveries(call).delivery.registry
    own = who in await slowly(call, registry.makers, found.job)
    await permit(call, "hand_in" if own else "reject", found.channel)
    return await _decided(call, partial(registry.reject, found.id, who, given.note))


async def rollback(call: Call) -> Response:
    """Make a former champion the champion again."""
    given: ReleaseVerdict = await call.read(*_VERDICT)
    who, found = _person(call), await own_release(call, "rollback")
    act = deliveries(call).delivery.registry.rollback
    return await _decided(
        call, partial(act, found.tenant, found.channel, found.id, who, given.note)
    )


async def rollout(call: Call) -> Response:
    """Let a challenger answer a part of the customers."""
    given: RolloutGiven = await call.read(*_ROLLOUT)
    if given.percent > 0:
        who, found = await _decider(call, "approve")
    else:
        who, found = _person(call), await own_release(call, "approve")
    act = deliveries(call).delivery.registry.rollout
    return await _decided(
        call, partial(act, found.id, given.percent, who, given.note, given.other_points)
    )


def _person(call: Call) -> str:
    """Whose personal key it is, as names are compared.

    Raises:
        ApiError: 403 for the key of a machine or of a sandbox.
    """
    who = maker(call)
    if not call.principal.person:
        raise ApiError(
            403, "a release is decided on with a personal key: riskfm key create --person NAME"
        )
    return who


async def _decider(call: Call, action: str) -> tuple[str, Release]:
    """Who decides, and on what: a person with the role who did not make it.

    Raises:
        ApiError: 403, 404.
    """
    who, found = _person(call), await own_release(call, action)
    if who in await slowly(call, deliveries(call).delivery.registry.makers, found.job):
        raise ApiError(
            403, "the key's person handed in the samples of this release; another person decides"
        )
    return who, found


async def _decided(call: Call, act: Callable[[], Release]) -> Response:
    def run() -> ReleaseShown:
        try:
            return _shown(call, act())
        except ArtifactError as exc:
            log.error("request %s: %s", call.request_id, exc)
            raise ApiError(
                409, "the package of the release is missing or damaged where it is installed"
            ) from None

    return answer(await slowly(call, run, status=409))


def _shown(call: Call, found: Release) -> ReleaseShown:
    registry = deliveries(call).delivery.registry
    rows = registry.history(found.tenant, found.channel)
    names = ("at", "who", "action", "before", "after", "why")
    return ReleaseShown(
        release=found.id,
        channel=found.channel,
        stage=found.stage,
        package=found.package_name,
        digest=found.package,
        job=found.job,
        at=found.at,
        incumbent=found.incumbent,
        approved_at=found.approved_at,
        approved_by=found.approved_by,
        makers=sorted(registry.makers(found.job)),
        history=[
            ReleaseChange(**{name: row[name] for name in names})
            for row in rows
            if row["release"] == found.id
        ],
    )


_PATH = "/v1/releases/{tenant}/{channel}/{number}"


def _decides(word: str, handler: Handler, request: type, summary: str) -> Operation:
    return Operation(
        method="POST",
        path=f"{_PATH}/{word}",
        name=f"{word}Release",
        scope="decide",
        summary=summary,
        answer=ReleaseShown,
        handler=handler,
        request=request,
        errors=(409,),
    )


OPERATIONS = (
    Operation(
        method="GET",
        path=_PATH,
        name="release",
        scope="read",
        summary="A release with its history, whatever its stage.",
        answer=ReleaseShown,
        handler=release,
    ),
    _decides(
        "approve", approve, ApprovalGiven,
        "Make a challenger the champion; by a person who did not hand in its samples.",
    ),
    _decides(
        "reject", reject, ReleaseVerdict, "Retire a challenger; makers may withdraw their own."
    ),
    _decides(
        "rollback", rollback, ReleaseVerdict, "Make this former champion the champion again."
    ),
    _decides(
        "rollout", rollout, RolloutGiven,
        "Let a challenger answer a part of the channel's customers.",
    ),
)  # fmt: skip
