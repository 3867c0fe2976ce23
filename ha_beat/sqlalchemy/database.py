"""SQLAlchemy's connections to the schedule's database."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import Connection, Engine, Executable, MetaData, create_engine, inspect, text
from sqlalchemy import exc as errors
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool
from sqlalchemy.schema import CreateSchema

from ha_beat.errors import ConfigurationError
from ha_beat.row_store.backend import DatabaseFault
from ha_beat.row_store.limits import CONNECT_OPTIONS, MYSQL_LIMITS, POSTGRESQL_LIMITS, ErrorClasses, fault_of

_ERRORS = ErrorClasses(
    unreachable=(errors.OperationalError, errors.InterfaceError),
    row=(errors.DataError, errors.IntegrityError),
    any=errors.SQLAlchemyError,
)

#: Drivers that take the options of :data:`CONNECT_OPTIONS`.
_DRIVERS = frozenset({"psycopg", "psycopg2", "pymysql", "mysqldb"})

#: Options of drivers that select the server or the database.
_PLACE = frozenset({"database", "db", "dbname", "host", "options", "port", "service", "unix_socket"})


class SqlDatabase:
    """Engine for the schedule's database, with one connection for each thread."""

    def __init__(self, uri: str, schema: str | None, options: Mapping[str, Any], tables: MetaData) -> None:
        """Create the engine without connecting. Missing ``tables`` are created before the first use."""
        url = make_url(uri)
        dialect = url.get_dialect()
        if dialect.is_async:
            raise ConfigurationError(f"beat_dburi names an asynchronous driver, {dialect.driver}: beat needs another")
        # sqlalchemy-celery-beat ignores the options of pools, too.
        options = {name: value for name, value in options.items() if not name.startswith("pool")}
        limits = CONNECT_OPTIONS.get(dialect.name, {}) if dialect.driver in _DRIVERS else {}
        arguments = {name: value for name, value in limits.items() if name not in url.query}
        options["connect_args"] = {**arguments, **options.get("connect_args", {})}
        engine = create_engine(url, poolclass=NullPool, **options)
        self.engine: Engine = engine.execution_options(schema_translate_map={"celery_schema": schema})
        place = [(name, value) for name, value in options["connect_args"].items() if name in _PLACE]
        #: Digest of the address, without the password.
        self.identity = hashlib.sha256(f"{url.set(password=None)} {schema} {sorted(place)}".encode()).hexdigest()[:8]
        self._schema = schema
        self._tables = tables
        self._prepared = False
        self._preparing = threading.Lock()
        self._own = threading.local()

    def open(self) -> None:
        """Do nothing: the first statement connects."""

    def refresh(self) -> None:
        """Create the tables that are missing, once."""
        with self._preparing:
            if self._prepared:
                return
            with self.transaction():
                connection = self.connection
                if self._schema and self._schema not in inspect(connection).get_schema_names():
                    connection.execute(CreateSchema(self._schema))
                self._tables.create_all(connection)
            self._prepared = True

    def close(self) -> None:
        connection: Connection | None = getattr(self._own, "connection", None)
        self._own.connection = None
        if connection is not None:
            # The connection may be lost.
            with suppress(Exception):
                connection.close()

    @property
    def connection(self) -> Connection:
        """Return the connection of this thread."""
        connection: Connection | None = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = self.engine.connect()
        return connection

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run a block in one transaction whose statements are limited in time. Blocks may be nested."""
        connection = self.connection
        if connection.in_transaction():
            yield
            return
        with connection.begin():
            limits = {"postgresql": POSTGRESQL_LIMITS, "mysql": MYSQL_LIMITS}.get(connection.dialect.name)
            if limits:
                connection.execute(text(limits))
            yield

    def rows(self, statement: Executable) -> list[Any]:
        """Return the result of a query."""
        with self.transaction():
            return list(self.connection.execute(statement))

    def write(self, statement: Executable) -> int:
        """Execute a statement. Return the number of rows that it changed."""
        with self.transaction():
            return self.connection.execute(statement).rowcount

    def fault(self, exc: BaseException) -> DatabaseFault | None:
        return fault_of(exc, exc.orig if isinstance(exc, errors.DBAPIError) else None, _ERRORS)
