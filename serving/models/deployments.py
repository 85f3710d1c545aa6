"""Every release that answers in this worker, and how a new one takes over.

`apply` loads what `champions.json` names and this worker lacks: files verified against their
digests, golden rows reproduced, warmed up. Then one assignment switches the table; requests that
hold an earlier release finish with it. What cannot be loaded leaves the channel as it was, is
logged as `release_failed` and shown until it could be loaded.
"""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from foundation.errors import ArtifactError, ConfigError, ParityError
from serving.champions import CHAMPIONS, PACKAGES, Named, Standing, read_champions
from serving.metrics import Metrics
from serving.models.loaded import CHALLENGER, CHAMPION, SHADOW, Loaded, Memory, Model
from serving.models.named import NamedPackages
from serving.models.pool import ScoringPool
from serving.models.shelves import Shelves, shared_shelf
from serving.models.table import NOBODY, Channel, Tenant, tenant_of
from serving.requests import RequestReader
from serving.settings import Settings
from serving.tenancy.principal import DEFAULT_TENANT

if TYPE_CHECKING:
    from finetune.package import Package

Key = tuple[str, str]
log = logging.getLogger("riskfm.serving")


@dataclass(frozen=True)
class Failure:
    """A release that could not be loaded.

    Attributes:
        reason: what its tenant may read; the log has the whole sentence.
        at: of the last try, ISO 8601 UTC.
    """

    tenant: str
    channel: str
    release: str
    stage: str
    reason: str
    at: str


