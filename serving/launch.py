"""Start and stop the service as processes of its own.

`serve` runs it in the foreground, as the command does; `running_service` runs it for the time of a
with block, as the demo and the tests do. BentoML's telemetry is off, its files stay in a temporary
directory, and every numerical library gets one thread.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import psutil

from foundation.errors import ArtifactError, ConfigError, InternalError
from serving.champions import CHAMPIONS, PACKAGES, Named, read_champions
from serving.database import Database
from serving.draining import MARKER
from serving.models.deployments import Deployments
from serving.room import Room
from serving.settings import Settings, absolute, to_environment
from serving.settings_check import require_safe
from serving.tenancy.keys import create_key, list_keys
from serving.tenancy.principal import DEFAULT_TENANT, SCOPES
from serving.tenancy.tenants import add_tenant

log = logging.getLogger("riskfm.serving")
SERVICE = "serving.service:RiskfmService"
MARKED = "stopping"
_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "POLARS_MAX_THREADS",
)


def serve(settings: Settings, *, port: int = 3000, host: str = "127.0.0.1") -> int:
    """Look whether it could start (`check`), then run the service until it is stopped.

    In development a first API key is made and printed once if there is no usable one.

    Returns:
        the exit code: 0 after SIGINT or SIGTERM, otherwise that of the server.
    Raises:
        UserError: settings, packages or the port are at fault.
    """
    require_safe(settings, host)
    loaded = check(settings, port, host)
    keys = first_keys(settings, loaded) if settings.environment == "development" else {}
    print(f"answering: {', '.join(loaded) or 'nothing yet; no channel has a champion'}")
    for tenant, key in keys.items():
        print(f"API key of {tenant} (shown this once): {key}")
    print(f"scoring at http://{_bracketed(host)}:{port}/v1/score, Ctrl-C stops", flush=True)
    with tempfile.TemporaryDirectory(prefix="riskfm-") as scratch:
        process = _start(settings, port, host, scratch, None)
        stopped = False

        def stop(number: int, frame: object) -> None:
            nonlocal stopped
            stopped = True
            _tell_to_stop(process, scratch)

        before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            code = process.wait()
        finally:
            _stop(process, scratch, settings.drain_seconds + settings.grace_seconds)
            for number, handler in before.items():
                signal.signal(number, handler)
        return 0 if stopped else code


def check(settings: Settings, port: int, host: str = "127.0.0.1") -> tuple[str, ...]:
    """Look whether the service could start: the port, and what it would answer with.

    Packages named by path are loaded and scored, for the service does not start without them, and
    says why here rather than in a worker. Of a workspace only the digests are compared: workers
    load the champions themselves, and go on with the others where one is damaged.

    Returns:
        what answers: channels as tenant/channel, then ids of packages.
    Raises:
        ConfigError: a wrong address, a taken port, settings that contradict each other.
        ArtifactError: a damaged package.
    """
    check_port(port, host)
    Room.of(settings)
    channels = whole_champions(Path(settings.workspace)) if settings.workspace else []
    if settings.workspace and not settings.packages:
        return tuple(channels)
    deployments = Deployments(msgspec.structs.replace(settings, workspace=""))
    deployments.close()
    return (*channels, *deployments.names)


def whole_champions(workspace: Path) -> list[str]:
    """Channels, as tenant/channel, with a package whose files have their digests.

    What is damaged is said and left out; a champion that is may be answered for by the one before.
    """
    from finetune.package import read_manifest, verify_files

    path = workspace / CHAMPIONS
    if not path.is_file():
        return []
    whole: dict[str, bool] = {}

    def lies_whole(named: Named) -> bool:
        package = workspace / PACKAGES / named.package
        try:
            manifest = read_manifest(package)
            verify_files(package, manifest)
            if manifest["digest"] != named.package:
                raise ArtifactError(f"{named.release}: its directory holds another package")
        except (ArtifactError, OSError) as exc:
            log.error("release_damaged %s: %s", named.release, exc)
            return False
        return True

    names = []
    try:
        standings = read_champions(path.read_bytes(), path)
    except (ArtifactError, OSError) as exc:
        log.error("champions cannot be read: %s", exc)
        return []
    for key, standing in sorted(standings.items()):
        for named in filter(None, (standing, standing.before)):
            if named.package not in whole:
                whole[named.package] = lies_whole(named)
            if whole[named.package]:
                names.append("/".join(key))
                break
    return names


def check_port(port: int, host: str = "127.0.0.1") -> None:
    """Look whether a port is free.

    Raises:
        ConfigError: the address is wrong or the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            raise ConfigError(f"{host}:{port} cannot be used: {exc.strerror or exc}") from None


