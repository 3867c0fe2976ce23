"""Time limits for the work on the schedule's database, so that a lock or a dead connection does not hold it up.

A statement that exceeds a limit fails and is retried in a later turn. SQLite has its own limit: ``timeout``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ha_beat.exception_text import without_secrets

#: Seconds that a statement waits for a lock, and that it may take.
LOCK_TIMEOUT = 1.0
STATEMENT_TIMEOUT = 15.0

#: Options of new connections, by vendor. Settings of the project win.
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

#: Statement that limits the transaction. The limits end with it, so a connection pooler hands none to another client.
POSTGRESQL_LIMITS = (
    f"SELECT set_config('lock_timeout', '{round(LOCK_TIMEOUT * 1000)}', true), "
    f"set_config('statement_timeout', '{round(STATEMENT_TIMEOUT * 1000)}', true)"
)

MYSQL_LIMITS = (
    f"SET SESSION innodb_lock_wait_timeout = {round(LOCK_TIMEOUT)}, lock_wait_timeout = {round(LOCK_TIMEOUT)}"
)

#: SQLSTATEs of PostgreSQL for a lock or a statement that exceeds its limit, a deadlock, and a conflict of transactions.
_TIMED_OUT = frozenset({"55P03", "57014", "40P01", "40001"})

#: Error codes of MySQL for a lock that exceeds its limit, and a deadlock.
_MYSQL_TIMED_OUT = ((1205,), (1213,))

#: Classes of SQLSTATE for the fault of a row: its data, a constraint, an exception of a trigger.
_OF_A_ROW = ("22", "23", "P0")


def is_timeout(error: Any) -> bool:
    """True if this error of a driver means that a statement exceeded its limit, or another transaction prevents it."""
    return _sqlstate(error) in _TIMED_OUT or getattr(error, "args", ())[:1] in _MYSQL_TIMED_OUT


def is_of_a_row(error: Any) -> bool:
    """True if this error of a driver has an SQLSTATE that is the fault of a row."""
    return _sqlstate(error).startswith(_OF_A_ROW)


def _sqlstate(error: Any) -> str:
    return str(getattr(error, "sqlstate", None) or getattr(error, "pgcode", None) or "")


def first_line(exc: BaseException) -> str:
    """Return the error's class and message without secrets, and without PostgreSQL's excerpt of the statement."""
    return without_secrets(f"{type(exc).__name__}: {exc}".split("\n", 1)[0].rstrip(": "))
