"""The routes about packages, channels and releases show the caller's own tenant only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.models.deployments import Deployments
from serving.models.poller import Poller
from tests.serving.fake_package import Package
from tests.serving.harness import Service
from tests.serving.models.fake_workspace import FakeWorkspace


@pytest.fixture
def world(tmp_path: Path) -> Iterator[tuple[Service, FakeWorkspace, Poller]]:
    """A service over a workspace with two tenants; the key is of the first."""
    workspace = FakeWorkspace(tmp_path / "ws")
    rollout = workspace.named("default/cards", 2, "new", percent=20.0, since="2026-02-01")
    shadows = [workspace.named("default/cards", 3, "dark", share=0.5)]
    workspace.crown("default/cards", 1, "old", rollout=rollout, shadows=shadows, since="2026-01-01")
    workspace.crown("zenith/secret", 1, "hidden")
    service = Service(tmp_path / "service")
    deployments = Deployments(workspace.settings(), Package.load)
    named, service.runtime.deployments = service.runtime.deployments, deployments
    yield service, workspace, Poller(deployments, workspace.root, 1.0)
    service.close()
    deployments.close()
    named.close()


def test_own_releases_only(world: Any) -> None:
    service, _, _ = world
    listed = service.call("GET", "/v1/releases").json()["releases"]
    assert [(r["release"], r["stage"], r["share"]) for r in listed] == [
        ("default/cards/1", "champion", 0.8),
        ("default/cards/2", "challenger", 0.2),
        ("default/cards/3", "shadow", 0.5),
    ]
    assert listed[0]["live_since"] == "2026-01-01" and listed[0]["live"]
    packages = service.call("GET", "/v1/packages").json()
    # A release in shadow answers nobody and cannot be named.
    assert [p["id"] for p in packages["packages"]] == ["old-0001", "new-0001"]
    channels = service.call("GET", "/v1/channels").json()
    assert channels["default"] == "cards"
    assert [(c["channel"], c["rollout_percent"]) for c in channels["channels"]] == [("cards", 20.0)]
    detail = service.call("GET", "/v1/channels/cards").json()
    assert detail["bands"][0]["name"] == "approve" and len(detail["releases"]) == 3
    everything = json.dumps([listed, packages, channels, detail])
    assert "zenith" not in everything and "hidden" not in everything
    for path in ("/v1/channels/secret", "/v1/packages/hidden-0001", "/v1/packages/dark-0001"):
        answer = service.call("GET", path)
        assert answer.status_code == 404
        text = answer.json()["error"]["message"]
        assert "zenith" not in text and "secret" not in text and "hidden" not in text


def test_a_failed_release_is_shown_to_its_tenant(world: Any) -> None:
    service, workspace, poller = world
    workspace.package("bad", damaged=True)
    workspace.package("worse", damaged=True)
    workspace.crown("zenith/secret", 2, "worse")
    workspace.crown("default/cards", 4, "bad")
    poller.look()
    listed = service.call("GET", "/v1/releases").json()["releases"]
    assert [(r["release"], r["live"]) for r in listed] == [
        ("default/cards/1", True),
        ("default/cards/4", False),
    ]
    assert "damaged" in listed[1]["failure"] and listed[1]["failed_at"]
    assert str(workspace.root) not in json.dumps(listed)
    assert service.runtime.deployments.failed == 2
    workspace.crown("default/loans", 1, "bad")
    poller.look()
    pending = service.call("GET", "/v1/channels/loans").json()
    assert pending["live"] is False and pending["releases"][0]["failure"]
    assert {c["channel"]: c["live"] for c in
            service.call("GET", "/v1/channels").json()["channels"]} == {
        "cards": True, "loans": False,
    }  # fmt: skip
