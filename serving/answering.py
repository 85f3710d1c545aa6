"""From a read request to its answer: who answers, the score, the decision, the log, the shadows.

The order matters. What is refused costs the tenant nothing; a decision stands in the log before
anybody hears of it; releases in shadow see a request after it was answered.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from serving.decisions.facts import Decision
from serving.decisions.rescoring import facts_of
from serving.messages import (
    DecisionAnswer,
    Envelope,
    EventCounts,
    PackageRef,
    ReasonAnswer,
    ScoreAnswer,
)
from serving.models.loaded import Loaded, Scored, announce
from serving.routes.call import Call
from serving.tenancy.sandbox import SandboxAnswer, sandbox_answer


def target(call: Call, envelope: Envelope) -> tuple[Loaded, str]:
    """The release that answers a request, and the keyed hash of its customer.

    Raises:
        ApiError: 404, 422 or 503; see `Deployments.pick`.
    """
    entity = call.runtime.hasher.hash(call.tenant, envelope.entity_id)
    loaded = call.runtime.deployments.pick(call.tenant, envelope.channel, envelope.package, entity)
    return loaded, entity


def sandbox(call: Call, envelope: Envelope, row: int | None = None) -> ScoreAnswer | None:
    """The answer of a sandbox key about a test entity; None for every other key.

    Args:
        row: of a batch.
    Raises:
        ApiError: what the test entity stands for, or 422 for any other.
    """
    found = sandbox_answer(call.principal, envelope.entity_id, envelope.reasons)
    return None if found is None else _sandboxed(found, envelope, call.id_of(row))


def answered(
    call: Call,
    loaded: Loaded,
    envelope: Envelope,
    entity: str,
    scored: Scored,
    body: bytes,
    row: int | None = None,
) -> ScoreAnswer:
    """Decide on a score, write the decision down and make the answer.

    The line is on its way to the disk then; who has to wait for it calls `on_disk`.

    Args:
        entity: keyed hash of the customer.
        body: what was asked, kept for replay where the service keeps bodies.
        row: of a batch; its request id is the batch's with the row.
    Raises:
        Unwritable: the log cannot be written, so there is no answer either.
    """
    runtime, score, given = call.runtime, scored.row, scored.request
    request_id, flags = call.id_of(row), flags_of(loaded, scored)
    facts = facts_of(envelope, score, loaded.manifest, flags, loaded.release)
    decision = runtime.decisions.decider.decide(call.tenant, loaded.channel, facts)
    said: dict[str, Any] = {
        "score": float(score.score), "points": int(score.points), "band": score.band,
        "flags": flags or None,
    } | decision.logged()  # fmt: skip
    if given.history is not None:
        said["decision"] |= {"history": given.history.version}
    _write(call, loaded, envelope, scored, said, row)
    if runtime.decisions.inputs is not None:
        runtime.decisions.inputs.keep(call.tenant, request_id, entity, body)
    runtime.metrics.scored(loaded.id, score.score, scored.seconds)
    runtime.shadow.offer(loaded, envelope, scored, request_id, entity)
    reasons = [ReasonAnswer(r.name, r.title, r.value, float(r.effect)) for r in score.reasons]
    return ScoreAnswer(
        request_id=request_id,
        package=package_ref(loaded),
        entity_id=envelope.entity_id,
        as_of=given.as_of,
        score=float(score.score),
        points=int(score.points),
        band=score.band,
        decision=decided(decision),
        reasons=reasons,
        forecasts={name: float(value) for name, value in score.forecasts.items()},
        events=EventCounts(given.used, given.ignored),
        flags=flags,
        history=given.history,
    )


def queried(call: Call, loaded: Loaded, envelope: Envelope, scored: Scored) -> None:
    """Write down that forecasts were given: who asked about whom, and what answered.

    Raises:
        Unwritable: the log cannot be written, so they may not be given.
    """
    _write(call, loaded, envelope, scored, {})


def _write(
    call: Call,
    loaded: Loaded,
    envelope: Envelope,
    scored: Scored,
    said: dict[str, Any],
    row: int | None = None,
) -> None:
    """Hand a line to the decision log; `call.written` tells when it is on the disk."""
    record = {
        "tenant": call.tenant,
        "key_id": call.principal.key_id,
        "request_id": call.id_of(row),
        "route": call.route,
        "channel": loaded.channel,
        "release": loaded.release or None,
        "package": loaded.id,
        "digest": loaded.digest,
        "as_of": scored.request.as_of,
        "once": call.once(row or 0),
    } | said
    call.written.append(call.runtime.audit.append(record, envelope.entity_id, waits(call)))


def waits(call: Call) -> bool:
    """Whether the answer is given only once its lines stand on the disk."""
    return call.runtime.settings.audit_durable or call.begun is not None


async def on_disk(call: Call) -> None:
    """Wait for the request's lines where the answer waits for them; see `waits`.

    Raises:
        Unwritable: they could not be written.
    """
    if waits(call):
        await call.logged()


@contextmanager
def spent(call: Call, loaded: Loaded, units: int = 1) -> Iterator[None]:
    """Count scores against the tenant's quotas; taken back where none was given.

    Raises:
        ApiError: 429 where the quota is used up.
    """
    quotas = call.runtime.front.quotas
    call.headers |= quotas.spend(call.tenant, loaded.channel, units)
    try:
        yield
    except BaseException:
        quotas.refund(call.tenant, loaded.channel, units)
        raise


def flags_of(loaded: Loaded, scored: Scored) -> list[str]:
    """What a reader of the answer should know, each flag once."""
    return list(dict.fromkeys((*scored.row.flags, *scored.request.flags, *announce(loaded))))


def package_ref(loaded: Loaded) -> PackageRef:
    """Which package answered."""
    name = str(loaded.manifest.get("name", ""))
    return PackageRef(
        loaded.id, name, loaded.channel, loaded.digest, loaded.release, loaded.backbone
    )


def decided(decision: Decision) -> DecisionAnswer:
    """A decision as it is answered; what the challenger would have said stays in the log."""
    return DecisionAnswer(
        decision.outcome,
        list(decision.reasons),
        list(decision.rules),
        list(decision.actions),
        decision.version,
        decision.limit,
        decision.price,
    )


def _sandboxed(found: SandboxAnswer, envelope: Envelope, request_id: str) -> ScoreAnswer:
    return ScoreAnswer(
        request_id=request_id,
        package=PackageRef(found.package, found.package, envelope.channel or "", found.package),
        entity_id=found.entity_id,
        as_of=envelope.as_of or "",
        score=found.score,
        points=found.points,
        band=found.band,
        decision=DecisionAnswer(found.outcome, [], [], [], found.package),
        reasons=[ReasonAnswer(r.name, r.title, r.value, r.effect) for r in found.reasons],
        forecasts={},
        events=EventCounts(found.events_used, 0),
        flags=list(found.flags),
    )
