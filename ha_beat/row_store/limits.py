"""Time limits of statements, and kinds of database errors.

A statement that exceeds a limit fails and is retried in a later turn. SQLite has its own limit: ``timeout``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ha_beat.exception_text import without_secrets
from ha_beat.row_store.backend import DatabaseFault

#: Longest wait of a statement for a lock, and its longest duration, in seconds.
LOCK_TIMEOUT = 1.0
STATEMENT_TIMEOUT = 15.0

#: Options of new connections, by vendor. The project's own options override them.
CONNECT_OPTIONS: Mapping[str, Mapping[str, int]] = {
    "postgresql": {
        "connect_timeout": 5,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,
    },
    "mysql": {"connect_timeout": 5},
}

#: Statement that limits the current transaction. A connection pooler passes no limit on to another client.
POSTGRESQL_LIMITS = (
    f"SELECT set_config('lock_timeout', '{round(LOCK_TIMEOUT * 1000)}', true), "
    f"set_config('statement_timeout', '{round(STATEMENT_TIMEOUT * 1000)}', true)"
)

MYSQL_LIMITS = (
    f"SET SESSION innodb_lock_wait_timeout = {round(LOCK_TIMEOUT)}, lock_wait_timeout = {round(LOCK_TIMEOUT)}"
)

#: SQLSTATEs of PostgreSQL: lock timeout, statement timeout, deadlock, conflict of transactions.
_TIMED_OUT = frozenset({"55P03", "57014", "40P01", "40001"})

#: Error codes of MySQL: lock timeout, deadlock.
_MYSQL_TIMED_OUT = ((1205,), (1213,))

#: Classes of SQLSTATE that concern a row: its data, a constraint, an exception of a trigger.
_OF_A_ROW = ("22", "23", "P0")


@dataclass(frozen=True, slots=True)
class ErrorClasses:
    """Exception classes of a database library."""

    unreachable: tuple[type[BaseException], ...]
    row: tuple[type[BaseException], ...]
    any: type[BaseException]


def fault_of(exc: BaseException, driver_error: Any, classes: ErrorClasses) -> DatabaseFault | None:
    """Return the kind of an error, ``None`` if it does not come from the database.

    ``driver_error`` is the driver's exception, or ``None``.
    """
    sqlstate = _sqlstate(driver_error)
    if sqlstate in _TIMED_OUT or getattr(driver_error, "args", ())[:1] in _MYSQL_TIMED_OUT:
        return DatabaseFault.TIMED_OUT
    if isinstance(exc, (*classes.unreachable, OSError)):
        return DatabaseFault.UNREACHABLE
    if isinstance(exc, classes.row) or sqlstate.startswith(_OF_A_ROW):
        return DatabaseFault.ROW
    return DatabaseFault.REFUSED if isinstance(exc, classes.any) else None


def _sqlstate(error: Any) -> str:
    return str(getattr(error, "sqlstate", None) or getattr(error, "pgcode", None) or "")


def first_line(exc: BaseException) -> str:
    """Return the class of an error and its first line, without secrets. PostgreSQL quotes the statement in others."""
    return without_secrets(f"{type(exc).__name__}: {exc}".split("\n", 1)[0].rstrip(": "))
