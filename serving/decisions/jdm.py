"""What a zen-engine decision (JDM) may hold: tables, expressions, switches; nothing that runs code.

zen-engine takes a cell it cannot read for one that never matches, and an unknown name for a missing
value. Here every cell and expression is compiled when the file is handed in, and every name it
reads must be a fact or the output of a node.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import zen

from foundation.errors import ConfigError, listing, nearest

# What a decision is made from; see docs/decisions.md.
FACTS = (
    "score", "points", "band", "score_reasons", "forecasts", "flags", "profile", "context",
    "lists", "model", "release",
)  # fmt: skip
TABLE, EXPRESSIONS, SWITCH = "decisionTableNode", "expressionNode", "switchNode"
INPUT, OUTPUT = "inputNode", "outputNode"
MAX_NODES, MAX_RULES, MAX_TEXT, MAX_DEPTH = 200, 5000, 2000, 40

_WORDS = {"and", "or", "not", "in", "true", "false", "null"}
_STRINGS = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`")
_NAMES = re.compile(r"(?<![\w.$#])([A-Za-z_]\w*)(?!\w*\s*[(:])")
_IN = re.compile(r"\bin\s*$")


def check(graph: dict[str, Any]) -> dict[str, str]:
    """Check a decision's nodes, edges and every expression in it.

    Returns:
        rule id -> its description, or the empty string, of every row of every table.
    Raises:
        ConfigError: names node, rule and column, and what is wrong there.
    """
    nodes, edges = graph.get("nodes"), graph.get("edges")
    if not _objects(nodes) or not _objects(edges):
        raise ConfigError("decision: expected the lists 'nodes' and 'edges' of a zen decision")
    assert isinstance(nodes, list) and isinstance(edges, list)
    if len(nodes) > MAX_NODES:
        raise ConfigError(f"decision: {len(nodes)} nodes; at most {MAX_NODES} are taken")
    ids = [node.get("id") for node in nodes]
    if len(set(map(str, ids))) != len(ids) or not all(isinstance(i, str) for i in ids):
        raise ConfigError("decision: every node needs an id of its own")
    for node in nodes:
        _kind(node)
    for kind, word in ((INPUT, "input"), (OUTPUT, "output")):
        count = sum(node["type"] == kind for node in nodes)
        if count != 1:
            raise ConfigError(f"decision: expected one {word} node, found {count}")
    for edge in edges:
        for end in ("sourceId", "targetId"):
            if edge.get(end) not in ids:
                raise ConfigError(f"decision: an edge's {end} is none of the nodes")
    known = {*FACTS, *(name for node in nodes for name in _made(node))}
    rules: dict[str, str] = {}
    for node in nodes:
        for rule, text in _rules(node):
            if rule in rules:
                raise ConfigError(f"{_at(node)}: the rule id '{rule}' is used twice in the file")
            rules[rule] = text
        # A node over a list reads the list's own members.
        names = None if _content(node).get("inputField") else known
        for where, text, unary in _texts(node):
            _compile(where, text, unary, names)
    if len(rules) > MAX_RULES:
        raise ConfigError(f"decision: {len(rules)} rules; at most {MAX_RULES} are taken")
    return rules


def texts(graph: dict[str, Any]) -> list[tuple[str, bool]]:
    """Every expression of a checked decision, and whether it is a test of a column's value."""
    return [(text, unary) for node in graph["nodes"] for _, text, unary in _texts(node)]


def complaint(exc: BaseException) -> str:
    """zen-engine's own words for a failure, without its stack."""
    text = str(exc).partition("\n")[0]
    try:
        found = json.loads(text)
    except ValueError:
        return text[:300]
    words = found.get("source") or found.get("type") if isinstance(found, dict) else text
    return str(words)[:300]


def _kind(node: dict[str, Any]) -> None:
    kind = node.get("type")
    if kind in (TABLE, EXPRESSIONS, SWITCH, INPUT, OUTPUT):
        return
    if kind == "functionNode":
        raise ConfigError(
            f"{_at(node)}: functions are not taken: their code could run for ever, and no test "
            "can show that it ends; write a table, expressions or a switch"
        )
    if kind == "decisionNode":
        raise ConfigError(
            f"{_at(node)}: calls another decision; a file must stand alone to be reproduced, copy "
            "the other's nodes into it"
        )
    raise ConfigError(
        f"{_at(node)}: unknown type '{str(kind)[:80]}'; allowed are {TABLE}, {EXPRESSIONS}, "
        f"{SWITCH}, {INPUT} and {OUTPUT}"
    )


