"""Files and directories that are whole or absent, whatever dies when.

Everything is written beside its final place, flushed to the disk, and moved into place by one
rename. A directory made this way carries `record.json`: the digest of each of its files and what
its maker found, so that a reader can tell a whole one from a torn or altered one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from foundation.errors import ArtifactError

RECORD = "record.json"
FAULT = "RISKFM_FAULT"
_CHUNK = 1 << 20


def fault_point(name: str) -> None:
    """Die here, as by `kill -9`, where the variable RISKFM_FAULT names this point.

    Tests prove with it that a job continues; without the variable nothing happens.
    """
    if os.environ.get(FAULT) == name:
        os.kill(os.getpid(), signal.SIGKILL)


def digest_file(path: Path) -> str:
    """sha256 of a file, 64 hex digits."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def place_file(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old content or the new one."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    partial.write_bytes(data)
    _flush(partial)
    partial.replace(path)
    _flush(path.parent)


def place_copy(source: Path, folder: Path) -> tuple[str, Path]:
    """Copy a file into a folder under its digest and ending; a whole copy that is there stays.

    Returns:
        the digest and the copy's path.
    """
    partial = folder / f".{uuid.uuid4().hex}.part"
    shutil.copyfile(source, partial)
    # Of the copy, not of the source: the source may change while it is read.
    digest = digest_file(partial)
    path = folder / f"{digest}{source.suffix.lower()}"
    _flush(partial)
    partial.replace(path)
    _flush(folder)
    return digest, path


def place_directory(
    path: Path, make: Callable[[Path], dict[str, Any]], point: str = ""
) -> dict[str, Any]:
    """Make a directory once; where a whole one stands already its record is the answer.

    Args:
        make: fills an empty directory and returns what it found, as plain data.
        point: name of the fault point just before the rename.
    Returns:
        what `make` found, now or then.
    """
    found = whole_directory(path)
    if found is not None:
        return found
    partial = path.with_name(f".{path.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    facts = json.loads(json.dumps(make(partial), allow_nan=False))
    body = {"facts": facts, "files": _digests(partial)}
    text = json.dumps(body | {"digest": _body_digest(body)}, indent=1)
    (partial / RECORD).write_text(text, encoding="utf-8")
    flush_tree(partial)
    fault_point(point)
    # What stands there is torn: it goes aside as a whole before the new one takes its place.
    if path.exists():
        torn = path.with_name(f".{path.name}.torn")
        shutil.rmtree(torn, ignore_errors=True)
        path.replace(torn)
    partial.replace(path)
    _flush(path.parent)
    shutil.rmtree(path.with_name(f".{path.name}.torn"), ignore_errors=True)
    return dict(facts)


def whole_directory(path: Path) -> dict[str, Any] | None:
    """What the maker of a directory found; None where it is absent, torn or altered."""
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
        body = {"facts": record["facts"], "files": record["files"]}
        whole = record["digest"] == _body_digest(body) and record["files"] == _digests(path)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return dict(record["facts"]) if whole else None


def renew_record(file: Path, note: Mapping[str, Any]) -> None:
    """After a file changed on purpose: the record of its directory has its new digest.

    Args:
        note: why, kept beside the record's own content under "changed".
    """
    for folder in file.parents:
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            name = str(file.relative_to(folder))
            if name not in record["files"]:
                continue
        except (OSError, ValueError, KeyError, TypeError):
            continue
        files = record["files"] | {name: digest_file(file)}
        body = {"facts": record["facts"], "files": files}
        changed = [*record.get("changed", ()), {"file": name, **note}]
        text = json.dumps(body | {"digest": _body_digest(body), "changed": changed}, indent=1)
        place_file(folder / RECORD, text.encode())


def place_tree(source: Path, path: Path, point: str = "") -> None:
    """Copy a directory to its final place in one move; what stands there already stays."""
    if path.exists():
        return
    partial = path.with_name(f".{path.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    flush_tree(partial)
    fault_point(point)
    partial.replace(path)
    _flush(path.parent)


def require_digest(path: Path, digest: str, remedy: str) -> None:
    """Refuse a file that is gone or is not what it was.

    Args:
        remedy: what a person does about it.
    Raises:
        ArtifactError: missing or altered.
    """
    if not path.is_file():
        raise ArtifactError(f"{path}: missing from the workspace; {remedy}")
    if digest_file(path) != digest:
        raise ArtifactError(f"{path}: damaged, its content has another digest; {remedy}")


def flush_tree(path: Path) -> None:
    """Bring every file and folder below a directory to the disk."""
    for each in sorted(path.rglob("*"), reverse=True):
        _flush(each)
    _flush(path)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digests(path: Path) -> dict[str, str]:
    files = (f for f in sorted(path.rglob("*")) if f.is_file() and f != path / RECORD)
    return {str(f.relative_to(path)): digest_file(f) for f in files}


def _body_digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
