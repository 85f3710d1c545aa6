"""What a delivery wrote is read, and its release decided on, over HTTP and by the right person."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.release_documents import DocumentKeeper
from serving.releases import record
from tests.serving.routes.delivery_world import DeliveryWorld, make_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("shop"))


@pytest.fixture
def world(tmp_path: Path, store: Path) -> Iterator[DeliveryWorld]:
    made = DeliveryWorld(tmp_path, store)
    yield made
    made.close()


def test_report_document_and_metrics(world: DeliveryWorld) -> None:
    job, release = world.delivered("one")
    links = world.call("bob", "GET", f"/v1/jobs/{job}").json()["links"]
    assert links["approve"] == f"/v1/releases/{release}/approve"
    page = world.call("bob", "GET", links["report"])
    assert page.text == "<html>report one</html>"
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-disposition"] == f'inline; filename="report-{job}.html"'
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "sandbox allow-scripts" in policy
    assert "allow-same-origin" not in policy and "unsafe-eval" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert world.call("bob", "GET", f"/v1/releases/{release}/report").text == page.text
    numbers = world.call("bob", "GET", links["metrics"])
    assert numbers.headers["content-type"] == "application/json" and numbers.json()["chosen"]
    for language in ("en", "zh"):
        for path in (links["document"], f"/v1/releases/{release}/document"):
            found = world.call("bob", "GET", f"{path}?language={language}")
            assert found.text == f"<p>{language} one"
    wrong = world.call("bob", "GET", f"{links['document']}?language=../../x")
    assert wrong.status_code == 422


def test_nothing_yet_and_nothing_altered(world: DeliveryWorld) -> None:
    job = world.job()
    for what in ("report", "metrics", "document"):
        found = world.call("anna", "GET", f"/v1/jobs/{job}/{what}")
        assert found.status_code == 404 and "has not come to this" in found.text
    assert world.call("anna", "GET", f"/v1/jobs/{job}").json()["links"] == {}
    assert world.call("anna", "GET", "/v1/jobs/..%2F..%2Fregistry.db/report").status_code == 404
    assert world.call("anna", "GET", f"/v1/jobs/{job[:6]}/report").status_code == 404


def test_an_altered_report_is_not_sent(world: DeliveryWorld) -> None:
    job, _ = world.delivered("one")
    (world.root / "runs" / job / "adapted" / "report.html").write_text("another")
    found = world.call("anna", "GET", f"/v1/jobs/{job}/report")
    assert found.status_code == 409 and "was altered" in found.text


def test_maker_is_not_checker(world: DeliveryWorld) -> None:
    _, release = world.delivered("one")
    path = f"/v1/releases/{release}/approve"
    maker = world.call("anna", "POST", path, {})
    assert maker.status_code == 403 and "handed in the samples" in maker.text
    machine = world.call("robot", "POST", path, {})
    assert machine.status_code == 403 and "personal key" in machine.text
    found = world.call("bob", "POST", path, {"note": "report read"})
    assert found.status_code == 200, found.text
    shown = found.json()
    assert (shown["stage"], shown["approved_by"]) == ("champion", "bob")
    assert shown["makers"] == ["anna"]
    last = shown["history"][-1]
    assert (last["who"], last["action"], last["why"]) == ("bob", "approved", "report read")
    crowned = json.loads((world.root / "champions.json").read_text())
    assert "acme/cards" in json.dumps(crowned) and release in json.dumps(crowned)
    # Again changes nothing.
    assert world.call("bob", "POST", path, {}).json()["history"] == shown["history"]
    assert world.call("bob", "GET", f"/v1/releases/{release}").json() == shown


def test_who_uploaded_may_not_approve_what_another_started(world: DeliveryWorld) -> None:
    from tests.serving.routes.delivery_world import frame

    sample = world.taken("bob", frame().write_csv())["sample"]
    world.call("anna", "POST", "/v1/jobs", {"channel": "cards", "samples": sample})
    _, release = world.delivered("one", "anna")
    assert world.call("bob", "POST", f"/v1/releases/{release}/approve", {}).status_code == 403


def test_rollout_rollback_and_reject(world: DeliveryWorld) -> None:
    job, first = world.delivered("one")

    def second(mark: str) -> str:
        from tests.serving.installed_packages import install

        registry = world.delivery.registry
        found = registry.submit("acme", "cards", install(world.root, mark), job, "anna")
        return registry.challenge(found.id, "anna").id

    def post(who: str, release: str, what: str, **body: object) -> tuple[int, str]:
        found = world.call(who, "POST", f"/v1/releases/{release}/{what}", body)
        said = found.json()
        return found.status_code, said.get("stage") or said["error"]["message"]

    assert post("bob", first, "rollout", percent=10)[0] == 409  # no champion beside it
    assert post("bob", first, "approve") == (200, "champion")
    two, three = second("two"), second("three")
    assert post("anna", two, "rollout", percent=10)[0] == 403
    assert post("bob", two, "rollout", percent=100)[0] == 422
    assert post("bob", two, "rollout", percent=10) == (200, "challenger")
    assert f'"{two}"' in (world.root / "champions.json").read_text()
    # Whoever made it may end what they may not begin.
    assert post("anna", two, "rollout", percent=0) == (200, "challenger")
    assert post("bob", two, "rollback")[0] == 409  # never was champion
    assert post("bob", two, "approve", note="better") == (200, "champion")
    assert post("bob", first, "approve")[0] == 409
    assert post("anna", first, "rollback", note="drift") == (200, "champion")
    assert post("anna", three, "reject") == (200, "retired")  # makers withdraw their own
    assert post("bob", two, "reject")[0] == 409
    unknown = world.call("bob", "POST", "/v1/releases/acme/cards/99/approve", {})
    assert unknown.status_code == 404
    wrong = world.call("bob", "POST", f"/v1/releases/{two}/approve", {"notes": "x"})
    assert wrong.status_code == 422 and "did you mean 'note'" in wrong.text


def test_roles_decide(world: DeliveryWorld) -> None:
    _, release = world.delivered("one")
    people = world.service.runtime.front.people
    people.add("root", "operator", "*", "root")
    people.add("bob", "analyst", "acme", "root")
    path = f"/v1/releases/{release}/approve"
    refused = world.call("bob", "POST", path, {})
    assert refused.status_code == 403 and "approver" in refused.text
    people.add("bob", "approver", "acme", "root", channel="cards")
    assert world.call("bob", "POST", path, {}).json()["stage"] == "champion"


def test_a_damaged_package_is_not_promoted(world: DeliveryWorld) -> None:
    _, release = world.delivered("one")
    digest = world.delivery.registry.release(release).package
    (world.root / "packages" / digest / "head.onnx").write_bytes(b"other")
    found = world.call("bob", "POST", f"/v1/releases/{release}/approve", {})
    assert found.status_code == 409 and "missing or damaged" in found.text
    assert str(world.root) not in found.text
    assert world.delivery.registry.release(release).stage == "challenger"


def test_a_worker_writes_the_document_of_an_approval_it_did_not_see(
    world: DeliveryWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, release = world.delivered("one")
    made: list[str] = []
    monkeypatch.setattr(
        "serving.release_documents.document_release", lambda _, found: made.append(found.id)
    )
    keep = DocumentKeeper(lambda text: None)
    keep(world.delivery)
    assert made == []
    assert world.call("bob", "POST", f"/v1/releases/{release}/approve", {}).status_code == 200
    keep(world.delivery)
    keep(world.delivery)
    assert made == [release]
    # The document with the approval stands from then on.
    folder = world.root / "documents" / "d1"
    folder.mkdir(parents=True)
    (folder / "model_document.en.html").write_text("<p>approved by bob")
    with world.delivery.registry.database.transaction() as connection:
        why = "d1 with approvals"
        record(connection, "riskfm", "documented", "acme", "cards", release, why=why)
    assert world.call("anna", "GET", f"/v1/jobs/{job}/document").text == "<p>approved by bob"
