"""Rules of the registry: one champion, maker is not checker, history only grows."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.errors import ArtifactError, ConfigError, UserError
from serving import registry_tables as tables
from serving.champions import champion_packages
from serving.database import Database
from serving.registry import Registry
from serving.registry_tables import metadata
from serving.releases import person
from tests.serving.installed_packages import install

CHANNEL = ("acme", "cards")
# Rules that no database has a part in need one only.
one_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def registry(tmp_path: Path, database_url: str) -> Registry:
    """A registry with two channels, in SQLite and in PostgreSQL."""
    return opened(tmp_path, database_url)


def opened(folder: Path, url: str = "") -> Registry:
    """The registry of a folder, its channels added."""
    url = url or f"sqlite:///{folder}/registry.db"
    made = Registry(Database(url, metadata), folder)
    for channel in ("cards", "loans"):
        made.set_channel("acme", channel, {"store": "s"}, "root")
    return made


def challenger(registry: Registry, mark: str, maker: str = "anna", channel: str = "cards") -> str:
    """A release that waits for approval."""
    package = install(registry.workspace, mark)
    release = registry.submit("acme", channel, package, f"job-{mark}", maker)
    return registry.challenge(release.id, maker).id


def once_more(registry: Registry) -> Registry:
    """The same registry, as another process would open it."""
    url = registry.database.engine.url.render_as_string(hide_password=False)
    return opened(registry.workspace, url)


def champion(registry: Registry, channel: str = "cards") -> str | None:
    """Id of the champion."""
    found = registry.champion("acme", channel)
    return None if found is None else found.id


@one_database
def test_a_registry_without_champions_leaves_the_file_alone(
    tmp_path: Path, database_url: str
) -> None:
    opened(tmp_path, database_url)
    assert not (tmp_path / "champions.json").exists()
    placed = '{"acme/cards": {"release": "acme/cards/1", "package": "d"}}'
    (tmp_path / "champions.json").write_text(placed)
    registry = opened(tmp_path, database_url)
    registry.reject(challenger(registry, "one"), "ben")
    assert (tmp_path / "champions.json").read_text() == placed


def test_from_package_to_champion(registry: Registry) -> None:
    package = install(registry.workspace, "one")
    release = registry.submit(*CHANNEL, package, "job-1", "anna")
    assert (release.id, release.stage) == ("acme/cards/1", "shadow")
    with pytest.raises(UserError, match="is shadow; only a challenger"):
        registry.approve(release.id, "bob")
    registry.challenge(release.id, "anna")
    with pytest.raises(UserError, match="no channel has a champion yet"):
        champion_packages(registry.workspace)
    done = registry.approve(release.id, "bob", "looks good")
    assert (done.stage, done.approved_by) == ("champion", "bob")
    assert champion_packages(registry.workspace) == [
        registry.workspace / "packages" / package["digest"]
    ]
    rows = registry.history(*CHANNEL)
    assert [r["action"] for r in rows] == ["channel added", "submitted", "challenger", "approved"]
    assert (rows[-1]["who"], rows[-1]["why"]) == ("bob", "looks good")


@one_database
@pytest.mark.parametrize("who", ["anna", "Anna", "  ANNA ", "ａｎｎａ"])
def test_a_maker_may_not_approve(registry: Registry, who: str) -> None:
    release = challenger(registry, "one", "anna")
    with pytest.raises(UserError, match="handed in the samples"):
        registry.approve(release, who)
    assert registry.release(release).stage == "challenger"
    assert champion(registry) is None


@one_database
def test_whoever_hands_the_same_samples_in_is_a_maker_too(registry: Registry) -> None:
    release = challenger(registry, "one", "anna")
    registry.add_maker("job-one", "Bob")
    with pytest.raises(UserError, match="bob handed in"):
        registry.approve(release, "bob")
    assert registry.approve(release, "carol").stage == "champion"


def test_the_same_request_twice_changes_nothing(registry: Registry) -> None:
    first, second = challenger(registry, "one"), challenger(registry, "two")
    steps: list[Callable[[], object]] = [
        lambda: registry.set_channel("acme", "cards", {"store": "s"}, "root"),
        lambda: challenger(registry, "one"),
        lambda: registry.approve(first, "bob"),
        lambda: registry.approve(second, "bob"),
        lambda: registry.rollback(*CHANNEL, None, "carol"),
        lambda: registry.rollback(*CHANNEL, second, "carol"),
        lambda: registry.reject(challenger(registry, "three"), "bob"),
    ]
    path = registry.workspace / "champions.json"
    for step in steps:
        step()
        before = registry.history(*CHANNEL)
        file = path.read_bytes() if path.exists() else b""
        step()
        assert registry.history(*CHANNEL) == before
        assert (path.read_bytes() if path.exists() else b"") == file
    assert path.exists()


def test_rollback_without_a_name_goes_back_once(registry: Registry) -> None:
    with pytest.raises(UserError, match="no earlier champion"):
        registry.rollback(*CHANNEL, None, "bob")
    marks = [challenger(registry, m) for m in ("one", "two", "three")]
    for release in marks:
        registry.approve(release, "bob")
    assert registry.rollback(*CHANNEL, None, "carol").id == marks[1]
    assert registry.rollback(*CHANNEL, None, "carol").id == marks[1]
    assert registry.rollback(*CHANNEL, marks[0], "carol", "two is bad too").id == marks[0]
    assert champion(registry) == marks[0]
    waiting = challenger(registry, "four")
    with pytest.raises(UserError, match="never was champion"):
        registry.rollback(*CHANNEL, waiting, "carol")
    with pytest.raises(UserError, match="is no release of acme/loans"):
        registry.rollback("acme", "loans", marks[0], "carol")


@one_database
def test_a_rejected_release_stays_out(registry: Registry) -> None:
    release = challenger(registry, "one")
    registry.reject(release, "bob", "unstable")
    with pytest.raises(UserError, match="is retired"):
        registry.approve(release, "bob")
    winner = challenger(registry, "two")
    registry.approve(winner, "bob")
    with pytest.raises(UserError, match="was approved and is champion"):
        registry.reject(winner, "bob")


@one_database
def test_a_damaged_package_is_not_promoted(registry: Registry) -> None:
    first, second = challenger(registry, "one"), challenger(registry, "two")
    registry.approve(first, "bob")
    digest = registry.release(second).package
    file = registry.workspace / "packages" / digest / "head.onnx"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(ArtifactError, match=r"head\.onnx.*altered"):
        registry.approve(second, "bob")
    assert champion(registry) == first
    file.write_bytes(whole)
    registry.approve(second, "bob")
    (registry.workspace / "packages" / registry.release(first).package / "head.onnx").unlink()
    with pytest.raises(ArtifactError, match="missing"):
        registry.rollback(*CHANNEL, first, "bob")
    assert champion(registry) == second


@pytest.mark.parametrize("table", ["history", "approvals"])
@pytest.mark.parametrize("verb", ["UPDATE {} SET who = 'x'", "DELETE FROM {}"])
def test_the_database_itself_keeps_history(registry: Registry, table: str, verb: str) -> None:
    registry.approve(challenger(registry, "one"), "bob")
    with (
        pytest.raises(sa.exc.DBAPIError, match="append-only"),
        registry.database.transaction() as connection,
    ):
        connection.execute(sa.text(verb.format(table)))


def test_the_database_itself_keeps_a_second_champion_out(registry: Registry) -> None:
    registry.approve(challenger(registry, "one"), "bob")
    second = challenger(registry, "two")
    table = tables.releases
    with pytest.raises(sa.exc.IntegrityError), registry.database.transaction() as connection:
        connection.execute(table.update().where(table.c.id == second).values(stage=tables.CHAMPION))


def test_a_lost_champions_file_is_written_anew(registry: Registry) -> None:
    registry.approve(challenger(registry, "one"), "bob")
    file = registry.workspace / "champions.json"
    whole = file.read_bytes()
    file.write_bytes(whole[:20])
    with pytest.raises(ArtifactError, match="damaged"):
        champion_packages(registry.workspace)
    once_more(registry)
    assert file.read_bytes() == whole


def test_two_approvals_at_once_leave_one_champion(registry: Registry) -> None:
    marks = [challenger(registry, m) for m in ("one", "two", "three")]
    other = [once_more(registry) for _ in marks]
    threads = [
        threading.Thread(target=r.approve, args=(m, "bob"))
        for r, m in zip(other, marks, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stages = sorted(r.stage for r in registry.releases(*CHANNEL))
    assert stages == ["champion", "retired", "retired"]
    crowned = json.loads((registry.workspace / "champions.json").read_text())
    assert crowned["acme/cards"]["release"] == champion(registry)


@one_database
def test_names_and_urls_are_checked(registry: Registry) -> None:
    with pytest.raises(UserError, match="letters, digits"):
        registry.set_channel("acme", "a/b", {}, "root")
    with pytest.raises(UserError, match="did you mean 'acme/cards'"):
        registry.channel("acme", "card")
    with pytest.raises(UserError, match="no release 'acme/cards/9'"):
        registry.release("acme/cards/9")
    with pytest.raises(UserError, match="say who you are"):
        person("  ")
    with pytest.raises(ConfigError, match="database URL 'nosql://'"):
        Database("nosql://")
    with pytest.raises(ConfigError, match="cannot be opened"):
        Database("sqlite:////no/such/folder/registry.db")


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["submit", "approve", "reject", "rollback", "challenge"]),
        st.sampled_from(["cards", "loans"]),
        st.integers(1, 4),
        st.sampled_from(["anna", "bob", "Carol"]),
    ),
    max_size=10,
)


def act(registry: Registry, action: str, channel: str, number: int, who: str) -> None:
    """One request, however senseless."""
    release = f"acme/{channel}/{number}"
    if action == "submit":
        package = install(registry.workspace, f"{channel}{number}")
        registry.submit("acme", channel, package, f"job-{channel}{number}", who)
    elif action == "approve":
        registry.approve(release, who)
    elif action == "reject":
        registry.reject(release, who)
    elif action == "challenge":
        registry.challenge(release, who)
    else:
        registry.rollback("acme", channel, release if number % 2 else None, who)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Path]]:
    """A new folder for each example."""
    yield lambda: tmp_path_factory.mktemp("registry")


@settings(deadline=None, max_examples=15)
@given(ACTIONS)
def test_any_order_of_requests_keeps_the_rules(
    folders: Callable[[], Path], actions: list[tuple[str, str, int, str]]
) -> None:
    registry = opened(folders())
    before = {each: registry.history("acme", each) for each in ("cards", "loans")}
    for action, channel, number, who in actions:
        try:
            act(registry, action, channel, number, who)
            if action == "approve":
                release = registry.release(f"acme/{channel}/{number}")
                assert release.stage == "champion"
                assert person(who) not in registry.makers(release.job)
        except UserError:
            assert registry.history("acme", channel) == before[channel]
        for each, old in before.items():
            rows = registry.history("acme", each)
            assert rows[: len(old)] == old  # append-only
            before[each] = rows
            reigning = [r for r in registry.releases("acme", each) if r.stage == "champion"]
            assert len(reigning) <= 1
            for release in reigning:
                assert release.approved_by is not None
    path = registry.workspace / "champions.json"
    crowned = json.loads(path.read_text()) if path.exists() else {}
    for each in before:
        assert crowned.get(f"acme/{each}", {}).get("release") == champion(registry, each)
