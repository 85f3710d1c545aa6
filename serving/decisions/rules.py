"""Decision files compiled and evaluated by zen-engine, and what holds where there is none.

A file is taken only if it compiles, gives every declared test case its expected outcome, still
gives an outcome when any field of a case is missing, and does not approve when nothing is known.
While requests are answered a file that fails sends the request to review: it never approves.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import zen

from foundation.errors import ConfigError, listing, nearest
from serving.decisions.actions import check_url
from serving.decisions.decision_file import OUTCOMES, DecisionFile, Expected
from serving.decisions.facts import LISTS, Facts, Ruling
from serving.decisions.jdm import FACTS, TABLE, check, complaint, texts
from serving.decisions.needed import Needed

DEFAULT = "default"
FAILED = "the decision file could not be evaluated"
_MEMBERS = ("outcome", "reasons", "rules", "actions", "limit", "price")
_TRACED: zen.DecisionEvaluateOptions = {"trace": True}
_ENGINE = zen.ZenEngine()


class Rules:
    """One compiled decision file; safe to use from several threads.

    Args:
        file: as read; its decision is compiled here.
        version: its digest.
    Raises:
        ConfigError: it holds what is not taken, or does not compile.
    """

    def __init__(self, file: DecisionFile, version: str) -> None:
        self.file = file
        self.version = version
        self.texts = check(file.decision)
        nodes = file.decision["nodes"]
        self._needed = Needed(texts(file.decision))
        self._tables = [str(n["id"]) for n in nodes if n["type"] == TABLE]
        try:
            self._decision = _ENGINE.create_decision(json.dumps(file.decision))
            self._decision.validate()
        except Exception as exc:  # the engine raises bare ones
            raise ConfigError(f"decision: does not compile: {complaint(exc)}") from None

    def rule(self, facts: Facts, hits: Sequence[str]) -> Ruling:
        """Evaluate; whatever goes wrong becomes a review."""
        try:
            return self.evaluate(facts.named(hits))
        except ConfigError:
            return Ruling("review", (FAILED,), ("failed",), failed=True)

    def evaluate(self, named: dict[str, Any]) -> Ruling:
        """Evaluate facts by their names.

        Raises:
            ConfigError: zen-engine fails, or the result is no decision.
        """
        try:
            answer = self._decision.evaluate(self._needed.of(named), _TRACED)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as exc:  # a panic of the engine is no Exception
            raise ConfigError(complaint(exc)) from None
        result = answer["result"]
        if not isinstance(result, dict):
            raise ConfigError("the result should be one object with 'outcome'")
        outcome = result.get("outcome")
        if outcome not in OUTCOMES:
            raise ConfigError(f"there is no outcome, expected one of {listing(OUTCOMES)}")
        hit = [rule for node in self._tables for rule in _hits(answer["trace"].get(node))]
        return Ruling(
            str(outcome),
            _texts(result, "reasons"),
            tuple(dict.fromkeys((*hit, *_texts(result, "rules")))),
            _texts(result, "actions"),
            _number(result, "limit"),
            _number(result, "price"),
        )

    def unknown_members(self, named: dict[str, Any]) -> list[str]:
        """Members of the result that mean nothing and are no facts passed through."""
        result = self._decision.evaluate(named)["result"]
        return sorted(set(result) - set(_MEMBERS) - set(FACTS))


def check_file(file: DecisionFile) -> list[str]:
    """Compile a file and run its test cases.

    Returns:
        one line for each thing that was checked.
    Raises:
        ConfigError: everything that is wrong with its cases, or the first thing that keeps it from
            compiling.
    """
    rules = Rules(file, file.digest)
    for name, action in file.actions.items():
        try:
            check_url(action.url, ("whatever the service allows",))
        except ConfigError as exc:
            raise ConfigError(f"action '{name}': {exc}") from None
    if not file.tests:
        raise ConfigError("tests: a decision file needs at least one test case")
    names = [trial.name for trial in file.tests]
    if len(set(names)) != len(names):
        raise ConfigError("tests: two test cases have the same name")
    wrong: list[str] = []
    seen: set[str] = set()
    without = 0
    for trial in file.tests:
        facts = _completed(trial.facts, f"test '{trial.name}'")
        try:
            found = rules.evaluate(facts)
        except ConfigError as exc:
            wrong.append(f"test '{trial.name}': {exc}")
            continue
        seen |= {found.outcome}
        wrong += [f"test '{trial.name}': {text}" for text in _against(found, trial.expect)]
        wrong += _undeclared(rules, file, found, facts, f"test '{trial.name}'")
        for place, less in _lessened(facts, trial.facts):
            without += 1
            try:
                rules.evaluate(less)
            except ConfigError as exc:
                wrong.append(f"test '{trial.name}' without {place}: {exc}")
    try:
        nothing = rules.evaluate(_completed({}, "nothing known"))
    except ConfigError as exc:
        wrong.append(f"with nothing known: {exc}; end with a rule that always holds")
    else:
        if nothing.outcome == "approve":
            wrong.append("with nothing known it approves; let a missing score go to review")
    if wrong:
        more = f" (and {len(wrong) - 8} more)" if len(wrong) > 8 else ""
        raise ConfigError("; ".join(dict.fromkeys(wrong[:8])) + more)
    return [
        f"{len(file.tests)} test cases as expected; outcomes seen: {listing(sorted(seen))}",
        f"{without} times a field was left out: always an outcome",
        f"{len(rules.texts)} rules in {len(rules._tables)} tables",
    ]


def default_ruling(facts: Facts, hits: Sequence[str]) -> Ruling:
    """What holds in a channel without a decision file.

    The band of least risk is approved, that of most risk refused, all between are reviewed; one
    single band is reviewed. On a black list: refused. On a grey list: not approved but reviewed. On
    a white list: a review becomes an approval. An unknown band is reviewed, whatever the lists say
    but black.
    """
    on = {name: any(h.startswith(f"{name}:") for h in hits) for name in LISTS}
    bands = list(facts.bands)
    if on["black"]:
        return Ruling("refuse", ("on a black list",), ("default.black",))
    if facts.band not in bands or not math.isfinite(facts.score):
        return Ruling("review", ("the score has no band",), ("default.unknown",))
    place = bands.index(facts.band)
    outcome = "review"
    if len(bands) > 1 and place == 0:
        outcome = "approve"
    elif len(bands) > 1 and place == len(bands) - 1:
        outcome = "refuse"
    if on["grey"] and outcome == "approve":
        return Ruling("review", ("on a grey list",), ("default.grey",))
    if on["white"] and not on["grey"] and outcome == "review":
        return Ruling("approve", ("on a white list",), ("default.white",))
    return Ruling(outcome, (f"band {facts.band}",), (f"default.{outcome}",))


def _hits(node: dict[str, Any] | None) -> Iterator[str]:
    """Ids of the rows of a table that hit; rows of a collecting table come as lists."""
    waiting = [None if node is None else node.get("traceData")]
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, list):
            waiting = [*one, *waiting]
        elif isinstance(one, dict) and isinstance(one.get("rule"), dict):
            yield str(one["rule"].get("_id", ""))


def _texts(result: dict[str, Any], name: str) -> tuple[str, ...]:
    given = result.get(name)
    if given is None or given == "":
        return ()
    if isinstance(given, str):
        return (given,)
    # A collecting table gives a list of what each row says, itself a list perhaps.
    flat: list[Any] = []
    for one in given if isinstance(given, list) else [given]:
        flat += one if isinstance(one, list) else [one]
    flat = [one for one in flat if one not in (None, "")]
    if not all(isinstance(one, str) and len(one) <= 500 for one in flat) or len(flat) > 100:
        raise ConfigError(f"'{name}' should be up to 100 short texts")
    return tuple(dict.fromkeys(flat))


def _number(result: dict[str, Any], name: str) -> float | None:
    given = result.get(name)
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not math.isfinite(given):
        raise ConfigError(f"'{name}' should be a finite number")
    return float(given)


def _completed(facts: dict[str, Any], where: str) -> dict[str, Any]:
    """Facts of a test case with the shape that requests give them."""
    for name in facts:
        if name not in FACTS:
            raise ConfigError(
                f"{where}: '{name}' is no fact{nearest(name, FACTS)}; facts: {listing(FACTS)}"
            )
    lists = facts.get("lists")
    hits = lists.get("hits", []) if isinstance(lists, dict) else lists or []
    if not isinstance(hits, list) or not all(
        isinstance(h, str) and h.partition(":")[0] in LISTS and h.partition(":")[2] for h in hits
    ):
        raise ConfigError(f"{where}: lists should be texts such as black:device")
    empty: dict[str, Any] = {
        "score": None, "points": None, "band": None, "score_reasons": [], "forecasts": {},
        "flags": [], "profile": {}, "context": {}, "model": "", "release": "",
    }  # fmt: skip
    shaped = copy.deepcopy(empty | {k: v for k, v in facts.items() if k != "lists"})
    for name in ("profile", "context", "forecasts"):
        if not isinstance(shaped[name], dict):
            raise ConfigError(f"{where}: {name} should be fields by name")
    shaped["lists"] = Facts("", 0.0, 0.0, "").named(hits)["lists"]
    return shaped


def _lessened(facts: dict[str, Any], given: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The facts with one of the given ones null, then left out, each by its place."""
    for name, value in given.items():
        inner = list(value) if name in ("profile", "context", "forecasts") else []
        for key in inner:
            yield f"{name}.{key}", facts | {name: facts[name] | {key: None}}
            yield f"{name}.{key}", facts | {name: {k: v for k, v in value.items() if k != key}}
        if name in ("score", "points", "band"):
            yield name, facts | {name: None}


