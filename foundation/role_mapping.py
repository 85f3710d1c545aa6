"""Aligning the fields of a new source to roles, by which a backbone knows fields across lenders.

A field without a role is embedded by its kind and hashed name alone, which says nothing to a
network that never saw the name. Roles are guessed from names and kinds, as `schema infer` does;
roles a person has given stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from foundation.errors import SchemaError, listing, nearest
from foundation.field_guess import guess_role
from foundation.schema import Field, Schema

UNKNOWN = "other"


@dataclass(frozen=True)
class Mapped:
    """One field: `owner.name`, its role before and after; `guessed` says that it is new."""

    field: str
    kind: str
    role: str
    guessed: bool


def map_roles(schema: Schema, source: str = "") -> tuple[Schema, list[Mapped]]:
    """A schema whose fields have roles, and what became of every field.

    Args:
        source: only the fields of this source, `profile` or `context`; empty for all.

    Raises:
        SchemaError: there is no such source.
    """
    owners = [*schema.source_names, "profile", "context"]
    if source and source not in owners:
        raise SchemaError(
            f"no source '{source}'{nearest(source, owners)}; there are: {listing(owners)}"
        )
    found: list[Mapped] = []

    def mapped(owner: str, fields: Mapping[str, Field]) -> dict[str, Field]:
        if source not in ("", owner):
            return dict(fields)
        out = {}
        for name, field in fields.items():
            role = guess_role(name, field.kind) if field.role == UNKNOWN else field.role
            found.append(Mapped(f"{owner}.{name}", field.kind, role, role != field.role))
            out[name] = msgspec.structs.replace(field, role=role)
        return out

    sources = {
        name: msgspec.structs.replace(one, fields=mapped(name, one.fields))
        for name, one in schema.sources.items()
    }
    profile = schema.profile
    if profile is not None:
        profile = msgspec.structs.replace(profile, fields=mapped("profile", profile.fields))
    context = mapped("context", schema.context)
    made = msgspec.structs.replace(schema, sources=sources, profile=profile, context=context)
    return made, found


def anchored(schema: Schema, folder: Path) -> Schema:
    """The schema with the paths of its tables, relative to `folder`, made absolute."""

    def moved(path: str) -> str:
        return str((folder / path).resolve()) if path else ""

    sources = {
        name: msgspec.structs.replace(one, path=moved(one.path))
        for name, one in schema.sources.items()
    }
    profile = schema.profile
    if profile is not None:
        profile = msgspec.structs.replace(profile, path=moved(profile.path))
    return msgspec.structs.replace(schema, sources=sources, profile=profile)
