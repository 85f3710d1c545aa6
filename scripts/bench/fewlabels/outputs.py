"""What the benchmark leaves: tables as Markdown, every cell as Parquet, learning curves as PNG."""

from __future__ import annotations

import datetime as dt
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from scripts.bench.fewlabels.cells import ALL
from scripts.bench.fewlabels.evaluation import (
    BEST_OF,
    FORECASTS,
    ZERO,
    Bootstrap,
    Gain,
    SetResults,
    collect,
    headroom_closed,
    label_efficiency,
    mean_gain,
    stability,
    take_earlier,
)
from scripts.bench.fewlabels.sequence_models import not_run
from scripts.bench.fewlabels.tasks import SEQUENCE, RunSettings, drawn, found_cells, set_of

OPPONENTS = ("untuned", *BEST_OF, *SEQUENCE, *FORECASTS)
# Arguments that belong to a machine.
HIDDEN = ("--work", "--output", "--data", "--sequence-python", "--sequence-cells")
STABLE = ("untuned", "lgb", "cat", "lr", "scorecard", "forecast_lr", "auto")
WORDS = {
    "untuned": "LightGBM as it comes, profile and latest values",
    "lgb": "LightGBM",
    "cat": "CatBoost",
    "lr": "ridge logistic regression",
    "scorecard": "scorecard",
    "avg": "rank average of lgb, cat and lr",
    "pragmatiq": "pragmatiq's embedding with the best of its probes and ridge",
    "pragmatiq_tuned": "pragmatiq fine-tuned with LoRA",
    "coles_lgb": "CoLES embedding with LightGBM",
    "forecast_lr": "ridge on boosted forecasts",
    "avg+forecast": "rank average of avg and forecast_lr",
}


def write_outputs(settings: RunSettings, output: Path, quick: bool) -> Path:
    """Write NAME.md, NAME.parquet and NAME.png; NAME ends in `_quick` for a quick run."""
    results = gathered(settings)
    output.mkdir(parents=True, exist_ok=True)
    stem = "few_labels_quick" if quick else "few_labels"
    frame = pl.concat([r.figures for r in results.values()])
    frame.write_parquet(output / f"{stem}.parquet")
    bootstraps = {name: Bootstrap(r, seed=settings.seed) for name, r in results.items()}
    text = document(settings, results, bootstraps, stem)
    partial = output / f".{stem}.md.part"
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, output / f"{stem}.md")
    print(text, flush=True)
    if any(r.sizes for r in results.values()):
        draw_curves(results, output / f"{stem}.png")
    return output / f"{stem}.md"


def gathered(settings: RunSettings) -> dict[str, SetResults]:
    """Everything that is in the cache for these settings."""
    cells = found_cells(settings, "opponents")
    cells |= found_cells(settings, "ours")
    cells |= found_cells(settings, "sequence")
    benches = {name: set_of(name, settings.data, settings.work) for name in settings.sets}
    taught = {(name, n, k): drawn(benches[name], n, k, settings.rule) for name, n, k, _ in cells}
    results = collect(benches, cells, taught)
    if settings.sequence_cells is not None:
        take_earlier(results, settings.sequence_cells, SEQUENCE)
    return results


def document(
    settings: RunSettings,
    results: dict[str, SetResults],
    bootstraps: dict[str, Bootstrap],
    stem: str,
) -> str:
    """The whole Markdown page."""
    has_ours = any(r.draws("auto", n) for r in results.values() for n in r.sizes)
    parts = [_head(settings, results, stem)]
    if has_ours:
        parts.append(_gains(results, bootstraps, "auto"))
    parts.append(_gains(results, bootstraps, "forecast_lr"))
    if has_ours:
        parts += [_efficiency(results), _zero(results, bootstraps)]
    parts += [_learners(r) for r in results.values() if r.scores]
    parts += [_stability(r) for r in results.values() if r.pool]
    parts.append(_not_run(settings, results))
    parts.append(_seconds(results))
    return "\n\n".join(p for p in parts if p) + "\n"


