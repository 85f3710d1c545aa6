"""The decision log: append-only JSON lines, each chained to the one before by its hash.

A line holds what was decided and never whom it was about in clear: the entity id appears as an
HMAC under a key that only the service has. `verify_log` recomputes the chain; changing, removing
or reordering a line breaks it. Dropped last lines are found against a head noted elsewhere
(`DecisionLog.head`, which the service also writes to its own log when it stops).

A thread of its own writes, so that scoring does not wait for the disk unless asked to; waiting
records are written and synced together. Several processes may share one log.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import hashlib
import hmac
import json
import os
import queue
import re
import secrets
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundation.errors import ArtifactError, ConfigError, InternalError

FIRST = "0" * 64
_WAITING = 10_000
_TAIL = 65_536


@dataclass(frozen=True)
class Verified:
    """A log whose chain holds: number of lines and the hash of the last."""

    lines: int
    head: str


class DecisionLog:
    """Appends decisions to a chained log.

    Args:
        path: the log; made if missing, continued otherwise. An unfinished last line of a crashed
            writer moves to `<path>.torn`.
        secret_path: the HMAC key; made (readable by its owner only) if missing.
    """

    def __init__(self, path: str | Path, secret_path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._secret = _secret(Path(secret_path))
        self._handle = open(  # noqa: SIM115 - lives as long as the log
            os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "r+b", buffering=0
        )
        self._queue: queue.Queue[tuple[dict[str, Any], Future[None]] | None] = queue.Queue(_WAITING)
        self._size = -1
        self._seq = 0
        self.head = FIRST
        self.failure: str = ""
        self._thread = threading.Thread(target=self._run, name="decision-log", daemon=True)
        self._thread.start()

    def append(self, record: dict[str, Any], entity_id: str) -> Future[None]:
        """Hand a decision over; the future is done once the line is on disk.

        Raises:
            InternalError: the log cannot be written (any more), so no decision may be given.
        """
        if self.failure:
            raise InternalError(f"the decision log cannot be written: {self.failure}")
        moment = dt.datetime.now(dt.UTC).isoformat(timespec="microseconds")
        line = {"time": moment.replace("+00:00", "Z"), "entity": self.hide(entity_id)} | record
        done: Future[None] = Future()
        try:
            self._queue.put_nowait((line, done))
        except queue.Full:
            raise InternalError("the decision log is too far behind") from None
        return done

    def hide(self, entity_id: str) -> str:
        """HMAC-SHA256 of an entity id, hex."""
        return hmac.new(self._secret, entity_id.encode(), hashlib.sha256).hexdigest()

    def close(self) -> str:
        """Write what waits and stop; returns the head of the chain."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        self._handle.close()
        return self.head

    def _run(self) -> None:
        while True:
            batch = [self._queue.get()]
            while batch[-1] is not None and len(batch) < 512:
                try:
                    batch.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            work = [item for item in batch if item is not None]
            try:
                if work:
                    self._write([line for line, _ in work])
                error = None
            except (OSError, ArtifactError) as exc:
                self.failure = type(exc).__name__
                error = InternalError(f"the decision log cannot be written: {self.failure}")
            for _, done in work:
                if error is None:
                    done.set_result(None)
                else:
                    done.set_exception(error)
            if batch[-1] is None:
                return

    def _write(self, records: list[dict[str, Any]]) -> None:
        fcntl.flock(self._handle, fcntl.LOCK_EX)
        try:
            if os.fstat(self._handle.fileno()).st_size != self._size:
                self._catch_up()
            seq, head, lines = self._seq, self.head, []
            for record in records:
                seq += 1
                line = {"seq": seq} | record | {"previous": head}
                head = _digest(line)
                lines.append(_text({**line, "hash": head}))
            data = "".join(lines).encode()
            if self._handle.write(data) != len(data):
                raise OSError("short write")
            os.fsync(self._handle.fileno())
            self._seq, self.head = seq, head
            self._size = os.fstat(self._handle.fileno()).st_size
        finally:
            fcntl.flock(self._handle, fcntl.LOCK_UN)

    def _catch_up(self) -> None:
        """Find the last complete line, wherever another process or a crash left the file."""
        size = os.fstat(self._handle.fileno()).st_size
        span = _TAIL
        tail = b""
        while True:
            start = max(0, size - span)
            tail = os.pread(self._handle.fileno(), size - start, start)
            if tail.count(b"\n") >= 2 or start == 0:
                break
            span *= 4
        body, _, torn = tail.rpartition(b"\n")
        if torn:
            with open(self.path.with_name(self.path.name + ".torn"), "ab") as out:
                out.write(torn + b"\n")
            os.ftruncate(self._handle.fileno(), size - len(torn))
        if not body:
            self._seq, self.head = 0, FIRST
            return
        try:
            last = json.loads(body.rpartition(b"\n")[2])
            self._seq, self.head = int(last["seq"]), str(last["hash"])
        except (ValueError, KeyError, TypeError):
            raise ArtifactError(f"{self.path}: the last line is not a decision") from None


def verify_log(path: str | Path, head: str | None = None) -> Verified:
    """Recompute the chain of a decision log.

    Args:
        head: hash that the last line must have, noted earlier at a safe place.
    Raises:
        ArtifactError: names the first line that does not follow from the one before.
    """
    previous, count = FIRST, 0
    try:
        handle = open(path, encoding="utf-8", newline="\n")  # noqa: SIM115 - closed below
    except OSError as exc:
        raise ConfigError(f"{path}: no readable decision log ({type(exc).__name__})") from None
    with handle:
        for number, text in enumerate(handle, start=1):
            try:
                line = json.loads(text)
                claimed = line.pop("hash")
            except (ValueError, KeyError, TypeError, AttributeError):
                raise ArtifactError(f"{path}, line {number}: not a decision") from None
            if not text.endswith("\n"):
                raise ArtifactError(f"{path}, line {number}: unfinished")
            if line.get("previous") != previous or line.get("seq") != number:
                raise ArtifactError(f"{path}, line {number}: does not follow the line before it")
            if not hmac.compare_digest(_digest(line), str(claimed)):
                raise ArtifactError(f"{path}, line {number}: was changed after it was written")
            previous, count = claimed, number
    if head is not None and head != previous:
        raise ArtifactError(f"{path}: ends at line {count}, not at the head that was noted")
    return Verified(count, previous)


def _text(line: dict[str, Any]) -> str:
    return json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n"


def _digest(line: dict[str, Any]) -> str:
    text = json.dumps(line, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _secret(path: Path) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(secrets.token_hex(32) + "\n")
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)  # the first of two processes wins
        fresh.unlink()
    text = path.read_text(encoding="ascii", errors="replace").strip()
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ConfigError(f"{path}: expected 64 hexadecimal digits")
    return bytes.fromhex(text)
