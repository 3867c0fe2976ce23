"""Interface of a store of rows: its database, its queries and its statements."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from typing import Any, NamedTuple, Protocol

#: ``last_run_at`` in UTC and ``total_run_count`` of a row.
RunState = tuple[datetime | None, int]

#: Number of rows and sum of their primary keys.
Totals = tuple[int, int]

#: Entry of the settings.
Definition = Mapping[str, Any]


class DatabaseFault(Enum):
    """Kind of an error of the database."""

    #: A statement exceeded its limit or failed because of another transaction, mostly a lock.
    TIMED_OUT = auto()
    #: The connection failed: no other statement would succeed.
    UNREACHABLE = auto()
    #: The database certainly refused the row, not the user or the statement.
    ROW = auto()
    #: Any other error: a row, a missing table or a missing permission.
    REFUSED = auto()


class Database(Protocol):
    """Connections of the calling thread, and the errors of the database."""

    def open(self) -> None:
        """Prepare the connections of this thread. Connect to nothing."""

    def refresh(self) -> None:
        """Drop connections that can't be used any longer."""

    def close(self) -> None:
        """Close the connections of this thread."""

    def fault(self, exc: BaseException) -> DatabaseFault | None:
        """Return the kind of an error; ``None`` if it is not the database's."""


class Row(NamedTuple):
    """Columns of an enabled row."""

    pk: Any
    #: All columns that define the entry, as plain values. The first is the name.
    definition: tuple[Any, ...]
    last_run_at: datetime | None
    total_run_count: int
    date_changed: datetime | None

    @property
    def id(self) -> str:
        """Return the entry's id."""
        return str(self.pk)


class RowQueries(Protocol):
    """Queries of the reading thread. They raise the database's errors, and return no more rows than asked for."""

    def limited(self) -> AbstractContextManager[None]:
        """Limit the time of the statements in a block."""

    def last_change(self) -> datetime | None:
        """Return the time with which the schedule was last marked as changed."""

    @property
    def has_integer_keys(self) -> bool:
        """True if primary keys can be added up."""

    def page(self, after: Any, size: int) -> list[Row]:
        """Return the enabled rows with the next primary keys."""

    def of(self, ids: Sequence[Any]) -> list[Row]:
        """Return those of the rows that are enabled."""

    def models(self, ids: Sequence[Any]) -> Iterable[tuple[Any, Any]]:
        """Return those of the rows that are enabled as primary key and model, with their schedules.

        In place of a model that can't be read there is the exception.
        """

    def saved_since(self, instant: datetime, limit: int) -> list[tuple[Any, datetime]]:
        """Return primary key and ``date_changed`` of the rows saved since then, the last ones, also disabled ones."""

    def existing(self, ids: Sequence[Any]) -> set[str]:
        """Return the ids of those of the rows that exist, also of disabled ones."""

    def totals(self, first: Any, until: Any) -> Totals:
        """Return the totals of the enabled rows with primary keys from ``first`` on and below ``until``, if given."""

    def ids(self, first: Any, until: Any) -> set[Any]:
        """Return the primary keys of these enabled rows."""


class RunStateUpdate(NamedTuple):
    """Update of a row's run state."""

    #: The new ``last_run_at``.
    at: datetime
    #: The number of runs to add.
    added: int
    #: The ``last_run_at`` that the row is expected to have. It may also have none.
    expected: datetime | None


class RowStatements(Protocol):
    """Statements of the writing thread, which are made inside a :meth:`transaction`. They raise the database's errors.

    Each is idempotent and changes enabled rows only.
    """

    def transaction(self) -> AbstractContextManager[None]:
        """Return a transaction whose statements are limited in time."""

    @property
    def skips_locked(self) -> bool:
        """True if the database can select those rows that no other transaction has locked."""

    def lock(self, ids: Sequence[str], *, skip_locked: bool) -> dict[str, RunState]:
        """Lock these rows until the transaction ends; return their run state."""

    def advance(self, updates: Mapping[str, RunStateUpdate]) -> int:
        """Update the rows that have the expected last run or none. Return how many were updated."""

    def disable_finished(self, entries: Mapping[str, Any]) -> None:
        """Disable the rows whose schedule is that of the entry, set their run count to 0, and mark the change."""

    def disable_expired(self, ids: Sequence[str], now: datetime) -> None:
        """Disable those of the rows that expired before ``now``, and mark the change."""


class StaticRows(Protocol):
    """Rows for the entries of the settings. The methods raise the database's errors."""

    def present(self, names: Collection[str]) -> tuple[str, set[str]]:
        """Return the identity of the database, and the names for which there is a row.

        The identity tells this database from a new one, which lacks the rows; it is empty if there is none.
        """

    def write(self, name: str, definition: Definition) -> list[str]:
        """Create or update the row; return the options that it can't hold. May raise any exception for its values."""


@dataclass(frozen=True, slots=True)
class RowStore:
    """Parts of a store."""

    database: Database
    queries: RowQueries
    statements: RowStatements
    static: StaticRows
    #: Make the entry of a model. An exception leaves the row out.
    make_entry: Callable[[Any], Any]