def _head(settings: RunSettings, results: dict[str, SetResults], stem: str) -> str:
    command = shlex.join(["python", "scripts/bench/few_labels.py", *_shown(sys.argv[1:])])
    done = {
        name: {n: max(len(r.draws(o, n)) for o in (*BEST_OF, "auto")) for n in r.sizes}
        for name, r in results.items()
    }
    draws = "; ".join(
        f"{name} " + ", ".join(f"{d} at {n}" for n, d in found.items())
        for name, found in done.items()
        if found
    )
    names = ", ".join(f"`{k}`: {v}" for k, v in WORDS.items())
    lines = [
        "# Few labels",
        f"`{command}`, {dt.datetime.now(dt.UTC):%Y-%m-%d}, track {settings.track}, "
        f"{settings.rule} draws: {draws}.",
        f"KS and AUC on fixed test sets, means over draws of labels. {names}. Best opponent: the "
        "highest mean KS of lgb, cat, lr, scorecard, avg, pragmatiq and coles_lgb at that n (of "
        "those with as many draws as the others), chosen on the test itself, which favours the "
        "opponents. Intervals: 95 %, draws and test rows resampled together, "
        "paired. `all`: the whole pool.",
        f"Every cell: `{stem}.parquet`.",
    ]
    for r in results.values():
        if r.earlier is not None and r.earlier.height:
            shown = ", ".join(f"`{name}`" for name in r.earlier["learner"].unique().sort())
            lines.append(
                f"{shown}: of an earlier run, on the first draws of the same; in no interval."
            )
            break
    if made_up := [name for name, r in results.items() if r.bench.synthetic]:
        lines.insert(3, f"Synthetic, of a simulator, and in no mean: {', '.join(made_up)}.")
    return "\n\n".join(lines)


def _shown(arguments: Sequence[str]) -> list[str]:
    """Arguments without folders, which belong to a machine."""
    out, skip = [], False
    for argument in arguments:
        if skip or argument.split("=")[0] in HIDDEN:
            skip = not skip and "=" not in argument
            continue
        out.append(argument)
    return out


def _gains(results: dict[str, SetResults], bootstraps: dict[str, Bootstrap], learner: str) -> str:
    rows = []
    sizes = sorted({n for r in results.values() for n in r.sizes})
    for n in sizes:
        found: dict[str, Gain] = {}
        for name in results:
            gain = bootstraps[name].gain(learner, n)
            if gain is not None:
                found[name] = gain
                low, high = gain.interval
                closed = headroom_closed(results[name], learner, n)
                rows.append(
                    [
                        str(n),
                        name,
                        f"{gain.opponent} {gain.opponent_ks:.3f}",
                        f"{gain.opponent_ks + gain.value:.3f}",
                        f"{gain.value:+.3f} [{low:+.3f}, {high:+.3f}]",
                        f"{gain.relative:+.1%}",
                        "" if closed is None else f"{closed:.0%}",
                    ]
                )
        real = {name: g for name, g in found.items() if not results[name].bench.synthetic}
        with_events = [g for name, g in real.items() if results[name].bench.schema.sources]
        for what, gains in (("mean", [*real.values()]), ("mean, sets with events", with_events)):
            if len(gains) > 1:
                value, low, high = mean_gain(gains)
                share, share_low, share_high = mean_gain(gains, relative=True)
                rows.append(
                    [
                        str(n),
                        f"**{what}**",
                        f"{sum(g.opponent_ks for g in gains) / len(gains):.3f}",
                        "",
                        f"{value:+.3f} [{low:+.3f}, {high:+.3f}]",
                        f"{share:+.1%} [{share_low:+.1%}, {share_high:+.1%}]",
                        "",
                    ]
                )
    if not rows:
        return ""
    head = ["n", "set", "best opponent", learner, "gain in KS", "relative", "headroom closed"]
    return f"## `{learner}` against the best opponent\n\n{markdown(head, rows)}"


def _efficiency(results: dict[str, SetResults]) -> str:
    rows = []
    for name, r in results.items():
        for learner in ("auto", "forecast_lr"):
            found = label_efficiency(r, learner)
            if found is not None:
                factor, sign = found
                rows.append([name, learner, f"{sign}{factor:.1f}x"])
    if not rows:
        return ""
    head = ["set", "learner", "labels the best opponent needs for its KS at 100, over 100"]
    return f"## Label efficiency\n\n{markdown(head, rows)}"


