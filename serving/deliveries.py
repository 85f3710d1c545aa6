"""Deliveries as a service shows them: one workspace, opened when first asked for, tenant by tenant.

Everything here is given the tenant and answers for it alone: ids of others do not exist. What is
read from the disk is found by what the registry says, never by a path somebody sent.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.errors import UserError
from serving.database import Database
from serving.durable import RECORD
from serving.tenancy.background import Background
from serving.tenancy.metering import count_jobs

if TYPE_CHECKING:
    from serving.intake import Delivery
    from serving.jobs import Job
    from serving.releases import Release
    from serving.uploads import Uploads

COUNT_SECONDS = 60.0
LANGUAGES = ("en", "zh")
_FOLDERS = re.compile(r"(?<![\w/:.])/(?:[^\s/,;:'\"()]+/)+")
log = logging.getLogger("riskfm.serving")


@dataclass(frozen=True)
class Written:
    """A file of a delivery: its content, and what it may be called."""

    data: bytes
    name: str


def told(text: str) -> str:
    """A sentence without the places of this machine: of every path its last part."""
    return _FOLDERS.sub("", text)


class Deliveries:
    """The deliveries of a workspace, and their units in the usage of its tenants.

    Args:
        root: the workspace; databases are opened at the first use.
        database: where usage is kept.
        threads: for everything slow about deliveries; scoring never waits for them.
        count_seconds: between two counts of finished deliveries.
    Attributes:
        pool: those threads.
    """

    def __init__(
        self,
        root: str | Path,
        database: Database,
        threads: int = 2,
        count_seconds: float = COUNT_SECONDS,
    ) -> None:
        self._root, self._database = Path(root), database
        self._lock = threading.Lock()
        self._delivery: Delivery | None = None
        self._uploads: Uploads | None = None
        self.pool = ThreadPoolExecutor(threads, "deliveries")
        self._counting = Background("deliveries", count_seconds, self.count)

    def close(self) -> None:
        """Stop, after what is being worked on."""
        self._counting.close()
        self.pool.shutdown(cancel_futures=True)

    @property
    def delivery(self) -> Delivery:
        """The workspace with its registry and its jobs.

        Raises:
            UserError: there is none; ConfigError: its databases cannot be opened.
        """
        from serving.intake import Delivery

        with self._lock:
            if self._delivery is None:
                self._delivery = Delivery.open(self._root)
            return self._delivery

    @property
    def uploads(self) -> Uploads:
        """Sample files that come in over HTTP."""
        from serving.uploads import Uploads

        opened = self.delivery
        with self._lock:
            if self._uploads is None:
                self._uploads = Uploads(opened)
            return self._uploads

    def count(self) -> int:
        """Write down what finished deliveries used, once for each; how many were new."""
        opened = self.delivery
        return count_jobs(self._database, opened.workspace, opened.registry.database)

    def has_worker(self) -> bool:
        """Whether a worker is alive; where its lock cannot be looked at, it is taken to be."""
        try:
            return self.delivery.workspace.has_worker()
        except OSError:
            return True

    def channels(self, tenant: str) -> dict[str, dict[str, Any]]:
        """How each channel of a tenant is delivered."""
        return {c: config for t, c, config in self.delivery.registry.channels() if t == tenant}

    def release(self, tenant: str, release: str) -> Release | None:
        """A tenant's release by its id; None where it has none of this id."""
        every = self.delivery.registry.releases(tenant)
        return next((found for found in every if found.id == release), None)

    def start(
        self, tenant: str, channel: str, samples: str, test: str | None, by: str
    ) -> tuple[Job, bool]:
        """Queue the delivery of uploaded samples, once; `riskfm worker` takes it.

        Who uploaded them is a maker of the release as well as who asks for it.

        Args:
            samples, test: versions such as `cards@2`.
        Returns:
            the job, and whether it is new.
        Raises:
            UserError: no such version; DataError, ArtifactError: store or backbone cannot be read.
        """
        from serving.intake import hand_in

        opened = self.delivery
        given = {"samples": self.uploads.find(tenant, samples)}
        if test is not None:
            given["test"] = self.uploads.find(tenant, test)
        paths = {kind: version.path for kind, version in given.items()}
        job, new = hand_in(opened, tenant, channel, paths["samples"], paths.get("test"), by)
        for version in given.values():
            for maker in self.uploads.makers(tenant, version):
                opened.registry.add_maker(job.id, maker)
        if new:
            named = ", ".join(f"{k} {v.name}@{v.number} {v.digest}" for k, v in given.items())
            opened.book.say(job.id, named)
        return job, new

    def report(self, job: Job) -> Written | None:
        """The report of what was adapted; None while there is none."""
        return self._read(job, "adapted", "report.html", f"report-{job.id}.html")

    def metrics(self, job: Job) -> Written | None:
        """Every number of it, as JSON."""
        return self._read(job, "adapted", "metrics.json", f"metrics-{job.id}.json")

    def document(self, job: Job, language: str) -> Written | None:
        """The model document as it stands: with the approval once that is in it."""
        file = f"model_document.{language}.html"
        name = f"model-document-{job.id}.{language}.html"
        found = self.release(job.tenant, job.release) if job.release else None
        if found is not None:
            from serving.release_documents import DOCUMENTS, documents_of

            for digest in documents_of(self.delivery, found)[-1:]:
                path = self.delivery.workspace.root / DOCUMENTS / digest / file
                if path.is_file():
                    return Written(path.read_bytes(), name)
        run = self.delivery.workspace.runs / job.id
        folders = sorted(run.glob("documented-*"), key=lambda path: path.stat().st_mtime)
        return self._read(job, folders[-1].name, file, name) if folders else None

    def _read(self, job: Job, step: str, file: str, name: str) -> Written | None:
        """A file a step left, as the step left it.

        Raises:
            UserError: it was altered since.
        """
        folder = self.delivery.workspace.runs / job.id / step
        try:
            data = (folder / file).read_bytes()
            digest = json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"].get(file)
        except FileNotFoundError:
            return None
        if hashlib.sha256(data).hexdigest() != digest:
            log.error("job %s: %s/%s was altered", job.id, step, file)
            raise UserError(f"{file} of job {job.id} was altered since it was written")
        return Written(data, name)
