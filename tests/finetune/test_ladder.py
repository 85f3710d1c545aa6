"""The ladder and the rule of `auto`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from finetune.blend import BlendRecipe
from finetune.choice import Choice, choose, paired_difference
from finetune.heads import LinearHead, NumberTerm
from finetune.ladder import run_ladder
from finetune.linear import ForecastRecipe, LinearRecipe, ProbeRecipe
from finetune.metrics import Interval, auc, log_losses
from finetune.query import QueryRecipe
from finetune.recipes import FittedLinear
from finetune.table import FeatureTable
from foundation.errors import SampleError
from tests.finetune.small_tables import settings, small_table

FAST = (QueryRecipe(), LinearRecipe(), ForecastRecipe(), ProbeRecipe())


@dataclass
class Memory:
    """Learns its training rows by heart: only honest folds show that it knows nothing."""

    name: str = "lora"
    needs: frozenset[str] = frozenset()
    reads: frozenset[str] = frozenset({"aggregate"})
    slow: bool = True

    def fit(self, table: FeatureTable, y, weight, groups, seed):  # type: ignore[no-untyped-def]
        known = {row.tobytes(): v for row, v in zip(table.values, y, strict=True)}

        class Fitted(FittedLinear):
            def logit(self, asked: FeatureTable) -> np.ndarray:
                return np.array([6 * known.get(r.tobytes(), 0.3) - 3 for r in asked.values])

        return Fitted(self.name, LinearHead((NumberTerm("a0", 0.0),)))


def test_identical_folds_honest_scores_and_a_whole_table() -> None:
    table, y = small_table(240, seed=1)
    seen: list[tuple[str, int, int]] = []
    recipes = [*FAST, Memory(), BlendRecipe(FAST)]
    result = run_ladder(
        table, y, *settings(240), recipes, repeats=2, progress=lambda *a: seen.append(a)
    )
    assert [r.name for r in result.results] == [r.name for r in recipes]
    for r in result.results:
        assert r.status == "ok" and r.logits is not None and r.auc is not None
        assert np.isfinite(r.logits).all() and r.auc.low <= r.auc.value <= r.auc.high
        p = 1 / (1 + np.exp(-r.logits))
        loss = np.mean([log_losses(y, q) for q in p], axis=0)
        assert r.log_loss is not None and r.log_loss.value == pytest.approx(loss.mean(), abs=1e-9)
        np.testing.assert_allclose(r.row_loss, loss, atol=1e-9)
    assert result["lora"].auc.value == pytest.approx(0.5, abs=1e-9)
    assert result["linear"].auc.value == pytest.approx(
        np.mean([auc(y, z) for z in result["linear"].logits])
    )
    assert ("linear", 10, 10) in seen
    assert seen.index(("lora", 0, 5)) > seen.index(("probe", 10, 10))
    assert sum(result.blend_weights.values()) == pytest.approx(1.0)
    assert {row["recipe"] for row in result.rows()} == {r.name for r in recipes}
    choice = result.choose()
    assert choice.name in ("linear", "blend") or choice.best == choice.name
    fitted = result.fit("blend", table, 0)
    assert np.isfinite(fitted.logit(table)).all()
    again = run_ladder(table, y, *settings(240), list(FAST), repeats=2)
    assert (again["linear"].logits == result["linear"].logits).all()


def test_skipped_recipes_say_why() -> None:
    table, y = small_table(100)
    plain = table.select(("aggregate", "profile"))
    result = run_ladder(plain, y, *settings(100), [*FAST, BlendRecipe(FAST)], repeats=1)
    assert result["forecast"].status == "skipped" and "forecast" in result["forecast"].reason
    assert "fewer than two" in result["blend"].reason
    assert result.choose().name == "linear"
    with pytest.raises(SampleError, match="skipped"):
        result.fit("forecast", plain, 0)
    with pytest.raises(SampleError, match="not on this ladder"):
        result.fit("lora", plain, 0)


def test_a_spent_budget_skips_with_a_reason() -> None:
    table, y = small_table(100)
    result = run_ladder(table, y, *settings(100), list(FAST), repeats=1, budget_minutes=0.0)
    assert all(r.status == "skipped" and "budget" in r.reason for r in result.results)


class Clock:
    """Seconds that pass only where somebody works."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@dataclass
