"""Decision files: what is taken, what is refused and why, and what a file that fails does."""

from __future__ import annotations

import copy
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.errors import ConfigError
from serving.decisions.decision_file import OUTCOMES, decode, read_decision_file, stored
from serving.decisions.facts import LISTS, Facts
from serving.decisions.needed import Needed
from serving.decisions.rules import FAILED, Rules, check_file, default_ruling
from tests.contracts.tree import ROOT
from tests.serving.decisions.small_desk import BANDS, GRAPH, HOLD, TESTS, facts, file, graph, table

EXAMPLE = ROOT / "configs" / "decisions" / "cards.yaml"
Change = Callable[[dict[str, Any]], object]


def changed(change: Change, tests: Any = None, **more: Any) -> dict[str, Any]:
    decision = graph()
    change(decision)
    return {
        "decision": decision, "tests": TESTS if tests is None else tests,
        "actions": {"hold": HOLD}, **more,
    }  # fmt: skip


def cell(rule: int, column: str, text: Any) -> Change:
    def change(decision: dict[str, Any]) -> None:
        table(decision)["rules"][rule][column] = text

    return change


def node(kind: str, **content: Any) -> Change:
    def change(decision: dict[str, Any]) -> None:
        decision["nodes"].append({"id": "x", "type": kind, "name": "mine", "content": content})

    return change


def loop(decision: dict[str, Any]) -> None:
    decision["edges"].append({"id": "3", "sourceId": "t", "targetId": "t"})


def nothing(decision: dict[str, Any]) -> None:
    """No change."""


WRONG: list[tuple[str, dict[str, Any]]] = [
    (
        r"node 'outcome', rule 'low', column 'points': '< 5 00 \(' cannot be read",
        changed(cell(1, "p", "< 5 00 (")),
    ),
    (r"'pionts' is no fact .*did you mean 'points'", changed(cell(1, "p", "> pionts"))),
    (r"functions are not taken: their code could run for ever", changed(node("functionNode"))),
    (r"calls another decision", changed(node("decisionNode", key="other"))),
    (r"unknown type 'httpNode'", changed(node("httpNode"))),
    (r"expected one input node, found 2", changed(node("inputNode"))),
    (r"the rule id 'low' is used twice", changed(cell(0, "_id", "low"))),
    (r"rule 1: has no _id", changed(cell(0, "_id", ""))),
    (r"expected text, found int", changed(cell(1, "p", 500))),
    (r"does not compile: cyclicGraph", changed(loop)),
    (
        r"going through one may take for ever",
        changed(cell(1, "p", "sum(map([0..9999999999], #)) > 1")),
    ),
    (r"going through one may take for ever", changed(cell(1, "r", "[0..9999999999]"))),
    (r"going through one may take for ever", changed(cell(1, "p", "> len(map((0..1e9), #))"))),
    (r"too deeply nested", changed(cell(1, "p", "(" * 300 + "1" + ")" * 300))),
    (r"too deeply nested", changed(cell(1, "o", "-" * 1500 + "1"))),
    (
        r"test 'low': expected refuse, found review by rest",
        changed(cell(1, "p", "< 400")),
    ),
    (r"test 'low': there is no outcome", changed(cell(1, "o", '"decline"'))),
    (r"with nothing known: there is no outcome", changed(lambda d: table(d)["rules"].pop())),
    (r"with nothing known it approves", changed(cell(3, "o", '"approve"'), tests=TESTS[:2])),
    (r"action 'held' is not declared, did you mean 'hold'", changed(cell(0, "a", '"held"'))),
    (r"'limit' should be a finite number", changed(
        lambda d: table(d)["outputs"].append({"id": "l", "name": "limit", "field": "limit"})
        or cell(1, "l", '"much"')(d)
    )),
    (r"the result has 'reason', .*did you mean 'reasons'", changed(
        lambda d: table(d)["outputs"][1].update(field="reason")
    )),
    (r"at least one test case", changed(nothing, tests=[])),
    (r"'pionts' is no fact, did you mean 'points'", changed(
        nothing, tests=[{"name": "a", "facts": {"pionts": 1}, "expect": {"outcome": "review"}}]
    )),
    (r"lists should be texts such as black:device", changed(
        nothing, tests=[{"name": "a", "facts": {"lists": ["red"]}, "expect": {"outcome": "review"}}]
    )),
    (r"action 'hold': .*no credentials", changed(
        nothing, actions={"hold": HOLD | {"url": "https://me:pass@lender.example/"}}
    )),
]  # fmt: skip


@pytest.mark.parametrize(("said", "data"), WRONG, ids=[said[:40] for said, _ in WRONG])
def test_what_is_wrong_is_named(said: str, data: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=said):
        check_file(decode(data, "file"))


