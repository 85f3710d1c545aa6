"""What answers requests: the parts a worker opens when it starts and closes when it stops."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from serving.audit import DecisionLog, follow, node_name
from serving.database import Database
from serving.decisions.desk import Desk
from serving.decisions.rescoring import rescorer
from serving.deliveries import Deliveries
from serving.metrics import Metrics
from serving.models.deployments import Deployments
from serving.models.poller import Poller
from serving.models.shadow import ShadowScorer
from serving.models.shadow_store import ShadowStore
from serving.online.bounds import Bound, Bounds
from serving.online.histories import Histories
from serving.online.states import EntityStates
from serving.online.store import OnlineStore
from serving.room import Room
from serving.safety.hashing import EntityHasher
from serving.safety.secrets import open_secrets
from serving.safety.vault import Vault
from serving.settings import Settings
from serving.tenancy.background import Background
from serving.tenancy.front import Front
from serving.tracing import Tracing

if TYPE_CHECKING:
    from finetune.package import Package

# Between looks for what other processes erased.
ERASED_SECONDS = 1.0
# Connections to the database that stay open; more are opened while they are needed.
_KEPT = 4
log = logging.getLogger("riskfm.serving")


@dataclass
class Runtime:
    """The parts of one worker.

    Attributes:
        front: keys, limits, quotas, idempotency, people, usage.
        audit: the decision log.
        deployments: which release answers for whom.
        histories: what is stored of customers.
        decisions: lists, rules, cases, replay.
        shadow: releases that score along.
        room: how much of requests is held at once.
        deliveries: samples, jobs and releases of the workspace; None: the service has none.
    """

    settings: Settings
    database: Database
    hasher: EntityHasher
    vault: Vault
    front: Front
    audit: DecisionLog
    deployments: Deployments
    histories: Histories
    decisions: Desk
    shadow: ShadowScorer
    metrics: Metrics
    tracing: Tracing
    room: Room
    deliveries: Deliveries | None = None
    version: str = "0"
    _open: ExitStack = field(default_factory=ExitStack, repr=False)

    def close(self) -> None:
        """Close the parts, the last opened first: scoring before the log, the log before those
        who count it."""
        self._open.close()


def open_runtime(
    settings: Settings,
    load: Callable[..., Package] | None = None,
    version: str | None = None,
) -> Runtime:
    """Load and verify everything the application needs.

    Args:
        load: opens one package directory; `finetune.package.Package.load` if None.
    Raises:
        UserError: settings, secrets, keys or packages are at fault.
    """
    with ExitStack() as opened:
        version = distribution_version() if version is None else version
        room = Room.of(settings)
        metrics = Metrics(settings.metrics_tenants)
        tracing = Tracing(settings.trace_endpoint, version)
        opened.callback(tracing.close)
        found = open_secrets(settings.master_key_path, settings.environment)
        hasher = EntityHasher(found, settings.entity_hash)
        vault = Vault(found, settings.cipher)
        database = Database(settings.database_url, keep=_KEPT)
        opened.callback(database.close)
        node = node_name(settings.audit_path)
        front = Front(
            database,
            vault=vault,
            hide=hasher.hash,
            log=settings.audit_path,
            node=node,
            people=_people(settings),
            workers=settings.workers,
            valkey=settings.valkey,
            remember_seconds=settings.key_cache_seconds,
            lease_seconds=settings.timeout_seconds + 30.0,
            keep_seconds=settings.idempotency_hours * 3600,
        )
        opened.callback(front.close)
        histories = Histories(
            OnlineStore(database, vault, hasher, settings.max_events, settings.history_bytes),
            Bounds(database, Bound(settings.history_max_age or None, settings.history_fallback)),
            hasher,
            EntityStates(settings.state_bytes, metrics.entity_state),
        )
        opened.callback(histories.close)
        erased = Background("erasures", ERASED_SECONDS, histories.forget_erased)
        opened.callback(erased.close)
        deployments = Deployments(settings, load, metrics, histories.of)
        desk = Desk(
            database,
            hasher.hash,
            vault=vault if settings.record_inputs else None,
            days=settings.inputs_days,
            log=settings.audit_path,
            node=node,
            follow=follow,
            score=rescorer(deployments.again),
            networks=settings.action_networks,
            permit=front.people.permit,
        )
        opened.callback(desk.close)
        audit = DecisionLog(settings.audit_path, hasher)
        opened.callback(lambda: log.info("decision log ends at %s", audit.close()))
        opened.callback(deployments.close)
        shadow = ShadowScorer(deployments.pool, ShadowStore(database).keep, metrics.shadow)
        opened.callback(shadow.close)
        deliveries = None
        if settings.workspace:
            deliveries = Deliveries(settings.workspace, database)
            opened.callback(deliveries.close)
            poller = Poller(deployments, settings.workspace, settings.poll_seconds)
            poller.start()
            opened.callback(poller.close)
        return Runtime(
            settings=settings,
            database=database,
            hasher=hasher,
            vault=vault,
            front=front,
            audit=audit,
            deployments=deployments,
            histories=histories,
            decisions=desk,
            shadow=shadow,
            metrics=metrics,
            tracing=tracing,
            room=room,
            deliveries=deliveries,
            version=version,
            _open=opened.pop_all(),
        )


def _people(settings: Settings) -> Database | None:
    """Where people are declared: the registry of the workspace, if the service has one."""
    if not settings.workspace:
        return None
    from serving.workspace import Workspace

    return Database(Workspace.open(Path(settings.workspace)).registry_url)


def distribution_version() -> str:
    """Version of the installed distribution, 0 when it runs from a checkout."""
    try:
        return importlib.metadata.version("riskfm")
    except importlib.metadata.PackageNotFoundError:
        return "0"
