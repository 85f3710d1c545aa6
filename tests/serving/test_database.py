"""Connections that a process keeps open, and those it opens for one transaction."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from serving.database import Database

COUNTERS = sa.MetaData()
counters = sa.Table("counters", COUNTERS, sa.Column("n", sa.Integer, nullable=False))


def opened(database: Database) -> list[object]:
    """Filled with every connection the database opens from now on."""
    found: list[object] = []
    sa.event.listen(database.engine, "connect", lambda connection, record: found.append(record))
    return found


@pytest.mark.parametrize("keep", [0, 2])
def test_what_is_kept_is_used_again_and_closed(database_url: str, keep: int) -> None:
    database = Database(database_url, COUNTERS, keep=keep)
    database.close()
    found = opened(database)
    for _ in range(5):
        with database.transaction() as connection:
            connection.execute(counters.insert().values(n=1))
        with database.reading() as connection:
            assert connection.execute(sa.select(counters.c.n)).first() is not None
    assert len(found) == (1 if keep else 10)
    database.close()
    with database.reading() as connection:
        assert len(connection.execute(sa.select(counters.c.n)).all()) == 5
    assert len(found) == (2 if keep else 11)
    database.close()


def test_what_went_wrong_leaves_nothing_behind(database_url: str) -> None:
    """Half a transaction is undone before the next one gets the connection."""
    database = Database(database_url, COUNTERS, keep=1)
    with pytest.raises(ZeroDivisionError), database.transaction() as connection:
        connection.execute(counters.insert().values(n=1))
        raise ZeroDivisionError
    standing = database.standing()
    assert standing.execute(sa.select(counters.c.n)).all() == []
    standing.close()
    with database.transaction() as connection:
        connection.execute(counters.insert().values(n=2))
    with database.reading() as connection:
        assert connection.execute(sa.select(counters.c.n)).all() == [(2,)]
    database.close()


def test_more_are_opened_than_are_kept(database_url: str) -> None:
    database = Database(database_url, COUNTERS, keep=1)
    together = threading.Barrier(6, timeout=30)

    def read(number: int) -> int:
        with database.reading() as connection:
            together.wait()
            return len(connection.execute(sa.select(counters.c.n)).all())

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(read, range(6))) == [0] * 6
    database.close()


def test_a_server_that_started_anew_is_not_noticed(postgres_url: str) -> None:
    database = Database(postgres_url, COUNTERS, keep=2)
    ended = sa.text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with database.transaction() as connection:
        connection.execute(counters.insert().values(n=1))
    other = Database(postgres_url)
    with other.transaction() as connection:
        assert len(connection.execute(ended).all()) >= 1
    with database.reading() as connection:
        assert connection.execute(sa.select(counters.c.n)).all() == [(1,)]
    database.close()