def test_a_missing_field_must_not_stop_a_decision() -> None:
    data = changed(
        node("expressionNode", expressions=[{"id": "1", "key": "limit",
                                             "value": "min([context.amount, 10])"}])
    )  # fmt: skip
    data["decision"]["edges"] += [{"id": "4", "sourceId": "in", "targetId": "x"},
                                  {"id": "5", "sourceId": "x", "targetId": "out"}]  # fmt: skip
    data["tests"] = [TESTS[0] | {"facts": {"points": 450, "context": {"amount": 5}}}]
    with pytest.raises(ConfigError, match=r"without context.amount: .*min\(\[context.amount, 10\]"):
        check_file(decode(data, "file"))


@pytest.mark.parametrize(
    ("said", "data"),
    [
        ("unknown key 'test', did you mean 'tests'", {"decision": {}, "test": []}),
        ("not finite", changed(cell(0, "x", math.inf))),
        ("hours", changed(nothing, review={"hours": 0})),
        ("secret", changed(nothing, actions={"hold": HOLD | {"secret": "PATH"}})),
    ],
)
def test_the_form_is_strict(said: str, data: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=said):
        decode(data, "file")


def test_the_example_is_good_and_says_the_same_in_any_layout(tmp_path: Path) -> None:
    found = read_decision_file(EXAMPLE)
    lines = check_file(found)
    assert lines[0] == "9 test cases as expected; outcomes seen: approve, refuse, review"
    assert stored(found.content()).digest == found.digest
    data = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8")) | {"decision": found.decision}
    again = tmp_path / "one.yaml"
    again.write_text(yaml.safe_dump(data), encoding="utf-8")
    assert read_decision_file(again).digest == found.digest
    again.write_text(yaml.safe_dump(data | {"decision": "../cards.json"}), encoding="utf-8")
    with pytest.raises(ConfigError, match="same folder"):
        read_decision_file(again)


def test_a_collecting_table_gives_every_rule_and_reason() -> None:
    decision = graph()
    content = decision["nodes"][1]["content"]
    content |= {"hitPolicy": "collect", "outputPath": "found"}
    decision["nodes"].append(
        {"id": "e", "type": "expressionNode", "name": "worst", "content": {"expressions": [
            {"id": "1", "key": "outcome",
             "value": 'some(found, #.outcome == "refuse") ? "refuse" : "review"'},
            {"id": "2", "key": "reasons", "value": "map(found, #.reasons)"},
        ]}}
    )  # fmt: skip
    decision["edges"] = [
        {"id": "1", "sourceId": "in", "targetId": "t"},
        {"id": "2", "sourceId": "t", "targetId": "e"},
        {"id": "3", "sourceId": "e", "targetId": "out"},
    ]
    tests = [{"name": "low", "facts": {"points": 450, "lists": ["black:phone"]},
              "expect": {"outcome": "refuse", "rules": ["black", "low", "rest"]}}]  # fmt: skip
    check_file(decode({"decision": decision, "tests": tests}, "file"))
    rules = Rules(decode({"decision": decision, "tests": tests}, "file"), "v")
    ruling = rules.rule(facts(450, entity="c"), ("black:phone",))
    assert ruling.reasons == ("on a list", "low", "between")
    assert ruling.rules == ("black", "low", "rest")


def test_a_file_that_fails_sends_to_review() -> None:
    rules = Rules(file(), "v")
    ruling = rules.rule(facts(math.nan), ())
    assert (ruling.outcome, ruling.reasons, ruling.failed) == ("review", (FAILED,), True)
    assert Rules(file(), "v").rule(facts(math.nan), ()).rules == ("failed",)


def test_reasons_of_the_score_do_not_become_reasons_of_the_decision() -> None:
    given_reasons = [{"name": "x", "title": "X", "value": "1", "effect": 0.2}]
    ruling = Rules(read_decision_file(EXAMPLE), "v").rule(
        facts(650, reasons=given_reasons, context={"amount": 10}), ()
    )
    assert (ruling.outcome, ruling.reasons, ruling.limit) == ("approve", (), 10.0)


@settings(deadline=None, max_examples=25)
@given(
    points=st.one_of(st.none(), st.floats(allow_nan=True), st.text(max_size=5), st.booleans()),
    amount=st.one_of(
        st.none(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.text())
    ),
    hits=st.lists(st.sampled_from(["black:phone", "grey:entity", "white:device"]), unique=True),
)  # fmt: skip
def test_there_is_always_an_outcome_and_black_is_never_approved(
    points: Any, amount: Any, hits: list[str]
) -> None:
    found = Facts("c", 0.1, points, "A", BANDS, context={"amount": amount})
    ruling = RULES.rule(found, hits)
    assert ruling.outcome in OUTCOMES
    assert ruling.limit is None or math.isfinite(ruling.limit)
    if "black:phone" in hits:
        assert ruling.outcome != "approve"


