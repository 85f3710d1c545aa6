"""Intervals of rates."""

from __future__ import annotations

import numpy as np


def wilson(bad: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % score interval of a rate (Wilson 1927); n >= 1."""
    z = 1.959963984540054
    rate = bad / n
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1)
