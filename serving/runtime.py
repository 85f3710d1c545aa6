"""What answers requests: the parts a worker opens when it starts and closes when it stops."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from serving.audit import DecisionLog
from serving.keys import KeyRing
from serving.messages import ApiError
from serving.metrics import Metrics
from serving.scorer import Scorer
from serving.settings import Settings

log = logging.getLogger("riskfm.serving")


@dataclass
class Runtime:
    """What answers requests; `scorer` stays None until packages are loaded and verified."""

    settings: Settings
    keys: KeyRing
    audit: DecisionLog
    scorer: Scorer | None = None
    metrics: Metrics = field(default_factory=Metrics)
    version: str = "0"

    def packages(self) -> Scorer:
        """The loaded packages.

        Raises:
            ApiError: 503 while they are being loaded.
        """
        if self.scorer is None:
            raise ApiError(503, "packages are being loaded", headers={"Retry-After": "1"})
        return self.scorer

    def close(self) -> None:
        """Stop scoring, then finish the decision log."""
        if self.scorer is not None:
            self.scorer.close()
        log.info("decision log ends at %s", self.audit.close())