def _zero(results: dict[str, SetResults], bootstraps: dict[str, Bootstrap]) -> str:
    rows = []
    for name, r in results.items():
        if not any(r.draws(z, ALL) for z in ZERO):
            continue
        opponents = []
        for n in (100, 300):
            best = r.best_opponent(n)
            opponents.append("" if best is None else f"{r.mean(best, n):.3f}")
        gaps = [
            bootstraps[name].zero_gap(z, "zero.boosted") for z in ("zero.network", "zero.state")
        ]
        told = ["" if g is None else f"{g[0]:+.3f} [{g[1]:+.3f}, {g[2]:+.3f}]" for g in gaps]
        rows.append([name, *(_both(r, z) for z in ZERO), *told, *opponents])
    if not rows:
        return ""
    head = [
        "set",
        "recipe query",
        "boosted, mean",
        "network, mean",
        "state, mean",
        "network over boosted, KS",
        "state over boosted, KS",
        "best KS at 100",
        "best KS at 300",
    ]
    words = (
        "`network`: the network's forecasts, on top of the boosted ones; `state`: a fixed linear "
        "map of the network's state alone, taught the boosted forecasts in pretraining."
    )
    return f"## Without any label, AUC / KS\n\n{words}\n\n{markdown(head, rows)}"


def _both(r: SetResults, learner: str) -> str:
    """AUC / KS of a score without labels; one that ranks the wrong way round is called so."""
    if not r.draws(learner, ALL):
        return ""
    area = r.mean(learner, ALL, "auc")
    wrong = " (wrong way round)" if area < 0.5 else ""
    return f"{area:.3f} / {r.mean(learner, ALL):.3f}{wrong}"


def _learners(r: SetResults) -> str:
    names = [o for o in OPPONENTS if any(r.counted(o, n) for n in (*r.sizes, ALL))]
    ours = sorted(
        {name for name, n, _ in r.scores if n != ALL and name not in OPPONENTS},
        key=lambda name: (name == "auto", name),
    )
    rows = []
    for n in [*r.sizes, ALL]:
        cells = [
            f"{r.mean(o, n, 'auc'):.3f} / {r.mean(o, n):.3f} ({r.spread(o, n):.3f})"
            if r.counted(o, n) > 1
            else (f"{r.mean(o, n, 'auc'):.3f} / {r.mean(o, n):.3f}" if r.counted(o, n) else "")
            for o in [*names, *ours]
        ]
        if any(cells):
            rows.append(["all" if n == ALL else str(n), *cells])
    bench = r.bench
    pool, test = len(bench.splits[0].pool), len(bench.splits[0].test)
    chosen = ""
    if r.chosen:
        counts = pl.Series(list(r.chosen.values())).value_counts(sort=True)
        picked = ", ".join(f"{row[0]} {row[1]}" for row in counts.iter_rows())
        chosen = f" `auto` shipped: {picked}."
    tracks = "tracks S and H differ" if bench.strict_differs else "tracks S and H are one"
    return (
        f"## {bench.name}: {bench.meta['title']}\n\n"
        f"{bench.meta['label']}. Pool {pool}, test {test}; {tracks}. AUC / KS (deviation of KS "
        f"over draws).{chosen}\n\n{markdown(['n', *names, *ours], rows)}"
    )


def _stability(r: SetResults) -> str:
    rows = []
    for n in r.sizes:
        for learner in STABLE:
            found = stability(r, learner, n)
            if found is not None:
                rows.append(
                    [
                        str(n),
                        learner,
                        f"{found['in_time']:.3f}",
                        f"{found['out_of_time']:.3f}",
                        f"{found['drop']:+.3f}",
                        f"{found['psi']:.3f}",
                        f"{found['sd']:.3f}",
                    ]
                )
    if not rows:
        return ""
    head = ["n", "learner", "KS in time", "KS out of time", "drop", "highest PSI", "deviation"]
    return (
        f"## {r.bench.name}: out of time\n\nIn time: pool rows that taught nothing. PSI of the "
        f"score per month of the test against them.\n\n{markdown(head, rows)}"
    )


