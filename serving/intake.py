"""Handing in: sample files become a job, once.

What answers requests hands in too, so nothing here needs the workflow engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundation.errors import UserError
from serving.database import Database
from serving.durable import place_copy
from serving.jobs import Job, JobBook
from serving.registry import Registry
from serving.registry_tables import metadata
from serving.releases import person
from serving.workspace import Workspace


@dataclass(frozen=True)
class Delivery:
    """A workspace with its registry and its jobs."""

    workspace: Workspace
    registry: Registry
    book: JobBook

    @staticmethod
    def open(root: str | Path, create: bool = False) -> Delivery:
        """Open a workspace.

        Raises:
            UserError: there is none; ConfigError: its databases cannot be opened.
        """
        workspace = Workspace.open(root, create)
        database = Database(workspace.registry_url, metadata)
        return Delivery(workspace, Registry(database, workspace.root), JobBook(database))


def hand_in(
    delivery: Delivery,
    tenant: str,
    channel: str,
    samples: Path,
    test: Path | None,
    by: str,
    created_at: str | None = None,
) -> tuple[Job, bool]:
    """Copy the sample files into the workspace and queue their delivery, once.

    Args:
        created_at: when, ISO 8601 UTC; None is now. Written into every artefact.
    Returns:
        the job, and whether it is new: the same files on the same store, backbone and settings
        are the same job, whoever hands them in.
    """
    from foundation.checkpoint import backbone_fingerprint
    from foundation.shipped import start_directory
    from foundation.store import EventStore

    by = person(by)
    config = delivery.registry.channel(tenant, channel)
    files: dict[str, Any] = {"samples": samples, "test": test}
    for kind, path in files.items():
        if path is None:
            continue
        if not path.is_file():
            raise UserError(f"{path}: no such file; --{kind} names a CSV or Parquet file")
        digest, copy = place_copy(path, delivery.workspace.samples)
        file = str(copy.relative_to(delivery.workspace.root))
        files[kind] = {"file": file, "digest": digest}
    request = {
        **files,
        **config,
        "store_version": EventStore.open(config["store"]).version,
        "backbone_fingerprint": backbone_fingerprint(start_directory(config["backbone"])),
    }
    job, new = delivery.book.add(tenant, channel, request, by, created_at)
    delivery.registry.add_maker(job.id, by)
    return job, new
