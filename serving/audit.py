"""The decision log: append-only JSON lines, each chained to the one before by its hash.

A line holds what was decided and never whom it was about in clear: the entity id appears as a keyed
hash of its tenant. Members of a decision: `seq`, `time`, `tenant`, `entity`, what the service
records (`key_id`, `request_id`, `route`, `channel`, `release`, `package`, `digest`, `as_of`,
`score`, `points`, `band`, `outcome`, `rules`, `flags`, `units`; absent ones are left out), then
`mark`, `previous`, `hash` (`serving.safety.chain`). A line with `event` is something else that
belongs into the chain, such as an erasure.

`verify_log` recomputes the chain; changing, removing or reordering a line breaks it. Dropped last
lines are found against a head noted elsewhere (`riskfm audit head`).

A thread of its own writes, so that scoring does not wait for the disk unless asked to; waiting
records are written and synced together. While the disk refuses, every decision is refused as well;
the thread tries again each second, and the chain then tells of the pause (`log_resumed`). Several
processes may share one log. The log is cut into segments by size and by UTC day.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import json
import logging
import os
import queue
import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundation.errors import ArtifactError, InternalError
from serving.safety.chain import (
    FIRST,
    SEGMENT,
    Verified,
    closed_segments,
    last_line,
    line_of,
    read_line,
    segment_path,
    segment_start,
    verify_log,
)
from serving.safety.following import follow
from serving.safety.hashing import EntityHasher

__all__ = ["FIRST", "SEGMENT_BYTES", "DecisionLog", "Verified", "follow", "node_name", "verify_log"]

SEGMENT_BYTES = 256 * 1024 * 1024
_WAITING = 10_000
_TRY_AGAIN_SECONDS = 1.0
RESUMED = "log_resumed"
_TOGETHER = 512
log = logging.getLogger("riskfm.serving")
_OURS = frozenset(("seq", "time", "entity", "mark", "previous", "hash"))
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class Unwritable(InternalError):
    """The log takes no decision at the moment, so none may be given."""


@dataclass(frozen=True)
class _Waiting:
    """A record to be written: its tenant, its members as JSON, and who waits for it."""

    tenant: str
    body: str
    done: Future[None]
    awaited: bool


class DecisionLog:
    """Appends decisions to a chained log.

    Args:
        path: the log; made if missing, continued otherwise. An unfinished last line of a crashed
            writer moves to `<path>.torn`.
        hasher: hides entities.
        segment_bytes: a segment that reached this size is closed.
        daily: a segment also ends with its day, UTC.
    """

    def __init__(
        self,
        path: str | Path,
        hasher: EntityHasher,
        segment_bytes: int = SEGMENT_BYTES,
        daily: bool = True,
    ) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._hasher, self._segment_bytes, self._daily = hasher, segment_bytes, daily
        self._queue: queue.Queue[_Waiting | None] = queue.Queue(_WAITING)
        self._size, self._seq, self._day = -1, 0, ""
        self.head = FIRST
        self.failure: str = ""
        self._failed_at = ""
        self._open()
        self._thread = threading.Thread(target=self._run, name="decision-log", daemon=True)
        self._thread.start()

    def append(self, record: dict[str, Any], entity_id: str, awaited: bool = True) -> Future[None]:
        """Hand a decision over; the future is done once the line is on disk.

        Args:
            record: members of the line; `tenant` is "default" where it is left out, members that
                are None are not written.
            awaited: nobody hears of the decision before the future is done. Else it was given, and
                its line is written when the disk takes it again.
        Raises:
            Unwritable: the log cannot be written at the moment, so no decision may be given.
            InternalError: the record is none.
        """
        if self.failure:
            raise Unwritable(f"the decision log cannot be written: {self.failure}")
        if _OURS & record.keys():
            raise InternalError(f"a decision may not set {sorted(_OURS & record.keys())}")
        tenant = record.get("tenant") or "default"
        line = {"time": _moment(), "tenant": tenant, "entity": self.hide(entity_id, tenant)}
        line |= {name: value for name, value in record.items() if value is not None}
        try:
            waiting = _Waiting(tenant, _encode(line), _promised(), awaited)
        except (TypeError, ValueError) as exc:
            raise InternalError(f"a decision cannot be written: {exc}") from None
        try:
            self._queue.put_nowait(waiting)
        except queue.Full:
            raise Unwritable("the decision log is too far behind") from None
        return waiting.done

    def hide(self, entity_id: str, tenant: str = "default") -> str:
        """Keyed hash of an entity id, hex."""
        return self._hasher.hash(tenant, entity_id)

    def close(self) -> str:
        """Write what waits and stop; returns the head of the chain."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        self._handle.close()
        return self.head

    def _run(self) -> None:
        left: list[_Waiting] = []  # given already, not written yet
        going = True
        while going:
            taken, going = self._take()
            work = left + taken
            since = self.failure and self._failed_at
            try:
                if since:
                    self._write([_resumed(since, len(left)), *work])
                elif work:
                    self._write(work)
            except Exception as exc:  # whatever it is: nobody may be told that it was written
                if not self.failure:
                    self._failed_at = _moment()
                    log.error("the decision log cannot be written: %s", exc)
                self.failure = type(exc).__name__
                error = Unwritable(f"the decision log cannot be written: {self.failure}")
                for item in taken:
                    if item.awaited:
                        item.done.set_exception(error)
                left = [item for item in work if not item.awaited]
            else:
                if since:
                    log.warning("the decision log is written again, since %s it was not", since)
                left, self.failure = [], ""
                for item in work:
                    item.done.set_result(None)
        if left:
            log.error("the decision log ends without %d decisions that were given", len(left))

    def _take(self) -> tuple[list[_Waiting], bool]:
        """What waits, some time later where the disk just refused; False where it is the last."""
        batch: list[_Waiting | None] = []
        with contextlib.suppress(queue.Empty):
            batch.append(self._queue.get(timeout=_TRY_AGAIN_SECONDS if self.failure else None))
            while batch[-1] is not None and len(batch) < _TOGETHER:
                batch.append(self._queue.get_nowait())
        return [item for item in batch if item is not None], None not in batch

    def _write(self, work: list[_Waiting]) -> None:
        with self._locked():
            items = [(item.tenant, item.body) for item in work]
            if not self._size and (opening := self._opening()):
                items.insert(0, ("", _encode(opening)))
            seq, head, lines = self._seq, self.head, []
            for tenant, body in items:
                seq += 1
                text, head = line_of(seq, body, self._hasher.mark(tenant, seq), head)
                lines.append(text)
            data = "".join(lines).encode()
            try:
                if self._handle.write(data) != len(data):
                    raise OSError("short write")
                os.fsync(self._handle.fileno())
            except OSError:
                # Nobody will hear of these decisions, so nobody may count them.
                with contextlib.suppress(OSError):
                    os.ftruncate(self._handle.fileno(), self._size)
                raise
            if not self._size:
                self._day = _moment()[:10]
            self._seq, self.head, self._size = seq, head, self._size + len(data)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the segment that is written now, knowing where it ends."""
        while True:
            fcntl.flock(self._handle, fcntl.LOCK_EX)
            if not self._is_current():
                self._reopen()  # closed by another process
                continue
            if os.fstat(self._handle.fileno()).st_size != self._size:
                self._catch_up()
            if not self._full():
                break
            number, _ = segment_start(self._handle) or (1, 0)
            os.rename(self.path, segment_path(self.path, number))
            self._sync_folder()
            self._reopen()
        try:
            yield
        finally:
            fcntl.flock(self._handle, fcntl.LOCK_UN)

    def _full(self) -> bool:
        ended = self._daily and self._day < _moment()[:10]
        return self._size > 0 and (ended or self._size >= self._segment_bytes)

    def _is_current(self) -> bool:
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return False
        return there.st_ino == os.fstat(self._handle.fileno()).st_ino

    def _open(self) -> None:
        self._handle = open(  # noqa: SIM115 - lives as long as the log
            os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "r+b", buffering=0
        )
        self._size = -1
        self._sync_folder()

    def _reopen(self) -> None:
        self._handle.close()  # lets go of the lock
        self._open()

    def _sync_folder(self) -> None:
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _opening(self) -> dict[str, Any] | None:
        """The first line of a segment that follows another; sets where the chain goes on."""
        closed = closed_segments(self.path)
        if not closed:
            return None
        with open(closed[-1], "rb") as handle:
            number, base = segment_start(handle) or (1, 0)
            size = os.fstat(handle.fileno()).st_size
            last, _ = last_line(handle, closed[-1])
        if last is None:
            raise ArtifactError(f"{closed[-1]}: an empty segment")
        self._seq, self.head = last.seq, last.hash
        return {"time": _moment(), "event": SEGMENT, "segment": number + 1, "base": base + size}

    def _catch_up(self) -> None:
        """Find the last complete line, wherever another process or a crash left the file."""
        handle = self._handle.fileno()
        size = os.fstat(handle).st_size
        last, torn = last_line(self._handle, self.path)
        if torn:
            with open(self.path.with_name(self.path.name + ".torn"), "ab") as out:
                out.write(torn + b"\n")
            os.ftruncate(handle, size - len(torn))
        self._size = size - len(torn)
        self._seq, self.head = (last.seq, last.hash) if last else (0, FIRST)
        if last:
            self._handle.seek(0)
            first = read_line(self._handle.readline(), f"{self.path}, line 1")
            self._day = str(first.record.get("time", ""))[:10]


def _promised() -> Future[None]:
    """A future that who waits for it cannot cancel: the line is written nevertheless."""
    made: Future[None] = Future()
    made.set_running_or_notify_cancel()
    return made


def _resumed(since: str, late: int) -> _Waiting:
    """The line that tells of a pause: since when, and how many decisions were written late."""
    line = {"time": _moment(), "event": RESUMED, "since": since, "late": late}
    return _Waiting("", _encode(line), Future(), False)


def _moment() -> str:
    now = dt.datetime.now(dt.UTC).isoformat(timespec="microseconds")
    return now.replace("+00:00", "Z")


def node_name(log_path: str | Path) -> str:
    """Name of a decision log among those that one database counts.

    Made at the first look and kept beside the log: machines and pods are renamed, the log stays.
    """
    path = Path(f"{log_path}.node")
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        fresh.write_text(f"node-{secrets.token_hex(8)}\n", encoding="ascii")
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)  # the first of several workers wins
        fresh.unlink()
        return path.read_text(encoding="ascii").strip()
