"""Every decision is counted once, whatever dies when; failures and tests are never billed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from serving.audit import follow
from serving.database import Database, now
from serving.registry_tables import jobs
from serving.registry_tables import metadata as registry_metadata
from serving.tenancy.metering import Meter, Usage, count_jobs, read_decisions, read_usage
from tests.serving.tenancy.small_hosting import open_hosting, open_log

ROOT = Path(__file__).resolve().parents[3]
STEPS = ("read", "begun", "rows", "usage", "offset", "committed")
# Counts every log it is given in a child that dies at the named step.
_COUNT = """
import os, sys
from serving.database import Database
from serving.tenancy.metering import Meter
for step in sys.argv[2:]:
    child = os.fork()
    if child == 0:
        os.environ["RISKFM_FAULT"] = "metering." + step
        folder = os.path.join(sys.argv[1], step)
        Meter(Database(f"sqlite:///{folder}/riskfm.db"), f"{folder}/decisions.jsonl").advance()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def decide(folder: Path, lines: list[dict]) -> Path:
    log = open_log(folder)
    for number, line in enumerate(lines):
        log.append({"route": "/v1/score", "channel": "cards"} | line, f"entity-{number}")
    log.close()
    return log.path


def total(database: Database, tenant: str = "acme") -> int:
    return sum(row.units for row in read_usage(database, tenant, "2000-01-01", "2999-01-01"))


def test_killed_at_any_step_every_line_counts_once(tmp_path: Path) -> None:
    for step in STEPS:
        (tmp_path / step).mkdir()
        decide(tmp_path / step, [{"tenant": "acme"}] * 7 + [{"tenant": "other"}] * 2)
        open_hosting(tmp_path / step / "riskfm.db")
    ended = subprocess.run(
        [sys.executable, "-c", _COUNT, str(tmp_path), *STEPS],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
        check=True,
    )  # fmt: skip
    assert ended.stdout.split() == [str(-signal.SIGKILL)] * len(STEPS)
    for step in STEPS:
        path = tmp_path / step / "decisions.jsonl"
        database = open_hosting(tmp_path / step / "riskfm.db")
        assert total(database) == (7 if step == "committed" else 0)
        Meter(database, path).advance()
        assert (total(database), total(database, "other")) == (7, 2)
        decide(tmp_path / step, [{"tenant": "acme"}] * 3)
        assert [Meter(database, path).advance() for _ in range(2)] == [3, 0]
        lines = [line for line in follow(path, 0)[0] if line["tenant"] == "acme"]
        assert total(database) == len(lines) == len(read_decisions(database, "acme")) == 10


def test_kinds_days_and_what_is_not_billed(database: Database, tmp_path: Path) -> None:
    path = decide(
        tmp_path,
        [
            {"tenant": "acme"},
            {"tenant": "acme", "route": "/v1/scores", "units": 1},
            {"tenant": "acme", "route": "/v1/scores", "channel": "loans", "units": 4},
            {"tenant": "acme", "flags": ["sandbox"]},
            {"tenant": "acme", "once": "abc:0", "score": 0.5},
            {"tenant": "acme", "once": "abc:0", "score": 0.5},
            {"tenant": "acme", "once": "abc:1"},
            {"tenant": "other", "once": "abc:0"},
        ],
    )
    meter = Meter(database, path)
    assert meter.advance() == 8
    today = now()[:10]
    assert read_usage(database, "acme", today, "2999-01-01") == [
        Usage("cards", today, "row", 1),
        Usage("cards", today, "score", 3),
        Usage("loans", today, "row", 4),
    ]
    assert total(database, "other") == 1
    # The same request made again after a crash, in a later stretch of the log.
    decide(tmp_path, [{"tenant": "acme", "once": "abc:1"}])
    assert meter.advance() == 1 and total(database) == 8
    assert read_usage(database, "acme", "2000-01-01", today) == []
    rows = read_decisions(database, "acme")
    assert [row["billed"] for row in rows] == [1, 1, 4, 0, 1, 0, 1, 0]
    assert len(rows) == 8 and rows[4]["score"] == 0.5 and "entity" not in rows[0]
    page = read_decisions(database, "acme", limit=3)
    last = page[-1]
    rest = read_decisions(database, "acme", after=(last["time"], last["node"], last["seq"]))
    assert page + rest == rows
    between = read_decisions(database, "acme", rows[2]["time"], rows[4]["time"])
    assert [row["seq"] for row in between] == [3, 4]


def test_nodes_and_processes_count_beside_each_other(database: Database, tmp_path: Path) -> None:
    for node in ("a", "b"):
        (tmp_path / node).mkdir()
        decide(tmp_path / node, [{"tenant": "acme"}] * 5)
    meters = [Meter(database, tmp_path / n / "decisions.jsonl", n) for n in ("a", "b", "a", "b")]
    # Another process wrote the offset between reading the log and counting it.
    slow = meters[0]._follow

    def late(path, offset):
        found = slow(path, offset)
        meters[2]._follow, meters[0]._follow = slow, slow
        meters[2]._advance()
        return found

    meters[0]._follow = late
    assert meters[0].advance() == 0
    assert [m.advance() for m in meters] == [0, 5, 0, 0]
    assert total(database) == 10


def test_a_node_that_was_renamed_counts_nothing_twice(database: Database, tmp_path: Path) -> None:
    path = decide(tmp_path, [{"tenant": "acme"}] * 4)
    assert Meter(database, path, "pod-1").advance() == 4
    decide(tmp_path, [{"tenant": "acme"}] * 2)
    assert Meter(database, path, "pod-2").advance() == 2
    assert Meter(database, path, "pod-1").advance() == 0
    assert total(database) == 6


def test_a_missing_log_counts_nothing(tmp_path: Path) -> None:
    meter = Meter(open_hosting(tmp_path / "m.db"), tmp_path / "none.jsonl")
    assert meter.advance() == 0 == meter.advance(wait=False)


def test_deliveries_count_once_when_they_are_done(database: Database, tmp_path: Path) -> None:
    registry = Database(f"sqlite:///{tmp_path}/registry.db", registry_metadata)
    workspace = SimpleNamespace(runs=tmp_path / "runs")

    def add(job: str, state: str, n: int, bads: int | None) -> None:
        row = {c.name: "" for c in jobs.columns} | {
            "id": job, "tenant": "acme", "channel": "cards", "state": state, "attempt": 1,
            "done": 0, "total": 0, "exit_code": 0, "ended_at": "2027-01-31T23:59:00+00:00",
        }  # fmt: skip
        with registry.transaction() as connection:
            connection.execute(jobs.insert().values(row))
        folder = workspace.runs / job / "validated"
        folder.mkdir(parents=True)
        (folder / "samples.json").write_text(json.dumps({"n": n, "bads": bads}))

    add("j1", "done", 500, 40)
    add("j2", "failed", 900, 40)
    add("j3", "done", 70, None)
    assert [count_jobs(database, workspace, registry) for _ in range(2)] == [2, 0]
    assert read_usage(database, "acme", "2027-01-01", "2027-02-01") == [
        Usage("cards", "2027-01-31", "label", 500),
        Usage("cards", "2027-01-31", "sample", 570),
    ]
