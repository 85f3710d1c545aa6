"""Every operation of the API, the busiest first: routes are tried in this order."""

from __future__ import annotations

from serving.routes import (
    approvals,
    batch,
    decisions,
    delivery,
    events,
    health,
    models,
    reports,
    samples,
    scoring,
    tenancy,
)
from serving.routes.operation import Operation

OPERATIONS: tuple[Operation, ...] = (
    *scoring.OPERATIONS,
    *batch.OPERATIONS,
    *events.OPERATIONS,
    *models.OPERATIONS,
    *decisions.OPERATIONS,
    *samples.OPERATIONS,
    *delivery.OPERATIONS,
    *reports.OPERATIONS,
    *approvals.OPERATIONS,
    *tenancy.OPERATIONS,
    *health.OPERATIONS,
)