def _against(found: Ruling, expected: Expected) -> list[str]:
    out = []
    if found.outcome != expected.outcome:
        out.append(
            f"expected {expected.outcome}, found {found.outcome}"
            + (f" by {listing(found.rules)}" if found.rules else "")
        )
    for name in ("rules", "actions"):
        wanted = getattr(expected, name)
        if wanted is not None and set(wanted) != set(getattr(found, name)):
            there = listing(getattr(found, name)) or "none"
            out.append(f"expected {name} {listing(wanted) or 'none'}, found {there}")
    for name in ("limit", "price"):
        wanted, value = getattr(expected, name), getattr(found, name)
        close = value is not None and wanted is not None and math.isclose(value, wanted)
        if wanted is not None and not close:
            out.append(f"expected {name} {wanted:g}, found {value}")
    return out


def _undeclared(
    rules: Rules, file: DecisionFile, found: Ruling, facts: dict[str, Any], where: str
) -> list[str]:
    out = []
    for name in found.actions:
        if name not in file.actions:
            there = listing(file.actions) or "none"
            out.append(
                f"{where}: action '{name}' is not declared"
                f"{nearest(name, file.actions)}; actions: {there}"
            )
    for name in rules.unknown_members(facts):
        out.append(
            f"{where}: the result has '{name}', which means nothing{nearest(name, _MEMBERS)}; "
            f"members: {listing(_MEMBERS)}"
        )
    return out
