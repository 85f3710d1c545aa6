"""Lists: keyed hashes only, history, CSV, expiry, and how soon a change holds."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from foundation.errors import DataError, UserError
from serving.database import Database
from serving.decisions.decider import POLL_SECONDS, Decider
from serving.decisions.lists import ListBook, spelled
from serving.decisions.tables import list_entries, list_history
from tests.serving.decisions.small_desk import facts, hasher


def test_an_entry_hits_where_it_counts_and_is_kept_as_a_hash(database: Database) -> None:
    book, decider = ListBook(database, hasher), Decider(database, hasher, poll=0)
    anna = book.entry("acme", "black", "entity", " anna ", reason="fraud", source="police")
    phone = book.entry("acme", "grey", "phone", "138", channel="cards")
    number = book.entry("acme", "white", "device", "7")
    assert book.add("acme", [anna, phone, number], "Eve") == 3
    assert book.add("acme", [anna, phone, number], "eve") == 0
    decider.refresh()
    found = facts(entity="anna", context={"phone": "138 ", "device": 7.0})
    assert decider.hits("acme", "cards", found) == ("black:entity", "grey:phone", "white:device")
    assert decider.hits("acme", "loans", found) == ("black:entity", "white:device")
    assert decider.hits("other", "cards", found) == ()
    assert decider.hits("acme", "cards", facts(entity="138")) == ()
    with database.reading() as connection:
        kept = str(connection.execute(sa.select(list_entries)).all())
        kept += str(connection.execute(sa.select(list_history)).all())
    assert "anna" not in kept
    assert "138" not in {row.hash for row in book.entries("acme")[0]}


def test_history_is_append_only_and_says_who(database: Database) -> None:
    book = ListBook(database, hasher)
    first = book.entry("acme", "black", "entity", "c1", reason="a")
    book.add("acme", [first], "eve")
    book.add("acme", [book.entry("acme", "black", "entity", "c1", reason="b")], "zoe")
    assert book.change("acme", [], [first], "eve") == (0, 1)
    assert book.change("acme", [], [first], "eve") == (0, 0)
    rows = list(reversed(book.history("acme")))
    assert [(r["who"], r["action"], r["reason"]) for r in rows] == [
        ("eve", "added", "a"), ("zoe", "changed", "b"), ("eve", "removed", "a"),
    ]  # fmt: skip
    assert book.history("other") == []
    for statement in (list_history.delete(), list_history.update().values(who="x")):
        with pytest.raises(sa.exc.DBAPIError, match="append-only"), database.transaction() as c:
            c.execute(statement)


def test_an_entry_expires(database: Database) -> None:
    book, decider = ListBook(database, hasher), Decider(database, hasher, poll=0)
    book.add("acme", [book.entry("acme", "black", "entity", "old", expires_at="2020-01-01"),
                      book.entry("acme", "black", "entity", "new", expires_at="2090-01-01")],
             "eve")  # fmt: skip
    decider.refresh()
    assert decider.hits("acme", "cards", facts(entity="old")) == ()
    assert decider.hits("acme", "cards", facts(entity="new")) == ("black:entity",)


def test_a_change_holds_in_every_worker_within_a_second(database: Database) -> None:
    assert POLL_SECONDS < 1
    workers = [Decider(database, hasher) for _ in range(2)]
    try:
        book = ListBook(database, hasher)
        book.add("acme", [book.entry("acme", "black", "entity", "c1")], "eve")
        begin = time.monotonic()
        waiting = list(workers)
        while waiting and time.monotonic() - begin < 60:
            waiting = [w for w in waiting if not w.hits("acme", "cards", facts())]
            time.sleep(0.01)
        assert not waiting
        assert workers[0].decide("acme", "cards", facts(650)).outcome == "refuse"
    finally:
        for worker in workers:
            worker.close()


def test_csv_rows_are_judged_one_by_one(tmp_path: Path, database: Database) -> None:
    book, path = ListBook(database, hasher), tmp_path / "list.csv"
    path.write_text(
        "kind,value,reason,expires_at\nphone,138,fraud,\nphone,,x,\nphone,139,x,soon\n"
        "ph one,1,x,\nphone,1\nentity,c9,,2030-01-01\n"
    )
    entries, errors = book.read_csv("acme", "black", path)
    assert [e.kind for e in entries] == ["phone", "entity"]
    lines = [error.split(": ")[0].rpartition(" ")[2] for error in errors]
    assert lines == ["3", "4", "5", "6"]
    assert "138" not in str(errors)
    path.write_text("kind,valu\nphone,1\n")
    with pytest.raises(DataError, match="did you mean 'value'"):
        book.read_csv("acme", "black", path)
    with pytest.raises(DataError, match="cannot be read"):
        book.read_csv("acme", "black", tmp_path / "none.csv")


def test_pages_hold_every_entry_once(database: Database) -> None:
    book = ListBook(database, hasher)
    entries = [book.entry("acme", w, "entity", f"c{i}") for i in range(7) for w in
               ("black", "grey")]  # fmt: skip
    book.add("acme", entries, "eve")
    book.add("other", [book.entry("other", "black", "entity", "c0")], "eve")
    seen, after = [], ""
    for _ in range(20):
        found, after = book.entries("acme", after=after, limit=3)
        seen += [(e.hash, e.list) for e in found]
        if not after:
            break
    assert len(seen) == len(set(seen)) == 14


@pytest.mark.parametrize(
    ("which", "kind", "value", "said"),
    [
        ("blak", "entity", "c", "did you mean 'black'"),
        ("black", "a b", "c", "entity, or the name of a profile"),
        ("black", "entity", "  ", "1 to 256"),
    ],
)
def test_a_wrong_entry_is_refused(
    tmp_path: Path, which: str, kind: str, value: str, said: str
) -> None:
    book = ListBook(Database(f"sqlite:///{tmp_path}/test.db"), hasher)
    with pytest.raises(UserError, match=said):
        book.entry("acme", which, kind, value)


def test_values_are_spelled_as_requests_spell_them() -> None:
    assert [spelled(v) for v in (1, 1.0, True, " a ", 1.5)] == ["1", "1", "true", "a", "1.5"]
