"""Clocks that jump: orders follow what happened, not what the clock said."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.database import Database
from serving.jobs import JobBook
from serving.registry import Registry
from serving.registry_tables import metadata
from tests.serving.fake_clock import Clock
from tests.serving.installed_packages import install

HOURS = st.lists(st.sampled_from([-744, -1, 0, 1, 744]), min_size=3, max_size=6)


@given(HOURS)
def test_jobs_and_their_log_keep_the_order_of_what_happened(
    tmp_path_factory: pytest.TempPathFactory, hours: list[int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock(patch)
        book = JobBook(Database(f"sqlite:///{tmp_path_factory.mktemp('b')}/registry.db", metadata))
        ids = []
        for n, by in enumerate(hours):
            clock.jump(hours=by)
            ids.append(book.add("acme", "cards", {"n": n}, "anna")[0].id)
        assert [job.id for job in book.all()] == ids
        for job in ids:
            found = book.next()
            assert found is not None and found.id == job
            assert book.begin(job, 1, "received")
            clock.jump(hours=-1)
            assert book.get(job).seconds >= 0
            assert book.next().id == job  # type: ignore[union-attr]
            book.end(job, 1, "done", "", 0)
            assert book.get(job).seconds >= 0
            texts = [text for _, text in book.log(job)]
            assert texts == ["handed in by anna", "step received", "done"]
        assert book.next() is None


def test_history_champion_and_rollback_follow_the_order_of_deeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    registry = Registry(Database(f"sqlite:///{tmp_path}/registry.db", metadata), tmp_path)
    registry.set_channel("acme", "cards", {"store": "s"}, "root")
    for mark, by in (("one", 0), ("two", -744), ("three", 1488)):
        clock.jump(hours=by)
        made = registry.submit("acme", "cards", install(tmp_path, mark), f"job-{mark}", "anna")
        clock.jump(hours=-1)
        registry.challenge(made.id, "anna")
        clock.jump(hours=-1)
        registry.approve(made.id, "bob")
    assert [r.id for r in registry.releases()] == [f"acme/cards/{n}" for n in (1, 2, 3)]
    clock.jump(days=-62)
    back = registry.rollback("acme", "cards", None, "carol")
    assert back.id == "acme/cards/2"  # the champion before the last approval, whatever it says
    again = registry.rollback("acme", "cards", None, "carol")
    assert again.id == "acme/cards/2"
    rows = registry.history("acme", "cards")
    deeds = [r["action"] for r in rows if r["release"] == "acme/cards/3"]
    assert deeds == ["submitted", "challenger", "approved", "retired"]
    assert [r["seq"] for r in rows] == sorted(r["seq"] for r in rows)
