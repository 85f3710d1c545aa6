"""Following the decision log: whoever counts decisions reads each exactly once.

A reader keeps the byte it came to, in the same transaction as what it counted. Bytes are those of
the whole log, over all its segments, so that closing a segment moves nothing.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import IO, Any

from foundation.errors import ArtifactError, ConfigError
from serving.safety.chain import (
    ENDING,
    ENDING_BYTES,
    closed_segments,
    newest_first,
    read_line,
    segment_start,
    shown,
    synced_size,
)


def follow(
    path: str | Path, offset: int = 0, limit: int = 1000, events: bool = False
) -> tuple[list[dict[str, Any]], int]:
    """Decisions written since the last time, in order, each exactly once.

    Args:
        offset: 0, or what the last call gave; a byte of the whole log, whatever its segments.
        limit: lines to read at most.
        events: also lines that are no decision (`event`: an erasure, a new segment).
    Returns:
        the records with all their members, and where to go on. Lines that are not whole or not on
        the disk yet are left for later.
    Raises:
        ArtifactError: a line that does not follow from the one before, or an offset past the end.
        ConfigError: the segment the offset lies in is not here any more.
    """
    path, out = Path(path), []
    with contextlib.ExitStack() as stack:
        handle, base = _segment_at(path, offset, stack)
        if handle is None:
            return [], offset
        size = synced_size(handle)
        at = offset - base
        if at > size:
            raise ArtifactError(
                f"{path}: ends at byte {base + size}, before byte {offset} that was read already"
            )
        previous = _previous(handle, at, path)
        handle.seek(at)
        for _ in range(limit):
            text = handle.readline(size - at) if at < size else b""
            if not text.endswith(b"\n"):
                break
            line = read_line(text, f"{path}, byte {base + at}")
            if previous is not None and line.previous != previous:
                raise ArtifactError(f"{path}, byte {base + at}: does not follow the line before it")
            previous, at = line.hash, at + len(text)
            if events or "event" not in line.record:
                out.append(shown(line))
        return out, base + at


def _segment_at(path: Path, offset: int, stack: contextlib.ExitStack) -> tuple[Any, int]:
    """The open segment that holds the byte after `offset`, and where it starts."""
    oldest: int | None = None
    for file in newest_first(path):
        try:
            handle = stack.enter_context(open(file, "rb"))  # noqa: SIM115 - closed by the stack
        except FileNotFoundError:
            continue
        start = segment_start(handle)
        if start is None and file == path and closed_segments(path):
            continue  # a new segment whose first line is being written
        base = start[1] if start else 0
        if offset >= base:
            return handle, base
        oldest = base
    if oldest is not None:
        raise ConfigError(
            f"{path}: byte {offset} lies in a segment that is not here; put the archived segments "
            "back beside it"
        )
    if offset:
        raise ArtifactError(f"{path}: is gone, and byte {offset} of it was read already")
    return None, 0


def _previous(handle: IO[bytes], at: int, path: Path) -> str | None:
    """Hash of the line that ends at a byte; None at the start of a segment."""
    if at == 0:
        return None
    handle.seek(max(0, at - ENDING_BYTES))
    ending = ENDING.search(handle.read(at - handle.tell()))
    if ending is None:
        raise ArtifactError(f"{path}: no line ends at byte {at} of its segment")
    return ending[3].decode()
