"""Options of `riskfm pretrain` into a pretraining run, and its result in one line."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import msgspec

from foundation.checkpoint import read_json
from foundation.pretraining import load_pretrain_config, pretrain
from foundation.selection import read_selection
from foundation.store import EventStore
from serving.progress import Reporter

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def run_pretraining(
    config_path: Path,
    store_dir: Path,
    output: Path,
    reporter: Reporter,
    until: str | None = None,
    entities: Path | None = None,
    exclude_entities: Path | None = None,
    resume: bool = False,
    epochs: float | None = None,
) -> str:
    """Pretrain and say in one line what came out.

    Args:
        until: date or time; without a zone it is read in the schema's.
        entities, exclude_entities: CSV or Parquet files with `entity_id`.
        epochs: overrides the configuration.
    """
    config = load_pretrain_config(config_path)
    if epochs is not None:
        config = msgspec.structs.replace(config, epochs=epochs)
    selection = read_selection(EventStore.open(store_dir), until, entities, exclude_entities)
    bound = None
    if selection.until_us is not None:
        bound = EPOCH + dt.timedelta(microseconds=selection.until_us)
    pretrain(
        config, store_dir, output, until=bound, entities=selection.entities, resume=resume,
        progress=None if reporter.quiet else reporter.say,
    )
    run = read_json(output / "run.json")
    parts = [f"{run['events']:,} events of {run['entities']:,} entities"]
    if run["network"] is not None:
        parts.append(f"network of {run['network']['parameters']:,} weights")
    else:
        parts.append("no events, so no network: tokenizer and columns only")
    if run["forecasters"]:
        parts.append(f"forecasts {', '.join(run['forecasters'])}")
    return "; ".join(parts) + f"; {run['seconds']:.0f} s"
