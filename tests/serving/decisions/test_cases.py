"""From the decision log to rows and cases, exactly once; and the work on a case."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import sqlalchemy as sa

from foundation.errors import UserError
from serving.audit import follow
from serving.decisions import projection
from serving.decisions.cases import CaseConflict
from serving.decisions.projection import Projection
from serving.decisions.tables import case_history, cases, decisions, offsets
from tests.serving.decisions.small_desk import Small, facts, file

NEVER = "2020-01-01T00:00:00.000000+00:00"


def test_every_decision_is_taken_in_exactly_once(desks: Small) -> None:
    for i in range(25):
        desks.decide(f"r{i}", facts(450 + 10 * i, f"c{i}"))
    log, database = desks.log.path, desks.desk.database
    others = [Projection(database, "n1", log, follow) for _ in range(3)]
    threads = [threading.Thread(target=one.run) for one in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(25, 30):
        desks.decide(f"r{i}", facts(550, f"c{i}"))
    desks.take_in()
    with database.reading() as connection:
        rows = connection.execute(sa.select(decisions).order_by(decisions.c.seq)).all()
    assert [row.request_id for row in rows] == [f"r{i}" for i in range(30)]
    assert [row.seq for row in rows] == list(range(1, 31))
    reviews = [row for row in rows if row.outcome == "review"]
    found, _ = desks.desk.cases.cases("acme")
    assert {case.request_id for case in found} == {row.request_id for row in reviews}
    assert reviews


def test_a_death_in_between_changes_nothing(desk: Small) -> None:
    desk.decide("r1", facts(550))
    desk.decide("r2", facts(550))

    def dying(*args: Any) -> Any:
        records, end = follow(*args)
        return [*records, {"seq": "no number"}], end

    database, log = desk.desk.database, desk.log.path
    with pytest.raises(ValueError, match="invalid literal"):
        Projection(database, "n1", log, dying).run()
    with database.reading() as connection:
        assert connection.execute(sa.select(decisions)).first() is None
        assert connection.execute(sa.select(offsets)).first() is None
        assert connection.execute(sa.select(cases)).first() is None
    assert Projection(database, "n1", log, follow).run() == 2
    assert Projection(database, "n1", log, follow).run() == 0


def test_a_request_made_again_has_one_case(desk: Small) -> None:
    for request in ("r1", "r1"):
        desk.decide(request, facts(550), once="x:0")
    desk.decide("r2", facts(550), once="x:1")
    desk.decide("r1", facts(550), tenant="other", once="x:0")
    assert desk.take_in() == 4
    assert [case.id for case in desk.desk.cases.cases("acme")[0]] == ["n1.1", "n1.3"]
    assert len(desk.desk.cases.cases("other")[0]) == 1


def opened(desk: Small, review: dict[str, Any] | None = None, count: int = 1) -> list[str]:
    desk.crown(file(review=review))
    for i in range(count):
        desk.decide(f"r{i}", facts(550, f"c{i}"))
    desk.take_in()
    return [case.id for case in desk.desk.cases.cases("acme")[0]]


def test_who_claims_a_case_decides_it(desks: Small) -> None:
    [case] = opened(desks)
    book = desks.desk.cases
    assert book.case("acme", case).version == file().digest
    with pytest.raises(CaseConflict, match="the case is open; claim it first"):
        book.decide("acme", case, "approve", "eve")
    assert book.claim("acme", case, "Eve") == book.claim("acme", case, "eve")
    with pytest.raises(CaseConflict, match="claimed by eve; it cannot be claimed"):
        book.claim("acme", case, "zoe")
    with pytest.raises(CaseConflict, match="the case is claimed by eve"):
        book.decide("acme", case, "approve", "zoe")
    with pytest.raises(UserError, match="did you mean 'approve'"):
        book.decide("acme", case, "aprove", "eve")
    done = book.decide("acme", case, "approve", "eve", "called, all fine")
    assert (done.state, done.outcome, done.decided_by, done.note) == (
        "decided", "approve", "eve", "called, all fine",
    )  # fmt: skip
    with pytest.raises(CaseConflict, match="the case is decided"):
        book.decide("acme", case, "refuse", "eve")
    with pytest.raises(UserError, match="no such case"):
        book.case("other", case)
    assert [(r["who"], r["action"]) for r in book.history("acme", case)] == [
        ("riskfm", "opened"), ("eve", "claimed"), ("eve", "decided"),
    ]  # fmt: skip
    database = desks.desk.database
    with (
        pytest.raises(sa.exc.DBAPIError, match="append-only"),
        database.transaction() as connection,
    ):
        connection.execute(case_history.delete())


def test_a_second_person_looks_where_the_file_asks_for_it(desk: Small) -> None:
    first, second = opened(desk, {"second_look": ["approve"]}, 2)
    book = desk.desk.cases
    book.claim("acme", first, "eve")
    assert book.decide("acme", first, "refuse", "eve").state == "decided"
    book.claim("acme", second, "eve")
    assert book.decide("acme", second, "approve", "eve", "fine").state == "second_look"
    for step in (
        lambda: book.claim("acme", second, "eve"),
        lambda: book.decide("acme", second, "approve", " EVE "),
    ):
        with pytest.raises(CaseConflict, match="a different person must take the second look"):
            step()
    back = book.decide("acme", second, "refuse", "zoe", "look at the payslip")
    assert (back.state, back.outcome, back.claimed_by) == ("open", "", "")
    book.claim("acme", second, "zoe")
    book.decide("acme", second, "approve", "zoe")
    done = book.decide("acme", second, "approve", "eve")
    assert (done.state, done.decided_by, done.confirmed_by) == ("decided", "zoe", "eve")
    assert done.note == "fine\nlook at the payslip"


def test_a_case_expires_without_an_outcome(desk: Small) -> None:
    first, second = opened(desk, {"hours": 1}, 2)
    book = desk.desk.cases
    book.claim("acme", first, "eve")
    book.decide("acme", first, "approve", "eve")
    with desk.desk.database.transaction() as connection:
        connection.execute(cases.update().values(expires_at=NEVER))
    assert book.case("acme", first).state == "decided"
    late = book.case("acme", second)
    assert (late.state, late.outcome) == ("expired", "")
    with pytest.raises(CaseConflict, match="the case is expired"):
        book.claim("acme", second, "eve")


def test_pages_and_filters(desk: Small) -> None:
    every = opened(desk, count=7)
    book = desk.desk.cases
    book.claim("acme", every[3], "eve")
    seen, after = [], ""
    while True:
        found, after = book.cases("acme", limit=3, after=after)
        seen += [case.id for case in found]
        if not after:
            break
    assert sorted(seen) == sorted(every)
    assert [c.id for c in book.cases("acme", state="claimed", claimed_by="Eve")[0]] == [every[3]]
    assert book.cases("acme", channel="loans") == ([], "")
    assert book.cases("other") == ([], "")
    with pytest.raises(UserError, match="did you mean 'open'"):
        book.cases("acme", state="opn")
    with pytest.raises(UserError, match="page does not exist"):
        book.cases("acme", after="x")


def test_an_erased_customer_is_in_no_row(desks: Small) -> None:
    case, other = sorted(opened(desks, count=2))
    book, desk = desks.desk.cases, desks.desk
    book.claim("acme", case, "eve")
    book.decide("acme", case, "refuse", "eve", "Mrs Li did not answer")
    hashed = desks.hash("acme", "c0")
    assert desk.erase("acme", hashed, "c0") == {"inputs": 1, "cases": 1, "decisions": 1}
    assert desk.erase("acme", hashed, "c0") == {"inputs": 0, "cases": 0, "decisions": 0}
    erased = book.case("acme", case)
    assert (erased.entity, erased.note, erased.outcome) == ("", "", "refuse")
    assert book.case("acme", other).entity == desks.hash("acme", "c1")
    assert projection.find(desk.database, "acme", "r0").entity == ""
    assert desk.inputs is not None
    assert desk.inputs.body("acme", "r0") is None
    assert desk.inputs.body("acme", "r1") is not None
