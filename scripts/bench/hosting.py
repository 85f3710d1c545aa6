"""Hosted scoring: speed of the service against bare routes, many channels, isolation, overload.

    python scripts/bench/hosting.py [--work DIR] [--sections speed,channels] [--size small]

The load comes from this process, the service and the bare routes are others. What is compared takes
turns in one run. Every section's figures go to DIR/results.jsonl at once; a section that is there
is not run again (`--again`). `--output FILE` writes the table.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Before numpy and polars are imported: one thread a process, worker processes inherit it.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# In the place of this folder: no module beside this script may hide a package.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from scripts.bench.hosted.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
