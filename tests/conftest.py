"""Settings of every test: pinned threads, reproducible hypothesis, optional outside data."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Before numpy, polars and torch are imported: two OpenMP pools on two cores slow each other.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("POLARS_MAX_THREADS", "2")
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis  # noqa: E402
import pytest  # noqa: E402

from foundation.allocator import keep_freed_memory  # noqa: E402
from tests.servers import (  # noqa: E402, F401
    database_url,
    postgres_server,
    postgres_url,
    valkey_server,
    valkey_url,
)

ROOT = Path(__file__).resolve().parents[1]

hypothesis.settings.register_profile(
    "riskfm", deadline=None, max_examples=25, derandomize=True, database=None
)
hypothesis.settings.load_profile("riskfm")
keep_freed_memory()  # as the commands do


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    """A service that a failed test left open fails that test alone, not the next.

    Those of fixtures that several tests share were opened before.
    """
    harness = sys.modules.get("tests.serving.harness")
    if harness is None:
        yield
        return
    before = harness.opened()
    yield
    harness.close_from(before)


@pytest.fixture(scope="session")
def prepared() -> Path:
    """Folder of the benchmark's prepared sets: `$RISKFM_DATA/prepared`, else beside the repo."""
    root = Path(os.environ.get("RISKFM_DATA", ROOT.parent / "shared" / "data"))
    folder = root / "prepared"
    if not folder.is_dir():
        pytest.skip(f"no prepared data sets at {folder}; set RISKFM_DATA")
    return folder
