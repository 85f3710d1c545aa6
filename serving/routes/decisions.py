"""Routes about lists, decision files, decisions given, their replay and the review queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgspec
import sqlalchemy as sa
from msgspec import Meta
from starlette.responses import Response

from foundation.errors import UserError, listing, nearest
from serving.decisions import decision_file, projection
from serving.decisions.cases import STATES, Case, CaseConflict
from serving.decisions.desk import Desk
from serving.decisions.facts import LISTS
from serving.decisions.lists import Entry
from serving.decisions.messages import (
    CasePage,
    CaseShown,
    ChangeShown,
    DecisionShown,
    EntriesChanged,
    EntriesGiven,
    EntryGiven,
    EntryPage,
    EntryShown,
    FileGiven,
    FileList,
    FileShown,
    ReplayShown,
    StageGiven,
    Verdict,
)
from serving.decisions.projection import Given
from serving.decisions.rule_book import FileVersion
from serving.messages import ApiError
from serving.routes.call import Call, answer
from serving.routes.operation import Operation, Parameter

T = TypeVar("T")
STEPS = ("challenge", "approve", "retire", "rollback")
_ENTRIES = msgspec.json.Decoder(EntriesGiven)
_FILE = msgspec.json.Decoder(FileGiven)
_STAGE = msgspec.json.Decoder(StageGiven)
_VERDICT = msgspec.json.Decoder(Verdict)
_LIMIT = Annotated[int, Meta(ge=1, le=1000)]


async def list_entries(call: Call) -> Response:
    """Entries of the tenant's lists."""
    call.only_queries("list", "kind", "after", "limit")
    desk, limit = _desk(call), call.number("limit", 100, 1, 1000)
    which = call.query("list")
    if which is not None and which not in LISTS:
        raise ApiError(422, f"no such list; lists: {listing(LISTS)}", "list")
    kind, after = call.query("kind"), call.query("after", "") or ""
    found, more = await _run(
        404, lambda: desk.lists.entries(call.tenant, which, kind, after, limit)
    )
    return answer(EntryPage([EntryShown(**_members(EntryShown, e)) for e in found], more))


async def put_entries(call: Call) -> Response:
    """Add entries and take entries off."""
    desk, by = _desk(call), _actor(call)
    given: EntriesGiven = await call.read(_ENTRIES, EntriesGiven.__struct_fields__)
    for entry in (*given.add, *given.remove):
        desk.permit(call.principal, "edit_lists", entry.channel or "*")
    added, removed = await _run(422, lambda: _changed(desk, call.tenant, given, by))
    return answer(EntriesChanged(added, removed))


async def decision_files(call: Call) -> Response:
    """Versions of the tenant's decision files."""
    call.only_queries("channel")
    desk, channel = _desk(call), call.query("channel")
    found = await _run(404, lambda: desk.files.versions(call.tenant, channel))
    return answer(FileList([_file(version) for version in found]))


async def add_file(call: Call) -> Response:
    """Take a decision file in as draft, once it passed its checks."""
    desk, by = _desk(call), _actor(call)
    given: FileGiven = await call.read(_FILE, FileGiven.__struct_fields__)
    desk.permit(call.principal, "edit_rules", given.channel or "*")
    data = msgspec.to_builtins(given)
    channel = data.pop("channel")

    def work() -> FileVersion:
        file = decision_file.decode(data, "the decision file")
        return desk.files.add(call.tenant, channel, file, by)

    return answer(_file(await _run(422, work)), 201)


async def stage_file(call: Call) -> Response:
    """Move a version to another stage."""
    desk, channel = _desk(call), call.path("channel")
    text = call.path("number")
    given: StageGiven = await call.read(_STAGE, StageGiven.__struct_fields__)
    if given.step not in STEPS:
        hint = nearest(given.step, STEPS)
        raise ApiError(422, f"no such step{hint}; steps: {listing(STEPS)}", "step")
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ApiError(404, "a version of a decision file has a number, such as 3")
    action = {"challenge": "edit_rules", "retire": "approve"}.get(given.step, given.step)
    desk.permit(call.principal, action, channel)
    by = _actor(call) if given.step == "challenge" else _person(call)
    await _run(404, lambda: desk.files.version(call.tenant, channel, int(text)))
    move = getattr(desk.files, given.step)
    done = await _run(409, lambda: move(call.tenant, channel, int(text), by, given.note))
    return answer(_file(done))


