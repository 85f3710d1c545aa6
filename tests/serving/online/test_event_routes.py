"""Events over HTTP: stored as the next score reads them, refused as a score would refuse them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from serving.online.bounds import Bounds
from serving.online.histories import Histories
from serving.online.store import OnlineStore
from serving.routes.catalogue import OPERATIONS as EVERY
from serving.routes.events import NDJSON, OPERATIONS
from serving.tenancy.keys import create_key
from serving.tenancy.principal import SCOPES
from tests.serving.fake_package import request_of
from tests.serving.harness import Service

WHOLE = request_of(6, seed=3)
EVENTS = WHOLE["events"]["statement"]


def scored(service: Service, history: str, **more: Any) -> dict[str, Any]:
    body = {k: v for k, v in WHOLE.items() if k != "events"} | {"history": history} | more
    answer = service.score(body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    others = tuple(o for o in EVERY if o not in OPERATIONS)
    monkeypatch.setattr("serving.api.OPERATIONS", (*others, *OPERATIONS))
    found = Service(tmp_path, max_events=300, max_batch_rows=20)
    runtime = found.runtime
    if getattr(runtime, "histories", None) is None:
        store = OnlineStore(runtime.database, runtime.vault, runtime.hasher, max_events=300)
        histories = Histories(store, Bounds(runtime.database), runtime.hasher)
        runtime.histories = histories
        for loaded in runtime.deployments.tenant("default").packages.values():
            loaded.memory = histories.of("default", loaded.channel)
    yield found
    found.close()


def test_an_event_posted_is_in_the_next_score(service: Service) -> None:
    whole = scored(service, "inline", events=WHOLE["events"])
    before = scored(service, "stored")
    assert "no_stored_history" in before["flags"] and before["score"] != whole["score"]
    for event in EVENTS[:4]:
        answer = service.call(
            "POST", "/v1/events", {"entity_id": "c3", "events": {"statement": [event]}}
        )
        assert answer.status_code == 200, answer.text
        assert (answer.json()["stored"], answer.json()["repeated"]) == (1, 0)
    assert scored(service, "both", events={"statement": EVENTS[2:]})["score"] == whole["score"]
    columns = {name: [event[name] for event in EVENTS] for name in EVENTS[0]}
    body = {"entity_id": " c3 ", "events": {"statement": columns}}
    done = service.call("POST", "/v1/events", body).json()
    assert (done["stored"], done["repeated"]) == (2, 4)
    after = scored(service, "stored")
    assert after["score"] == whole["score"] and after["events"] == whole["events"]
    again = service.call("POST", "/v1/events", body).json()
    assert again == {"stored": 0, "repeated": 6, "version": done["version"]}


@pytest.mark.parametrize(
    ("events", "status", "field"),
    [
        ({"statment": []}, 422, "events.statment"),
        ({"statement": [EVENTS[0], {"event_time": "x"}]}, 422, "events.statement[1].event_time"),
        ({"statement": [{"event_time": "2999-01-01"}]}, 422, "events.statement[0].event_time"),
        ({"statement": [{"event_time": "2020-01-01", "bill": 1}]}, 422, "events.statement[0].bill"),
        ({"statement": [EVENTS[0]] * 301}, 413, "events"),
        (None, 422, "events"),
    ],
)
def test_bad_events_are_refused_as_in_a_score(
    service: Service, events: Any, status: int, field: str
) -> None:
    body = {"entity_id": "c3", "events": events}
    posted, score = (service.call("POST", path, body) for path in ("/v1/events", "/v1/score"))
    assert posted.status_code == score.status_code == status
    assert posted.json()["error"]["field"] == score.json()["error"]["field"] == field
    assert posted.json()["error"]["message"] == score.json()["error"]["message"]
    assert service.call("GET", "/v1/entities/c3").status_code == 404


def test_ids_and_idempotency_keys(service: Service) -> None:
    twins = {"statement": [EVENTS[0], EVENTS[0]]}
    body = {"entity_id": "c3", "events": twins, "ids": {"statement": ["a", "b"]}}
    first = service.call("POST", "/v1/events", body, idempotency_key="k-1").json()
    assert first["stored"] == 2
    assert service.call("POST", "/v1/events", body, idempotency_key="k-1").json() == first
    assert service.call("POST", "/v1/events", body).json()["repeated"] == 2
    other = body | {"events": {"statement": [EVENTS[1], EVENTS[0]]}}
    conflict = service.call("POST", "/v1/events", other)
    assert conflict.status_code == 409
    assert conflict.json()["error"]["field"] == "ids.statement[0]"
    wrong = service.call("POST", "/v1/events", body | {"ids": {"statement": ["a"]}})
    assert wrong.status_code == 422 and wrong.json()["error"]["field"] == "ids.statement"
    empty = service.call("POST", "/v1/events", body | {"ids": {"statement": ["", "b"]}})
    assert empty.status_code == 422


@pytest.mark.parametrize("media", ["application/json", NDJSON])
def test_a_bad_post_of_many_fails_alone(service: Service, media: str) -> None:
    posts: list[Any] = [
        {"entity_id": f"m{n}", "events": {"statement": [EVENTS[n], EVENTS[n + 1]]}}
        for n in range(3)
    ]
    posts[1:1] = [
        {"entity_id": "m9", "events": {"statement": [{"event_time": 5}]}},
        {"entity_id": "  ", "events": {}},
        {"entity_id": "m9", "events": {}, "channel": "unknown"},
        7,
    ]
    text = json.dumps({"posts": posts})
    if media == NDJSON:
        text = "\n".join(map(json.dumps, posts))
    answer = service.call("POST", "/v1/events/batch", text.encode(), content_type=media)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["accepted"], found["failed"], found["stored"]) == (3, 4, 6)
    assert [row["row"] for row in found["results"] if "error" in row] == [1, 2, 3, 4]
    codes = [row["error"]["code"] for row in found["results"][1:5]]
    assert codes == ["invalid", "invalid", "not_found", "invalid"]
    assert service.call("GET", "/v1/entities/m2").json()["events"] == 2
    many = {"posts": posts * 3}
    assert service.call("POST", "/v1/events/batch", many).status_code == 413
    assert service.call("POST", "/v1/events/batch", {"posts": []}).status_code == 422
    assert service.call("POST", "/v1/events/batch", b"{", content_type=media).status_code in (
        200, 400,
    )  # fmt: skip


def test_what_is_stored_is_told_and_erased(service: Service) -> None:
    login = {"login": [{"event_time": "2020-08-01T00:00:00Z", "device id": "D-1"}]}
    service.call("POST", "/v1/events", {"entity_id": "c3", "events": WHOLE["events"] | login})
    answer = service.call("GET", "/v1/entities/c3")
    found = answer.json()
    assert (found["entity_id"], found["events"], found["dropped"]) == ("c3", 7, 0)
    assert found["sources"]["login"] == {
        "events": 1,
        "first_event": "2020-08-01T00:00:00Z",
        "last_event": "2020-08-01T00:00:00Z",
        "last_known": "2020-08-02T00:00:00Z",
    }
    assert found["age_seconds"] > 0 and "D-1" not in answer.text
    assert service.call("DELETE", "/v1/entities/c3").json() == {"entity_id": "c3", "erased": 7}
    assert service.call("GET", "/v1/entities/c3").status_code == 404
    noted = json.loads(Path(service.settings.audit_path).read_text().splitlines()[-1])
    assert (noted["event"], noted["stores"]) == ("erasure", {"stored events": 7})
    assert "c3" not in noted.values()
    assert service.call("DELETE", "/v1/entities/c3").json()["erased"] == 0
    assert "no_stored_history" in scored(service, "stored")["flags"]


def test_channels_say_how_old_a_history_may_be(service: Service) -> None:
    path = "/v1/channels/default/history"
    assert service.call("GET", path).json() == {
        "channel": "default", "max_age_seconds": None, "fallback": "score",
    }  # fmt: skip
    given = {"max_age_seconds": 86_400, "fallback": "refuse"}
    assert service.call("PUT", path, given).json() == {"channel": "default"} | given
    assert service.call("GET", path).json()["fallback"] == "refuse"
    body = {k: v for k, v in WHOLE.items() if k != "events"} | {"history": "stored"}
    refused = service.score(body)
    assert refused.status_code == 409 and refused.json()["error"]["field"] == "history"
    service.call("POST", "/v1/events", {"entity_id": "c3", "events": WHOLE["events"]})
    assert "days before as_of" in service.score(body).json()["error"]["message"]
    assert service.score(WHOLE).status_code == 200
    for bad in ({"fallback": "shrug"}, {"max_age_seconds": 0}, {"max_age_seconds": "1d"}):
        assert service.call("PUT", path, bad).status_code == 422
    assert service.call("GET", "/v1/channels/unknown/history").status_code == 404


def test_keys_reach_what_they_may(service: Service) -> None:
    def key(*scopes: str, **more: Any) -> str:
        made = create_key(service.database, "k", scopes, **more)
        service.runtime.front.keys.refresh()
        return made

    body = {"entity_id": "c3", "events": WHOLE["events"]}
    assert service.call("POST", "/v1/events", body, key=key("score")).status_code == 403
    assert service.call("POST", "/v1/events", body, key=key("events")).status_code == 200
    assert service.call("GET", "/v1/entities/c3", key=key("events")).status_code == 403
    assert service.call("DELETE", "/v1/entities/c3", key=key("read")).status_code == 403
    sandbox = service.call("POST", "/v1/events", body, key=key(*SCOPES, sandbox=True))
    assert sandbox.status_code == 403 and "sandbox" in sandbox.json()["error"]["message"]
    assert service.call("POST", "/v1/events", body, key=None).status_code == 401


def test_answers_are_of_their_types(service: Service) -> None:
    body = {"entity_id": "c3", "events": WHOLE["events"]}
    bound = {"max_age_seconds": None, "fallback": "score"}
    sent = {"post_events": body, "post_events_batch": {"posts": [body]}, "set_history_bound": bound}
    for operation in OPERATIONS:
        path = operation.path.replace("{id}", "c3").replace("{channel}", "default")
        answer = service.call(operation.method, path, sent.get(operation.name))
        assert answer.status_code == operation.status, answer.text
        msgspec.json.decode(answer.content, type=operation.answer, strict=True)
