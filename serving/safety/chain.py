"""The chain of the decision log: what a line is, its segments, verifying it.

A line is one JSON object and always ends in the same four members:

    {"seq":7,...,"mark":"<32 hex>","previous":"<64 hex>","hash":"<64 hex>"}
    content = SHA-256 of the bytes before `,"mark":`
    hash    = SHA-256 of "seq:mark:previous:content"

`hash` needs only the digest of the content, so that an export can show a line of somebody else as
`{"seq":7,"content":"<64 hex>","mark":...,"previous":...,"hash":...}` and still be a chain. `mark`
is an HMAC of the number under a key of the line's tenant: a tenant that has its key sees that no
line of its own was withheld; to everybody else marks are noise. Contents cannot be guessed from
their digests, since every line of a decision holds a keyed hash of an entity.

    DIR/decisions.jsonl             what is written now
    DIR/decisions.000001.jsonl      closed segments, oldest first; may be archived

A new segment begins with a line `"event":"segment"` that names its number and at which byte of the
whole log it starts, and goes on with the chain. Lines of decisions have no member `event`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from foundation.errors import ArtifactError, ConfigError

FIRST = "0" * 64
SEGMENT = "segment"
ENDING = re.compile(
    rb',"mark":"([0-9a-f]{32})","previous":"([0-9a-f]{64})","hash":"([0-9a-f]{64})"\}\n\Z'
)
_TAIL = 65_536
ENDING_BYTES = len(f',"mark":"{"0" * 32}","previous":"{FIRST}","hash":"{FIRST}"}}\n')


@dataclass(frozen=True)
class Line:
    """A line of the chain.

    Attributes:
        text: the whole line as it stands there.
        record: every member but the last three.
    """

    text: bytes
    seq: int
    record: dict[str, Any]
    content: str
    mark: str
    previous: str
    hash: str


@dataclass(frozen=True)
class Verified:
    """A log whose chain holds.

    Attributes:
        lines: how many there are; head: the hash of the last one.
        first: number of the first line; above 1 where older segments are elsewhere.
        before: the hash that the first line follows.
        noted: number of the line that ends at the noted head, if one was asked for.
    """

    lines: int
    head: str
    first: int = 1
    before: str = FIRST
    noted: int | None = None

    @property
    def last(self) -> int:
        """Number of the last line; 0 for an empty log."""
        return self.first + self.lines - 1


def line_of(seq: int, body: str, mark: str, previous: str) -> tuple[str, str]:
    """A line of the log, and its hash.

    Args:
        body: a JSON object without `seq`, not empty.
    """
    start = f'{{"seq":{seq},{body[1:-1]}'
    content = hashlib.sha256(start.encode()).hexdigest()
    found = chained(seq, mark, previous, content)
    return f'{start},"mark":"{mark}","previous":"{previous}","hash":"{found}"}}\n', found


def chained(seq: int, mark: str, previous: str, content: str) -> str:
    """The hash of a line."""
    return hashlib.sha256(f"{seq}:{mark}:{previous}:{content}".encode()).hexdigest()


def read_line(text: bytes, where: str) -> Line:
    """Read a line and recompute its hash.

    Raises:
        ArtifactError: no line of a log, unfinished, or changed after it was written.
    """
    if not text.endswith(b"\n"):
        raise ArtifactError(f"{where}: unfinished")
    ending = ENDING.search(text)
    start = text[:-ENDING_BYTES]
    try:
        record = json.loads(start + b"}") if ending else None
        seq = int(record["seq"]) if record else 0
    except (ValueError, KeyError, TypeError):
        ending = None
    if ending is None or record is None:
        raise ArtifactError(f"{where}: not a line of a decision log")
    mark, previous, claimed = (part.decode() for part in ending.groups())
    content = hashlib.sha256(start).hexdigest()
    if not hmac.compare_digest(chained(seq, mark, previous, content), claimed):
        raise ArtifactError(f"{where}: was changed after it was written")
    return Line(text, seq, record, content, mark, previous, claimed)


def shown(line: Line) -> dict[str, Any]:
    """A line with all its members."""
    return line.record | {"mark": line.mark, "previous": line.previous, "hash": line.hash}


def closed_segments(path: Path) -> list[Path]:
    """Closed segments of a log, oldest first."""
    name = re.compile(re.escape(path.stem) + r"\.\d{6}" + re.escape(path.suffix))
    folder = path.parent
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if name.fullmatch(p.name))


def segment_path(path: Path, number: int) -> Path:
    """Where a closed segment lies."""
    return path.with_name(f"{path.stem}.{number:06d}{path.suffix}")


def last_line(handle: IO[bytes], path: Path) -> tuple[Line | None, bytes]:
    """The last complete line of an open segment, and what stands behind it.

    Raises:
        ArtifactError: it is not a line of a log.
    """
    size, span = os.fstat(handle.fileno()).st_size, _TAIL
    while True:
        start = max(0, size - span)
        tail = os.pread(handle.fileno(), size - start, start)
        if tail.count(b"\n") >= 2 or start == 0:
            break
        span *= 4
    body, _, torn = tail.rpartition(b"\n")
    if not body:
        return None, torn
    return read_line(body.rpartition(b"\n")[2] + b"\n", f"{path}: the last line"), torn


def head_of(path: Path) -> Line | None:
    """The last line of a log; None for an empty one. Nothing is verified but this line.

    Raises:
        ConfigError: there is no log.
    """
    files = list(newest_first(path))
    if not any(file.is_file() for file in files):
        raise ConfigError(f"{path}: no readable decision log (FileNotFoundError)")
    for file in files:
        with contextlib.suppress(FileNotFoundError), open(file, "rb") as handle:
            line, _ = last_line(handle, file)
            if line is not None:
                return line
    return None


def segment_start(handle: IO[bytes]) -> tuple[int, int] | None:
    """Number of an open segment and the byte of the whole log it starts at; None: not said."""
    handle.seek(0)
    with contextlib.suppress(ValueError, KeyError, TypeError):
        record = json.loads(handle.readline())
        if record.get("event") == SEGMENT:
            return int(record["segment"]), int(record["base"])
    return None


def lines_of(path: Path) -> Iterator[tuple[str, Line]]:
    """Every line of the log and where it stands, each following from the one before.

    Raises:
        ArtifactError: names the first line that does not.
        ConfigError: there is no log.
    """
    while True:
        closed = closed_segments(path)
        with contextlib.ExitStack() as stack:
            active = [stack.enter_context(_opened(path))] if path.is_file() or not closed else []
            if closed_segments(path) != closed:
                continue  # a segment was closed meanwhile
            yield from _chain(closed, active, path)
            return


def _chain(closed: list[Path], active: list[IO[bytes]], path: Path) -> Iterator[tuple[str, Line]]:
    last: Line | None = None
    for file, given in [*((c, None) for c in closed), *((path, a) for a in active)]:
        with contextlib.nullcontext(given) if given else _opened(file) as handle:
            number, left = 0, synced_size(handle)
            while left > 0:
                number += 1
                text = handle.readline(left)
                left -= len(text)
                where = f"{file}, line {number}"
                line = read_line(text, where)
                before = (last.seq, last.hash) if last else _before(line)
                if (line.seq, line.previous) != (before[0] + 1, before[1]):
                    raise ArtifactError(f"{where}: does not follow the line before it")
                last = line
                yield where, line


def verify_log(path: str | Path, head: str | None = None) -> Verified:
    """Recompute the chain of a decision log, over all its segments.

    Args:
        head: a hash noted earlier at a safe place; some line must end at it.
    Raises:
        ArtifactError: names the first line that does not follow from the one before.
        ConfigError: there is no log.
    """
    count, first, before, last, noted = 0, 1, FIRST, FIRST, None
    for _, line in lines_of(Path(path)):
        if not count:
            first, before = line.seq, line.previous
        count, last = count + 1, line.hash
        if line.hash == head:
            noted = line.seq
    if head is not None and noted is None and head != before:
        raise ArtifactError(f"{path}: ends at line {first + count - 1}, without the head noted")
    return Verified(count, last, first, before, noted)


def newest_first(path: Path) -> Iterator[Path]:
    """The segment that is written now, then the closed ones, the last one first."""
    # Listed only once the first is open: whatever is closed meanwhile is found then.
    yield path
    yield from reversed(closed_segments(path))


def synced_size(handle: IO[bytes]) -> int:
    """Bytes that are on the disk: a writer holds the lock until what it wrote is."""
    fcntl.flock(handle, fcntl.LOCK_SH)
    try:
        return os.fstat(handle.fileno()).st_size
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)


def _before(line: Line) -> tuple[int, str]:
    """What the first line at hand follows: nothing, or segments that were archived."""
    if line.record.get("event") == SEGMENT:
        return line.seq - 1, line.previous
    return 0, FIRST


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[IO[bytes]]:
    try:
        with open(file, "rb") as handle:
            yield handle
    except OSError as exc:
        raise ConfigError(f"{file}: no readable decision log ({type(exc).__name__})") from None
