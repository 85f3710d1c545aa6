"""Shadow scores: seen by nobody, never in the way, kept in groups, compared."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from foundation.errors import UserError
from serving.cli import cli
from serving.database import Database
from serving.messages import Envelope
from serving.models import shadow as module
from serving.models.deployments import Deployments
from serving.models.shadow import ShadowScore, ShadowScorer
from serving.models.shadow_report import compare, lines
from serving.models.shadow_store import ShadowPairs, ShadowStore
from tests.serving.fake_package import SCHEMA
from tests.serving.models.fake_workspace import FakeWorkspace
from tests.serving.models.test_pool import occupied


def wait_for(condition: Any, seconds: float = 60.0) -> None:
    """Until something holds, or fail."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def opened(root: Path, share: float | None = 1.0, **package: Any) -> Deployments:
    """Deployments of a champion with one release in shadow."""
    workspace = FakeWorkspace(root)
    workspace.package("s1", **package)
    shadows = [workspace.named("acme/cards", 2, "s1", share=share)]
    workspace.crown("acme/cards", 1, "v1", shadows=shadows)
    return workspace.open(shadow_share=0.25)[0]


def offer(scorer: ShadowScorer, deployments: Deployments, name: str) -> float:
    """Answer a request and offer it; the champion's score."""
    loaded = deployments.pick("acme", "cards")
    request = Envelope(entity_id=name, context=b'{"amount": 700}')  # type: ignore[arg-type]
    scored = loaded.score_now(request)
    scorer.offer(loaded, request, scored, f"r-{name}", f"hash-{name}")
    return scored.row.score


def test_the_same_input_is_scored_and_kept(tmp_path: Path, database_url: str) -> None:
    deployments = opened(tmp_path / "ws")
    store = ShadowStore(Database(database_url))
    told: list[str] = []
    scorer = ShadowScorer(deployments.pool, store.keep, lambda what, n: told.extend([what] * n))
    scores = [offer(scorer, deployments, f"c{n}") for n in range(5)]
    wait_for(lambda: scorer.counts["scored"] == 5)
    scorer.close()
    pairs = store.pairs("acme", "cards", "acme/cards/2")
    assert pairs.champion.tolist() == scores == pairs.shadow.tolist()
    assert pairs.champions == ("acme/cards/1",) and told == ["scored"] * 5
    assert store.releases("acme", "cards") == ["acme/cards/2"]
    assert store.releases("zenith", "cards") == [] and not len(
        store.pairs("zenith", "cards", "acme/cards/2").champion
    )
    assert store.erase("zenith", "hash-c1") == 0 and store.erase("acme", "hash-c1") == 1
    assert len(store.pairs("acme", "cards", "acme/cards/2").champion) == 4
    deployments.close()


def test_nothing_is_scored_while_requests_are(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.1)
    deployments = opened(tmp_path)
    kept: list[ShadowScore] = []
    scorer = ShadowScorer(deployments.pool, kept.extend)
    gate = threading.Event()

    async def busy() -> None:
        work = await occupied(deployments.pool, "acme", gate)
        for n in range(2):
            offer(scorer, deployments, f"c{n}")
        await asyncio.to_thread(wait_for, lambda: scorer.counts["dropped"] == 2)
        assert scorer.counts["scored"] == 0
        gate.set()
        await work

    asyncio.run(busy())
    offer(scorer, deployments, "later")
    wait_for(lambda: scorer.counts["scored"] == 1)
    scorer.close()
    assert [score.request_id for score in kept] == ["r-later"]
    deployments.close()


def test_only_so_many_wait(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "QUEUE", 3)
    deployments = opened(tmp_path)
    kept: list[ShadowScore] = []
    gate = threading.Event()

    async def busy() -> ShadowScorer:
        work = await occupied(deployments.pool, "acme", gate)
        scorer = ShadowScorer(deployments.pool, kept.extend)
        for n in range(5):
            offer(scorer, deployments, f"c{n}")
        assert scorer.counts["dropped"] == 2
        gate.set()
        await work
        return scorer

    scorer = asyncio.run(busy())
    wait_for(lambda: scorer.counts["scored"] == 3)
    scorer.close()
    assert len(kept) == 3
    deployments.close()


@pytest.mark.parametrize(
    ("package", "outcome"),
    [({"behaviour": "broken"}, "failed"), ({"schema": SCHEMA | {"context": {}}}, "refused")],
)
def test_a_bad_shadow_hurts_nobody(tmp_path: Path, package: dict[str, Any], outcome: str) -> None:
    deployments = opened(tmp_path, **package)

    def lose(scores: Sequence[ShadowScore]) -> None:
        raise OSError("disk full")

    scorer = ShadowScorer(deployments.pool, lose)
    offer(scorer, deployments, "c1")
    wait_for(lambda: scorer.counts[outcome] == 1)
    scorer.close()
    deployments.close()


