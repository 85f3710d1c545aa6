"""A modeler's whole journey over HTTP: samples up, a worker, report, document, approval."""

from __future__ import annotations

import json
from pathlib import Path

from serving.tenancy.metering import read_usage
from serving.tenancy.tenants import add_tenant
from tests.journeys.delivered import worked, workspace
from tests.journeys.small_world import World
from tests.serving.harness import Service

SCOPES = ("samples", "read", "decide")


def test_from_samples_to_champion(world: World, tmp_path: Path) -> None:
    delivery = workspace(world, tmp_path / "workspace")
    service = Service(tmp_path / "service", workspace=str(delivery.workspace.root))
    try:
        add_tenant(service.database, "acme")
        keys = {
            who: service.make_key(who, SCOPES, tenant="acme", person=who) for who in ("anna", "bob")
        }

        def upload(path: Path, query: str) -> str:
            found = service.call(
                "POST", f"/v1/samples?{query}", path.read_bytes(), keys["anna"],
                content_type="text/csv",
            )  # fmt: skip
            assert found.status_code == 201, found.text
            return str(found.json()["sample"])

        body = {
            "channel": "cards",
            "samples": upload(world.samples, "channel=cards"),
            "test": upload(world.test, "channel=cards&test=true"),
        }
        job = service.call("POST", "/v1/jobs", body, keys["anna"]).json()["id"]
        (done,) = worked(delivery)
        assert (done.id, done.state, done.error) == (job, "done", "")

        shown = service.call("GET", f"/v1/jobs/{job}", None, keys["anna"]).json()
        assert shown["release"] == "acme/cards/1" and shown["gates"]
        assert set(shown["links"]) == {"report", "metrics", "document", "release", "approve"}
        assert str(tmp_path) not in json.dumps(shown)
        pages = {
            name: service.call("GET", shown["links"][name], None, keys["bob"])
            for name in ("report", "document", "metrics")
        }
        assert all(page.status_code == 200 for page in pages.values())
        assert "plotly" in pages["report"].text and pages["metrics"].json()["n"] == 110
        approve = shown["links"]["approve"]
        assert service.call("POST", approve, {}, keys["anna"]).status_code == 403
        champion = service.call("POST", approve, {"note": "read"}, keys["bob"]).json()
        assert (champion["stage"], champion["approved_by"]) == ("champion", "bob")
        assert service.runtime.deliveries is not None
        assert service.runtime.deliveries.count() == 1
        used = read_usage(service.database, "acme", "2000-01-01", "2100-01-01")
        assert {row.kind: row.units for row in used} == {"sample": 150, "label": 150}
    finally:
        service.close()
