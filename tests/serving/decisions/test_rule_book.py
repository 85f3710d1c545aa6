"""Stages of decision files: two people, one champion, shadow, rollback, history."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from foundation.errors import ConfigError, UserError
from serving.database import Database
from serving.decisions.decider import Decider
from serving.decisions.decision_file import decode
from serving.decisions.rule_book import RuleBook
from serving.decisions.tables import file_history, files
from tests.serving.decisions.small_desk import TESTS, facts, file, graph, hasher


def test_a_file_goes_through_its_stages(database: Database) -> None:
    book, decider = RuleBook(database), Decider(database, hasher, poll=0)
    first = book.add("acme", "cards", file(600), "Anna ")
    assert book.add("acme", "cards", file(600), "zoe") == first
    assert (first.stage, first.number, first.maker) == ("draft", 1, "anna")
    with pytest.raises(UserError, match="acme/cards/1 is draft; only a challenger"):
        book.approve("acme", "cards", 1, "ben")
    book.challenge("acme", "cards", 1, "anna")
    decider.refresh()
    shadowed = decider.decide("acme", "cards", facts(650))
    assert (shadowed.version, shadowed.outcome) == ("default", "approve")
    assert shadowed.shadow is not None
    assert shadowed.shadow.version == first.digest
    with pytest.raises(UserError, match="anna handed in acme/cards/1 and may not approve it"):
        book.approve("acme", "cards", 1, " ANNA")
    assert book.approve("acme", "cards", 1, "ben", "fine").approved_by == "ben"
    second = book.add("acme", "cards", file(500), "anna")
    book.challenge("acme", "cards", second.number, "anna")
    decider.refresh()
    both = decider.decide("acme", "cards", facts(550))
    assert both.shadow is not None
    assert (both.outcome, both.shadow.outcome) == ("review", "approve")
    assert both.logged()["decision"]["shadow"] == {
        "version": second.digest, "outcome": "approve", "rules": ["high"],
    }  # fmt: skip
    book.approve("acme", "cards", 2, "ben")
    decider.refresh()
    assert decider.decide("acme", "cards", facts(550)).outcome == "approve"
    assert decider.decide("acme", "cards", facts(550)).shadow is None
    back = book.rollback("acme", "cards", None, "zoe")
    assert (back.number, back.stage) == (1, "champion")
    assert book.rollback("acme", "cards", None, "zoe") == back
    decider.refresh()
    assert decider.decide("acme", "cards", facts(550)).version == first.digest
    assert [r["action"] for r in book.history("acme", "cards")] == [
        "added", "challenger", "approved", "added", "challenger", "retired", "approved",
        "retired", "rolled back",
    ]  # fmt: skip


def test_tenants_and_channels_do_not_meet(database: Database) -> None:
    book, decider = RuleBook(database), Decider(database, hasher, poll=0)
    book.add("acme", "cards", file(), "anna")
    book.challenge("acme", "cards", 1, "anna")
    book.approve("acme", "cards", 1, "ben")
    decider.refresh()
    assert decider.decide("acme", "cards", facts()).version == file().digest
    for tenant, channel in (("acme", "loans"), ("other", "cards")):
        assert decider.decide(tenant, channel, facts()).version == "default"
        assert book.file(tenant, channel, file().digest) is None
    assert book.versions("other") == []
    with pytest.raises(UserError, match="did you mean 'cards'"):
        book.version("acme", "card", 1)


def test_one_challenger_and_who_may_retire(database: Database) -> None:
    book = RuleBook(database)
    for high in (600, 610):
        book.add("acme", "cards", file(high), "anna")
    book.challenge("acme", "cards", 1, "anna")
    book.challenge("acme", "cards", 2, "anna")
    assert [v.stage for v in book.versions("acme")] == ["draft", "challenger"]
    book.approve("acme", "cards", 2, "ben")
    with pytest.raises(UserError, match="a different person must retire it"):
        book.retire("acme", "cards", 2, "anna")
    assert book.retire("acme", "cards", 1, "anna").stage == "retired"
    with pytest.raises(UserError, match="never was champion"):
        book.rollback("acme", "cards", 1, "ben")
    assert book.retire("acme", "cards", 2, "ben").stage == "retired"


def test_the_database_refuses_what_the_program_would(database: Database) -> None:
    book = RuleBook(database)
    for high in (600, 610):
        book.add("acme", "cards", file(high), "anna")
    with pytest.raises(sa.exc.IntegrityError), database.transaction() as connection:
        connection.execute(files.update().values(stage="champion"))
    with pytest.raises(sa.exc.DBAPIError, match="append-only"), database.transaction() as c:
        c.execute(file_history.delete())


def test_a_file_that_fails_its_cases_is_not_taken(database: Database) -> None:
    decision = graph()
    decision["nodes"][1]["content"]["rules"][1]["p"] = "< 100"
    bad = decode({"decision": decision, "tests": TESTS[:1]}, "file")
    with pytest.raises(ConfigError, match="test 'low': expected refuse, found review"):
        RuleBook(database).add("acme", "cards", bad, "anna")
    assert RuleBook(database).versions("acme") == []


def test_a_stored_file_that_no_longer_compiles_goes_to_review(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    book = RuleBook(database)
    book.add("acme", "cards", file(), "anna")
    book.challenge("acme", "cards", 1, "anna")
    book.approve("acme", "cards", 1, "ben")
    with database.transaction() as connection:
        broken = file().content().replace("decisionTableNode", "functionNode")
        connection.execute(files.update().values(content=broken))
    decision = Decider(database, hasher, poll=0).decide("acme", "cards", facts(650))
    assert (decision.outcome, decision.rules) == ("review", ("failed",))
    assert "does not compile" in caplog.text
