"""Every error riskfm raises on purpose.

RiskfmError
├── UserError            the input is at fault: exit code 2, HTTP 4xx
│   ├── ConfigError      a YAML or JSON configuration: unknown key, wrong type, impossible value
│   ├── SchemaError      a schema that contradicts itself or the files it names
│   ├── DataError        an event, profile or sample file: file, row, column and what was expected
│   ├── SampleError      a sample set that cannot be adapted to or judged on
│   ├── RequestError     one scoring request; `field` names the offending part
│   └── ArtifactError    a checkpoint, tokenizer or package that is damaged or does not belong here
└── InternalError        our fault: exit code 1, HTTP 500
    └── ParityError      an export that does not reproduce the model it was made from
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RiskfmError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1


class UserError(RiskfmError):
    """The input is at fault; the message says what to change."""

    exit_code = 2


class ConfigError(UserError):
    """A configuration has an unknown key, a wrong type or an impossible value."""


class SchemaError(UserError):
    """A schema contradicts itself or the data it describes."""


class DataError(UserError):
    """A data file is unreadable or holds what its schema forbids."""


class SampleError(UserError):
    """A sample set cannot be used for what was asked."""


class RequestError(UserError):
    """A scoring request is malformed.

    Attributes:
        field: path of the offending part, such as `events.statement[3].bill_amt`.
    """

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class ArtifactError(UserError):
    """A checkpoint, tokenizer or package is damaged or does not fit."""


class InternalError(RiskfmError):
    """A fault of ours."""


class ParityError(InternalError):
    """An exported graph does not reproduce the model."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint `, did you mean 'x'?` for a misspelt name, or the empty string."""
    close = difflib.get_close_matches(str(name), [str(v) for v in valid], n=1, cutoff=0.6)
    return f", did you mean '{close[0]}'?" if close else ""


def listing(names: Iterable[str], limit: int = 20) -> str:
    """Names as a readable list, shortened after `limit`."""
    every = [str(n) for n in names]
    shown = ", ".join(every[:limit])
    return shown + (f", … ({len(every)} in all)" if len(every) > limit else "")
