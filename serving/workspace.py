"""The workspace of a delivery: one directory that holds everything but stores and backbones.

DIR/workspace.yaml    optional: where registry and jobs are kept, if not here
DIR/registry.db       channels, packages, releases, approvals, history, jobs (SQLite)
DIR/jobs.db           what the durable workflow has done so far (SQLite)
DIR/samples/          sample files as they were handed in, by digest
DIR/runs/JOB/STEP/    what every step of a job made
DIR/packages/DIGEST/  installed packages
DIR/tenants/TENANT/   sample sets that came in over HTTP
DIR/champions.json    which package answers for which channel
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from foundation import strict
from foundation.errors import UserError
from serving.champions import PACKAGES
from serving.releases import name
from serving.settings import variable

REGISTRY_URL = "RISKFM_REGISTRY_URL"
JOBS_URL = "RISKFM_JOBS_URL"


class WorkspaceSettings(strict.Strict):
    """Content of `workspace.yaml`.

    Attributes:
        registry_url: SQLAlchemy URL such as postgresql+psycopg://host/riskfm; empty: SQLite here.
        jobs_url: URL of the durable workflow's database; empty: SQLite here.
    """

    registry_url: str = ""
    jobs_url: str = ""


@dataclass(frozen=True)
class Workspace:
    """Paths and database URLs of one workspace."""

    root: Path
    registry_url: str
    jobs_url: str

    @staticmethod
    def open(root: str | Path, create: bool = False) -> Workspace:
        """Open a workspace; the variables RISKFM_REGISTRY_URL and RISKFM_JOBS_URL (or the
        files that they name with _FILE behind) win.

        Raises:
            UserError: there is none, unless `create`.
            ConfigError: a wrong `workspace.yaml`.
        """
        root = Path(os.path.abspath(root))
        if create:
            # Samples name customers: nobody else needs to read them.
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
        elif not (root / "samples").is_dir():
            raise UserError(
                f"{root}: no workspace here; make one with: riskfm channel add --workspace DIR"
            )
        file = root / "workspace.yaml"
        settings = strict.load(WorkspaceSettings, file) if file.is_file() else WorkspaceSettings()
        workspace = Workspace(
            root,
            variable(REGISTRY_URL)[0] or settings.registry_url or f"sqlite:///{root}/registry.db",
            variable(JOBS_URL)[0] or settings.jobs_url or f"sqlite:///{root}/jobs.db",
        )
        for folder in (workspace.samples, workspace.runs, workspace.packages):
            folder.mkdir(exist_ok=True)
        return workspace

    @property
    def samples(self) -> Path:
        """Sample files by digest."""
        return self.root / "samples"

    @property
    def runs(self) -> Path:
        """Outputs of jobs."""
        return self.root / "runs"

    @property
    def packages(self) -> Path:
        """Installed packages by digest."""
        return self.root / PACKAGES

    def tenant(self, tenant: str) -> Path:
        """What belongs to one tenant alone: `sample_sets/` that came in over HTTP.

        Raises:
            UserError: a name no tenant can have.
        """
        return self.root / "tenants" / name("tenant", tenant)

    @contextmanager
    def working(self, tries: int = 10) -> Iterator[bool]:
        """Hold the place of the one worker; gives False where another process holds it.

        The kernel lets go of the lock when its holder dies. Who only looks holds it for a moment:
        a second of trying tells a look from a worker.
        """
        handle = os.open(self.root / "worker.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            held = _lock(handle)
            for _ in range(tries - 1):
                if held:
                    break
                time.sleep(0.1)
                held = _lock(handle)
            yield held
        finally:
            os.close(handle)

    def has_worker(self) -> bool:
        """Whether a worker is alive."""
        with self.working(tries=1) as free:
            return not free


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