def _made(node: dict[str, Any]) -> Iterator[str]:
    """Names that a node adds for the nodes after it."""
    content = _content(node)
    keys = [out.get("field") for out in _list(content, "outputs")]
    keys += [one.get("key") for one in _list(content, "expressions")]
    keys.append(content.get("outputPath"))
    for key in keys:
        if isinstance(key, str) and key:
            yield key.split(".")[0]


def _rules(node: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if node["type"] != TABLE:
        return
    for number, rule in enumerate(_list(_content(node), "rules"), start=1):
        if not isinstance(rule.get("_id"), str) or not rule["_id"]:
            raise ConfigError(f"{_at(node)}, rule {number}: has no _id")
        yield rule["_id"], str(rule.get("_description") or "")


def _texts(node: dict[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """Every expression of a node: where, text, and whether it is a test of a column's value."""
    content, kind = _content(node), node["type"]
    if kind == TABLE:
        inputs, outputs = _list(content, "inputs"), _list(content, "outputs")
        for column in inputs:
            if column.get("field"):
                yield f"{_at(node)}, input '{_name(column)}'", column["field"], False
        for rule in _list(content, "rules"):
            where = f"{_at(node)}, rule '{rule['_id']}'"
            for column in (*inputs, *outputs):
                cell = rule.get(str(column.get("id")), "")
                tested = column in inputs and bool(column.get("field"))
                if cell not in ("", None) and not (column in inputs and cell == "-"):
                    yield f"{where}, column '{_name(column)}'", cell, tested
    if kind == EXPRESSIONS:
        for one in _list(content, "expressions"):
            if one.get("key"):
                yield f"{_at(node)}, expression '{one['key']}'", one.get("value", ""), False
    if kind == SWITCH:
        for number, one in enumerate(_list(content, "statements"), start=1):
            if one.get("condition"):
                yield f"{_at(node)}, condition {number}", one["condition"], False
    if content.get("inputField"):
        yield f"{_at(node)}, inputField", content["inputField"], False


def _compile(where: str, text: Any, unary: bool, known: set[str] | None) -> None:
    if not isinstance(text, str):
        raise ConfigError(f"{where}: expected text, found {type(text).__name__}")
    if len(text) > MAX_TEXT or _depth(text) > MAX_DEPTH:
        raise ConfigError(
            f"{where}: too long or too deeply nested; at most {MAX_TEXT} characters and "
            f"{MAX_DEPTH} levels of brackets"
        )
    bare = _STRINGS.sub("''", text)
    if _loose_range(bare, unary):
        raise ConfigError(
            f"{where}: a range such as [1..5] may only be tested against, as in 'points in "
            "[1..5]'; going through one may take for ever"
        )
    try:
        (zen.compile_unary_expression if unary else zen.compile_expression)(text)
    except RuntimeError as exc:
        raise ConfigError(f"{where}: '{text[:120]}' cannot be read: {complaint(exc)}") from None
    if known is None:
        return
    for name in _NAMES.findall(bare):
        if name not in known and name not in _WORDS:
            raise ConfigError(
                f"{where}: '{name}' is no fact and no output of a node{nearest(name, known)}; "
                f"facts: {listing(FACTS)}"
            )


def _loose_range(text: str, unary: bool) -> bool:
    """Whether a range is used as anything but the right side of `in`, or a test of a column."""
    for found in re.finditer(r"\.\.", text):
        start, closed = found.start() - 1, 0
        while start >= 0 and (closed or text[start] not in "[("):
            closed += (text[start] in ")]") - (text[start] in "[(")
            start -= 1
        before = text[: max(start, 0)]
        alone = unary and before.count("(") + before.count("[") == (
            before.count(")") + before.count("]")
        )
        if start < 0 or not (alone or _IN.search(before)):
            return True
    return False


def _depth(text: str) -> int:
    deep = most = 0
    for letter in text:
        deep += (letter in "([{") - (letter in ")]}")
        most = max(most, deep)
    # Chains of signs nest as brackets do.
    signs = max((len(run) for run in re.findall(r"(?:[-!+]\s*|not\s+)+", text)), default=0)
    return max(most, signs)


def _at(node: dict[str, Any]) -> str:
    return f"node '{str(node.get('name') or node.get('id'))[:80]}'"


def _name(column: dict[str, Any]) -> str:
    return str(column.get("name") or column.get("field") or column.get("id"))[:80]


def _content(node: dict[str, Any]) -> dict[str, Any]:
    content = node.get("content") or {}
    if not isinstance(content, dict):
        raise ConfigError(f"{_at(node)}: content should be an object")
    return content


def _list(content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = content.get(key) or []
    if not _objects(found):
        raise ConfigError(f"decision: '{key}' of a node should be a list of objects")
    return list(found)


def _objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)