async def decision(call: Call) -> Response:
    """A decision that was given."""
    desk, request_id = _desk(call), call.path("request_id")
    found = await _run(404, lambda: projection.find(desk.database, call.tenant, request_id))
    return answer(_given(found))


async def replay(call: Call) -> Response:
    """Replay a decision."""
    desk, request_id = _desk(call), call.path("request_id")
    await _run(404, lambda: projection.find(desk.database, call.tenant, request_id))
    found = await _run(409, lambda: desk.replay.replay(call.tenant, request_id))
    changes = [ChangeShown(c.what, c.before, c.after) for c in found.changes]
    return answer(ReplayShown(_given(found.given), found.reproduced, found.now, changes))


async def cases(call: Call) -> Response:
    """The review queue."""
    call.only_queries("state", "channel", "claimed_by", "after", "limit")
    desk, limit = _desk(call), call.number("limit", 100, 1, 1000)
    names = ("state", "channel", "claimed_by")
    state, channel, claimed_by = (call.query(name) or None for name in names)
    after = call.query("after", "") or ""
    if state is not None and state not in STATES:
        raise ApiError(422, f"no such state; states: {listing(STATES)}", "state")
    found, more = await _run(
        422, lambda: desk.cases.cases(call.tenant, state, channel, claimed_by, after, limit)
    )
    return answer(CasePage([_case(case) for case in found], more))


async def claim(call: Call) -> Response:
    """Take a case on."""
    desk, by, case = _desk(call), _person(call), call.path("id")
    found = await _run(404, lambda: desk.cases.case(call.tenant, case))
    desk.permit(call.principal, "decide", found.channel or "*")
    return answer(_case(await _run(409, lambda: desk.cases.claim(call.tenant, case, by))))


async def decide(call: Call) -> Response:
    """Decide a case, or confirm somebody else's decision."""
    desk, by, case = _desk(call), _person(call), call.path("id")
    given: Verdict = await call.read(_VERDICT, Verdict.__struct_fields__)
    found = await _run(404, lambda: desk.cases.case(call.tenant, case))
    desk.permit(call.principal, "decide", found.channel or "*")
    done = await _run(
        422, lambda: desk.cases.decide(call.tenant, case, given.outcome, by, given.note)
    )
    return answer(_case(done))


def _changed(desk: Desk, tenant: str, given: EntriesGiven, by: str) -> tuple[int, int]:
    add = [_entry(desk, tenant, one) for one in given.add]
    remove = [_entry(desk, tenant, one) for one in given.remove]
    return desk.lists.change(tenant, add, remove, by)


def _entry(desk: Desk, tenant: str, given: EntryGiven) -> Entry:
    return desk.lists.entry(
        tenant, given.list, given.kind, given.value, channel=given.channel, reason=given.reason,
        source=given.source, expires_at=given.expires_at,
    )  # fmt: skip


def _desk(call: Call) -> Desk:
    return call.runtime.decisions


def _actor(call: Call) -> str:
    return call.principal.person or f"key:{call.principal.key_id}"


def _person(call: Call) -> str:
    """Who asks; steps that a second person must take are taken by people, not machines.

    Raises:
        ApiError: 403 for a key that is no person's.
    """
    if not call.principal.person:
        raise ApiError(403, "this step needs the key of a person; the API key belongs to none")
    return call.principal.person


async def _run(status: int, work: Callable[[], T]) -> T:
    """Run slow work in a thread; what it refuses becomes an answer.

    Raises:
        ApiError: with the status, 409 where a case is not where the step starts, or 422 for a text
            that no database keeps.
    """
    try:
        return await asyncio.to_thread(work)
    except ApiError:
        raise
    except CaseConflict as exc:
        raise ApiError(409, str(exc)) from None
    except UserError as exc:
        raise ApiError(status, str(exc)) from None
    except sa.exc.DataError:
        message = "a text holds what the database cannot keep, such as a zero byte"
        raise ApiError(422, message) from None


