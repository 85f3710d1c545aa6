"""Test entities of sandbox keys: fixed answers, marked as such, without a model and without a bill.

A sandbox key scores nothing else, and no other key gets these answers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from foundation.errors import listing, nearest
from serving.messages import ApiError
from serving.tenancy.metering import SANDBOX
from serving.tenancy.principal import Principal

PACKAGE = "sandbox"


@dataclass(frozen=True)
class SandboxReason:
    """As `serving.messages.ReasonAnswer`."""

    name: str
    title: str
    value: str
    effect: float


@dataclass(frozen=True)
class SandboxAnswer:
    """What a scoring route answers for a test entity.

    Attributes:
        score: probability of label 1.
        outcome: approve, review or refuse.
        flags: always begins with `sandbox`.
        package: stands where the package's id would.
    """

    entity_id: str
    score: float
    points: int
    band: str
    outcome: str
    reasons: tuple[SandboxReason, ...] = ()
    flags: tuple[str, ...] = (SANDBOX,)
    events_used: int = 12
    package: str = PACKAGE


_LATE = SandboxReason("statement.status", "late payments", "2", 0.9)
_STEADY = SandboxReason("statement.status", "paid in time", "0", -0.7)
_THIN = SandboxReason("history.events", "little history", "0", 0.2)
ENTITIES = {
    "test_approve": SandboxAnswer("test_approve", 0.02, 680, "A", "approve", (_STEADY,)),
    "test_review": SandboxAnswer("test_review", 0.15, 590, "C", "review", (_LATE,)),
    "test_refuse": SandboxAnswer("test_refuse", 0.62, 480, "E", "refuse", (_LATE,)),
    "test_thin": SandboxAnswer(
        "test_thin", 0.1, 620, "B", "review", (_THIN,), (SANDBOX, "thin_history"), 0
    ),
    "test_stale": SandboxAnswer(
        "test_stale", 0.1, 620, "B", "review", (_STEADY,), (SANDBOX, "stale_history")
    ),
}
# Status, sentence, headers.
ERRORS: dict[str, tuple[int, str, dict[str, str]]] = {
    "test_error_422": (422, "sandbox: the request is at fault", {}),
    "test_error_429": (429, "sandbox: too many requests", {"Retry-After": "2"}),
    "test_error_500": (500, "sandbox: an internal fault", {}),
    "test_error_503": (503, "sandbox: the service is not available", {"Retry-After": "2"}),
}


def sandbox_answer(
    principal: Principal, entity_id: str, reasons: bool = True
) -> SandboxAnswer | None:
    """The fixed answer about a test entity.

    Args:
        reasons: whether the request asked for them.
    Returns:
        None for a key that is none of a sandbox: it is scored as always.
    Raises:
        ApiError: what a test entity stands for, or 422 for any other entity.
    """
    if not principal.sandbox:
        return None
    if entity_id in ERRORS:
        status, message, headers = ERRORS[entity_id]
        raise ApiError(status, message, "entity_id" if status == 422 else "", dict(headers))
    answer = ENTITIES.get(entity_id)
    if answer is None:
        known = (*ENTITIES, *ERRORS)
        hint = nearest(entity_id, known) if entity_id.startswith("test_") else ""
        raise ApiError(
            422, f"a sandbox key knows test entities only{hint}: {listing(known)}", "entity_id"
        )
    return answer if reasons else replace(answer, reasons=())
