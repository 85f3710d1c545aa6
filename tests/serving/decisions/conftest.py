"""A desk for each test, in SQLite and in PostgreSQL, and one in SQLite alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.database import Database
from tests.serving.decisions.small_desk import Small, small


@pytest.fixture
def database(database_url: str) -> Database:
    """An empty hosting database, of both kinds in turn."""
    return Database(database_url)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Small]:
    """A desk in SQLite with a decision log."""
    with small(tmp_path, Database(f"sqlite:///{tmp_path}/test.db")) as found:
        yield found


@pytest.fixture
def desks(tmp_path: Path, database: Database) -> Iterator[Small]:
    """A desk with a decision log, in each database in turn."""
    with small(tmp_path, database) as found:
        yield found
