"""Interface of a store of rows: its connections, its queries and its statements."""

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

#: Entry of the settings, as in ``beat_schedule``.
Definition = Mapping[str, Any]

#: Rows per statement.
CHUNK = 500


def chunks(items: Sequence[str], size: int = CHUNK) -> Iterable[Sequence[str]]:
    return (items[start : start + size] for start in range(0, len(items), size))


class DatabaseFault(Enum):
    """Kind of an error of the database."""

    #: A statement exceeded its time limit, or conflicts with another transaction.
    TIMED_OUT = auto()
    #: The connection failed, so every other statement would fail too.
    UNREACHABLE = auto()
    #: The values of a row are refused.
    ROW = auto()
    #: Any other error: a missing table, a missing permission, perhaps the values of a row.
    REFUSED = auto()


class Database(Protocol):
    """Connections of the calling thread, and the kinds of their errors."""

    def open(self) -> None:
        """Prepare the connections of this thread without connecting."""

    def refresh(self) -> None:
        """Close connections that are no longer usable. May create missing tables."""

    def close(self) -> None:
        """Close the connections of this thread."""

    def fault(self, exc: BaseException) -> DatabaseFault | None:
        """Return the kind of an error, ``None`` if it does not come from the database."""


class Row(NamedTuple):
    """Columns of an enabled row."""

    pk: Any
    #: The columns that define the entry, the name first.
    definition: tuple[Any, ...]
    last_run_at: datetime | None
    total_run_count: int
    date_changed: datetime | None

    @property
    def id(self) -> str:
        """Return the id of the entry."""
        return str(self.pk)

    @property
    def name(self) -> str:
        return str(self.definition[0])


class RowQueries(Protocol):
    """Queries of the reading thread. They raise the database's errors, and return no more rows than requested."""

    def limited(self) -> AbstractContextManager[None]:
        """Return a block whose statements are limited in time."""

    def last_change(self) -> datetime | None:
        """Return the time at which the schedule was last marked as changed."""

    @property
    def has_integer_keys(self) -> bool:
        """True if the primary keys are numbers, which :meth:`totals` adds."""

    def page(self, after: Any, size: int) -> list[Row]:
        """Return the first enabled rows with primary keys above ``after``, in that order."""

    def of(self, ids: Sequence[Any]) -> list[Row]:
        """Return the enabled ones of these rows."""

    def models(self, ids: Sequence[Any]) -> Iterable[tuple[Any, Any]]:
        """Return primary key and model of the enabled ones of these rows, with their schedules.

        A model that can't be read is replaced by the exception.
        """

    def saved_since(self, instant: datetime, limit: int) -> list[tuple[Any, datetime]]:
        """Return primary key and ``date_changed`` of the rows last saved since then, including disabled rows."""

    def existing(self, ids: Sequence[Any]) -> set[str]:
        """Return the ids of the existing ones of these rows, including disabled rows."""

    def totals(self, first: Any, until: Any) -> Totals:
        """Return the totals of the enabled rows with primary keys in this range. ``None`` is no limit."""

    def ids(self, first: Any, until: Any) -> set[Any]:
        """Return the primary keys of the enabled rows in this range."""


class RunStateUpdate(NamedTuple):
    """Update of a row's run state."""

    #: The new ``last_run_at``.
    at: datetime
    #: The number of runs to add.
    added: int
    #: The expected ``last_run_at``. A row without one is updated too.
    expected: datetime | None


class RowStatements(Protocol):
    """Statements of the writing thread, each inside a :meth:`transaction`. They raise the database's errors.

    Each is idempotent and changes enabled rows only.
    """

    def transaction(self) -> AbstractContextManager[None]:
        """Return a transaction whose statements are limited in time."""

    @property
    def skips_locked(self) -> bool:
        """True if the database can skip rows that another transaction has locked."""

    def lock(self, ids: Sequence[str], *, skip_locked: bool) -> dict[str, RunState]:
        """Lock these rows until the transaction ends, and return their run state."""

    def advance(self, updates: Mapping[str, RunStateUpdate]) -> int:
        """Update the rows with the expected last run or without one. Return how many were updated."""

    def disable_finished(self, entries: Mapping[str, Any]) -> None:
        """Disable the rows that still have the schedule of the entry, reset their run count, and mark the change."""

    def disable_expired(self, ids: Sequence[str], now: datetime) -> None:
        """Disable the expired ones of these rows, and mark the change."""


class StaticRows(Protocol):
    """Rows for the entries of the settings. All methods raise the database's errors."""

    def present(self, names: Collection[str]) -> tuple[str, set[str]]:
        """Return the identity of the database, and the names that have a row.

        The identity differs in a new database, which lacks the rows. It is empty if it is unknown.
        """

    def write(self, name: str, definition: Definition) -> list[str]:
        """Create or update the row, and return the options that it can't hold. Values may raise any exception."""


@dataclass(frozen=True, slots=True)
class RowStore:
    """Parts of a store."""

    database: Database
    queries: RowQueries
    statements: RowStatements
    static: StaticRows
    #: Makes the entry of a model. If it raises, the row is left out.
    make_entry: Callable[[Any], Any]