class Worker:
    """Takes `each` seconds for a fit on every row it is given, in proportion below that."""

    name: str
    clock: Clock
    each: float
    slow: bool = False
    needs: frozenset[str] = frozenset()
    reads: frozenset[str] = frozenset()
    fits: int = 0

    def fit(self, table: FeatureTable, y, weight, groups, seed):  # type: ignore[no-untyped-def]
        self.clock.seconds += self.each * len(y) / 80
        self.fits += 1
        head = LinearHead((NumberTerm("a0", 0.1 * len(self.name)),))
        return FittedLinear(self.name, head)


@pytest.mark.parametrize("minutes", [0.5, 1.0, 2.0, 5.0])
def test_a_budget_bounds_the_time_with_the_fits_that_follow(minutes: float) -> None:
    """Folds, trials and the two fits on all rows of whatever ran fit in, but for one fold."""
    table, y = small_table(100, seed=4)
    clock = Clock()
    team = [
        Worker("lora", clock, 30.0, slow=True),
        Worker("fusion", clock, 4.0),
        Worker("query", clock, 0.1),
        Worker("scorecard", clock, 2.0),
        Worker("prompt", clock, 12.0, slow=True),
        Worker("gbdt", clock, 3.0),
    ]
    result = run_ladder(
        table,
        y,
        *settings(100),
        [*team, BlendRecipe(tuple(team))],
        repeats=2,
        budget_minutes=minutes,
        now=clock,
        workers=1,
    )
    for name in result.ok():
        for _ in range(2 * (name != "blend")):
            result.recipes[name].fit(table, y, *settings(100), 0)
    one_fold = 4.0
    assert clock.seconds <= 60 * minutes + one_fold
    ran = {n for n in result.ok() if n != "blend"}
    for r in result.results:
        if r.status == "skipped":
            assert "min of the budget are left" in r.reason or "is spent" in r.reason
    order = [n for n in ("query", "gbdt", "scorecard", "fusion", "prompt", "lora") if n in ran]
    assert ran == set(order) and order[0] == "query"
    wanted = {
        0.5: {"query", "scorecard"},
        1.0: {"query", "gbdt"},
        2.0: {"query", "gbdt", "scorecard", "fusion"},
        5.0: {"query", "gbdt", "scorecard", "fusion", "prompt"},
    }
    assert ran == wanted[minutes]


def test_the_blend_takes_slow_members_where_they_earn_it() -> None:
    table, y = small_table(300, seed=5)

    @dataclass
    class Oracle(Memory):
        good: bool = True

        def fit(self, table: FeatureTable, y, weight, groups, seed):  # type: ignore[no-untyped-def]
            column = "e0" if self.good else "age"
            return FittedLinear(self.name, LinearHead((NumberTerm(column, -1.5, 0.0),), -1.0))

    for good in (True, False):
        risk = table.values[:, table.index("e0")]
        table.values[:, table.index("e0")] = risk if not good else -3 * (y - 0.3)
        slow = Oracle(good=good)
        members = (LinearRecipe(), ForecastRecipe(), slow)
        result = run_ladder(table, y, *settings(300), [*members, BlendRecipe(members)], repeats=2)
        assert result["blend"].logits is not None and len(result["blend"].logits) == 1
        assert ("lora" in result.blend_weights) == good
        assert len(result["linear"].logits) == 2


def test_an_entity_s_samples_stay_together() -> None:
    """Twin rows of an entity must not teach each other: memory stays at chance."""
    table, y = small_table(120, seed=2)
    twice = table.take(np.repeat(np.arange(120), 2))
    groups = np.repeat(np.arange(120), 2)
    result = run_ladder(twice, np.repeat(y, 2), np.ones(240), groups, [Memory()], repeats=1)
    assert result["lora"].auc.value == pytest.approx(0.5, abs=1e-9)


def test_labels_without_two_bads_are_refused() -> None:
    table, _ = small_table(40)
    y = np.zeros(40)
    y[3] = 1
    with pytest.raises(SampleError, match="at least two entities"):
        run_ladder(table, y, *settings(40), list(FAST))


def test_few_bads_ship_query_or_forecast_with_the_width_of_the_interval() -> None:
    table, y = small_table(60, seed=3)
    bads = np.flatnonzero(y == 1)[6:]
    keep = np.setdiff1d(np.arange(60), bads)
    result = run_ladder(table.take(keep), y[keep], *settings(len(keep)), list(FAST), repeats=1)
    choice = result.choose()
    assert choice.name in ("query", "forecast")
    interval = result[choice.name].auc
    assert f"{interval.high - interval.low:.2f} wide" in choice.warnings[0]
    plain = table.select(("aggregate",)).take(keep)
    bare = run_ladder(plain, y[keep], *settings(len(keep)), [LinearRecipe()], repeats=1)
    with pytest.raises(SampleError, match="too few"):
        bare.choose()


