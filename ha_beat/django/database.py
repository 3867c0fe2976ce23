"""Django's connections to the schedule's database."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import close_old_connections, connections, transaction, utils

from ha_beat.row_store.backend import DatabaseFault
from ha_beat.row_store.limits import CONNECT_OPTIONS, MYSQL_LIMITS, POSTGRESQL_LIMITS, ErrorClasses, fault_of

_ERRORS = ErrorClasses(
    unreachable=(utils.OperationalError, utils.InterfaceError),
    row=(utils.DataError, utils.IntegrityError),
    any=utils.Error,
)


class DjangoDatabase:
    """Connections of the calling thread to the databases of the models."""

    def __init__(self, aliases: Callable[[], Iterable[str]]) -> None:
        """``aliases`` returns the databases that a thread uses."""
        self._aliases = aliases

    def open(self) -> None:
        """Limit the time to connect for this thread's connections."""
        for alias in self._aliases():
            connection = connections[alias]
            options = {**CONNECT_OPTIONS.get(connection.vendor, {}), **connection.settings_dict["OPTIONS"]}
            # The dictionary is shared with the connections of other threads.
            connection.settings_dict = {**connection.settings_dict, "OPTIONS": options}

    def refresh(self) -> None:
        close_old_connections()

    def close(self) -> None:
        connections.close_all()

    def fault(self, exc: BaseException) -> DatabaseFault | None:
        # Django sets the cause to the driver's error.
        return fault_of(exc, exc.__cause__ or exc, _ERRORS)


@contextmanager
def limited(alias: str) -> Iterator[None]:
    """Limit the statements of a block. On PostgreSQL the block is one transaction."""
    connection = connections[alias]
    if connection.vendor == "mysql":
        _execute(connection, MYSQL_LIMITS)
    if connection.vendor != "postgresql":
        yield
        return
    with transaction.atomic(using=alias):
        _execute(connection, POSTGRESQL_LIMITS)
        yield


def _execute(connection: Any, statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)
