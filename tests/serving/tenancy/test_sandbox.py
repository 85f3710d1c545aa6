"""Sandbox keys get fixed, marked answers; other keys never do."""

from __future__ import annotations

import pytest

from serving.messages import CODES, ApiError
from serving.tenancy.sandbox import ENTITIES, ERRORS, sandbox_answer
from tests.serving.tenancy.small_hosting import caller

SANDBOX = caller(sandbox=True)


def test_every_test_entity_answers_the_same_and_says_what_it_is() -> None:
    for entity in ENTITIES:
        answer = sandbox_answer(SANDBOX, entity)
        assert answer is not None and answer == sandbox_answer(SANDBOX, entity)
        assert answer.entity_id == entity and answer.flags[0] == "sandbox"
        assert 0 <= answer.score <= 1 and answer.package == "sandbox" and answer.reasons
        assert sandbox_answer(caller(), entity) is None
    outcomes = {e.removeprefix("test_"): a.outcome for e, a in ENTITIES.items()}
    assert {k: outcomes[k] for k in ("approve", "review", "refuse")} == {
        k: k for k in ("approve", "review", "refuse")
    }
    plain = sandbox_answer(SANDBOX, "test_thin", reasons=False)
    assert plain is not None and plain.reasons == () and "thin_history" in plain.flags
    ordered = sorted(ENTITIES.values(), key=lambda a: a.score)
    assert [a.points for a in ordered] == sorted((a.points for a in ordered), reverse=True)


@pytest.mark.parametrize("entity", ERRORS)
def test_errors_on_demand(entity: str) -> None:
    with pytest.raises(ApiError, match=r"^sandbox: ") as found:
        sandbox_answer(SANDBOX, entity)
    assert entity.endswith(str(found.value.status)) and found.value.status in CODES
    assert ("Retry-After" in found.value.headers) == (found.value.status in (429, 503))
    assert sandbox_answer(caller(), entity) is None


def test_a_real_customer_is_refused_and_not_repeated() -> None:
    with pytest.raises(ApiError, match="test entities only: test_approve") as found:
        sandbox_answer(SANDBOX, "62220219900101")
    assert found.value.status == 422 and "62220219900101" not in str(found.value)
    with pytest.raises(ApiError, match="did you mean 'test_approve'"):
        sandbox_answer(SANDBOX, "test_aprove")
