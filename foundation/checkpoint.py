"""The backbone directory, and trainer states without pickle.

A backbone directory is written under another name and renamed when complete; `run.json` is written
last, so that a directory without it is unfinished.

Trainer states are single safetensors files: tensors by their path in the nested state, everything
else as JSON in the header. Nothing in them can run code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.errors import ArtifactError, InternalError
from foundation.schema import Schema, fingerprint, schema_from_dict

if TYPE_CHECKING:
    from foundation.aggregates import AggregateSpec
    from foundation.backbone import RiskBackbone
    from foundation.tokenizer import Tokenizer

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
SCHEMA, AGGREGATES, RUN, CARD = "schema.json", "aggregates.json", "run.json", "README.md"
FORECASTERS = "forecasters.json"
_PLAIN = (str, int, float, bool, type(None))


@dataclass
class Backbone:
    """A pretrained backbone as it lies in its directory.

    Attributes:
        model: None where the schema has no event source (`run["network"]` is None then).
        forecasters: boosted forecasters (foundation.boosted), None where none were fitted.
        run: what it was trained on, with what, how long; see `foundation.pretraining`.
    """

    path: Path
    model: RiskBackbone | None
    tokenizer: Tokenizer
    schema: Schema
    spec: AggregateSpec
    forecasters: Any
    run: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """Digest of everything that makes a feature: weights, tokenizer, columns, forecasters."""
        return backbone_fingerprint(self.path)


def backbone_fingerprint(path: Path) -> str:
    """Fingerprint of a backbone directory; loads nothing.

    Raises:
        ArtifactError: no such directory, or an unfinished one.
    """
    _require_finished(path)
    found = hashlib.sha256()
    names = [path / n for n in (CONFIG, WEIGHTS, TOKENIZER, AGGREGATES, FORECASTERS)]
    for file in [*names, *sorted((path / "forecasters").glob("*.txt"))]:
        if file.is_file():
            found.update(file.name.encode() + b"\0" + file.read_bytes())
    return found.hexdigest()[:16]


def _require_finished(path: Path) -> None:
    if not path.is_dir():
        raise ArtifactError(f"{path}: no such backbone directory")
    if not (path / RUN).is_file():
        raise ArtifactError(
            f"{path}: unfinished, it has no {RUN}; run pretraining again with --resume"
        )


def load_backbone(path: str | Path, network: bool = True) -> Backbone:
    """Read a backbone directory.

    Args:
        network: False leaves the weights unread (and torch unimported).

    Raises:
        ArtifactError: no such directory, an unfinished one, a damaged or missing file, or a
            tokenizer, schema or aggregates other than those the weights were trained with.
    """
    from foundation.aggregates import AggregateSpec
    from foundation.tokenizer import Tokenizer

    path = Path(path)
    _require_finished(path)
    run = read_json(path / RUN)
    schema = schema_from_dict(read_json(path / SCHEMA), str(path / SCHEMA))
    tokenizer = Tokenizer.from_json(_read_text(path / TOKENIZER), str(path / TOKENIZER))
    spec = AggregateSpec.from_json(_read_text(path / AGGREGATES), str(path / AGGREGATES))
    for name, found, wanted in (
        (SCHEMA, fingerprint(schema), run.get("schema_fingerprint")),
        (TOKENIZER, tokenizer.fingerprint, run.get("tokenizer_fingerprint")),
        (AGGREGATES, spec.fingerprint, run.get("aggregates_fingerprint")),
    ):
        _same(path / name, found, wanted, RUN)
    forecasters = None
    if (path / FORECASTERS).is_file():
        from foundation.boosted import Forecasters

        forecasters = Forecasters.load(path)
    model = None
    if run.get("network") is not None and network:
        model = _load_model(path, tokenizer)
    return Backbone(path, model, tokenizer, schema, spec, forecasters, run)


def _load_model(path: Path, tokenizer: Tokenizer) -> RiskBackbone:
    """The bound network, in evaluation mode."""
    from safetensors import SafetensorError

    from foundation.backbone import RiskBackbone

    config = read_json(path / CONFIG)
    _same(path / TOKENIZER, tokenizer.fingerprint, config.get("tokenizer_fingerprint"), CONFIG)
    if not (path / WEIGHTS).is_file():
        raise ArtifactError(f"{path / WEIGHTS}: missing, the directory is damaged")
    try:
        with _no_bars():
            model, report = RiskBackbone.from_pretrained(
                str(path), local_files_only=True, use_safetensors=True, output_loading_info=True
            )
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError) as exc:
        raise ArtifactError(f"{path / WEIGHTS}: damaged: {exc}") from None
    wrong = sorted({*report["missing_keys"], *report["unexpected_keys"]})
    if wrong:
        raise ArtifactError(f"{path / WEIGHTS}: damaged, does not fit {CONFIG}: {wrong[0]}")
    return model.bind(tokenizer).eval()


def save_weights(model: RiskBackbone, path: str | Path) -> None:
    """Write config.json and model.safetensors."""
    with _no_bars():
        model.save_pretrained(str(path))


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Without the progress bars of transformers."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _same(path: Path, found: str, wanted: Any, named_in: str) -> None:
    if found != wanted:
        raise ArtifactError(
            f"{path}: fingerprint {found}, but the weights were trained with {wanted} "
            f"({named_in}); use the file that came with this backbone"
        )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ArtifactError(f"{path}: missing, the directory is damaged") from None
    except UnicodeDecodeError:
        raise ArtifactError(f"{path}: damaged, not UTF-8 text") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; ArtifactError where it is missing or damaged."""
    try:
        found = json.loads(_read_text(path))
    except json.JSONDecodeError as exc:
        raise ArtifactError(f"{path}: damaged, not JSON ({exc})") from None
    if not isinstance(found, dict):
        raise ArtifactError(f"{path}: damaged, expected an object")
    return found


