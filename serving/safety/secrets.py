"""The service's master secrets: where they come from, and when the service refuses to start.

Three roots, all of 32 random bytes, in one strict JSON document:

    {"format": 1, "origin": "made", "hashing": "<64 hex>",
     "sealing": [{"id": "<8 hex>", "created": "2026-01-01T00:00:00Z", "secret": "<64 hex>"}]}

`hashing` hides entity ids and signs heads of the decision log; it stays for good. `sealing` keys
encrypt: the last one seals, all of them open, so that they can be rotated. Everything that is used
is derived from these by HKDF, never a root itself.

The document is the value of RISKFM_MASTER_KEY, or a file: RISKFM_MASTER_KEY_FILE, else the file the
settings name. 64 hexadecimal digits alone, such as `openssl rand -hex 32` prints, are a document
too: both roots are derived from them. A file that others can read is refused; its group may read
it, since Kubernetes hands secrets to a service that way.

Only in development is a missing file made, and marked: anywhere else it is refused.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import secrets as random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec
from cryptography.hazmat.primitives import hashes

from foundation.errors import ConfigError
from foundation.strict import Strict
from serving.safety.ciphers import derived

VARIABLE, FILE_VARIABLE = "RISKFM_MASTER_KEY", "RISKFM_MASTER_KEY_FILE"
DEVELOPMENT: Literal["development"] = "development"
_HEX = re.compile(r"[0-9a-fA-F]{64}")
_ID = re.compile(r"[0-9a-f]{8}")
_BYTES = 32
# 32 random bytes hold about 30 different ones; fewer than this never happens by chance.
_DISTINCT = 16
_FORBIDDEN = 0o037


class SealingKeyDocument(Strict):
    """One key of the document."""

    id: str
    created: str
    secret: str

    def __repr__(self) -> str:
        return f"SealingKeyDocument({self.id})"


class SecretDocument(Strict):
    """The document as it is written.

    Attributes:
        origin: "development" for a document the service made by itself.
    """

    hashing: str
    sealing: tuple[SealingKeyDocument, ...]
    format: Literal[1] = 1
    origin: Literal["made", "development"] = "made"

    def __repr__(self) -> str:
        return f"SecretDocument({self.origin})"


@dataclass(frozen=True)
class SealingKey:
    """A master key that seals; `created` is ISO 8601 UTC, empty where it is not known."""

    id: str
    created: str
    secret: bytes = field(repr=False)


@dataclass(frozen=True)
class Secrets:
    """The roots; never printed.

    Attributes:
        hashing: 32 bytes.
        sealing: oldest first; the last one seals.
        source: where they came from, for messages.
    """

    hashing: bytes = field(repr=False)
    sealing: tuple[SealingKey, ...] = field(repr=False)
    origin: str = "made"
    source: str = ""

    def lines(self) -> list[str]:
        """What a person may see: where they are from, and the ids of the keys."""
        rows = [f"{k.id}  {k.created or 'not noted'}" for k in self.sealing]
        rows[-1] += "  seals"
        return [f"{self.source}, {self.origin}; sealing keys, oldest first:", *rows]


def open_secrets(
    path: str | Path,
    environment: str,
    variables: Mapping[str, str] | None = None,
) -> Secrets:
    """The secrets of a service.

    Args:
        path: the file where neither variable says otherwise.
        environment: "development" makes a missing file; any other name refuses it.
    Raises:
        ConfigError: nothing there, or nothing that may be used; says what to do.
    """
    variables = os.environ if variables is None else variables
    file = Path(variables.get(FILE_VARIABLE) or path)
    held = variables.get(VARIABLE, "").strip()
    if not held and not file.exists() and environment == DEVELOPMENT:
        make_secrets(file, origin=DEVELOPMENT)
    found = given_secrets({VARIABLE: held, FILE_VARIABLE: str(file)})
    assert found is not None
    if found.origin == DEVELOPMENT and environment != DEVELOPMENT:
        raise ConfigError(
            f"{found.source}: these secrets were made by a service in development; make others "
            f"for '{environment}' with: riskfm secret make FILE"
        )
    return found


def given_secrets(variables: Mapping[str, str]) -> Secrets | None:
    """Secrets that a variable holds, else those of the file one names; None without either.

    Raises:
        ConfigError: as `load_secrets`.
    """
    text, file = variables.get(VARIABLE, "").strip(), variables.get(FILE_VARIABLE, "")
    if text:
        return read_secrets(text, f"the variable {VARIABLE}")
    return load_secrets(Path(file)) if file else None


def load_secrets(path: Path) -> Secrets:
    """Secrets of a file.

    Raises:
        ConfigError: missing, readable by others, or not such a document.
    """
    try:
        mode = path.stat().st_mode & 0o777
        text = path.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no master secrets here; make them with: riskfm secret make {path}, or set "
            f"{VARIABLE} or {FILE_VARIABLE}"
        ) from None
    except OSError as exc:
        raise ConfigError(f"{path}: the master secrets cannot be read: {exc.strerror}") from None
    if mode & _FORBIDDEN:
        raise ConfigError(
            f"{path}: others may read or change the master secrets (mode {mode:o}); "
            f"run: chmod 600 {path}"
        )
    return read_secrets(text, str(path))


def read_secrets(text: str, source: str) -> Secrets:
    """Secrets of a document or of 64 hexadecimal digits.

    Raises:
        ConfigError: names `source`, never what it holds.
    """
    if not text.startswith("{"):
        master = _root(text, source)
        kind = hashes.SHA256()
        key = SealingKey(
            derived(master, 4, kind, "id").hex(), "", derived(master, 32, kind, "seal")
        )
        return Secrets(derived(master, _BYTES, kind, "hash"), (key,), source=source)
    try:
        found = msgspec.json.decode(text, type=SecretDocument)
    except msgspec.MsgspecError as exc:
        # The reason names members and types, never a value.
        raise ConfigError(f"{source}: no document of master secrets: {exc}") from None
    ids = [key.id for key in found.sealing]
    if not ids or len(set(ids)) < len(ids) or not all(_ID.fullmatch(i) for i in ids):
        raise ConfigError(
            f"{source}: every sealing key needs an id of its own, 8 hexadecimal digits"
        )
    roots = [found.hashing, *(key.secret for key in found.sealing)]
    if len(set(roots)) < len(roots):
        raise ConfigError(f"{source}: one secret stands there twice; make them with riskfm secret")
    return Secrets(
        _root(found.hashing, source),
        tuple(SealingKey(k.id, k.created, _root(k.secret, source)) for k in found.sealing),
        found.origin,
        source,
    )


def make_secrets(path: Path, origin: Literal["made", "development"] = "made") -> None:
    """Make a file of fresh secrets, readable by its owner alone.

    Of two processes that make it at once the first wins.

    Raises:
        ConfigError: for `origin` "made", the file exists: nothing is overwritten.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    document = SecretDocument(hashing=random.token_hex(_BYTES), sealing=(_fresh(),), origin=origin)
    partial = path.with_name(f".{path.name}.{random.token_hex(4)}.part")
    _write(partial, document)
    try:
        with contextlib.suppress(FileExistsError) if origin == DEVELOPMENT else _refusing(path):
            os.link(partial, path)
    finally:
        partial.unlink()


