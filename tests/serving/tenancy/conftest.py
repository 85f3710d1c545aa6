"""A hosting database for each test, in SQLite and in PostgreSQL."""

from __future__ import annotations

import pytest

from serving.database import Database
from serving.tenancy.tables import open_tables


@pytest.fixture
def database(database_url: str) -> Database:
    """An empty hosting database."""
    database = Database(database_url)
    open_tables(database)
    return database