# ------------------------------------------------------------------------------- the rule itself


def decide(losses: dict[str, np.ndarray], bads: int = 40) -> Choice:
    rows = len(next(iter(losses.values())))
    y = np.zeros(rows)
    y[:bads] = 1
    aucs = {n: Interval(0.7, 0.6, 0.8) for n in losses}
    return choose(losses, y, np.ones(rows), np.arange(rows), np.ones(rows, bool), aucs)


BASE = np.random.default_rng(0).random(200) * 0.2 + 0.4
NOISE = np.random.default_rng(1).normal(size=200)
NOISE -= NOISE.mean()


ERROR = NOISE.std(ddof=1) / np.sqrt(200) * 0.1


@pytest.mark.parametrize(("behind", "shipped"), [(1.9, "blend"), (2.1, "fusion")])
def test_the_blend_is_shipped_unless_a_recipe_is_clearly_better(
    behind: float, shipped: str
) -> None:
    losses = {
        "query": BASE + 0.1 * NOISE + 0.2 * ERROR,
        "gbdt": BASE + 0.1,
        "fusion": BASE,
        "blend": BASE + 0.1 * NOISE + behind * ERROR,
    }
    choice = decide(losses)
    assert choice.best == "fusion" and choice.name == shipped
    assert f"standard error {ERROR:.4f}" in choice.reason
    assert choice.differences["blend"][1] == pytest.approx(ERROR, rel=1e-6)
    assert decide({**losses, "blend": BASE - 0.001}).name == "blend"


def test_without_a_blend_the_best_is_shipped_or_its_simpler_equal() -> None:
    """A large standard error is no reason to ship a score that looks worse."""
    losses = {"fusion": BASE, "query": BASE + NOISE + 0.004, "probe": BASE + NOISE + 0.0004}
    choice = decide(losses)
    assert choice.best == "fusion" and choice.name == "probe" and "varies less" in choice.reason
    del losses["probe"]
    assert decide(losses).name == "fusion"


def test_with_few_bads_one_standard_error_is_given_to_the_query() -> None:
    losses = {
        "gbdt": BASE - 0.1,
        "forecast": BASE,
        "query": BASE + 0.1 * NOISE + 0.9 * ERROR,
        "blend": BASE - 0.2,
    }
    choice = decide(losses, bads=9)
    assert choice.name == "query" and "within one standard error" in choice.reason
    assert decide(losses, bads=10).name == "blend"
    losses["query"] = BASE + 0.1 * NOISE + 1.1 * ERROR
    assert decide(losses, bads=9).name == "forecast"
    with pytest.raises(SampleError, match="too few"):
        decide({"gbdt": BASE, "blend": BASE}, bads=9)


def test_the_best_is_shipped_when_it_is_clearly_best() -> None:
    assert decide({"query": BASE + 0.1, "lora": BASE}).name == "lora"


def test_below_gbdt_a_blend_is_shipped() -> None:
    losses = {"gbdt": BASE, "scorecard": BASE + 0.1 * NOISE + 0.0004, "blend": BASE + 0.002}
    choice = decide(losses)
    assert choice.name == "blend" and "behind gbdt" in choice.reason
    del losses["blend"]
    assert decide(losses).name == "gbdt"
    losses["scorecard"] = BASE + 0.1 * NOISE - 0.001
    assert decide(losses).name == "scorecard"


def test_ties_go_to_the_higher_auc() -> None:
    y = np.repeat([1.0, 0.0], 100)
    aucs = {"lora": Interval(0.7, 0.6, 0.8), "transfer": Interval(0.8, 0.7, 0.9)}
    losses = {"lora": BASE, "transfer": BASE.copy()}
    assert choose(losses, y, np.ones(200), np.arange(200), np.ones(200, bool), aucs).best == (
        "transfer"
    )


def test_errors_grow_when_rows_are_of_few_entities() -> None:
    gap = np.repeat(np.random.default_rng(2).normal(size=50), 4)
    zero = np.zeros(200)
    alone = paired_difference(gap, zero, np.ones(200), np.arange(200))
    grouped = paired_difference(gap, zero, np.ones(200), np.repeat(np.arange(50), 4))
    assert grouped[1] == pytest.approx(2 * alone[1], rel=0.05)
    assert alone[1] == pytest.approx(gap.std(ddof=1) / np.sqrt(200))
