"""Identifier fields: kept as keyed hashes, turned into how many others shared them.

A device, phone or address never stands in the store. What stands there is the first 16 hex digits
of HMAC-SHA256 under a key of this store, and, per event, the number of OTHER entities that had the
value known strictly before the event.
"""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path

import numpy as np
import polars as pl

from foundation.errors import DataError
from foundation.history import first_not_before

KEY_VARIABLE = "RISKFM_IDENTIFIER_KEY"
KEY_FILE = "identifier.key"
_HEX = 16


def identifier_key(directory: Path) -> bytes:
    """The key of a store: the environment variable, else a random key file of mode 0600.

    Raises:
        DataError: a key file that is empty or unreadable.
    """
    given = os.environ.get(KEY_VARIABLE, "")
    if given:
        return given.encode()
    path = directory / KEY_FILE
    if not path.exists():
        temporary = directory / f".{KEY_FILE}.{secrets.token_hex(4)}"
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))
        try:
            os.link(temporary, path)  # the first of two writers wins
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    try:
        key = path.read_text().strip()
    except OSError as exc:
        raise DataError(f"{path}: the identifier key cannot be read: {exc.strerror}") from None
    if not key:
        raise DataError(f"{path}: the identifier key is empty; restore it or set {KEY_VARIABLE}")
    return key.encode()


def hashed(values: pl.Series, key: bytes) -> pl.Series:
    """Keyed hashes of a string column, null for null; each distinct value is hashed once."""
    distinct = values.drop_nulls().unique()
    digests = [hmac.digest(key, value.encode(), "sha256").hex()[:_HEX] for value in distinct]
    return values.replace_strict(
        distinct, pl.Series(digests, dtype=pl.String), default=None, return_dtype=pl.String
    )


def shared_with(new: pl.DataFrame, stored: pl.DataFrame) -> pl.Series:
    """How many other entities had an event's value known strictly before the event.

    Args:
        new: `value` (str, nullable), `entity_id` (str), `known_at` (Datetime us); row order kept.
        stored: the same columns of what the store holds already.
    Returns:
        [rows of new] Int64, null where the value is missing.
    """
    columns = ["value", "entity_id", "known_at"]
    both = pl.concat([stored.select(columns), new.select(columns)]).drop_nulls("value")
    firsts = (
        both.group_by("value", "entity_id")
        .agg(pl.col("known_at").min().to_physical().alias("first"))
        .sort("value", "first")
    )
    values = firsts["value"].unique(maintain_order=True)
    counts = firsts.group_by("value", maintain_order=True).len()["len"].to_numpy()
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    times = firsts["first"].to_numpy()
    rows = (
        new.select(columns)
        .with_columns(pl.col("known_at").to_physical().alias("at"))
        .join(
            pl.DataFrame({"value": values}).with_row_index("code"),
            on="value",
            how="left",
            maintain_order="left",
        )
        .join(firsts, on=["value", "entity_id"], how="left", maintain_order="left")
    )
    missing = rows["code"].is_null().to_numpy()
    code = rows["code"].fill_null(0).to_numpy().astype(np.int64)
    at = rows["at"].fill_null(0).to_numpy()
    if not len(times):
        return pl.repeat(None, len(new), dtype=pl.Int64, eager=True)
    start, end = offsets[code], offsets[code + 1]
    before = first_not_before(times, start, end, at) - start
    own = (rows["first"] < rows["at"]).fill_null(False).to_numpy()
    out = pl.Series(before - own, dtype=pl.Int64)
    return out.scatter(np.flatnonzero(missing), None) if missing.any() else out