HANDED: list[tuple[str, dict[str, Any]]] = [
    ("points > 1", {"points": 1}),
    ("context.amount > 1", {"context": {"amount": 2}}),
    ("context['amount'] > profile.none", {"context": {"amount": 2}, "profile": {}}),
    ("len(keys(context)) > 1", {"context": {"amount": 2, "term": 3}}),
    ("context[flags[0]] > 1", {"context": {"amount": 2, "term": 3}, "flags": ["a"]}),
    ("context.amount > 1 and context == null", {"context": {"amount": 2, "term": 3}}),
    ('forecasts["late soon"] > 1', {"forecasts": {"late soon": 0.5}}),
]
JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=6), st.just("< 5")),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested data."""
    inner = data.items() if isinstance(data, dict) else enumerate(data)
    out = []
    for key, value in inner:
        out.append((*path, key))
        if isinstance(value, (dict, list)):
            out += places(value, (*path, key))
    return out


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_whatever_is_handed_in_is_taken_or_refused_with_a_sentence(data: st.DataObject) -> None:
    whole = copy.deepcopy({"decision": GRAPH, "tests": TESTS, "actions": {"hold": HOLD}})
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(places(whole)))
        at: Any = whole
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = data.draw(JUNK)
    try:
        check_file(decode(whole, "file"))
    except ConfigError as exc:
        assert str(exc)


def test_deep_nesting_is_refused() -> None:
    deep: Any = []
    for _ in range(3000):
        deep = [deep]
    tests = [TESTS[0] | {"facts": {"context": {"x": deep}}}]
    with pytest.raises(ConfigError, match="nested deeper than 40"):
        decode({"decision": graph(), "tests": tests}, "file")


RULES = Rules(read_decision_file(EXAMPLE), "v")


@pytest.mark.parametrize("text", ["(0..500)", "[400..499], [200..300]", "$ in [0..500)",
                                  "points in [0..500) and band not in ['Z']"])  # fmt: skip
def test_ranges_are_tested_against(text: str) -> None:
    check_file(decode(changed(cell(1, "p", text)), "file"))


@pytest.mark.parametrize(
    ("expression", "handed"),
    HANDED,
)
def test_only_what_is_read_is_handed_over(expression: str, handed: dict[str, Any]) -> None:
    named = {"points": 1, "context": {"amount": 2, "term": 3}, "flags": ["a"], "profile": {"x": 1},
             "forecasts": {"late soon": 0.5, "other": 1}}  # fmt: skip
    assert Needed([(expression, False)]).of(named) == handed
    assert Needed([(expression, False), ("$root.x", True)]).of(named) == named
    assert Needed([(expression, False), ("$", False)]).of(named) == named


@pytest.mark.parametrize(
    ("band", "bands", "hits", "outcome"),
    [
        ("A", BANDS, (), "approve"),
        ("B", BANDS, (), "review"),
        ("C", BANDS, (), "refuse"),
        ("A", ("A",), (), "review"),
        ("A", ("A", "C"), (), "approve"),
        ("?", BANDS, ("white:entity",), "review"),
        ("A", BANDS, ("black:phone",), "refuse"),
        ("A", BANDS, ("grey:phone",), "review"),
        ("B", BANDS, ("white:entity",), "approve"),
        ("C", BANDS, ("white:entity",), "refuse"),
        ("B", BANDS, ("grey:phone", "white:entity"), "review"),
        ("A", BANDS, ("black:phone", "white:entity"), "refuse"),
    ],
)
def test_without_a_file_the_bands_decide(
    band: str, bands: tuple[str, ...], hits: tuple[str, ...], outcome: str
) -> None:
    ruling = default_ruling(Facts("c", 0.1, 600, band, bands), hits)
    assert ruling.outcome == outcome
    assert ruling.reasons
    assert re.fullmatch(rf"default\.({'|'.join((*OUTCOMES, *LISTS, 'unknown'))})", ruling.rules[0])


def test_a_decision_takes_less_than_a_millisecond() -> None:
    found = facts(
        610, profile={f"p{i}": i for i in range(20)}, context={f"c{i}": i for i in range(20)}
    )
    for _ in range(20):
        RULES.rule(found, ())
    seconds = []
    for _ in range(200):
        begin = time.thread_time()
        RULES.rule(found, ())
        seconds.append(time.thread_time() - begin)
    assert sorted(seconds)[100] < 1e-3
