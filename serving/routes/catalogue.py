"""Every operation of the API, the busiest first: routes are tried in this order."""

from __future__ import annotations

from serving.routes import health, packages, scoring
from serving.routes.operation import Operation

OPERATIONS: tuple[Operation, ...] = (
    *scoring.OPERATIONS,
    *packages.OPERATIONS,
    *health.OPERATIONS,
)
