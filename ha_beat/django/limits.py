"""Time limits for the work on the schedule's database, so that a lock or a dead connection does not hold it up.

A statement that exceeds a limit fails and is retried in a later turn. SQLite has its own limit: ``timeout``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import DataError, IntegrityError, OperationalError, connections, transaction

from ha_beat.exception_text import without_secrets

#: Seconds that a statement waits for a lock, and that it may take.
LOCK_TIMEOUT = 1.0
STATEMENT_TIMEOUT = 15.0

#: Options of new connections, by vendor. Settings of the project win.
_CONNECT: dict[str, dict[str, int]] = {
    "postgresql": {
        "connect_timeout": 5,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,
    },
    "mysql": {"connect_timeout": 5},
}

#: SQLSTATEs of PostgreSQL for a lock or a statement that exceeds its limit.
_TIMED_OUT = frozenset({"55P03", "57014"})

#: Error code of MySQL for a lock that exceeds its limit.
_MYSQL_LOCK_TIMEOUT = 1205

#: Classes of SQLSTATE for the fault of a row: its data, a constraint, an exception of a trigger.
_OF_A_ROW = ("22", "23", "P0")


def limit_connections(aliases: Iterable[str]) -> None:
    """Limit the time to connect for this thread's connections."""
    for alias in aliases:
        connection = connections[alias]
        options = {**_CONNECT.get(connection.vendor, {}), **connection.settings_dict["OPTIONS"]}
        # The dictionary is shared with the connections of other threads.
        connection.settings_dict = {**connection.settings_dict, "OPTIONS": options}


@contextmanager
def limited(alias: str) -> Iterator[None]:
    """Limit the statements of a block. On PostgreSQL the block is one transaction.

    There the limits end with the transaction, so a connection pooler hands none to another client.
    """
    connection = connections[alias]
    if connection.vendor == "mysql":
        seconds = round(LOCK_TIMEOUT)
        _execute(connection, f"SET SESSION innodb_lock_wait_timeout = {seconds}, lock_wait_timeout = {seconds}")
    if connection.vendor != "postgresql":
        yield
        return
    with transaction.atomic(using=alias):
        lock, statement = round(LOCK_TIMEOUT * 1000), round(STATEMENT_TIMEOUT * 1000)
        _execute(
            connection,
            f"SELECT set_config('lock_timeout', '{lock}', true), set_config('statement_timeout', '{statement}', true)",
        )
        yield


def _execute(connection: Any, statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


def timed_out(exc: BaseException) -> bool:
    """True if a statement exceeded its limit, mostly because of a lock."""
    of_mysql = isinstance(exc, OperationalError) and exc.args[:1] == (_MYSQL_LOCK_TIMEOUT,)
    return of_mysql or _sqlstate(exc) in _TIMED_OUT


def is_of_a_row(exc: BaseException) -> bool:
    """True if the database certainly refused the row, not the connection, the user or the statement."""
    return isinstance(exc, DataError | IntegrityError) or _sqlstate(exc).startswith(_OF_A_ROW)


def _sqlstate(exc: BaseException) -> str:
    cause = exc.__cause__
    return str(getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None) or "")


def first_line(exc: BaseException) -> str:
    """Return the error's class and message without secrets, and without PostgreSQL's excerpt of the statement."""
    return without_secrets(f"{type(exc).__name__}: {exc}".split("\n", 1)[0].rstrip(": "))
