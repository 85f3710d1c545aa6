"""Declared outcomes: small expressions over what the next days of an entity will hold.

Grammar (one line of YAML each; keywords are case-insensitive)::

    outcome   := condition "within" horizon {"," horizon}
    horizon   := INTEGER "d"
    condition := SOURCE "." FIELD "in" "(" value {"," value} ")"      any event with such a value
               | SOURCE "." FIELD OP value                            any event comparing so
               | SOURCE "." "event_time" ">" DATEFIELD ["+" INTEGER "d"]   an event after its date
               | ("sum" "(" SOURCE "." FIELD ")" | "count" "(" SOURCE ")") OP bound
               | "silence" ["(" SOURCE ")"]                           no event at all
    bound     := NUMBER | NUMBER "*" "last" | NUMBER "*" "last" "(" SOURCE "." FIELD ")"
    OP        := "<" | "<=" | ">" | ">=" | "=" | "!="

`NUMBER * last` is the same sum or count over the window of equal length before the cut;
`last(source.field)` is the last known value before it. A query is `P(outcome)` of one horizon.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from foundation.errors import SchemaError

OPERATORS = ("<=", ">=", "!=", "<", ">", "=")
_TOKEN = re.compile(
    r"""\s*(?:(?P<str>'[^']*'|"[^"]*")|(?P<num>-?\d+(?:\.\d+)?)(?P<d>d\b)?"""
    r"""|(?P<op><=|>=|!=|[<>=])|(?P<word>[^\s'"<>=!(),.*+]+)|(?P<sign>[(),.*+]))"""
)


@dataclass(frozen=True)
class Outcome:
    """One parsed outcome with its horizons in days.

    Attributes:
        kind: `value`, `compare`, `late`, `sum`, `count` or `silence`.
        source: source name, empty for silence over all sources.
        field: field the condition reads, empty for count and silence.
        values: the values of kind `value`, as written.
        op, bound: comparison of kinds `compare`, `sum` and `count`.
        versus: empty (a constant), `window` (times the last window) or `last` (times a last value).
        versus_field: `source.field` for versus `last`.
        date_field, slack_days: kind `late` fires when event_time > date_field + slack_days.
    """

    name: str
    kind: str
    horizons: tuple[int, ...]
    source: str = ""
    field: str = ""
    values: tuple[str, ...] = ()
    op: str = ""
    bound: float = 0.0
    versus: str = ""
    versus_field: str = ""
    date_field: str = ""
    slack_days: int = 0
    text: str = ""

    @property
    def targets(self) -> tuple[str, ...]:
        """Forecast names, one per horizon: `late_31d`."""
        return tuple(f"{self.name}_{h}d" for h in self.horizons)

    def title(self, horizon: int) -> str:
        """A sentence a credit officer reads, such as `late within 31 days`."""
        return f"{self.name.replace('_', ' ')} within {horizon} days"


def parse_outcome(name: str, text: str) -> Outcome:
    """Parse one outcome.

    Raises:
        SchemaError: the text does not follow the grammar; quotes the part that does not.
    """
    return _Parser(name, text).outcome()


def parse_query(text: str) -> Outcome:
    """Parse `P(condition within Nd)`, or the bare outcome, with exactly one horizon."""
    inner = text.strip()
    match = re.fullmatch(r"[Pp]\s*\((.*)\)", inner, flags=re.S)
    found = parse_outcome("query", match.group(1) if match else inner)
    if len(found.horizons) != 1:
        raise SchemaError(f"query '{text}': give one horizon, found {len(found.horizons)}")
    return replace(found, text=text)


def same_condition(a: Outcome, b: Outcome) -> bool:
    """Whether two outcomes ask the same thing, whatever their names and horizons."""
    bare = [replace(each, name="", horizons=(), text="") for each in (a, b)]
    return bare[0] == bare[1]


