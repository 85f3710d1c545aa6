"""A decision file: what business people write, read strictly and content-addressed.

    decision: a zen-engine decision (JDM): tables, expressions and switches, as its editor saves it
    tests:    facts with the outcome they must lead to; without them a file is not taken
    review:   how long a case waits, and which decisions of a reviewer a second person confirms
    actions:  name -> URL and the name of the secret that signs what is posted there

In YAML `decision` may name a JSON file beside it. A file says the same, and has the same digest,
however it is laid out.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from foundation import strict
from foundation.errors import ConfigError

OUTCOMES = ("approve", "review", "refuse")
Outcome = Literal["approve", "review", "refuse"]
MAX_BYTES, MAX_DEPTH = 1_000_000, 40
SECRET_PREFIX = "RISKFM_ACTION_"
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


class Expected(strict.Strict):
    """What a test case must lead to; what is left out may be anything.

    Attributes:
        rules: ids of the rules that hit, in any order.
        actions: names of the actions, in any order.
    """

    outcome: Outcome
    rules: tuple[str, ...] | None = None
    actions: tuple[str, ...] | None = None
    limit: float | None = None
    price: float | None = None


class Trial(strict.Strict):
    """Facts of a request that somebody thought of, and the outcome they must have."""

    name: str
    facts: dict[str, Any]
    expect: Expected


class Review(strict.Strict):
    """How cases of outcome review are worked on.

    Attributes:
        hours: until an undecided case expires.
        second_look: outcomes of a reviewer that another person has to confirm.
    """

    hours: Annotated[float, Meta(gt=0, le=24 * 366)] = 72.0
    second_look: tuple[Literal["approve", "refuse"], ...] = ()


class Action(strict.Strict):
    """Where an action is posted.

    Attributes:
        url: http(s) address without credentials.
        secret: name of the signing secret in the environment, RISKFM_ACTION_...; never itself.
    """

    url: Annotated[str, Meta(max_length=2000)]
    secret: Annotated[str, Meta(pattern=f"^{SECRET_PREFIX}[A-Z0-9_]{{1,64}}$")]


class DecisionFile(strict.Strict):
    """A decision with its tests, its review queue and its actions."""

    decision: dict[str, Any]
    tests: tuple[Trial, ...]
    review: Review = Review()
    actions: dict[Name, Action] = {}

    def content(self) -> str:
        """The canonical JSON text that is stored; positions of the editor's canvas stay."""
        return json.dumps(
            msgspec.to_builtins(self), sort_keys=True, ensure_ascii=False, allow_nan=False
        )

    @property
    def digest(self) -> str:
        """SHA-256 of `content`, hex."""
        return hashlib.sha256(self.content().encode()).hexdigest()


def decode(data: Any, where: str) -> DecisionFile:
    """Plain data as a decision file.

    Raises:
        ConfigError: an unknown key, a missing one, a wrong type, or a number that is not finite.
    """
    if _deeper(data, MAX_DEPTH):
        raise ConfigError(f"{where}: nested deeper than {MAX_DEPTH} levels")
    found = strict.convert(DecisionFile, data, where)
    try:
        size = len(found.content().encode())
    except ValueError:
        raise ConfigError(f"{where}: holds a number that is not finite") from None
    except (TypeError, RecursionError):
        raise ConfigError(f"{where}: holds what JSON has no word for, such as a date") from None
    if size > MAX_BYTES:
        raise ConfigError(f"{where}: {size:,} bytes; a decision file has at most {MAX_BYTES:,}")
    return found


def stored(content: str) -> DecisionFile:
    """A file as `content` wrote it."""
    return msgspec.json.decode(content, type=DecisionFile)


def read_decision_file(path: str | Path) -> DecisionFile:
    """Read a YAML or JSON file; `decision` may name a JSON file in the same folder.

    Raises:
        ConfigError: names the file and what is wrong in it.
    """
    path = Path(path)
    data = strict.read_yaml(path)
    if isinstance(data, dict) and isinstance(data.get("decision"), str):
        beside = path.parent / data["decision"]
        if Path(data["decision"]).name != data["decision"]:
            raise ConfigError(f"{path}: decision names a file of the same folder, without a path")
        known = set(DecisionFile.__struct_fields__)
        if set(data) <= known:
            data = data | {"decision": _read_json(beside)}
        else:
            data = data | {"decision": {}}  # the unknown key is refused below, by its name
    return decode(data, str(path))


def _deeper(data: Any, depth: int) -> bool:
    """Whether lists and objects are nested deeper than `depth`."""
    level = [data]
    for _ in range(depth):
        inner = [list(v.values()) if isinstance(v, dict) else v for v in level]
        level = [one for v in inner if isinstance(v, list) for one in v]
        if not level:
            return False
    return True


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise ConfigError(f"{path}: no such file") from None
    except ValueError as exc:
        raise ConfigError(f"{path}: not valid JSON: {exc}") from None