def _not_run(settings: RunSettings, results: dict[str, SetResults]) -> str:
    """Opponents of which there is nothing, with the reason, sets of one reason together."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, r in results.items():
        earlier = set() if r.earlier is None else {*r.earlier["learner"]}
        for learner, reason in not_run(settings, r.bench).items():
            if learner in earlier:
                continue
            found.setdefault((learner, reason), []).append(name)
    if not found:
        return ""
    rows = [
        [learner, ", ".join(names), reason.replace("|", "/")]
        for (learner, reason), names in sorted(found.items())
    ]
    return f"## Opponents that did not run\n\n{markdown(['opponent', 'sets', 'reason'], rows)}"


def _seconds(results: dict[str, SetResults]) -> str:
    frame = pl.concat([r.figures for r in results.values()])
    if frame.is_empty():
        return ""
    frame = frame.filter(pl.col("seconds").is_not_null())
    rows = []
    for learner in frame["learner"].unique(maintain_order=True).to_list():
        one = frame.filter(pl.col("learner") == learner)
        few, full = one.filter(pl.col("n") != ALL), one.filter(pl.col("n") == ALL)
        rows.append(
            [
                learner,
                *(_figure(part["seconds"].mean(), 1) for part in (few, full)),
            ]
        )
    table = markdown(["learner", "few labels", "all labels"], rows)
    words = "`auto`: the whole ladder; recipes: wall time in the folds."
    return f"## CPU seconds per cell\n\n{words}\n\n{table}"


def _figure(value: object, digits: int = 3) -> str:
    if not isinstance(value, int | float) or value != value:
        return ""
    return f"{value:.{digits}f}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [list(head), ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def draw_curves(results: dict[str, SetResults], path: Path) -> None:
    """KS against n, a panel per set: opponents in grey, boosted forecasts and ours in colour."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    shown = [r for r in results.values() if r.sizes]
    across = min(3, len(shown))
    down = -(-len(shown) // across)
    figure, axes = plt.subplots(
        down, across, figsize=(4.2 * across, 3.2 * down), squeeze=False, layout="constrained"
    )
    for panel in axes.flat[len(shown) :]:
        panel.set_visible(False)
    styles = {
        "untuned": ("#c8c8c8", ":"),
        "lgb": ("#8f8f8f", "-"),
        "cat": ("#8f8f8f", "--"),
        "lr": ("#8f8f8f", "-."),
        "scorecard": ("#8f8f8f", ":"),
        "avg": ("#404040", "-"),
        "forecast_lr": ("#e08214", "-"),
        "auto": ("#1b6ca8", "-"),
    }
    for panel, r in zip(axes.flat, shown, strict=False):
        for learner, (colour, line) in styles.items():
            sizes = [n for n in r.sizes if r.draws(learner, n)]
            if not sizes:
                continue
            wide = 2.2 if learner in ("auto", "avg", "forecast_lr") else 1.2
            values = [r.mean(learner, n) for n in sizes]
            panel.plot(sizes, values, line, color=colour, lw=wide, marker="o", ms=3, label=learner)
        ceiling = r.best_opponent(ALL)
        if ceiling is not None:
            value = r.mean(ceiling, ALL)
            panel.axhline(value, color="#404040", lw=0.8, ls=(0, (4, 4)))
            panel.annotate(f"all labels, {ceiling}", (r.sizes[0], value), fontsize=7, va="bottom")
        if r.draws("zero.query", ALL):
            panel.axhline(r.mean("zero.query", ALL), color="#1b6ca8", lw=0.8, ls=":")
        panel.set_xscale("log")
        panel.set_xticks(r.sizes, [str(n) for n in r.sizes])
        panel.minorticks_off()
        panel.set_title(r.bench.name, fontsize=10)
        panel.set_xlabel("labels", fontsize=8)
        panel.set_ylabel("KS on the test", fontsize=8)
        panel.tick_params(labelsize=8)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=8, fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
