"""One operation of the API: what the application mounts and the OpenAPI document describes."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.responses import Response

from serving.routes.call import JSON, Call

Handler = Callable[[Call], Awaitable[Response]]
_PART = re.compile(r"{(\w+)(?::\w+)?}")


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """A query parameter or a header of an operation.

    Attributes:
        where: query or header.
        kind: a type msgspec describes, such as str, int or an Annotated one.
    """

    name: str
    description: str
    where: str = "query"
    kind: Any = str
    required: bool = False


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """A method of a path.

    Attributes:
        path: template, such as /v1/packages/{id}.
        name: of the operation in the document, unique.
        scope: what the API key must allow; empty: open to everyone.
        answer: message type of the answer, or its media type.
        request: message type of the body; None: no body.
        media: media types the body may have.
        kinds: media types of a successful answer that is a message.
        status: of a success.
        errors: statuses it may answer beside those that every operation of its kind may.
        examples: of the request and of the answer, under their message types' names.
        repeatable: takes an Idempotency-Key.
        rehearsed: answers a sandbox key with what is fixed and touches nothing; other operations
            that change something refuse it.
        largest: setting that bounds the body, `max_body_bytes` where nothing else is said.
    """

    method: str
    path: str
    name: str
    scope: str
    summary: str
    answer: Any
    handler: Handler
    request: Any = None
    media: tuple[str, ...] = (JSON,)
    kinds: tuple[str, ...] = (JSON,)
    parameters: tuple[Parameter, ...] = ()
    status: int = 200
    errors: tuple[int, ...] = ()
    examples: dict[str, Any] = {}
    repeatable: bool = False
    rehearsed: bool = False
    largest: str = "max_body_bytes"

    @property
    def path_names(self) -> tuple[str, ...]:
        """Names in the path's template."""
        return tuple(_PART.findall(self.path))

    @property
    def statuses(self) -> tuple[int, ...]:
        """Every error status the operation may answer."""
        found = {405, *self.errors}
        if self.scope:
            found |= {401, 403, 429, 500, 503}
        if self.parameters or self.path_names:
            found |= {422}
        if self.path_names:
            found |= {404}
        if self.request is not None:
            found |= {400, 408, 413, 415, 422}
        if self.repeatable:
            found |= {409}
        return tuple(sorted(found))
