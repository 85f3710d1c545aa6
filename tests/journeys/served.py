"""`riskfm serve` as a process of its own, and clients that ask it without pause."""

from __future__ import annotations

import dataclasses
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.launch import free_port
from tests.contracts.tree import ROOT
from tests.serving.fake_package import request_of

FAKE = ROOT / "tests" / "serving" / "fake_package.py"
# Puts the fake in the place of the real package.
CUSTOMIZE = f"""
import importlib.util, sys
class Fake:
    def find_spec(self, name, path=None, target=None):
        if name == "finetune.package":
            return importlib.util.spec_from_file_location(name, {str(FAKE)!r})
sys.meta_path.insert(0, Fake())
"""
MAIN = "from serving.cli import main; main()"
BODY = json.dumps(request_of(3)).encode()


@dataclasses.dataclass
class Served:
    """A running `riskfm serve`."""

    process: subprocess.Popen[str]
    port: int
    key: str
    folder: Path

    def call(self, path: str, body: bytes | None = None) -> int:
        """Status of one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("POST" if body else "GET", path, body, self.headers)
            return connection.getresponse().status
        finally:
            connection.close()

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        return {"authorization": f"Bearer {self.key}", "content-type": "application/json"}

    def workers(self) -> list[int]:
        """Process ids of the workers."""
        found = []
        for each in Path("/proc").iterdir():
            if each.name.isdigit():
                try:
                    mine = str(self.folder).encode() in (each / "environ").read_bytes()
                    words = (each / "cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                if mine and b"--worker-id" in words:
                    found.append(int(each.name))
        return found

    def ready(self) -> bool:
        """Whether readiness answers 200."""
        try:
            return self.call("/v1/health/ready") == 200
        except OSError:
            return False


def until(true: object, seconds: float, what: str) -> None:
    """Wait for something to come true."""
    deadline = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)


@contextmanager
def served(folder: Path, *words: str, fake: bool = True, **variables: str) -> Iterator[Served]:
    """`riskfm serve` as a process of its own, ready.

    Args:
        folder: keys, logs and decisions go there.
        words: further options of the command.
        fake: packages are those of `tests.serving.fake_package`.
        variables: of the environment.
    """
    if fake:
        (folder / "sitecustomize.py").write_text(CUSTOMIZE)
    port = free_port()
    environment = os.environ | {
        "PYTHONPATH": f"{folder}:{ROOT}", "RISKFM_AUDIT": str(folder / "decisions.jsonl"),
        **variables,
    }  # fmt: skip
    command = [sys.executable, "-c", MAIN, "serve", "--port", str(port), *words]
    log = folder / "service.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, "--state", str(folder)], cwd=ROOT, env=environment,
            stdout=subprocess.PIPE, stderr=out, text=True,
        )  # fmt: skip
    try:
        key = ""
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("API key"):
                key = line.split()[-1]
            if "Ctrl-C" in line:
                break
        assert key, log.read_text()[-3000:]
        found = Served(process, port, key, folder)
        until(found.ready, 60, "ready")
        yield found
    finally:
        process.terminate()
        process.communicate(timeout=60)


class Load:
    """Clients that ask without pause, on kept connections and on new ones."""

    def __init__(self, service: Served, clients: int = 6) -> None:
        self.answered: list[int] = []
        self.refused = 0
        self.lost: list[str] = []
        self._service = service
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._client, args=(number % 2 == 0,))
            for number in range(clients)
        ]
        for thread in self._threads:
            thread.start()

    def _client(self, keeps: bool) -> None:
        connection: http.client.HTTPConnection | None = None
        while not self._stop.is_set():
            if connection is None:
                connection = http.client.HTTPConnection("127.0.0.1", self._service.port, timeout=30)
                try:
                    connection.connect()
                except OSError:
                    self.refused += 1
                    connection = None
                    time.sleep(0.02)
                    continue
            try:
                connection.request("POST", "/v1/score", BODY, self._service.headers)
                answer = connection.getresponse()
                answer.read()
                self.answered.append(answer.status)
            except (OSError, http.client.HTTPException) as exc:
                self.lost.append(f"{type(exc).__name__}: {exc}")
                connection.close()
                connection = None
                continue
            if not keeps or answer.will_close:
                connection.close()
                connection = None

    def end(self) -> None:
        """Stop asking."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