def test_scores_that_cannot_be_kept_are_counted(tmp_path: Path) -> None:
    deployments = opened(tmp_path)

    def lose(scores: Sequence[ShadowScore]) -> None:
        raise OSError("disk full")

    scorer = ShadowScorer(deployments.pool, lose)
    offer(scorer, deployments, "c1")
    wait_for(lambda: scorer.counts["scored"] == 1)
    scorer.close()
    assert scorer.counts["lost"] == 1
    deployments.close()


@pytest.mark.parametrize(("share", "low", "high"), [(0.5, 70, 130), (None, 25, 80), (0.0, 0, 0)])
def test_a_share_of_the_requests(tmp_path: Path, share: float | None, low: int, high: int) -> None:
    deployments = opened(tmp_path, share)
    scorer = ShadowScorer(deployments.pool, lambda scores: None)
    loaded = deployments.pick("acme")
    request = Envelope(entity_id="c1")
    scored = loaded.score_now(request)
    for n in range(200):
        scorer.offer(loaded, request, scored, f"r{n}", "hash")
    scorer.close()  # what was sampled was scored by now or is dropped here
    assert low <= scorer.counts.total() <= high
    deployments.close()


def pairs_of(champion: np.ndarray, shadow: np.ndarray) -> ShadowPairs:
    """Pairs with three bands."""

    def band(score: np.ndarray) -> np.ndarray:
        names = np.array(["approve", "review", "refuse"], object)
        return names[np.searchsorted([0.3, 0.6], score)]

    return ShadowPairs(
        "a/b/2", ("a/b/1",), champion, shadow, band(champion), band(shadow), "2026-01-01",
        "2026-01-02",
    )  # fmt: skip


def test_the_comparison_knows_what_was_planted() -> None:
    rng = np.random.default_rng(7)
    champion = rng.uniform(0.05, 0.9, 5000)
    same = compare(pairs_of(champion, champion))
    assert same["correlation"] == pytest.approx(1) and same["psi"] == 0
    assert same["band_agreement"] == 1 and same["swap"]["swapped_in"] == 0
    moved = compare(pairs_of(champion, champion + 0.05))
    assert moved["mean_difference"] == pytest.approx(0.05)
    assert moved["rank_correlation"] == pytest.approx(1)
    assert moved["swap"]["swapped_in"] == 0  # the same order, whoever is approved
    assert moved["psi"] > 0.005 and 0.85 < moved["band_agreement"] < 0.95
    noise = compare(pairs_of(champion, rng.permutation(champion)))
    assert abs(noise["rank_correlation"]) < 0.05
    low, high = noise["mean_difference_interval"]
    assert low < 0 < high
    approved = noise["swap"]["approved"]
    assert noise["swap"]["swapped_out"] == pytest.approx(approved * (1 - approved), abs=0.02)
    assert noise["swap"]["swapped_in"] == pytest.approx(noise["swap"]["swapped_out"])
    assert list(noise["bands"]) == ["approve", "review", "refuse"]
    assert sum(sum(row.values()) for row in noise["bands"].values()) == 5000
    assert any("swapped" in line for line in lines(noise))
    flat = compare(pairs_of(np.full(3, 0.5), champion[:3]))
    assert flat["correlation"] is None and flat["psi"] is None
    assert any("constant" in line for line in lines(flat))
    with pytest.raises(UserError, match="two or more"):
        compare(pairs_of(champion[:1], champion[:1]))


def test_the_report_on_the_command_line(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/h.db"
    store = ShadowStore(Database(url))
    asked = ["shadow", "report", "acme/cards", "--database", url]
    none = CliRunner().invoke(cli, asked)
    assert none.exit_code != 0 or none.exception
    score = ShadowScore(
        "acme", "cards", "acme/cards/2", "acme/cards/1", "r", "e", 0.2, 0.4, "approve", "refuse",
        "2026-02-03T00:00:00.000+00:00",
    )  # fmt: skip
    store.keep([score] * 3)
    done = CliRunner().invoke(cli, asked)
    assert done.exit_code == 0, done.output
    assert "acme/cards/2 in shadow of acme/cards/1: n 3, 2026-02-03" in done.output
    found = json.loads(CliRunner().invoke(cli, [*asked, "--json"]).output)
    assert found["n"] == 3 and found["mean_difference"] == pytest.approx(0.2)
    assert found["bands"]["approve"]["refuse"] == 3