def rotate_secrets(path: Path) -> Secrets:
    """Add a sealing key, which seals from now on; the old ones go on opening.

    Services take it up when they start again. Sealed values stay as they are until
    `serving.safety.resealing` moves them.

    Raises:
        ConfigError: as `load_secrets`.
    """
    old = load_secrets(path)
    kept = tuple(
        SealingKeyDocument(id=k.id, created=k.created, secret=k.secret.hex()) for k in old.sealing
    )
    document = SecretDocument(
        hashing=old.hashing.hex(),
        sealing=(*kept, _fresh()),
        origin="development" if old.origin == DEVELOPMENT else "made",
    )
    partial = path.with_name(f".{path.name}.{random.token_hex(4)}.part")
    _write(partial, document)
    os.replace(partial, path)
    return load_secrets(path)


def _fresh() -> SealingKeyDocument:
    moment = dt.datetime.now(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return SealingKeyDocument(
        id=random.token_hex(4), created=moment, secret=random.token_hex(_BYTES)
    )


def _write(path: Path, document: SecretDocument) -> None:
    data = msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise ConfigError(f"{path} exists; riskfm secret rotate {path} adds a key to it") from None


def _root(text: str, source: str) -> bytes:
    """32 bytes of 64 hexadecimal digits that do not look chosen by hand."""
    if not _HEX.fullmatch(text):
        raise ConfigError(
            f"{source}: expected 64 hexadecimal digits (32 random bytes), such as "
            "openssl rand -hex 32 prints"
        )
    root = bytes.fromhex(text)
    if len(set(root)) < _DISTINCT:
        raise ConfigError(f"{source}: this secret is not random; make one: openssl rand -hex 32")
    return root
