"""Schedules that other programs keep in a store: the common base of :mod:`ha_beat.row_store` and redbeat.

Threads read the store into a table in memory, from which the main loop works. On the leader they write the run state.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Protocol

from celery import Celery

from ha_beat.beat_loop import Runtime
from ha_beat.events import Event, TermEnded
from ha_beat.leader.entry import ScheduledEntry
from ha_beat.leader.forecast import Outline
from ha_beat.leader.planner import Absence, ScheduleChange
from ha_beat.schedule.occurrence import FOREVER, NEVER
from ha_beat.schedule_source import CLOCK_TOLERANCE, EntryHooks, EntrySource
from ha_beat.scheduler import HAMixin
from ha_beat.store.lease import Term

logger = logging.getLogger("ha_beat")

#: Seconds between turns of the threads.
POLL_INTERVAL = 1.0

#: Seconds without a completed turn after which the reading or the writing is late.
LATE_AFTER = 10.0

#: Changed entries that are remembered. A reader that missed more has to read all of them.
_REMEMBERED = 10_000

#: Instants of this time before a load count as due soon: there may have been no leader.
_RECENT = timedelta(minutes=1)

#: Seconds of computing next instants for the order of a load. It blocks the main loop.
_ORDER_BUDGET = 0.2

#: Longest time that :meth:`StoredSource.join` waits for the last runs to be written, in seconds.
_LAST_WRITE = 3.0


class Table:
    """Enabled entries as last read. One thread writes it; others must iterate over a copy of ``entries`` only."""

    #: Entries by id.
    entries: dict[str, Any]

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit
        self.entries = {}
        #: Grows with each difference that is found; 0 before the first one.
        self.number = 0
        self._changed: deque[tuple[int, str]] = deque(maxlen=_REMEMBERED)

    def changed_since(self, number: int) -> frozenset[str] | None:
        """Return the entries that were added, changed or removed since then; ``None`` if that is not known."""
        changed = self._changed.copy()
        if not changed or (len(changed) == _REMEMBERED and changed[0][0] > number):
            return None
        return frozenset(entry_id for at, entry_id in changed if at > number)

    def _note_changed(self, ids: Collection[str]) -> None:
        if ids:
            number = self.number + 1
            self._changed.extend((number, entry_id) for entry_id in ids)
            # Last: another thread asks for the changes once it sees the number.
            self.number = number


class Sync(Protocol):
    """Threads that keep a table and its store in step."""

    @property
    def table(self) -> Table: ...

    @property
    def complete(self) -> int:
        """Return the number of complete reads."""

    @property
    def read_in(self) -> str:
        """Return the nonce of the last term under which all entries were read."""

    def keep_running(self) -> None: ...

    def write_soon(self) -> None: ...

    def stop(self) -> None: ...

    def close(self, seconds: float) -> None: ...


class StoredSource(EntrySource):
    """Entries of a store as last read. Most methods belong to the interface of a schedule source.

    A subclass starts its threads and passes them to :meth:`_run`. Its entries have the attributes ``id``, ``name``,
    ``instants``, ``signature``, ``run_state``, ``stored_last_run_at``, ``since`` and ``rules``. It has more than 15
    methods because the protocol ``ReplicaSource`` has 14.
    """

    _sync: Sync | None

    def __init__(self, scheduler: EntryHooks) -> None:
        super().__init__(scheduler)
        self._runtime: Runtime | None = None
        self._sync = None
        # Number of the table that the leader uses, and whether it was read in the leader's term.
        self._used = (0, False)
        #: Number of the table as last found to be changed.
        self._found = 0
        self._read_in_term = False
        self._began_ms = round(self._clock.wall() * 1000)

    @property
    def entries(self) -> dict[str, Any]:
        """Return the entries as last read, by name."""
        return {entry.name: entry for entry in self._copied()}

    def _copied(self) -> list[Any]:
        return list(self._sync.table.entries.copy().values()) if self._sync else []

    # --- Life cycle

    def _run(self, runtime: Runtime, sync: Sync) -> None:
        """Take the entries from these threads. They write what is left of a term soon after it."""

        def write_last_runs(event: Event) -> None:
            if isinstance(event, TermEnded):
                sync.write_soon()

        runtime.events.subscribe(write_last_runs)
        self._runtime, self._sync = runtime, sync

    @property
    def _running(self) -> tuple[Runtime, Any]:
        if self._runtime is None or self._sync is None:
            raise RuntimeError("the schedule source has not been started")
        return self._runtime, self._sync

    def keep_running(self) -> None:
        if self._sync is not None:
            self._sync.keep_running()

    def ready(self) -> bool:
        """True once the entries have been read. Another replica may be able to read them."""
        return self._sync is not None and self._sync.complete > 0

    def stop(self) -> None:
        if self._sync is not None:
            self._sync.stop()

    def join(self) -> None:
        if self._sync is not None:
            self._sync.close(_LAST_WRITE)

    # --- Entries

    def changed(self, term: Term, *, held_back: bool) -> ScheduleChange | None:
        """Return the entries that differ from those in use; all if some wait for a read in this term that is done."""
        if not self.ready():
            return None
        sync, (number, read_in_term) = self._running[1], self._used
        if held_back and not read_in_term and sync.read_in == term.nonce:
            return ScheduleChange()
        self._found = sync.table.number
        return ScheduleChange(sync.table.changed_since(number)) if self._found != number else None

    def outlines(self) -> Iterable[Outline]:
        # A forecast of a part of the entries would count as one of all.
        for entry in self._soonest_first() if self.ready() else ():
            known = entry.stored_last_run_at or entry.since or NEVER
            yield entry.id, None if self.asks(entry) else entry.instants, known

    def _soonest_first(self) -> list[Any]:
        """Return the entries in the order in which their schedules, which many share, have instants from now on.

        If many differ, those whose next instants could not be computed in time come last.
        """
        since, found = self._running[0].enqueuer.now() - _RECENT, {}
        until = self._clock.elapsed() + _ORDER_BUDGET

        def due(entry: Any) -> datetime:
            instants = entry.instants
            if id(instants) not in found:
                at = since
                if instants is not None:
                    with suppress(Exception):  # The leader reports it.
                        at = instants.next_after(since) if self._clock.elapsed() < until else FOREVER
                found[id(instants)] = at
            return found[id(instants)]

        return sorted(self._copied(), key=due)

    def load(self, ids: Set[str] | None = None) -> Iterable[ScheduledEntry]:
        runtime, sync = self._running
        table, now = sync.table, runtime.enqueuer.now()
        self._used = (table.number, self._read_in_term) if ids is None else (self._found, self._used[1])
        self._loading(ids)
        if ids is None:
            entries = self._soonest_first()
            self.detect_hooks()
        else:
            entries = [entry for entry_id in ids if (entry := table.entries.get(entry_id)) is not None]
        for entry in entries:
            try:
                yield self._stored(entry, now)
            except Exception:
                extra = {"action": "entry_left_out", "entry": entry.name}
                logger.exception("Entry %s is left out", entry.name, extra=extra)

    def _loading(self, ids: Set[str] | None) -> None:
        """Prepare a load of these entries, ``None`` for all. Called once the number in use is set."""

    def _stored(self, entry: Any, now: datetime) -> ScheduledEntry:
        stored = entry.stored_last_run_at
        return ScheduledEntry(
            id=entry.id,
            celery_entry=entry,
            recurrence=None if self.asks(entry) else entry.instants,
            signature=entry.signature,
            last_run=NEVER if stored is None or stored > now + CLOCK_TOLERANCE else stored,
            name=entry.name,
            run_count=entry.run_state[1],
            since=entry.since,
            **entry.rules.as_fields(),
            **self._details(entry),
        )

    def _details(self, entry: Any) -> Mapping[str, Any]:
        """Return the fields that only this store has."""
        raise NotImplementedError

    def absence(self, term: Term) -> Absence | None:
        """Return a certain absence once the entries have been read in this term."""
        self._read_in_term = self._running[1].read_in == term.nonce
        return Absence(self._read_in_term)


class StoredScheduler(HAMixin):
    """Base of the scheduler classes: the threads alone read and write the store.

    A subclass defines ``Entry``, the class of its entries, and :meth:`_new_schedule_source`.
    """

    Entry: Any
    schedule_source: StoredSource

    def __init__(self, app: Celery, *args: Any, **kwargs: Any) -> None:
        cls = type(self)
        own = (vars(each) for each in cls.__mro__ if each.__module__.startswith("ha_beat."))
        known = next(found["Entry"] for found in own if "Entry" in found)
        if not issubclass(self.Entry, known):
            raise SystemExit(
                f"ha_beat can't start: {cls.__name__}.Entry is {self.Entry.__name__}, which does not inherit from "
                f"{known.__module__}.{known.__name__}: each check of an entry would write to the store"
            )
        super().__init__(app, *args, **kwargs)

    # --- Overrides of the other class's access to the store

    def setup_schedule(self) -> None:
        """Do nothing: the leader writes the entries of the settings."""

    def sync(self) -> None:
        """Do nothing: a thread writes the run state soon after each dispatch."""

    def update_from_dict(self, dict_: Mapping[str, Any]) -> None:
        """Do nothing: the leader writes the entries of the settings."""

    @property
    def schedule(self) -> Any:
        """Return the enabled entries as last read, by name."""
        return self.schedule_source.entries

    @schedule.setter
    def schedule(self, schedule: Any) -> None:
        """Do nothing: the store has the entries."""

    # --- Hooks of HAMixin

    def entry_id(self, entry: Any) -> str:
        return str(entry.id)

    def stored_last_run_at(self, entry: Any) -> datetime | None:
        stored: datetime | None = entry.stored_last_run_at
        return stored