def write_json(path: Path, data: Any) -> None:
    """Readable JSON with a final newline."""
    text = json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def save_state(state: dict[str, Any], path: str | Path) -> None:
    """Write a trainer state atomically.

    Raises:
        InternalError: the state holds something that is neither tensor nor plain data.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Any] = {}
    tree = _pack(state, "", tensors)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, str(partial), metadata={"state": json.dumps(tree)})
    os.replace(partial, path)


def load_state(path: str | Path) -> dict[str, Any]:
    """Read what `save_state` wrote.

    Raises:
        ArtifactError: missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            tree = json.loads((file.metadata() or {})["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as exc:
        raise ArtifactError(f"{path}: damaged trainer state: {exc}") from None
    return _unpack(tree, tensors)


def _pack(value: Any, where: str, tensors: dict[str, Any]) -> Any:
    """Plain data in tagged lists: t tensor, d mapping, l list, u tuple, v value."""
    import torch

    if isinstance(value, torch.Tensor):
        tensors[where] = value.detach().clone().contiguous()
        return ["t", where]
    if isinstance(value, dict):
        return ["d", [[k, _pack(v, f"{where}/{k}", tensors)] for k, v in value.items()]]
    if isinstance(value, list | tuple):
        tag = "l" if isinstance(value, list) else "u"
        return [tag, [_pack(v, f"{where}/{i}", tensors) for i, v in enumerate(value)]]
    if isinstance(value, _PLAIN):
        return ["v", value]
    if isinstance(value, Path):
        return ["v", str(value)]
    raise InternalError(f"trainer state holds a {type(value).__name__} at '{where}'")


def _unpack(tree: Any, tensors: dict[str, Any]) -> Any:
    tag, value = tree
    if tag == "t":
        return tensors[value]
    if tag == "d":
        return {k: _unpack(v, tensors) for k, v in value}
    if tag in ("l", "u"):
        items = [_unpack(v, tensors) for v in value]
        return items if tag == "l" else tuple(items)
    return value
