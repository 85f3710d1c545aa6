"""Who is answered by what: channels, rollouts, tenants apart, backbones announced."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.messages import ApiError
from serving.models.deployments import Deployments
from serving.models.loaded import announce
from serving.models.table import in_share
from serving.settings import Settings
from tests.serving.fake_package import Package, write_package
from tests.serving.models.fake_workspace import REQUEST, FakeWorkspace


@pytest.fixture
def workspace(tmp_path: Path) -> FakeWorkspace:
    """An empty workspace."""
    return FakeWorkspace(tmp_path)


def refused(deployments: Deployments, *asked: str | None) -> ApiError:
    """The refusal of a `pick`."""
    with pytest.raises(ApiError) as caught:
        deployments.pick(*asked)  # type: ignore[arg-type]
    return caught.value


def test_tenants_see_their_own_things_only(workspace: FakeWorkspace) -> None:
    workspace.crown("acme/cards", 1, "ac")
    workspace.crown("acme/loans", 1, "al")
    workspace.crown("zenith/cards", 1, "zc")
    deployments, _ = workspace.open()
    assert deployments.pick("acme", "cards").id == "ac-0001"
    assert deployments.pick("zenith", "cards").id == "zc-0001"
    assert deployments.pick("zenith").id == "zc-0001"
    assert deployments.pick("acme", package="al-0001").release == "acme/loans/1"
    assert refused(deployments, "acme").status == 422
    strangers = [
        refused(deployments, "zenith", "loans"),
        refused(deployments, "zenith", None, "al-0001"),
        refused(deployments, "nobody", "cards"),
        refused(deployments, "nobody"),
    ]
    for each in strangers:
        assert each.status == 404
        assert "acme" not in str(each) and "al-" not in str(each) and "loans" not in str(each)
    assert "did you mean 'loans'" in str(refused(deployments, "acme", "loan"))
    assert refused(deployments, "acme", "cards", "al-0001").status == 422
    # As unknown as a tenant that does not exist.
    assert str(strangers[2]) == "no such channel; channels: none"
    deployments.close()


def test_packages_by_path_belong_to_the_default_tenant(tmp_path: Path) -> None:
    one = write_package(tmp_path / "a", "one", channel="cards")
    two = write_package(tmp_path / "a", "two", channel="cards")
    three = write_package(tmp_path / "a", "three", channel="loans")
    found = Deployments(Settings(packages=(str(one), str(two), str(three))), Package.load)
    assert found.pick("default").id == "one-0001" and found.pick("default").release == ""
    assert found.pick("default", "loans").id == "three-0001"
    assert refused(found, "default", "cards").status == 422
    assert refused(found, "acme", None, "one-0001").status == 404
    assert found.ready and found.live == 3 and not found.failed
    found.close()
    # Two packages share a channel: naming nothing must not choose the third for that.
    folder = Deployments(Settings(packages=(str(tmp_path / "a"),)), Package.load)
    assert refused(folder, "default").status == 422
    folder.close()


def test_a_rollout_answers_its_share_of_customers(workspace: FakeWorkspace) -> None:
    rollout = workspace.named("acme/cards", 2, "new", percent=30.0)
    workspace.crown("acme/cards", 1, "old", rollout=rollout)
    deployments, poller = workspace.open()
    people = [f"{n:032x}" for n in range(2000)]
    got = {p for p in people if deployments.pick("acme", "cards", None, p).id == "new-0001"}
    assert 0.26 < len(got) / len(people) < 0.34
    assert deployments.pick("acme", "cards").id == "old-0001"
    assert deployments.pick("acme", "cards", entity=people[0]).stage in ("champion", "challenger")
    rollout["percent"] = 60.0
    workspace.publish()
    assert poller.look()
    more = {p for p in people if deployments.pick("acme", "cards", None, p).id == "new-0001"}
    assert got < more and 0.55 < len(more) / len(people) < 0.65
    rollout["percent"] = 0.0
    workspace.publish()
    poller.look()
    assert deployments.pick("acme", "cards", None, next(iter(more))).id == "old-0001"
    deployments.close()


@settings(deadline=None, max_examples=25)
@given(st.text(min_size=1), st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_growing_share_never_moves_a_customer_back(
    entity: str, release: str, first: float, second: float
) -> None:
    low, high = sorted((first, second))
    assert in_share(entity, release, low) <= in_share(entity, release, high)
    assert in_share(entity, release, 1.0) and not in_share(entity, release, 0.0)


def test_sides_of_two_releases_do_not_depend_on_each_other() -> None:
    people = [f"{n:032x}" for n in range(4000)]
    one = [in_share(p, "a/b/1", 0.5) for p in people]
    two = [in_share(p, "a/b/2", 0.5) for p in people]
    both = sum(x and y for x, y in zip(one, two, strict=True)) / len(people)
    assert 0.22 < both < 0.28


def test_a_change_of_backbone_is_announced_for_some_days(workspace: FakeWorkspace) -> None:
    changed = dt.datetime.now(dt.UTC) - dt.timedelta(days=3)
    workspace.package("new", backbone_fingerprint="bb2")
    workspace.crown("acme/cards", 2, "new", backbone_since=changed.isoformat())
    deployments, _ = workspace.open(announce_days=14)
    loaded = deployments.pick("acme")
    assert loaded.backbone == "bb2" and announce(loaded) == ("backbone_changed",)
    assert announce(loaded, (changed + dt.timedelta(days=14, hours=1)).timestamp()) == ()
    deployments.close()
    workspace.crown("acme/cards", 2, "new", backbone_since=None)
    deployments, _ = workspace.open()
    assert announce(deployments.pick("acme")) == ()
    deployments.close()


def test_a_rollout_on_another_backbone_is_announced_all_along(workspace: FakeWorkspace) -> None:
    workspace.package("old", backbone_fingerprint="bb1")
    workspace.package("new", backbone_fingerprint="bb2")
    rollout = workspace.named("acme/cards", 2, "new", percent=99.0)
    workspace.crown("acme/cards", 1, "old", rollout=rollout)
    deployments, _ = workspace.open()
    entity = next(e for e in map(str, range(99)) if in_share(e, "acme/cards/2", 0.99))
    assert announce(deployments.pick("acme", entity=entity), 9e9) == ("backbone_changed",)
    assert announce(deployments.pick("acme")) == ()
    deployments.close()


def test_hundreds_of_channels_have_few_threads_and_share_a_package(
    workspace: FakeWorkspace,
) -> None:
    import threading

    digest = workspace.package("one")
    workspace.entries = {
        f"t{n % 30}/c{n}": {"release": f"t{n % 30}/c{n}/1", "package": digest} for n in range(300)
    }
    workspace.publish()
    before = threading.active_count()
    deployments, _ = workspace.open(threads=2)
    assert threading.active_count() == before + 2
    picked = [deployments.pick(f"t{n % 30}", f"c{n}") for n in range(300)]
    assert {loaded.release for loaded in picked} == {
        e["release"] for e in workspace.entries.values()
    }
    assert len({id(loaded.package) for loaded in picked}) == 1
    assert picked[7].score_now(REQUEST).row.score == picked[8].score_now(REQUEST).row.score
    deployments.close()


def test_a_decision_is_replayed_with_the_package_of_then(workspace: FakeWorkspace) -> None:
    old = workspace.package("old")
    workspace.crown("acme/cards", 2, "new")
    deployments, _ = workspace.open()
    then = deployments.again("acme", "cards", old)
    assert then is not None and then.id == "old-0001"
    row, flags = then.again(REQUEST)
    assert row.score == then.score_now(REQUEST).row.score and flags == ["thin_file"]
    for gone in ("x" * 64, "../packages"):
        now = deployments.again("acme", "cards", gone)
        assert now is not None and now.id == "new-0001"
    assert deployments.again("zenith", "cards", "x" * 64) is None
    deployments.close()
