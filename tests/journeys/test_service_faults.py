"""A running service whose worker is killed in the middle of its work, and clients that crawl."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

from serving.audit import follow, verify_log
from serving.database import Database
from serving.tenancy.metering import Meter, read_usage
from tests.journeys.served import BODY, Served, served, until
from tests.serving.fake_package import write_package


class Keyed:
    """Clients that send every request under an idempotency key, again until it is answered."""

    def __init__(self, service: Served, clients: int = 4) -> None:
        self.answers: dict[str, bytes] = {}
        self.differ: list[str] = []
        self.open: set[str] = set()
        self.again = 0
        self._service = service
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._client, args=(n,)) for n in range(clients)]
        for thread in self._threads:
            thread.start()

    def _client(self, client: int) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            key = f"{client}-{number}"
            self.open.add(key)
            for attempt in range(8):
                answer = self._send(key)
                if answer is not None:
                    self.answers[key] = answer
                    self.open.discard(key)
                    if number % 5 == 0 and self._send(key) not in (answer, None):
                        self.differ.append(key)
                    break
                self.again += 1
                time.sleep(0.05 * (1 + attempt))

    def _send(self, key: str) -> bytes | None:
        connection = http.client.HTTPConnection("127.0.0.1", self._service.port, timeout=20)
        try:
            headers = self._service.headers | {"idempotency-key": key}
            connection.request("POST", "/v1/score", BODY, headers)
            answer = connection.getresponse()
            body = answer.read()
            return body if answer.status == 200 else None
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def end(self) -> None:
        """Stop asking."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


def test_a_killed_worker_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """Every answered decision is in the log, every key is billed once, answers stay the same."""
    package = write_package(tmp_path, behaviour="slow 0.01")
    with served(
        tmp_path, "--package", str(package), "--workers", "2", RISKFM_AUDIT_DURABLE="true",
        RISKFM_TIMEOUT_SECONDS="2",
    ) as service:  # fmt: skip
        until(lambda: len(service.workers()) == 2, 40, "two workers")
        crawling = crawl(service, 30)
        load = Keyed(service)
        until(lambda: len(load.answers) > 20, 60, "answers")
        os.kill(service.workers()[0], signal.SIGKILL)
        seen = len(load.answers)
        until(lambda: len(load.answers) > seen + 20, 60, "answers after the kill")
        load.end()
        for each in crawling:
            each.close()
    log = tmp_path / "decisions.jsonl"
    records, _ = follow(log, limit=10**6)
    logged = {record["request_id"] for record in records}
    answered = {json.loads(body)["request_id"] for body in load.answers.values()}
    assert len(answered) == len(load.answers) > 40 and answered <= logged
    assert load.differ == []
    verify_log(log)
    once = {record["once"] for record in records}
    # A key that was at work in the killed worker is open until its lease ends: one for a client.
    assert len(load.answers) <= len(once) <= len(load.answers) + len(load.open)
    assert len(load.open) <= 4
    database = Database(f"sqlite:///{tmp_path}/riskfm.db")
    Meter(database, log, (tmp_path / "decisions.jsonl.node").read_text().strip()).advance()
    used = read_usage(database, "default", "2000-01-01", "2999-01-01")
    assert sum(row.units for row in used) == len(once)


def crawl(service: Served, count: int) -> list[socket.socket]:
    """Connections that announce a body and send its first bytes only."""
    made = []
    headers = "".join(f"{name}: {value}\r\n" for name, value in service.headers.items())
    for _ in range(count):
        each = socket.create_connection(("127.0.0.1", service.port), 10)
        each.sendall(
            f"POST /v1/score HTTP/1.1\r\nhost: test\r\n{headers}content-length: 5000\r\n\r\n"
            '{"entity_id": "'.encode()
        )
        made.append(each)
    return made
