"""Which facts a decision reads, so that only those are handed to the engine.

Handing facts over is most of the cost of a decision. What cannot be told from the expressions is
handed over whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from serving.decisions.jdm import FACTS

_WIDE = ("profile", "context", "forecasts")
# profile.age, or forecasts["late within 30 days"]
_MEMBER = r"\b{name}(?:\.(\w+)|\[\s*\"([^\"]*)\"\s*\]|\[\s*'([^']*)'\s*\])"


class Needed:
    """The facts that some expressions read.

    Args:
        texts: every expression, each with whether it is a test of its column's value, where `$`
            stands for that value and for nothing else.
    """

    def __init__(self, texts: Iterable[tuple[str, bool]]) -> None:
        every = list(texts)
        whole = any("$" in text and not tested for text, tested in every)
        whole = whole or any(re.search(r"\$(root|nodes)", text) for text, _ in every)
        joined = "\n".join(text for text, _ in every)
        self._names = tuple(name for name in FACTS if whole or re.search(rf"\b{name}\b", joined))
        self._members = {
            name: None if whole else _members(name, joined) for name in _WIDE if name in self._names
        }

    def of(self, named: dict[str, Any]) -> dict[str, Any]:
        """The needed ones of some facts by name; what is not there stays away."""
        out = {}
        for name in self._names:
            if name not in named:
                continue
            value, members = named[name], self._members.get(name)
            if members is not None and isinstance(value, dict):
                value = {key: value[key] for key in members if key in value}
            out[name] = value
        return out


def _members(name: str, text: str) -> frozenset[str] | None:
    """Members that are read of a fact; None where it is read as a whole."""
    pattern = _MEMBER.format(name=name)
    found = re.findall(pattern, text)
    if len(found) != len(re.findall(rf"\b{name}\b", text)):
        return None
    return frozenset(next(part for part in parts if part) for parts in found if any(parts))
