"""Few labels: `auto` against honestly tuned opponents on the prepared sets, with intervals.

    python scripts/bench/few_labels.py [--quick] [--sets uci,loans] [--part opponents|ours|table]

reads `$RISKFM_DATA/prepared` (default `../shared/data`), keeps every cell under `--work` and writes
few_labels.md, few_labels.parquet and few_labels.png to `--output`. A run that was stopped goes on
where it stood. See docs/benchmarks/README.md for what is measured and how.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Before numpy and polars are imported: one thread a process, worker processes inherit it.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.bench.fewlabels.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
