"""A past decision is reproduced, or what changed is named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundation.errors import ArtifactError, UserError
from serving.database import Database
from serving.decisions.inputs import Inputs
from serving.decisions.replay import Replay, Rescored, replay_lines
from serving.decisions.rescoring import PackageAgain, facts_of, rescorer
from serving.decisions.tables import inputs
from serving.messages import Envelope
from tests.serving.decisions.small_desk import Small, facts, file, rescore, small
from tests.serving.fake_package import Package, write_package


def changes(desk: Small, request: str = "r1") -> tuple[bool | None, str, list[str]]:
    desk.desk.decider.refresh()
    found = desk.desk.replay.replay("acme", request)
    return found.reproduced, found.now, [change.what for change in found.changes]


def test_nothing_changed(desks: Small) -> None:
    desks.crown(file())
    desks.decide("r1", facts(550, context={"device": "d7"}))
    desks.take_in()
    assert changes(desks) == (True, "review", [])
    with pytest.raises(UserError, match="no decision has this request id"):
        desks.desk.replay.replay("other", "r1")


def test_every_change_is_named(desk: Small) -> None:
    desk.crown(file(600))
    lists = desk.desk.lists
    desk.decide("r1", facts(550, context={"device": "d7"}))
    desk.take_in()
    desk.crown(file(540))
    assert changes(desk) == (True, "approve", ["decision file"])
    lists.add("acme", [lists.entry("acme", "black", "device", "d7"),
                       lists.entry("acme", "black", "device", "d8"),
                       lists.entry("acme", "black", "device", "d7", channel="loans")],
              "eve")  # fmt: skip
    reproduced, now, what = changes(desk)
    assert (reproduced, now) == (True, "refuse")
    assert what == ["decision file", "black list", "list hits"]

    def other(tenant: str, body: bytes, given: Any) -> Rescored:
        assert rescore(tenant, body, given).digest == given.digest
        return Rescored(facts(450), "d2")

    book = desk.desk
    replay = Replay(book.database, book.decider, lists, book.files, book.inputs, other)
    found = replay.replay("acme", "r1")
    assert found.reproduced is False
    assert [c.what for c in found.changes if c.what in ("package", "outcome")] == [
        "package", "outcome",
    ]  # fmt: skip
    text = "\n".join(replay_lines(found))
    assert "changed: package: d2 (was d1)" in text
    assert "changed: outcome: refuse (was review)" in text
    erased = desk.hash("acme", "c1")
    desk.desk.erase("acme", erased, "c1")
    reproduced, now, what = changes(desk)
    assert (reproduced, now) == (None, "")
    assert what == ["decision file", "inputs"]


def test_a_list_hit_of_then_counts_although_the_entry_is_gone(desk: Small) -> None:
    desk.crown(file())
    lists = desk.desk.lists
    entry = lists.entry("acme", "black", "entity", "c1")
    lists.add("acme", [entry], "eve")
    desk.desk.decider.refresh()
    assert desk.decide("r1", facts(650)).outcome == "refuse"
    desk.take_in()
    lists.change("acme", [], [entry], "eve")
    assert changes(desk) == (True, "approve", ["black list", "list hits"])


def test_bodies_are_sealed_and_leave_in_time(desk: Small) -> None:
    desk.decide("r1", facts(550, context={"device": "d7"}))
    desk.take_in()
    kept, database = desk.desk.inputs, desk.desk.database
    assert kept is not None
    with database.reading() as connection:
        row = connection.execute(sa.select(inputs)).one()
    assert b"d7" not in row.blob
    assert kept.body("other", "r1") is None
    assert kept.purge() == 0
    with database.transaction() as connection:
        connection.execute(inputs.update().values(request_id="r2"))
    with pytest.raises(ArtifactError):
        kept.body("acme", "r2")
    with database.transaction() as connection:
        connection.execute(inputs.update().values(at="2020-01-01T00:00:00.000000+00:00"))
    assert kept.purge() == 1
    assert changes(desk)[2] == ["inputs"]


AS_OF = "2026-01-31T00:00:00Z"


class Loose:
    """A vault that seals nothing and fails when told to."""

    broken = False

    def seal(self, tenant: str, purpose: str, data: bytes) -> bytes:
        if self.broken:
            raise OSError("no")
        return data

    def open(self, tenant: str, purpose: str, blob: bytes) -> bytes:
        return blob


def test_a_failing_database_loses_replays_and_nothing_else(tmp_path: Path) -> None:
    vault = Loose()
    kept = Inputs(Database(f"sqlite:///{tmp_path}/test.db"), vault)
    vault.broken = True
    assert kept.keep("acme", "r1", "h", b"1")
    kept.flush()
    assert kept.dropped == 1
    vault.broken = False
    for body in (b"2", b"3"):
        kept.keep("acme", "r1", "h", body)
    kept.close()
    assert kept.body("acme", "r1") == b"3"
    kept.keep("acme", "r4", "h", b"4")
    kept.close()
    assert kept.body("acme", "r4") == b"4"


def test_a_real_reader_scores_the_body_again(tmp_path: Path) -> None:
    package = Package.load(write_package(tmp_path / "packages"))
    again = PackageAgain(package, 1000, 60)
    body = json.dumps({"entity_id": "c1", "context": {"amount": 5.0}}).encode()
    envelope = msgspec.json.decode(body, type=Envelope)
    row, flags = again.again(msgspec.structs.replace(envelope, as_of=AS_OF))
    made = facts_of(envelope, row, package.manifest, [*flags, "x"])
    assert made.context == {"amount": 5.0}
    assert (made.entity_id, made.score, made.flags[-1]) == ("c1", row.score, "x")
    database = Database(f"sqlite:///{tmp_path}/test.db")
    with small(tmp_path, database) as desk:
        desk.desk.replay = Replay(
            database, desk.desk.decider, desk.desk.lists, desk.desk.files, desk.desk.inputs,
            rescorer(lambda tenant, channel, digest: again),
        )  # fmt: skip
        decision = desk.desk.decider.decide("acme", "cards", made)
        record = {
            "tenant": "acme",
            "request_id": "r1",
            "channel": "cards",
            "key_id": "k",
            "digest": package.manifest["digest"],
            "score": made.score,
            "as_of": AS_OF,
        }
        desk.log.append(record | decision.logged(), "c1").result(10)  # fmt: skip
        assert desk.desk.inputs is not None
        desk.desk.inputs.keep("acme", "r1", desk.hash("acme", "c1"), body)
        desk.desk.inputs.flush()
        desk.take_in()
        found = desk.desk.replay.replay("acme", "r1")
        assert (found.reproduced, found.now, found.changes) == (True, decision.outcome, ())


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    """One desk for many tenants."""
    folder = tmp_path_factory.mktemp("desk")
    with small(folder, Database(f"sqlite:///{folder}/test.db")) as found:
        yield found


TENANTS = (f"t{i}" for i in count())


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(
    points=st.lists(st.integers(400, 700), min_size=1, max_size=4),
    high=st.sampled_from([540, 600, 640]),
    listed=st.sets(st.integers(0, 3)),
)
def test_whatever_is_decided_is_reproduced(
    shared: Small, points: list[int], high: int, listed: set[int]
) -> None:
    tenant, lists = next(TENANTS), shared.desk.lists
    shared.crown(file(high), tenant)
    lists.add(tenant, [lists.entry(tenant, "black", "entity", f"c{i}") for i in listed], "eve")
    shared.desk.decider.refresh()
    for i, one in enumerate(points):
        shared.decide(f"r{i}", facts(float(one), f"c{i}"), tenant)
    shared.take_in()
    lists.change(tenant, [], lists.entries(tenant)[0], "eve")
    shared.crown(file(645), tenant)
    for i in range(len(points)):
        assert shared.desk.replay.replay(tenant, f"r{i}").reproduced is True
