"""From a read request to its answer: who answers, the score, the decision, the log, the shadows.

The order matters. What is refused costs the tenant nothing; a decision stands in the log before
anybody hears of it; releases in shadow see a request after it was answered.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
from serving.requests import ScoringInput
from serving.routes.call import Call
from serving.tenancy.sandbox import SandboxAnswer, sandbox_answer

if TYPE_CHECKING:
    from finetune.package import ScoreRow


@dataclass(frozen=True)
class Answered:
    """An answer, and the line of the decision log that is on its way to the disk."""

    answer: ScoreAnswer
    written: Future[None] | None = None


def target(call: Call, envelope: Envelope) -> tuple[Loaded, str]:
    """The release that answers a request, and the keyed hash of its customer.

    Raises:
        ApiError: 404, 422 or 503; see `Deployments.pick`.
    """
    entity = call.runtime.hasher.hash(call.tenant, envelope.entity_id)
    loaded = call.runtime.deployments.pick(call.tenant, envelope.channel, envelope.package, entity)
    return loaded, entity


def sandbox(call: Call, envelope: Envelope, request_id: str) -> Answered | None:
    """The answer of a sandbox key about a test entity; None for every other key.

    Raises:
        ApiError: what the test entity stands for, or 422 for any other.
    """
    found = sandbox_answer(call.principal, envelope.entity_id, envelope.reasons)
    return None if found is None else Answered(_sandboxed(found, envelope, request_id))


def answered(
    call: Call,
    loaded: Loaded,
    envelope: Envelope,
    entity: str,
    scored: Scored,
    request_id: str,
    once: str | None = None,
) -> Answered:
    """Decide on a score, hand the decision to the log and make the answer.

    Args:
        entity: keyed hash of the customer.
        once: equal for a request and its repetition under one idempotency key.
    Raises:
        Unwritable: the log cannot be written, so there is no answer either.
    """
    runtime, row, given = call.runtime, scored.row, scored.request
    flags = flags_of(loaded, scored)
    manifest = loaded.manifest
    facts = facts_of(envelope, row, manifest, flags, loaded.release)
    decision = runtime.decisions.decider.decide(call.tenant, loaded.channel, facts)
    record = _line(call, loaded, given, row, request_id) | decision.logged()
    record |= {"flags": flags or None, "once": once}
    if given.history is not None:
        record["decision"] |= {"history": given.history.version}
    waits = runtime.settings.audit_durable or call.begun is not None
    written = runtime.audit.append(record, envelope.entity_id, waits)
    runtime.metrics.scored(loaded.id, row.score, scored.seconds)
    runtime.shadow.offer(loaded, envelope, scored, request_id, entity)
    return Answered(
        ScoreAnswer(
            request_id=request_id,
            package=package_ref(loaded),
            entity_id=envelope.entity_id,
            as_of=given.as_of,
            score=float(row.score),
            points=int(row.points),
            band=row.band,
            decision=decided(decision),
            reasons=[ReasonAnswer(r.name, r.title, r.value, float(r.effect)) for r in row.reasons],
            forecasts={name: float(value) for name, value in row.forecasts.items()},
            events=EventCounts(given.used, given.ignored),
            flags=flags,
            history=given.history,
        ),
        written,
    )


def _line(
    call: Call, loaded: Loaded, given: ScoringInput, row: ScoreRow, request_id: str
) -> dict[str, Any]:
    return {
        "tenant": call.tenant,
        "key_id": call.principal.key_id,
        "request_id": request_id,
        "route": call.route,
        "channel": loaded.channel,
        "release": loaded.release or None,
        "package": loaded.id,
        "digest": loaded.digest,
        "as_of": given.as_of,
        "score": float(row.score),
        "points": int(row.points),
        "band": row.band,
    }


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


def queried(call: Call, loaded: Loaded, scored: Scored) -> dict[str, Any]:
    """The line of the decision log for forecasts: who asked about whom, and what answered."""
    return {
        "tenant": call.tenant,
        "key_id": call.principal.key_id,
        "request_id": call.request_id,
        "route": call.route,
        "channel": loaded.channel,
        "release": loaded.release or None,
        "package": loaded.id,
        "digest": loaded.digest,
        "as_of": scored.request.as_of,
        "once": call.once(),
    }


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
