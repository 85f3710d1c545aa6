"""Scores of customers whose history is stored, after four new events each."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from scripts.bench.hosted.load import Client, Seen, one
from scripts.bench.hosted.world import World, cpu_seconds

CUSTOMERS, BEFORE, NEW, ROUNDS = 40, 200, 4, 13
P50_MS, P99_MS, RATE = 5.0, 10.0, 200.0
Figure = Callable[..., None]


def run(world: World, figure: Figure) -> None:
    """Latency and processor time of a score that goes on from a kept state by four events.

    No customer gets more events than a score reads. Posts are timed by themselves; the rate of a
    core is that of scores alone, by the processor time of the worker.
    """
    package = world.package("probe")
    events = BEFORE + NEW * ROUNDS
    customers = [json.loads(body) for body in world.bodies(package, CUSTOMERS, events)]
    on = f"probe, {CUSTOMERS} customers, {BEFORE} to {events} stored events, {NEW} new at a time"
    with world.service(package, "incremental") as service:
        (worker,) = service.workers()
        client = Client(service.port, service.headers)
        whole, posted, scored, again = Seen(), Seen(), Seen(), Seen()
        for customer in customers:
            one(client, "/v1/events", _events(customer, 0, BEFORE), Seen())
            one(client, "/v1/score", _asked(customer), whole)
        spent = 0.0
        for number in range(ROUNDS):
            first = BEFORE + number * NEW
            for customer in customers:
                one(client, "/v1/events", _events(customer, first, first + NEW), posted)
            begin = cpu_seconds(worker)
            for customer in customers:
                one(client, "/v1/score", _asked(customer), scored)
            spent += cpu_seconds(worker) - begin
        for customer in customers:
            one(client, "/v1/score", _asked(customer), again)
        answer = json.loads(client.post("/v1/score", _asked(customers[0]))[1])
    for seen in (whole, posted, scored, again):
        if set(seen.statuses) != {200}:
            raise SystemExit(f"answers: {dict(seen.statuses)}")
    if answer["history"]["events"] != events:
        raise SystemExit(f"the score read {answer['history']['events']} of {events} events")
    share = f"{on}, {len(scored.seconds)} scores"
    figure("p50, first score of a stored history", whole.ms(50), "ms", on)
    figure("p50, posting the new events", posted.ms(50), "ms", on)
    figure("p50, score after the new events", scored.ms(50), "ms", share, P50_MS)
    figure("p99, score after the new events", scored.ms(99), "ms", share, P99_MS)
    figure("p50, score with nothing new", again.ms(50), "ms", on)
    rate = len(scored.seconds) / spent
    figure("scores a second of processor time", rate, "requests/s", share, RATE, "higher")


def _events(customer: dict[str, Any], first: int, stop: int) -> bytes:
    """A post of some of a customer's events; there is one source."""
    events = {name: rows[first:stop] for name, rows in customer["events"].items()}
    return json.dumps({"entity_id": customer["entity_id"], "events": events}).encode()


def _asked(customer: dict[str, Any]) -> bytes:
    """A score by what is stored."""
    asked = {k: v for k, v in customer.items() if k not in ("events", "reasons")}
    return json.dumps(asked | {"history": "stored"}).encode()
