"""Channels as light adapters: one tuned graph of a backbone, a small file for each channel.

A tuned graph holds the backbone and takes what a channel has learnt as inputs with empty defaults:
`readout` [D] and `bias` [1] always, `prompt` [M, D] or the low-rank updates `NAME.down` [in, R]
and `NAME.up` [R, out] of its matrices. It is the same, byte for byte, for every channel of a
backbone, so that one session serves them all. A channel is a file in ONNX Runtime's adapter format
(a flat buffer of named tensors, no code); its tensors join what each run is fed.

Shapes: D width, M prompt tokens, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from foundation.errors import ArtifactError

SUFFIX = ".onnx_adapter"
VERSION = 1


class AdaptedSession:
    """A tuned graph's session with one channel's adapter; to callers, a session like any other.

    Safe to run from several threads: nothing of it changes.
    """

    def __init__(
        self, session: ort.InferenceSession, adapter: Mapping[str, np.ndarray], what: str | Path
    ) -> None:
        """Put an adapter beside its session.

        Args:
            what: the adapter's file or name, for errors.
        Raises:
            ArtifactError: the adapter belongs to another graph.
        """
        _check(session, adapter, what)
        self.session = session
        self._adapter = dict(adapter)
        self._inputs = session.get_inputs()

    def get_inputs(self) -> list[Any]:
        """Inputs that a run has to be fed."""
        return list(self._inputs)

    def run(self, outputs: list[str] | None, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run the graph as this channel's."""
        return list(self.session.run(outputs, self._adapter | dict(feed)))


def write_adapter(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write float32 tensors by name as an adapter file."""
    kept = {
        name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(tensors[name], np.float32))
        for name in sorted(tensors)
    }
    file = ort.AdapterFormat()
    file.set_adapter_version(VERSION)
    file.set_model_version(VERSION)
    file.set_parameters(kept)
    file.export_adapter(str(path))


def read_adapter(path: Path) -> dict[str, np.ndarray]:
    """Tensors of an adapter file by name, in the order of their names.

    Raises:
        ArtifactError: not an adapter file.
    """
    try:
        # The values are views of what the file object holds: copy them while it lives.
        file = ort.AdapterFormat.read_adapter(str(path))
        values = file.get_parameters()
        return {name: values[name].numpy().copy() for name in sorted(values)}
    except Exception as exc:  # onnxruntime raises bare and private types
        raise ArtifactError(f"{path}: not an adapter file, the package is damaged") from exc


def _check(
    session: ort.InferenceSession, adapter: Mapping[str, np.ndarray], what: str | Path
) -> None:
    """Refuse an adapter whose tensors are not those the graph takes."""
    wanted = {i.name: tuple(i.shape) for i in session.get_overridable_initializers()}
    if adapter.keys() != wanted.keys():
        odd = sorted(adapter.keys() ^ wanted.keys())[0]
        raise ArtifactError(f"{what}: '{odd}' stands in the adapter or in its graph, not in both")
    for name, tensor in adapter.items():
        sizes = wanted[name]
        fixed = [
            n == m for n, m in zip(tensor.shape, sizes, strict=False) if isinstance(m, int) and m
        ]
        if tensor.ndim != len(sizes) or not all(fixed):
            raise ArtifactError(
                f"{what}: '{name}' has shape {list(tensor.shape)}, not {list(sizes)}"
            )
