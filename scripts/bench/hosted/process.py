"""A bare server of the benchmark as a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from scripts.bench.hosted.world import ROOT

PATIENCE_SECONDS = 300


@contextmanager
def listening(module: str, arguments: Sequence[str], log: Path) -> Iterator[tuple[int, int]]:
    """Run `python -m MODULE PORT ARGUMENTS` for the time of a with block: port and process id."""
    from serving.launch import free_port

    port = free_port()
    command = [sys.executable, "-m", module, str(port), *arguments]
    with open(log, "wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
            except urllib.error.HTTPError:
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(log.read_text(errors="replace")[-2000:]) from None
                time.sleep(0.1)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(20)
