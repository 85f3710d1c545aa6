"""Every operation of the API, the busiest first: routes are tried in this order."""

from __future__ import annotations

from serving.routes import batch, decisions, health, models, scoring, tenancy
from serving.routes.operation import Operation

OPERATIONS: tuple[Operation, ...] = (
    *scoring.OPERATIONS,
    *batch.OPERATIONS,
    *models.OPERATIONS,
    *decisions.OPERATIONS,
    *tenancy.OPERATIONS,
    *health.OPERATIONS,
)