def _members(shown: type[msgspec.Struct], value: Any) -> dict[str, Any]:
    return {
        name: list(found) if isinstance(found := getattr(value, name), tuple) else found
        for name in shown.__struct_fields__
    }


def _file(version: FileVersion) -> FileShown:
    return FileShown(**_members(FileShown, version))


def _case(case: Case) -> CaseShown:
    return CaseShown(**_members(CaseShown, case))


def _given(given: Given) -> DecisionShown:
    detail = given.detail
    shadow = detail.get("shadow") or {}
    names = set(DecisionShown.__struct_fields__) & set(Given.__dataclass_fields__)
    return DecisionShown(
        **{name: getattr(given, name) for name in names - {"rules"}},
        rules=list(given.rules), version=str(detail.get("version", "")),
        reasons=detail.get("reasons", []), actions=detail.get("actions", []),
        lists=detail.get("lists", []), limit=detail.get("limit"), price=detail.get("price"),
        shadow_version=str(shadow.get("version", "")),
        shadow_outcome=str(shadow.get("outcome", "")),
    )  # fmt: skip


_PAGED = (
    Parameter(name="after", description="`next` of the page before."),
    Parameter(name="limit", description="How many at most; 100.", kind=_LIMIT),
)

OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/lists",
        name="listEntries",
        scope="decide",
        summary="Entries of the black, grey and white lists, as keyed hashes.",
        answer=EntryPage,
        handler=list_entries,
        parameters=(
            Parameter(name="list", description="black, grey or white."),
            Parameter(name="kind", description="entity, or a profile or context field."),
            *_PAGED,
        ),
        errors=(404,),
    ),
    Operation(
        method="PUT",
        path="/v1/lists",
        name="putEntries",
        scope="decide",
        summary="Add entries to lists and take entries off; effective within a second.",
        answer=EntriesChanged,
        handler=put_entries,
        request=EntriesGiven,
    ),
    Operation(
        method="GET",
        path="/v1/decision-files",
        name="decisionFiles",
        scope="admin",
        summary="Versions of the decision files and their stages.",
        answer=FileList,
        handler=decision_files,
        parameters=(Parameter(name="channel", description="Only of this channel."),),
        errors=(404,),
    ),
    Operation(
        method="POST",
        path="/v1/decision-files",
        name="addDecisionFile",
        scope="admin",
        summary="Hand a decision file in; taken as draft if it passes its own test cases.",
        answer=FileShown,
        handler=add_file,
        request=FileGiven,
        status=201,
    ),
    Operation(
        method="POST",
        path="/v1/decision-files/{channel}/{number}/stage",
        name="stageDecisionFile",
        scope="admin",
        summary="Make a version challenger or champion, retire it or bring it back.",
        answer=FileShown,
        handler=stage_file,
        request=StageGiven,
        errors=(409,),
    ),
    Operation(
        method="GET",
        path="/v1/decisions/{request_id}",
        name="decision",
        scope="read",
        summary="The decision given on a request.",
        answer=DecisionShown,
        handler=decision,
    ),
    Operation(
        method="POST",
        path="/v1/decisions/{request_id}/replay",
        name="replay",
        scope="decide",
        summary="Replay a decision: it is reproduced, or what changed is named.",
        answer=ReplayShown,
        handler=replay,
        errors=(409,),
    ),
    Operation(
        method="GET",
        path="/v1/cases",
        name="cases",
        scope="decide",
        summary="The review queue, oldest first.",
        answer=CasePage,
        handler=cases,
        parameters=(
            Parameter(name="state", description="open, claimed, second_look, decided, expired."),
            Parameter(name="channel", description="Only of this channel."),
            Parameter(name="claimed_by", description="Only claimed by this person."),
            *_PAGED,
        ),
    ),
    Operation(
        method="POST",
        path="/v1/cases/{id}/claim",
        name="claimCase",
        scope="decide",
        summary="Take a case on.",
        answer=CaseShown,
        handler=claim,
        errors=(409,),
    ),
    Operation(
        method="POST",
        path="/v1/cases/{id}/decide",
        name="decideCase",
        scope="decide",
        summary="Approve or refuse a case one has claimed, or take the second look.",
        answer=CaseShown,
        handler=decide,
        request=Verdict,
        errors=(409,),
    ),
)
