"""A database of the service: SQLite or PostgreSQL through SQLAlchemy core.

One transaction after the other; moments are ISO 8601 texts in UTC. Each subject keeps its tables in
a `MetaData` of its own and hands it over when it opens the database.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.pool import NullPool, QueuePool

from foundation.errors import ConfigError

_LOCK = 7_251_894
_READING, _SINGLE = "riskfm_reading", "riskfm_single"


def now() -> str:
    """This moment, ISO 8601 in UTC with microseconds."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="microseconds")


class Database:
    """One transaction after the other on some tables, made where they are missing.

    Args:
        url: sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME.
        schemas: tables to make at once; others follow with `make`.
        keep: connections that stay open from one transaction to the next until `close`, for a
            process that runs for long; 0: each transaction opens its own.
    Raises:
        ConfigError: a URL nobody can open.
    """

    def __init__(self, url: str, *schemas: sa.MetaData, keep: int = 0) -> None:
        # Nobody waits for one that is kept. Each is tried before it is used again: the other
        # machine may have started anew.
        kept = {"pool_size": keep, "max_overflow": -1, "pool_pre_ping": True}
        pool = {"poolclass": QueuePool} | kept if keep else {"poolclass": NullPool}
        try:
            self.engine = sa.create_engine(url, **pool)
        except ModuleNotFoundError as exc:
            raise ConfigError(
                f"database URL '{shown_url(url)}' needs {exc.name}: pip install 'riskfm[postgres]'"
            ) from None
        except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ImportError) as exc:
            raise ConfigError(
                f"database URL '{shown_url(url)}': {exc}; write sqlite:///FILE or "
                "postgresql+psycopg://USER@HOST/NAME"
            ) from None
        if self.near:
            _make_folder(self.engine.url.database)
            sa.event.listen(self.engine, "connect", _prepare_sqlite)
            sa.event.listen(self.engine, "begin", _begin_sqlite)
        try:
            self.make(*schemas)
        except sa.exc.OperationalError as exc:
            raise ConfigError(
                f"database '{shown_url(url)}' cannot be opened: {str(exc.orig).strip()}"
            ) from None

    def close(self) -> None:
        """Close the connections that are kept; it can be used again."""
        self.engine.dispose()

    def make(self, *schemas: sa.MetaData) -> None:
        """Make tables that are missing; safe beside other processes doing the same."""
        with self.transaction() as connection:
            for schema in schemas:
                schema.create_all(connection)

    @property
    def near(self) -> bool:
        """Whether it is a file here, whose readers wait for nobody, and no other machine."""
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """All or nothing, and alone: changes of other processes wait until this one is done."""
        with self.engine.begin() as connection:
            if self.engine.dialect.name == "postgresql":
                connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
            yield connection

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """One consistent view of the data; waits for nobody."""
        with self.engine.connect() as plain:
            connection = plain.execution_options(**{_READING: True})
            with connection.begin():
                yield connection

    def standing(self) -> sa.Connection:
        """A connection that stays open for many short reads, each a single statement.

        A statement sees one consistent view by itself and begins no transaction. For one thread;
        its opener closes it.
        """
        options: dict[str, Any] = {_SINGLE: True}
        if self.engine.dialect.name == "postgresql":
            options["isolation_level"] = "AUTOCOMMIT"
        return self.engine.connect().execution_options(**options)

    def insert_missing(self, connection: sa.Connection, table: sa.Table, **row: object) -> bool:
        """Insert a row unless its key is there; whether it was inserted."""
        keys = {c.name: row[c.name] for c in table.primary_key}
        there = connection.execute(sa.select(sa.literal(1)).select_from(table).filter_by(**keys))
        if there.first() is not None:
            return False
        connection.execute(table.insert().values(**row))
        return True


def append_only(*tables: sa.Table) -> None:
    """Let the database itself refuse to change or delete rows of these tables."""
    for table in tables:
        name, ddl = table.name, []
        for verb in ("UPDATE", "DELETE"):
            ddl.append(
                (
                    "sqlite",
                    f"CREATE TRIGGER {name}_no_{verb.lower()} BEFORE {verb} ON {name} "
                    f"BEGIN SELECT RAISE(ABORT, '{name} is append-only'); END",
                )
            )
        for statement in (
            f"CREATE OR REPLACE FUNCTION {name}_append_only() RETURNS trigger AS $$ "
            f"BEGIN RAISE EXCEPTION '{name} is append-only'; END $$ LANGUAGE plpgsql",
            f"CREATE TRIGGER {name}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE "
            f"ON {name} FOR EACH STATEMENT EXECUTE FUNCTION {name}_append_only()",
        ):
            ddl.append(("postgresql", statement))
        for dialect, statement in ddl:
            sa.event.listen(table, "after_create", sa.DDL(statement).execute_if(dialect=dialect))


def shown_url(url: str) -> str:
    """A URL without its password."""
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except sa.exc.ArgumentError:
        return url.split("@")[-1]


def _make_folder(file: str | None) -> None:
    """Make the folder of a new SQLite file, for its owner alone; a folder's parents must exist."""
    if file and file != ":memory:":
        with contextlib.suppress(OSError):
            Path(file).parent.mkdir(mode=0o700, exist_ok=True)


def _prepare_sqlite(connection: object, record: object) -> None:
    connection.isolation_level = None  # type: ignore[attr-defined]
    pragmas = ("busy_timeout = 30000", "journal_mode = WAL", "foreign_keys = ON")
    for pragma in (*pragmas, "synchronous = FULL"):
        connection.execute(f"PRAGMA {pragma}")  # type: ignore[attr-defined]


def _begin_sqlite(connection: sa.Connection) -> None:
    options = connection.get_execution_options()
    if not options.get(_SINGLE):
        connection.exec_driver_sql("BEGIN" if options.get(_READING) else "BEGIN IMMEDIATE")
