"""Rollouts and shadows in the registry: who decides, what is kept, what `champions.json` says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.errors import ArtifactError, UserError
from serving import registry_tables as tables
from serving.champions import read_champions
from serving.cli import cli
from serving.database import Database
from serving.registry import Registry
from serving.releases import person
from serving.workspace import Workspace
from tests.serving.installed_packages import install

CHANNEL = ("acme", "cards")
POINTS = {"base": 600.0, "pdo": 20.0, "odds": 50.0}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """A registry with a channel."""
    return opened(tmp_path)


def opened(folder: Path, url: str = "") -> Registry:
    """The registry of a folder, a channel added."""
    url = url or f"sqlite:///{folder}/registry.db"
    made = Registry(Database(url, tables.metadata), folder)
    made.set_channel(*CHANNEL, {"store": "s"}, "root")
    return made


def challenger(registry: Registry, mark: str, maker: str = "anna", **facts: Any) -> str:
    """A release that waits for approval."""
    package = install(registry.workspace, mark) | facts
    release = registry.submit(*CHANNEL, package, f"job-{mark}", maker)
    return registry.challenge(release.id, maker).id


def entry(registry: Registry) -> dict[str, Any]:
    """What `champions.json` says about the channel."""
    return dict(json.loads((registry.workspace / "champions.json").read_text())["acme/cards"])


def test_a_rollout_is_decided_by_another_person_and_kept(registry: Registry) -> None:
    first, second = challenger(registry, "one"), challenger(registry, "two")
    with pytest.raises(UserError, match="no champion to stand beside"):
        registry.rollout(second, 10, "bob")
    registry.approve(first, "bob")
    with pytest.raises(UserError, match="anna handed in"):
        registry.rollout(second, 10, " Anna")
    registry.rollout(second, 10, "bob", "careful")
    rollout = entry(registry)["rollout"]
    assert (rollout["release"], rollout["percent"]) == (second, 10.0)
    assert entry(registry)["release"] == first
    began = rollout["since"]
    registry.rollout(second, 25, "carol")
    assert (
        entry(registry)["rollout"] | {"percent": 25.0, "since": began} == entry(registry)["rollout"]
    )
    before = registry.history(*CHANNEL)
    registry.rollout(second, 25, "carol")
    assert registry.history(*CHANNEL) == before
    assert [(r["who"], r["action"], r["why"]) for r in before[-2:]] == [
        ("bob", "rollout", "10 percent, careful"),
        ("carol", "rollout", "25 percent"),
    ]
    # A maker may stop what others decided.
    registry.rollout(second, 0, "anna", "complaints")
    assert entry(registry)["rollout"] is None
    assert registry.history(*CHANNEL)[-1]["action"] == "rollout ended"
    with registry.database.transaction() as connection:
        decided = connection.execute(sa.select(tables.approvals.c.decision)).scalars().all()
    assert decided == ["approve", "rollout", "rollout", "rollout"]


def test_what_may_not_be_rolled_out(tmp_path: Path, database_url: str) -> None:
    registry = opened(tmp_path, database_url)
    first, second, third = (challenger(registry, m) for m in ("one", "two", "three"))
    registry.approve(first, "bob")
    for percent in (-1, 99.5, 100, float("nan")):
        with pytest.raises(UserError, match="give 0 to 99"):
            registry.rollout(second, percent, "bob")
    with pytest.raises(UserError, match="is champion; only a challenger"):
        registry.rollout(first, 10, "bob")
    registry.rollout(second, 10, "bob")
    with pytest.raises(UserError, match="acme/cards/2 is rolled out"):
        registry.rollout(third, 10, "bob")
    with pytest.raises(sa.exc.IntegrityError), registry.database.transaction() as connection:
        connection.execute(
            tables.trials.insert().values(
                tenant="acme", channel="cards", release=third, kind="rollout", share=1.0, at="",
                who="x",
            )
        )  # fmt: skip
    registry.reject(third, "bob")
    with pytest.raises(UserError, match="is retired; only a challenger"):
        registry.rollout(third, 10, "bob")
    with pytest.raises(UserError, match="was rejected"):
        registry.shadow(third, 0.5, "bob")
    (registry.workspace / "packages" / registry.release(second).package / "head.onnx").unlink()
    with pytest.raises(ArtifactError, match="missing"):
        registry.rollout(second, 20, "bob")
    assert entry(registry)["rollout"]["percent"] == 10


def test_a_new_champion_ends_the_rollout(registry: Registry) -> None:
    first, second, third = (challenger(registry, m) for m in ("one", "two", "three"))
    registry.approve(first, "bob")
    registry.rollout(second, 10, "bob")
    registry.shadow(second, 0.2, "bob")
    registry.shadow(third, None, "anna")
    assert [s["release"] for s in entry(registry)["shadows"]] == [second, third]
    assert [s["share"] for s in entry(registry)["shadows"]] == [0.2, None]
    registry.approve(third, "bob")
    found = entry(registry)
    assert (found["release"], found["rollout"]) == (third, None)
    assert [s["release"] for s in found["shadows"]] == [second]
    assert found["before"]["release"] == first
    # The old champion may be watched; coming back it is no shadow of itself.
    registry.shadow(first, 0.1, "bob")
    registry.rollback(*CHANNEL, first, "bob")
    found = entry(registry)
    assert (found["release"], found["before"]) == (first, None)
    assert [s["release"] for s in found["shadows"]] == [second]
    registry.reject(second, "bob")
    assert entry(registry)["shadows"] == []
    path = registry.workspace / "champions.json"
    assert read_champions(path.read_bytes(), path)[CHANNEL].release == first


def test_points_keep_their_meaning_unless_somebody_accepts(registry: Registry) -> None:
    first = challenger(registry, "one", points=POINTS)
    registry.approve(first, "bob")
    other = challenger(registry, "two", points=POINTS | {"pdo": 40.0})
    for refused in (registry.approve, lambda r, b: registry.rollout(r, 5, b)):
        with pytest.raises(UserError, match=r"pdo 40\.0.*instead of.*--other-points"):
            refused(other, "bob")
    registry.rollout(other, 5, "bob", other_points=True)
    registry.approve(other, "bob", "told the lender", other_points=True)
    why = registry.history(*CHANNEL)[-1]["why"]
    assert "told the lender" in why and "accepted" in why
    back = challenger(registry, "three", points=POINTS | {"pdo": 40.0})
    registry.approve(back, "bob")


def test_a_change_of_backbone_has_a_moment(registry: Registry) -> None:
    marks = [("one", "bb1"), ("two", "bb1"), ("three", "bb2"), ("four", "bb2")]
    seen = []
    for mark, backbone in marks:
        release = challenger(registry, mark, backbone_fingerprint=backbone)
        registry.approve(release, "bob")
        seen.append(entry(registry)["backbone_since"])
    assert seen[:2] == [None, None] and seen[2] is not None
    # A release on the same backbone does not hide that the backbone is new.
    assert seen[3] == seen[2] and entry(registry)["backbone"] == "bb2"
    registry.rollback(*CHANNEL, "acme/cards/1", "bob")
    assert entry(registry)["backbone_since"] > seen[2]


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["rollout", "shadow", "approve", "reject", "rollback"]),
        st.integers(1, 3),
        st.sampled_from([0, 5, 40]),
        st.sampled_from(["anna", "bob"]),
    ),
    max_size=10,
)


@settings(deadline=None, max_examples=15)
@given(ACTIONS)
def test_any_order_of_decisions_keeps_the_rules(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, int, int, str]]
) -> None:
    registry = opened(tmp_path_factory.mktemp("registry"))
    for mark in ("one", "two", "three"):
        challenger(registry, mark, "anna" if mark != "two" else "bob")
    for action, number, share, who in actions:
        release = f"acme/cards/{number}"
        try:
            if action == "rollout":
                registry.rollout(release, share, who)
                assert not share or person(who) not in registry.makers(
                    registry.release(release).job
                )
            elif action == "shadow":
                registry.shadow(release, share / 100, who)
            elif action == "rollback":
                registry.rollback(*CHANNEL, release, who)
            else:
                getattr(registry, action)(release, who)
        except UserError:
            pass
        champion = registry.champion(*CHANNEL)
        written = registry.workspace / "champions.json"
        assert written.exists() == (champion is not None)
        if champion is None:
            continue
        found = json.loads(written.read_text())["acme/cards"]
        assert found["release"] == champion.id
        rollout = found["rollout"]
        if rollout is not None:
            assert registry.release(rollout["release"]).stage == "challenger"
            assert 0 < rollout["percent"] <= 99
        for shadow in found["shadows"]:
            assert shadow["release"] != champion.id and shadow["share"] != 0


def test_the_commands(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path, create=True)
    registry = Registry(Database(workspace.registry_url, tables.metadata), tmp_path)
    registry.set_channel(*CHANNEL, {"store": "s"}, "root")
    first, _ = challenger(registry, "one"), challenger(registry, "two")
    registry.approve(first, "bob")

    def run(*words: str) -> Any:
        return CliRunner().invoke(cli, [*words, "--by", "bob", "--workspace", str(tmp_path)])

    done = run("rollout", "acme/cards", "2", "--percent", "10")
    assert done.exit_code == 0, done.output
    assert "acme/cards/2: answers 10 percent of the customers of acme/cards" in done.output
    assert run("shadow", "start", "acme/cards", "acme/cards/2", "--share", "0.5").exit_code == 0
    assert entry(registry)["shadows"][0]["share"] == 0.5
    assert run("shadow", "stop", "acme/cards", "2").exit_code == 0
    assert run("rollout", "acme/cards", "2", "--percent", "0").exit_code == 0
    assert entry(registry)["rollout"] is None and entry(registry)["shadows"] == []
    for wrong in (
        ("rollout", "acme", "2", "--percent", "10"),
        ("rollout", "acme/cards", "acme/loans/2", "--percent", "10"),
        ("shadow", "start", "acme/cards", "2", "--share", "0"),
    ):
        assert run(*wrong).exit_code != 0
