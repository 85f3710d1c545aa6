"""Erasure of one customer from a sample set: every version loses the rows, and says so.

    WORKSPACE/sample_sets/NAME/erasures/000001.json   versions changed, rows removed; never whom

A version keeps its number and gets another digest, since the digest is of its content; the old
content is deleted. What refers to a version by the old digest finds nothing, on purpose.
"""

from __future__ import annotations

import datetime as dt
import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl

from finetune.sample_sets import (
    FOLDER,
    content_digest,
    read_version,
    schema_of,
    versions,
    write_content,
)
from foundation.whole_files import locked, write_whole


def count_customer(workspace: str | Path, name: str, entity_id: str) -> int:
    """Rows of a customer in all versions of a set."""
    contents = {v.digest: v for v in versions(workspace, name)}
    return sum(_rows(read_version(v), entity_id) for v in contents.values())


def erase_customer(
    workspace: str | Path, name: str, entity_id: str, now: dt.datetime | None = None
) -> int:
    """Remove a customer from all versions of a set; again changes nothing.

    Returns:
        rows removed from contents; a content that several versions share counts once.
    """
    folder = Path(workspace) / FOLDER / name
    removed: dict[str, int] = {}
    changes: list[dict[str, Any]] = []
    with locked(folder):
        for version in versions(workspace, name):
            frame = read_version(version)
            rows = _rows(frame, entity_id)
            if not rows:
                continue
            rest = frame.filter(pl.col("entity_id") != entity_id)
            digest = content_digest(rest)
            write_content(folder / "contents" / digest, rest, digest, schema_of(version))
            file = folder / "versions" / f"{version.number:06d}.json"
            record = json.loads(file.read_text(encoding="utf-8"))
            write_whole(file, json.dumps(record | {"digest": digest}, indent=1))
            removed[version.digest] = rows
            changes.append({"version": version.number, "rows": rows, "digest": digest})
        if changes:
            _note(folder / "erasures", changes, now or dt.datetime.now(dt.UTC))
        kept = {version.digest for version in versions(workspace, name)}
        for content in (folder / "contents").iterdir():
            if content.name not in kept:
                shutil.rmtree(content)
    return sum(removed.values())


def _rows(frame: pl.DataFrame, entity_id: str) -> int:
    return int((frame["entity_id"] == entity_id).sum())


def _note(folder: Path, changes: list[dict[str, Any]], now: dt.datetime) -> None:
    folder.mkdir(exist_ok=True, mode=0o700)
    number = 1 + len(list(folder.glob("*.json")))
    moment = now.astimezone(dt.UTC).isoformat(timespec="seconds")
    record = {"number": number, "at": moment, "changes": changes}
    write_whole(folder / f"{number:06d}.json", json.dumps(record, indent=1))