def first_keys(settings: Settings, answering: Sequence[str]) -> dict[str, str]:
    """First keys for development: made only if there is no usable one at all.

    Args:
        answering: what `check` gave.
    Returns:
        tenant -> key, to be shown once: of every tenant with a channel, or of the one there is
        without a workspace.
    """
    database = Database(settings.database_url)
    if any(record.state() == "active" for record in list_keys(database)):
        return {}
    tenants = sorted({name.partition("/")[0] for name in answering if "/" in name})
    for tenant in tenants:
        add_tenant(database, tenant)
    return {
        tenant: create_key(database, "development", SCOPES, tenant=tenant)
        for tenant in tenants or [DEFAULT_TENANT]
    }


@contextlib.contextmanager
def running_service(
    package_dir: str | Path,
    port: int = 0,
    settings: Settings | None = None,
    environment: Mapping[str, str] | None = None,
    wait_seconds: float = 60.0,
) -> Iterator[tuple[str, str]]:
    """Run the service for the time of a with block.

    Args:
        package_dir: a package, or a directory of packages.
        port: 0 takes a free one.
        settings: anything but the packages; keys and logs are temporary if None.
        environment: further variables of the service's processes.
    Yields:
        the base URL, such as http://127.0.0.1:3000, and an API key with every scope.
    Raises:
        UserError: the package is at fault.
        InternalError: not ready in time; the message ends with the service's last words.
    """
    with tempfile.TemporaryDirectory(prefix="riskfm-") as scratch:
        settings = settings or Settings(state=os.path.join(scratch, "state"))
        settings = msgspec.structs.replace(settings, packages=(str(package_dir),))
        key = create_key(Database(settings.database_url), "temporary", SCOPES)
        port = port or free_port()
        check_port(port)
        log = Path(scratch) / "service.log"
        process = _start(settings, port, "127.0.0.1", scratch, log, environment)
        url = f"http://127.0.0.1:{port}"
        try:
            _await_ready(url, process, log, wait_seconds)
            yield url, key
        finally:
            _stop(process, scratch)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def free_port() -> int:
    """A TCP port nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(
    settings: Settings,
    port: int,
    host: str,
    scratch: str,
    log: Path | None,
    more: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    root = str(Path(__file__).resolve().parent.parent)
    python_path = [part for part in (os.environ.get("PYTHONPATH"), root) if part]
    # Every scoring thread is one core's work.
    threads = dict.fromkeys(_THREADS, "1")
    environment = (
        os.environ
        | threads
        | to_environment(absolute(settings))
        | {
            "BENTOML_DO_NOT_TRACK": "True",
            "BENTOML_HOME": scratch,
            "PYTHONPATH": os.pathsep.join(python_path),
            MARKER: os.path.join(scratch, MARKED),
        }
        | dict(more or {})
    )
    command = [
        sys.executable,
        "-m",
        "bentoml",
        "serve",
        SERVICE,
        "--host",
        host,
        "--port",
        str(port),
        "--working-dir",
        root,
        "--timeout-graceful-shutdown",
        str(math.ceil(settings.grace_seconds)),
    ]
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(open(log, "wb")) if log is not None else None
        # A session of its own: what the terminal sends reaches it through `serve` alone.
        return subprocess.Popen(
            command,
            env=environment,
            cwd=scratch,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT if out else None,
            start_new_session=True,
        )


def _await_ready(
    url: str, process: subprocess.Popen[bytes], log: Path, wait_seconds: float
) -> None:
    deadline = time.monotonic() + wait_seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{url}/v1/health/ready", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    words = log.read_text(errors="replace")[-2000:]
    raise InternalError(f"the service was not ready in {wait_seconds:g} s; it said:\n{words}")


def _tell_to_stop(process: subprocess.Popen[bytes], scratch: str) -> None:
    """SIGTERM to the supervisor, which stops its workers; they see that all of them stop."""
    Path(scratch, MARKED).touch()
    process.terminate()


def _stop(process: subprocess.Popen[bytes], scratch: str, grace_seconds: float = 15.0) -> None:
    """Stop supervisor and workers; SIGKILL to all that outlive their time."""
    if process.poll() is None:
        _tell_to_stop(process, scratch)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_seconds + 5.0)
    # The supervisor first: it would start a worker anew.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for worker in _workers(scratch):
        with contextlib.suppress(psutil.Error):
            worker.kill()


def _workers(scratch: str) -> list[psutil.Process]:
    """Processes of the service that runs in this directory.

    Workers have sessions of their own and outlive their supervisor, so they are known by what only
    they were given.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARKER) == os.path.join(scratch, MARKED):
                found.append(process)
    return found
