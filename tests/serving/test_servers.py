"""The servers that other tests stand on: they run, they are empty, they are real."""

from __future__ import annotations

import sqlalchemy as sa

from serving.database import Database, shown_url
from serving.registry_tables import metadata


def test_a_new_database_is_empty_and_of_its_kind(database_url: str) -> None:
    database = Database(database_url)
    assert sa.inspect(database.engine).get_table_names() == []
    database.make(metadata)
    database.make(metadata)
    assert "releases" in sa.inspect(database.engine).get_table_names()
    assert database.engine.dialect.name == shown_url(database_url).split(":")[0].split("+")[0]


def test_valkey_keeps_what_one_test_writes(valkey_url: str) -> None:
    import valkey

    with valkey.Valkey.from_url(valkey_url) as client:
        assert client.keys() == []
        assert client.set("tenant:a", b"1", nx=True)
        assert client.set("tenant:a", b"2", nx=True) is None
        assert client.get("tenant:a") == b"1"
