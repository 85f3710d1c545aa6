"""Samples up and jobs started over HTTP: reviewed, kept once, queued once, each tenant its own."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import msgspec
import polars as pl
import pytest

from finetune.sample_sets import read_version, versions
from serving import uploads
from serving.deliveries import told
from serving.jobs import FAILED
from serving.parquet_size import unpacked_bytes
from serving.safety.places import disk_erasers
from serving.tenancy.metering import read_usage
from tests.contracts.tree import ROOT
from tests.serving.harness import Service
from tests.serving.routes.delivery_world import PARQUET, DeliveryWorld, frame, make_store, parquet


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Iterator[DeliveryWorld]:
    """For tests that leave nothing behind that another counts."""
    world = DeliveryWorld(tmp_path_factory.mktemp("world"), store)
    yield world
    world.close()


@pytest.fixture
def world(tmp_path: Path, store: Path) -> Iterator[DeliveryWorld]:
    made = DeliveryWorld(tmp_path, store)
    yield made
    made.close()


def test_a_sample_file_is_reviewed_and_kept_once(world: DeliveryWorld) -> None:
    bad = "c1,2024-03-02,7,1.0,2024-06-01\nnobody,,1,2.0,2024-06-01\n"
    first = world.taken("anna", frame().write_csv() + bad)
    assert (first["sample"], first["new"], first["test"]) == ("cards@1", True, False)
    assert (first["read"], first["kept"], first["customers"]) == (42, 40, 40)
    assert [(r["reason"], r["rows"], r["first"]) for r in first["left_out"]] == [
        ("as_of is empty or no time", 1, [42]),
        ("the label is neither 0 nor 1", 1, [41]),
    ]
    balance = first["balance"]
    assert (balance["labels"], balance["bads"], balance["bad_rate"]) == (40, 10, 0.25)
    assert balance["bad_rate_low"] < 0.25 < balance["bad_rate_high"]
    assert first["store"] == {
        "customers_unknown": 0, "rows_without_events": 0, "median_events": 1.0
    }  # fmt: skip
    assert (first["first"], first["last"]) == ("2024-03-01", "2024-03-20")
    # The same rows in another order and another format are the version there is.
    again = world.upload("anna", parquet(frame().reverse()), media=PARQUET).json()
    assert (again["sample"], again["new"]) == ("cards@1", False)
    assert again["digest"] == first["digest"]
    test = world.taken("anna", frame(20).write_csv(), "channel=cards&test=true")
    assert (test["sample"], test["test"]) == ("cards-test@1", True)
    named = world.taken("anna", frame(30).write_csv(), "channel=cards&name=spring")
    assert named["sample"] == "spring@1"
    listed = world.call("anna", "GET", "/v1/samples").json()["samples"]
    shown = [(s["sample"], s["test"], s["rows"], s["bads"]) for s in listed]
    assert shown == [("cards@1", False, 40, 10), ("cards-test@1", True, 20, 5),
                     ("spring@1", False, 30, 8)]  # fmt: skip
    (kept,) = versions(world.root / "tenants" / "acme", "cards")
    assert len(read_version(kept)) == 40
    assert not list((world.root / "samples").iterdir())  # the file itself is not kept


def test_a_mapping_is_given_once_and_named_later(shared: DeliveryWorld) -> None:
    theirs = frame().rename({"entity_id": "customer_no", "as_of": "day", "label": "status"})
    theirs = theirs.with_columns(
        status=pl.when(pl.col("status") == 1).then(pl.lit("bad")).otherwise(pl.lit("good"))
    )
    mapping = {
        "columns": {"entity_id": "customer_no", "as_of": "day", "label": "status"},
        "labels": {"bad": 1, "good": 0},
    }
    query = f"channel=cards&name=mapped&mapping={quote(json.dumps(mapping))}"
    first = shared.taken("anna", theirs.write_csv(), query)
    assert first["kept"] == 40 and first["balance"]["bads"] == 10 and first["mapping"]
    later = f"channel=cards&name=mapped&mapping={first['mapping']}"
    again = shared.taken("bob", theirs.write_csv(), later)
    assert (again["sample"], again["new"]) == (first["sample"], False)
    refused = shared.upload("carol", theirs.write_csv(), later)
    assert refused.status_code == 422 and "no mapping of this id" in refused.text
    unmapped = shared.upload("anna", theirs.write_csv())
    assert unmapped.status_code == 422 and "give a mapping of the columns" in unmapped.text


@pytest.mark.parametrize(
    ("data", "query", "status", "words"),
    [
        ("a,b\n1\n", "channel=cards", 422, "samples"),
        ("entity_id,as_of,label,requested\n", "channel=cards", 422, "no rows"),
        (frame(8).drop("label").write_csv(), "channel=cards", 422, "no row has a label"),
        (frame(8).with_columns(label=1).write_csv(), "channel=cards", 422, "both 0 and 1"),
        (frame(8).write_csv(), "channel=card", 404, "did you mean 'cards'"),
        (frame(8).write_csv(), "channel=cards&name=../../up", 422, "no name of a sample set"),
        (frame(8).write_csv(), "channel=cards&test=perhaps", 422, "true or false"),
        (frame(8).write_csv(), "channel=cards&mapping={", 422, "not valid JSON"),
        (frame(8).write_csv(), "channel=cards&window=0", 422, "whole number"),
        (frame(8).write_csv(), "name=cards", 422, "which channel"),
        (frame(8).with_columns(entity_id=pl.lit("x")).write_csv(), "channel=cards", 422,
         "knows none of the customers"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_with_a_sentence(
    shared: DeliveryWorld, data: str, query: str, status: int, words: str
) -> None:
    found = shared.upload("anna", data, query)
    assert found.status_code == status and words in found.json()["error"]["message"]
    assert str(shared.folder) not in found.text and "/tmp" not in found.text


def test_broken_files_and_media(shared: DeliveryWorld) -> None:
    assert shared.upload("anna", b"PAR1 no parquet", media=PARQUET).status_code == 422
    assert shared.upload("anna", b"\xff\xfe\x00\x01\n").status_code == 422
    assert shared.upload("anna", "{}", media="application/json").status_code == 415


def test_what_is_too_large_and_what_cannot_be_written(
    shared: DeliveryWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("serving.uploads.MOST_ROWS", 39)
        found = shared.upload("anna", parquet(frame()), media=PARQUET)
        assert found.status_code == 422 and "40 rows; a sample file has at most 39" in found.text

    def full(*args: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", "/data/workspace/tenants")

    monkeypatch.setattr("finetune.sample_sets.write_content", full)
    found = shared.upload("anna", frame(11).write_csv())
    assert found.status_code == 503 and "cannot be written" in found.text
    assert "/data" not in found.text


def test_a_file_that_unpacks_to_too_much_is_refused_before(
    shared: DeliveryWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert uploads.MOST_BYTES == 1 << 30
    data = parquet(frame().with_columns(requested=pl.lit(1.0), note=pl.lit("n" * 200_000)))
    size = unpacked_bytes(data)
    assert len(data) < 20_000 < 200_000 < size
    monkeypatch.setattr(uploads, "MOST_BYTES", size - 1)
    with monkeypatch.context() as patch:
        patch.setattr("foundation.tables.read_table", None)  # nobody unpacks it
        found = shared.upload("anna", data, media=PARQUET)
    assert found.status_code == 422, found.text
    assert f"the file unpacks to more than {size - 1:,} bytes" in found.text
    monkeypatch.setattr(uploads, "MOST_BYTES", size)
    assert shared.upload("anna", data, media=PARQUET).status_code == 201


def test_a_body_without_a_length_is_bounded_while_it_comes(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, most = DeliveryWorld(tmp_path, store), 4096
    service = world.service
    bounded = msgspec.structs.replace(service.runtime.settings, max_batch_bytes=most)
    service.runtime.settings = bounded
    sent: list[int] = []

    async def streamed(parts: list[bytes]) -> httpx.Response:
        async def come() -> AsyncIterator[bytes]:
            for part in parts:
                sent.append(len(part))
                yield part

        headers = {"authorization": f"Bearer {world.keys['anna']}", "content-type": "text/csv"}
        path = "/v1/samples?channel=cards"
        request = service.client.build_request("POST", path, content=come(), headers=headers)
        assert "content-length" not in request.headers
        return await service.client.send(request)

    def upload(parts: list[bytes]) -> httpx.Response:
        sent.clear()
        return service.loop.run_until_complete(streamed(parts))

    table = frame(8).write_csv().encode()
    assert upload([table[:100], table[100:]]).status_code == 201
    found = upload([b"x" * 1024] * 500)
    assert found.status_code == 413 and f"larger than {most} bytes" in found.text
    assert len(sent) < 10, "the rest is not read"
    assert service.runtime.room.total == 0
    world.close()


def test_young_rows_are_left_out_by_the_window(shared: DeliveryWorld) -> None:
    table = frame(40).drop("label_known_at")
    young = table.with_columns(
        as_of=pl.when(pl.col("label") == 0).then(pl.lit("2024-03-01")).otherwise(pl.lit("2095-1-1"))
    )
    assert shared.upload("anna", young.write_csv(), "channel=cards").status_code == 422
    found = shared.taken("anna", table.write_csv(), "channel=cards&name=window")
    assert any("parameter window" in sentence for sentence in found["mind"])
    found = shared.taken("anna", table.write_csv(), "channel=cards&name=window&window=90")
    assert found["mind"] == []


def test_a_job_is_queued_once_and_a_worker_would_take_it(world: DeliveryWorld) -> None:
    sample = world.taken("anna", frame().write_csv())["sample"]
    test = world.taken("robot", frame(20).write_csv(), "channel=cards&test=true")["sample"]
    body = {"channel": "cards", "samples": sample, "test": test}
    first = world.call("anna", "POST", "/v1/jobs", body)
    assert first.status_code == 202
    job = first.json()
    assert (job["state"], job["new"], job["release"]) == ("queued", True, "")
    again = world.call("bob", "POST", "/v1/jobs", body).json()
    assert (again["id"], again["new"]) == (job["id"], False)
    taken = world.delivery.book.next()
    assert taken is not None and taken.id == job["id"]
    for kind, rows in (("samples", 40), ("test", 20)):
        assert len(pl.read_parquet(world.root / taken.request[kind]["file"])) == rows
    shown = world.call("anna", "GET", f"/v1/jobs/{job['id']}").json()
    # Who asked for it, who asked again, and whoever uploaded a part of it.
    robot = f"key {world.keys['robot'].split('_')[1]}"
    assert shown["makers"] == sorted(["anna", "bob", robot])
    texts = [line["text"] for line in shown["log"]]
    assert texts[0] == "handed in by anna" and "cards@1" in texts[1] and "cards-test@1" in texts[1]
    listed = world.call("anna", "GET", "/v1/jobs?channel=cards&limit=5").json()["jobs"]
    assert [each["id"] for each in listed] == [job["id"]]
    assert world.call("anna", "GET", "/v1/jobs?channel=loans").json()["jobs"] == []


def test_cancel_and_retry(world: DeliveryWorld) -> None:
    job = world.job()
    assert world.call("anna", "POST", f"/v1/jobs/{job}/cancel").json()["state"] == "cancelled"
    assert world.call("anna", "POST", f"/v1/jobs/{job}/cancel").json()["state"] == "cancelled"
    again = world.call("bob", "POST", f"/v1/jobs/{job}/retry").json()
    assert (again["state"], again["attempt"], again["makers"]) == ("queued", 2, ["anna", "bob"])
    world.delivery.book.begin(job, 2, "adapted")
    error = f"adapted: [Errno 28] {world.root}/runs/{job}: no space"
    world.delivery.book.end(job, 2, FAILED, error, 1)
    shown = world.call("anna", "GET", f"/v1/jobs/{job}").json()
    assert shown["error"] == f"adapted: [Errno 28] {job}: no space"
    refused = world.call("anna", "POST", f"/v1/jobs/{job}/cancel")
    assert refused.status_code == 409 and "nothing to cancel" in refused.text
    assert world.call("anna", "POST", f"/v1/jobs/{job}/retry").json()["attempt"] == 3


@pytest.mark.parametrize(
    ("body", "status", "where"),
    [
        ({"channel": "cards", "samples": "none@1"}, 422, "no sample set of this name"),
        ({"channel": "cards", "samples": "../../../ws/x"}, 422, "no sample set of this name"),
        ({"channel": "loans", "samples": "cards@1"}, 404, "no such channel"),
        ({"channel": "cards"}, 422, "'samples' is required"),
        ({"channel": "cards", "samples": "x", "tset": "y"}, 422, "did you mean 'test'"),
    ],
)
def test_jobs_that_cannot_be(
    shared: DeliveryWorld, body: dict[str, str], status: int, where: str
) -> None:
    found = shared.call("anna", "POST", "/v1/jobs", body)
    assert found.status_code == status and where in found.json()["error"]["message"]
    assert str(shared.folder) not in found.text


def test_another_tenant_sees_nothing(world: DeliveryWorld) -> None:
    job, release = world.delivered("one")
    for method, path in (
        ("GET", f"/v1/jobs/{job}"), ("GET", f"/v1/jobs/{job}/report"),
        ("GET", f"/v1/jobs/{job}/metrics"), ("GET", f"/v1/jobs/{job}/document"),
        ("POST", f"/v1/jobs/{job}/cancel"), ("POST", f"/v1/jobs/{job}/retry"),
        ("GET", f"/v1/releases/{release}"), ("GET", f"/v1/releases/{release}/report"),
        ("GET", f"/v1/releases/{release}/document"),
        ("POST", f"/v1/releases/{release}/approve"), ("POST", f"/v1/releases/{release}/reject"),
        ("POST", f"/v1/releases/{release}/rollback"),
    ):  # fmt: skip
        body = {} if path.count("/") > 4 and method == "POST" and "releases" in path else None
        found = world.call("carol", method, path, body)
        assert found.status_code == 404, path
        assert "acme" not in found.text and job not in found.text
    assert world.call("carol", "GET", "/v1/jobs").json()["jobs"] == []
    assert world.call("carol", "GET", "/v1/samples").json()["samples"] == []
    theirs = world.call("carol", "POST", "/v1/jobs", {"channel": "cards", "samples": "cards@1"})
    assert theirs.status_code == 422 and "sets: none" in theirs.text
    # The same file of another tenant is another version, and another job.
    assert world.taken("carol", frame().write_csv())["new"]
    assert world.delivery.book.get(job).state == "done"


def test_scopes_sandboxes_and_roles(world: DeliveryWorld) -> None:
    make = world.service.make_key
    world.keys |= {
        "reader": make("reader", ("read",), tenant="acme"),
        "toy": make("toy", ("samples", "read", "decide"), tenant="acme", sandbox=True),
    }
    data = frame().write_csv()
    assert world.upload("reader", data).status_code == 403
    assert world.upload("toy", data).status_code == 403
    job = world.job("anna")
    assert world.call("reader", "POST", f"/v1/jobs/{job}/cancel").status_code == 403
    assert world.call("reader", "GET", f"/v1/jobs/{job}").status_code == 200
    people = world.service.runtime.front.people
    people.add("root", "operator", "*", "root")
    people.add("bob", "viewer", "acme", "root", channel="loans")
    # bob's role is for another channel; a machine's key has its scopes only.
    assert world.upload("bob", data).status_code == 403
    assert world.call("bob", "GET", f"/v1/jobs/{job}").status_code == 403
    assert world.call("bob", "GET", "/v1/jobs").json()["jobs"] == []
    assert world.upload("robot", data).status_code == 201


def test_a_store_that_is_not_there(world: DeliveryWorld) -> None:
    sample = world.taken("anna", frame().write_csv())["sample"]
    config = world.delivery.registry.channel("acme", "cards") | {"store": "/data/stores/gone"}
    world.delivery.registry.set_channel("acme", "cards", config, "root")
    for found in (
        world.upload("anna", frame().write_csv()),
        world.call("anna", "POST", "/v1/jobs", {"channel": "cards", "samples": sample}),
    ):
        assert found.status_code == 503 and "event store" in found.text
        assert "/data" not in found.text


def test_finished_deliveries_are_counted_once(world: DeliveryWorld) -> None:
    job, _ = world.delivered("one")
    folder = world.root / "runs" / job / "validated"
    folder.mkdir()
    (folder / "samples.json").write_text('{"n": 40, "bads": 10}')
    assert [world.deliveries.count() for _ in range(2)] == [1, 0]
    used = read_usage(world.service.database, "acme", "2000-01-01", "2100-01-01")
    assert {row.kind: row.units for row in used} == {"sample": 40, "label": 40}


def test_an_erasure_reaches_what_was_uploaded(world: DeliveryWorld) -> None:
    world.taken("anna", frame().write_csv())
    world.taken("carol", frame().write_csv())
    erase = disk_erasers("acme", [], world.root, [])["sample sets handed in over HTTP"]
    assert erase("acme", "", "c3", dry_run=True).rows == 1
    assert erase("acme", "", "c3").rows == 1
    for tenant, rows in (("acme", 39), ("brix", 40)):
        (kept,) = versions(world.root / "tenants" / tenant, "cards")
        assert len(read_version(kept)) == rows
    # Its maker is still known: what is delivered from it may not be approved by anna.
    (kept,) = versions(world.root / "tenants" / "acme", "cards")
    assert world.deliveries.uploads.makers("acme", kept) == ["anna"]


def test_a_service_without_a_workspace(tmp_path: Path) -> None:
    service = Service(tmp_path)
    for method, path, body in (
        ("GET", "/v1/jobs", None), ("GET", "/v1/samples", None), ("GET", "/v1/jobs/x", None),
        ("POST", "/v1/jobs", {"channel": "a", "samples": "b"}),
        ("GET", "/v1/releases/a/b/1/report", None), ("POST", "/v1/jobs/x/cancel", None),
    ):  # fmt: skip
        found = service.call(method, path, body)
        assert found.status_code == 404 and "no workspace" in found.json()["error"]["message"]
    service.close()


def test_sentences_name_no_place_of_this_machine() -> None:
    assert told("/srv/ws/a1/x.json: gone; see '/data/acme'") == "x.json: gone; see 'acme'"
    assert told("3/4 of a/b and acme/cards/1") == "3/4 of a/b and acme/cards/1"


def test_reviewing_and_queueing_need_no_training_library(store: Path, tmp_path: Path) -> None:
    """Done in a process of its own, which says what it loaded."""
    code = (
        "import sys; from pathlib import Path; from tests.serving.routes.delivery_world import *\n"
        f"w = DeliveryWorld(Path({str(tmp_path)!r}), Path({str(store)!r})); w.job(); w.close()\n"
        "print(*{n.split('.')[0] for n in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not loaded & {
        "torch", "lightning", "pytorch_lightning", "transformers", "lightgbm", "dbos", "scipy",
        "sklearn", "plotly", "pandas", "jinja2",
    }  # fmt: skip