class _Parser:
    """Recursive descent over the token list; every failure quotes the remaining text."""

    def __init__(self, name: str, text: str) -> None:
        self.name, self.text, self.at = name, text, 0
        self.tokens: list[tuple[str, str, int]] = []
        position = 0
        while position < len(text.rstrip()):
            match = _TOKEN.match(text, position)
            if match is None or match.end() == position:
                raise self._error(position)
            for kind in ("str", "num", "op", "word", "sign"):
                if match.group(kind) is not None:
                    value = match.group(kind)
                    tag = "days" if kind == "num" and match.group("d") else kind
                    self.tokens.append((tag, value, match.start(kind)))
            position = match.end()

    def _error(self, position: int, expected: str = "") -> SchemaError:
        rest = self.text[position:].strip() or "the end"
        want = f"expected {expected}, " if expected else ""
        return SchemaError(
            f"outcome '{self.name}': {want}cannot read '{rest}' in \"{self.text}\"; "
            "an example: statement.status in ('1', '2') within 30d"
        )

    def _peek(self, *values: str) -> bool:
        return self.at < len(self.tokens) and self.tokens[self.at][1].lower() in values

    def _take(self, tags: tuple[str, ...], expected: str, *values: str) -> str:
        if self.at < len(self.tokens):
            tag, value, _ = self.tokens[self.at]
            if tag in tags and (not values or value.lower() in values):
                self.at += 1
                return value
        position = self.tokens[self.at][2] if self.at < len(self.tokens) else len(self.text)
        raise self._error(position, expected)

    def outcome(self) -> Outcome:
        parts = self._condition()
        self._take(("word",), "'within'", "within")
        horizons = [int(float(self._take(("days",), "a horizon such as 30d")))]
        while self._peek(","):
            self._take(("sign",), "','", ",")
            horizons.append(int(float(self._take(("days",), "a horizon such as 30d"))))
        if self.at != len(self.tokens):
            raise self._error(self.tokens[self.at][2], "the end")
        if min(horizons) < 1:
            raise SchemaError(f"outcome '{self.name}': a horizon must be at least 1d")
        unique = tuple(sorted(set(horizons)))
        return Outcome(name=self.name, horizons=unique, text=self.text, **parts)

    def _condition(self) -> dict:
        if self._peek("silence"):
            self.at += 1
            if not self._peek("("):
                return {"kind": "silence"}
            self._take(("sign",), "'('", "(")
            source = self._take(("word",), "a source")
            self._take(("sign",), "')'", ")")
            return {"kind": "silence", "source": source}
        following = self.tokens[self.at + 1][1] if self.at + 1 < len(self.tokens) else ""
        if self._peek("sum", "count") and following == "(":
            return self._aggregate()
        return self._event()

    def _aggregate(self) -> dict:
        kind = self._take(("word",), "sum or count").lower()
        self._take(("sign",), "'('", "(")
        source = self._take(("word",), "a source")
        field = self._field() if kind == "sum" else ""
        self._take(("sign",), "')'", ")")
        op = self._take(("op",), "a comparison")
        bound = float(self._take(("num",), "a number"))
        out = {"kind": kind, "source": source, "field": field, "op": op, "bound": bound}
        if not self._peek("*"):
            return out
        self._take(("sign",), "'*'", "*")
        self._take(("word",), "'last'", "last")
        if not self._peek("("):
            return out | {"versus": "window"}
        self._take(("sign",), "'('", "(")
        other = self._take(("word",), "a source")
        other_field = self._field()
        self._take(("sign",), "')'", ")")
        return out | {"versus": "last", "versus_field": f"{other}.{other_field}"}

    def _event(self) -> dict:
        source = self._take(("word",), "a source")
        field = self._field()
        if self._peek("in"):
            self.at += 1
            self._take(("sign",), "'('", "(")
            values = [self._value()]
            while self._peek(","):
                self._take(("sign",), "','", ",")
                values.append(self._value())
            self._take(("sign",), "')'", ")")
            return {"kind": "value", "source": source, "field": field, "values": tuple(values)}
        op = self._take(("op",), "'in' or a comparison")
        if field == "event_time":
            if op != ">":
                raise SchemaError(f"outcome '{self.name}': event_time is compared with '>' only")
            return {"kind": "late", "source": source, **self._date()}
        number = self.at < len(self.tokens) and self.tokens[self.at][0] == "num"
        if op == "=" and not number:
            return {"kind": "value", "source": source, "field": field, "values": (self._value(),)}
        bound = float(self._take(("num",), "a number"))
        return {"kind": "compare", "source": source, "field": field, "op": op, "bound": bound}

    def _date(self) -> dict:
        out = {"date_field": self._take(("word",), "a timestamp field"), "slack_days": 0}
        if self._peek("+"):
            self._take(("sign",), "'+'", "+")
            out["slack_days"] = int(float(self._take(("days",), "days such as 3d")))
        return out

    def _field(self) -> str:
        self._take(("sign",), "'.'", ".")
        return self._take(("word",), "a field")

    def _value(self) -> str:
        return self._take(("str", "num", "word"), "a value").strip("'\"")
