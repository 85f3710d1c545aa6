"""The benchmark of hosted scoring counts, keeps and judges its figures as it says."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from scripts.bench.hosted import command, isolation, peer
from scripts.bench.hosted.load import Seen, turns
from scripts.bench.hosted.world import World


def test_isolation_of_a_few_requests(tmp_path: Path) -> None:
    """Every route that reads is asked; a mark of another tenant would be seen."""
    results = tmp_path / "results.jsonl"
    command._run("isolation", isolation.run, World(tmp_path, "nano", 1, 1, 1, 120), results)
    found = {row["what"]: row for row in command.read(results)}
    assert found["answers that show another tenant"]["value"] == 0
    assert found["answers of 500"]["value"] == 0
    assert 0 < found["answered 200"]["value"] < 120
    assert not any(command.misses(row) for row in found.values())
    page = command.page(list(found.values()))
    assert "| isolation | nano | answered 200 |" in page and "missed" not in page


def test_a_leak_is_seen() -> None:
    callers = isolation._Callers.__new__(isolation._Callers)
    told = json.dumps({"key": f"{isolation.MARKS[1]}-key"}).encode()
    assert callers.shows(isolation.MARKS[0], told, b"/v1/keys")
    assert not callers.shows(isolation.MARKS[1], told, b"/v1/keys")
    assert not callers.shows(isolation.MARKS[0], told, told)


def test_figures_have_sides_and_turns_are_even() -> None:
    assert command.misses({"value": 2.0, "bar": 1.5, "better": "lower"})
    assert command.misses({"value": 2.0, "bar": 3.0, "better": "higher"})
    assert not command.misses({"value": 2.0})
    order = list(turns(3, ("a", "b", "c")))
    assert order == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    seen = Seen([0.001 * k for k in range(1, 102)], took=2.0)
    assert seen.ms(50) == pytest.approx(51) and seen.rate == 50.5
    assert np.isfinite(seen.ms(99))


def test_inputs_of_another_graph_are_read_by_customer(tmp_path: Path) -> None:
    class Graph:
        def get_inputs(self) -> list[SimpleNamespace]:
            return [SimpleNamespace(name="codes"), SimpleNamespace(name="mask")]

    arrays = {
        f"{i}/{name}": np.full(3, i) for i in (0, 10, 2) for name in ("codes", "mask", "more")
    }
    np.savez(tmp_path / "graph.npz", **arrays)
    found = peer.inputs(tmp_path / "graph.npz", Graph())
    assert [int(feed["codes"][0]) for feed in found] == [0, 2, 10]
    assert all(set(feed) == {"codes", "mask"} for feed in found)
    with pytest.raises(SystemExit, match="--peer"):
        peer.run(World(tmp_path, "nano", 1, 1, 1, 1), lambda *_: None)