class Deployments:
    """What answers for every tenant and channel; safe to share between threads.

    Args:
        settings: `workspace`, `packages`, `default_package`, threads, queue and limits. Packages
            named by path belong to the tenant `default`.
        load: opens and verifies one package directory; `finetune.package.Package.load` if None,
            with what packages have in common held once.
        metrics: counts releases that went live and that could not be loaded.
        memory: (tenant, channel) -> what is stored of the channel's customers; None stores nothing.
    Attributes:
        pool: the scoring threads.
        refused: packages of a directory that could not be loaded -> why.
        broken: why `champions.json` could not be read; empty where it could.
    Raises:
        ArtifactError, ConfigError: packages named by path are at fault; a workspace never is, for
            its channels may become whole while the service runs.
    """

    def __init__(
        self,
        settings: Settings,
        load: Callable[..., Package] | None = None,
        metrics: Metrics | None = None,
        memory: Callable[[str, str], Memory] | None = None,
    ) -> None:
        self._shelf = Shelves(load) if load is not None else shared_shelf(settings.session_bytes)
        self._settings = settings
        self._metrics = metrics or Metrics()
        self._memory: Callable[[str, str], Memory | None] = memory or (lambda *key: None)
        self._workspace = Path(settings.workspace) if settings.workspace else None
        self._models: weakref.WeakValueDictionary[str, Model] = weakref.WeakValueDictionary()
        self._readers: weakref.WeakValueDictionary[str, RequestReader] = (
            weakref.WeakValueDictionary()
        )
        self._applying = threading.Lock()
        self._standings: dict[Key, Standing] = {}
        self._channels: dict[Key, Channel] = {}
        self._applied: dict[Key, Standing] = {}
        self._failures: dict[tuple[str, str, str], Failure] = {}
        self._tenants: Mapping[str, Tenant] = {}
        self.broken = ""
        self.refused: dict[str, str] = {}
        self._named: dict[str, Loaded] = {}
        self._default: str | None = None
        threads, short = settings.scoring_threads, settings.short_ms / 1000
        self.pool = ScoringPool(threads, settings.queue, settings.timeout_seconds, short)
        try:
            self._load_named()
        except Exception:
            self.close()
            raise
        if self._named:
            self._switch(DEFAULT_TENANT)
        if self._workspace is not None:
            self.refresh()

    # what requests ask

    def pick(
        self,
        tenant: str,
        channel: str | None = None,
        package: str | None = None,
        entity: str = "",
    ) -> Loaded:
        """The release that answers a request.

        Args:
            channel: of the tenant; may be left out where the tenant has one only.
            package: id of one of the tenant's packages instead; no rollout changes it.
            entity: keyed hash of the customer, which decides the side of a rollout.
        Raises:
            ApiError: 404, 422 or 503; see `Tenant.pick`.
        """
        return self._tenants.get(tenant, NOBODY).pick(channel, package, entity)

    def tenant(self, tenant: str) -> Tenant:
        """What answers for a tenant; empty for an unknown one."""
        return self._tenants.get(tenant, NOBODY)

    def again(self, tenant: str, channel: str, digest: str) -> Loaded | None:
        """What a decision of the tenant is replayed with.

        Args:
            digest: of the package that gave it, as the decision log has it.
        Returns:
            the package with the digest, from the workspace where none answers with it any more;
            else what answers for the channel now, or None.
        """
        own = self.tenant(tenant)
        for loaded in own.packages.values():
            if loaded.digest == digest:
                return loaded
        if self._workspace is not None and digest.isalnum():
            path = self._workspace / PACKAGES / digest
            try:
                model = self._models.get(digest) or Model(path, self._shelf, self._reader)
                if model.digest == digest:
                    return self._loaded(model, (tenant, channel))
            except Exception as exc:
                log.warning("package_gone %s: %s", digest[:16], type(exc).__name__)
        found = own.channels.get(channel)
        return None if found is None else found.champion

    def failures(self, tenant: str | None = None) -> list[Failure]:
        """Releases that could not be loaded, of one tenant or of all."""
        every = self._failures.values()
        return [f for f in every if tenant is None or f.tenant == tenant]

    @property
    def ready(self) -> bool:
        """Whether anything answers, or nothing is there that should."""
        return bool(self._channels or self._named) or not (self._standings or self.broken)

    @property
    def names(self) -> list[str]:
        """What answers: channels as tenant/channel, and packages named by path."""
        return [*("/".join(key) for key in sorted(self._channels)), *self._named]

    @property
    def live(self) -> int:
        """Number of channels and of packages named by path that answer."""
        return len(self._channels) + len(self._named)

    def close(self) -> None:
        """Stop scoring; what waits is refused."""
        self.pool.close()

    # how releases change

    def refresh(self) -> None:
        """Read `champions.json` and bring the table up to it; nothing in it can raise."""
        if self._workspace is None:
            return
        path = self._workspace / CHAMPIONS
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            # A workspace in which nothing was ever approved has none.
            self._unreadable("champions.json is missing" if self._standings else "")
            return
        except OSError as exc:
            self._unreadable(f"champions.json cannot be read: {type(exc).__name__}")
            return
        self.apply_text(data)

    def apply_text(self, data: bytes) -> bool:
        """Bring the table up to the content of `champions.json`; whether it could be read."""
        assert self._workspace is not None
        try:
            standings = read_champions(data, self._workspace / CHAMPIONS)
        except ArtifactError:
            self._unreadable("champions.json is damaged")
            return False
        if not standings and self._standings:
            # No registry takes the last champion away: somebody opened another, empty one here.
            self._unreadable("champions.json names no channel any more")
            return False
        self._unreadable("")
        self.apply(standings)
        return True

    def apply(self, standings: Mapping[Key, Standing]) -> None:
        """Make every channel answer as it stands, one after the other; failed ones stay."""
        with self._applying:
            self._standings = dict(standings)
            gone = [key for key in self._channels if key not in standings]
            for key in gone:
                del self._channels[key]
                self._applied.pop(key, None)
                log.warning("channel_gone %s/%s", *key)
            self._failures = {n: f for n, f in self._failures.items() if n[:2] in standings}
            for tenant in {tenant for tenant, _ in (*gone, *standings)}:
                self._switch(tenant)
            for key, standing in standings.items():
                if self._applied.get(key) != standing:
                    self._bring(key, standing)
            self._metrics.releases_failed(self.failed)
            self._metrics.sessions(self._shelf.bytes)

    @property
    def failed(self) -> int:
        """Number of releases that could not be loaded; an unreadable file counts as one."""
        return len(self._failures) + bool(self.broken)

    def _bring(self, key: Key, standing: Standing) -> None:
        """Make one channel answer as it stands."""
        before = self._channels.get(key)
        failures: dict[tuple[str, str, str], Failure] = {}
        champion = self._champion(key, standing, before, failures)
        if champion is not None:
            rollout = self._rollout(key, standing, champion, before, failures)
            shadows = []
            for each in standing.shadows:
                found = self._open(key, each, SHADOW, failures)
                if found is not None:
                    share = self._settings.shadow_share if each.share is None else each.share
                    shadows.append((self._loaded(found, key, each.release, SHADOW, ""), share))
            champion.shadows = tuple(shadows)
            percent = (
                0.0 if rollout is None or standing.rollout is None else standing.rollout.percent
            )
            self._channels[key] = Channel(champion, rollout, percent)
            self._switch(key[0])
            self._say(key, before, self._channels[key])
        others = {name: f for name, f in self._failures.items() if name[:2] != key}
        self._failures = others | failures
        # What failed is brought again whenever it is asked for.
        self._applied.pop(key, None)
        if not failures:
            self._applied[key] = standing

    def _champion(
        self,
        key: Key,
        standing: Standing,
        before: Channel | None,
        failures: dict[tuple[str, str, str], Failure],
    ) -> Loaded | None:
        """The champion as it stands; where it cannot be loaded the one before, if there is any."""
        model = self._open(key, standing, CHAMPION, failures)
        if model is not None:
            until = self._until(standing.backbone_since)
            return self._loaded(model, key, standing.release, CHAMPION, standing.since, until)
        if before is not None:
            old = before.champion
            return self._loaded(
                old.model, key, old.release, CHAMPION, old.since, old.announced_until
            )
        if standing.before is None:
            return None
        # A worker that starts now answers as those do that kept the champion before.
        model = self._open(key, standing.before, CHAMPION, failures)
        if model is None:
            return None
        return self._loaded(model, key, standing.before.release, CHAMPION, "")

    def _rollout(
        self,
        key: Key,
        standing: Standing,
        champion: Loaded,
        before: Channel | None,
        failures: dict[tuple[str, str, str], Failure],
    ) -> Loaded | None:
        wanted = standing.rollout
        if wanted is None or wanted.percent <= 0:
            return None
        if champion.release != standing.release:
            # Beside a champion that had to stay nothing new begins.
            old = None if before is None else before.rollout
            if old is None or old.release != wanted.release:
                return None
        model = self._open(key, wanted, CHALLENGER, failures)
        if model is None:
            return None
        loaded = self._loaded(model, key, wanted.release, CHALLENGER, wanted.since)
        if loaded.backbone != champion.backbone:
            loaded.announced_until = float("inf")
        return loaded

    def _loaded(
        self,
        model: Model,
        key: Key,
        release: str = "",
        stage: str = CHAMPION,
        since: str = "",
        until: float = 0.0,
    ) -> Loaded:
        memory = self._memory(*key)
        return Loaded(model, self.pool, *key, release, stage, since, until, memory=memory)

    def _until(self, since: str | None) -> float:
        """Until when (seconds since the epoch) a backbone counts as new."""
        if not since:
            return 0.0
        moment = dt.datetime.fromisoformat(since).timestamp()
        return moment + self._settings.announce_days * 86_400.0

    # loading

    def _open(
        self,
        key: Key,
        named: Named,
        stage: str,
        failures: dict[tuple[str, str, str], Failure],
    ) -> Model | None:
        """The model of a release, loaded unless this worker has it; None where it cannot be."""
        model = self._models.get(named.package)
        if model is not None:
            return model
        assert self._workspace is not None
        begin = time.perf_counter()
        try:
            model = self._model(self._workspace / PACKAGES / named.package)
            if model.digest != named.package:
                raise ArtifactError(f"{named.release}: its directory holds another package")
        except Exception as exc:
            at = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
            name = (*key, named.release)
            failures[name] = Failure(*name, stage, _public(exc), at)
            known = self._failures.get(name)
            self._metrics.release_failed(_kind(exc))
            if known is None or known.reason != failures[name].reason:
                log.error(
                    "release_failed %s: %s: %s", named.release, type(exc).__name__, exc,
                    extra={"event": "release_failed", "tenant": key[0], "channel": key[1],
                           "release": named.release},
                )  # fmt: skip
            return None
        log.info("release_loaded %s in %.2f s", named.release, time.perf_counter() - begin)
        return model

    def _model(self, path: Path) -> Model:
        model = Model(path, self._shelf, self._reader)
        model.warm()
        return self._models.setdefault(model.digest, model)

    def _reader(self, package: Package) -> RequestReader:
        """The reader of a package's schema; packages of one schema share it."""
        fingerprint = str(package.manifest.get("schema_fingerprint") or package.manifest["digest"])
        found = self._readers.get(fingerprint)
        if found is None:
            limits = self._settings.max_events, self._settings.future_seconds
            found = self._readers[fingerprint] = RequestReader(package.schema, *limits)
        return found

    def _load_named(self) -> None:
        paths = self._settings.packages
        if self._workspace is not None and not paths:
            return
        found = NamedPackages(paths, self._settings.default_package, self._model)
        self.refused, self._default = found.refused, found.default
        for name, model in found.models.items():
            channel = str(model.manifest.get("channel", ""))
            self._named[name] = self._loaded(model, (DEFAULT_TENANT, channel))

    # the table

    def _switch(self, tenant: str) -> None:
        """Make what answers for a tenant anew and let requests see it, by one assignment."""
        channels = {name: c for (t, name), c in self._channels.items() if t == tenant}
        names = {name for t, name in self._standings if t == tenant}
        ours = tenant == DEFAULT_TENANT
        made = tenant_of(
            channels,
            self._named if ours else {},
            self._default if ours else None,
            frozenset(names - set(channels)),
        )
        self._tenants = {**self._tenants, tenant: made}

    def _unreadable(self, reason: str) -> None:
        if reason and reason != self.broken:
            self._metrics.release_failed("registry")
            log.error("champions_unreadable %s", reason, extra={"event": "champions_unreadable"})
        if reason != self.broken:
            self.broken = reason
            self._metrics.releases_failed(self.failed)

    def _say(self, key: Key, before: Channel | None, now: Channel) -> None:
        old = {} if before is None else {(x.release, x.stage) for x in before.releases}
        for loaded in now.releases:
            if (loaded.release, loaded.stage) not in old:
                self._metrics.switched()
                log.info(
                    "release_live %s as %s of %s/%s", loaded.release, loaded.stage, *key,
                    extra={"event": "release_live", "tenant": key[0], "channel": key[1],
                           "release": loaded.release},
                )  # fmt: skip


def _kind(exc: Exception) -> str:
    """A failed load in one of the words metrics know."""
    if isinstance(exc, ParityError):
        return "golden"
    if isinstance(exc, ArtifactError):
        return "verify"
    return "memory" if isinstance(exc, MemoryError) else "load"


def _public(exc: Exception) -> str:
    """What a tenant may read about a failed load: no path, no value."""
    if isinstance(exc, ParityError):
        return "its golden rows are not reproduced on this machine"
    if isinstance(exc, ArtifactError | ConfigError):
        return "its package is missing, damaged or incomplete"
    return f"its package cannot be loaded ({type(exc).__name__})"
