"""Columns in half their bytes without losing a bit, where they allow it.

Moments that are whole seconds, days or microseconds of a short time become numbers of that unit
since the earliest; amounts with few decimals become whole numbers of the last decimal. Whatever
does not come back equal is left as it is.

Shapes: n values.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# Microseconds of a day, a minute, a second, a millisecond.
UNITS = (86_400_000_000, 60_000_000, 1_000_000, 1_000, 1)
SCALES = (1, 10, 100, 1_000, 10_000)
MOST = 2**32 - 1
# Differences of such numbers are numbers still.
REACH = 2**62


def packed(values: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """The values, narrower where that loses nothing, and what `unpacked` needs to know.

    Args:
        values: [n] of any dtype; int64, uint32 and float64 may become narrower.
    """
    if not len(values):
        return values, {}
    if values.dtype == np.uint32 and values.max() < 2**16:
        return values.astype(np.uint16), {"narrow": True}
    if values.dtype == np.int64:
        low, high = int(values.min()), int(values.max())
        for unit in UNITS if high - low < REACH else ():
            if high - low <= MOST * unit and not ((values - low) % unit).any():
                return ((values - low) // unit).astype(np.uint32), {"low": low, "unit": unit}
    if values.dtype == np.float64:
        for scale in SCALES:
            with np.errstate(over="ignore", invalid="ignore"):
                whole = np.rint(values * scale)
            # Compared as bits: zero may be negative.
            if (np.abs(whole) < 2**31).all() and _same_bits(whole.astype(np.int32) / scale, values):
                return whole.astype(np.int32), {"scale": scale}
    return values, {}


def unpacked(how: dict[str, Any], values: np.ndarray) -> np.ndarray:
    """Values as they were before `packed`, or some of them.

    Args:
        how: what `packed` said, among whatever else.
    """
    if "unit" in how:
        found = np.multiply(values, how["unit"], dtype=np.int64)
        found += how["low"]
        return found
    if "scale" in how:
        return values / how["scale"]
    return values.astype(np.uint32) if "narrow" in how else values


def packed_bound(how: dict[str, Any], bound: np.ndarray) -> np.ndarray:
    """[n] int64: packed values lie below them exactly where the values lie below `bound`."""
    if "unit" not in how:
        return bound
    low, unit = how["low"], how["unit"]
    within = np.clip(bound, low, low + min((MOST + 1) * unit, REACH)) - low
    return -(-within // unit)  # rounded up


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.array_equal(a.view(np.int64), b.view(np.int64)))
