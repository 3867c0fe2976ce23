"""Schedule source for entries that other programs edit: the base for databases and for redbeat.

Threads read the store into a table in memory, which the main loop uses. On the leader they write the run state.
The scheduler classes with such a source inherit from :class:`~ha_beat.stored_scheduler.StoredScheduler`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Protocol

from ha_beat.beat_loop import Runtime
from ha_beat.events import Event, TermEnded
from ha_beat.leader.entry import ScheduledEntry
from ha_beat.leader.forecast import Outline
from ha_beat.leader.planner import Absence, ScheduleChange
from ha_beat.schedule.occurrence import FOREVER, NEVER
from ha_beat.schedule_sources.source import SchedulerSource
from ha_beat.store.lease import Term

#: Seconds between turns of the threads.
POLL_INTERVAL = 1.0

#: Seconds without a completed turn after which the reading or the writing is late.
LATE_AFTER = 10.0

#: Changed entries that are remembered. If more have changed, all entries are loaded.
_REMEMBERED = 10_000

#: A load puts entries first that have instants from this long ago on: there may have been no leader.
_RECENT = timedelta(minutes=1)

#: Longest time that computing the order of a load may block the main loop, in seconds.
_ORDER_BUDGET = 0.2

#: Longest time that :meth:`StoredSource.join` waits for the last runs to be written, in seconds.
_LAST_WRITE = 3.0

#: A last run in a store that is further in the future was written under a wrong clock and is ignored.
CLOCK_TOLERANCE = timedelta(seconds=2)


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
        """Return the entries that were added, changed or removed since this number; ``None`` if they are not known."""
        changed = self._changed.copy()
        if not changed or (len(changed) == _REMEMBERED and changed[0][0] > number):
            return None
        return frozenset(entry_id for at, entry_id in changed if at > number)

    def _note_changed(self, ids: Collection[str]) -> None:
        if ids:
            number = self.number + 1
            self._changed.extend((number, entry_id) for entry_id in ids)
            # Last, because another thread asks for the changes when it sees the number.
            self.number = number


class Sync(Protocol):
    """Threads that keep a table and its store in step."""

    @property
    def table(self) -> Table: ...

    @property
    def complete_reads(self) -> int:
        """Return the number of complete reads."""

    @property
    def read_in(self) -> str:
        """Return the nonce of the last term under which all entries were read."""

    def keep_running(self) -> None: ...

    def write_soon(self) -> None: ...

    def stop(self) -> None: ...

    def close(self, seconds: float) -> None: ...


class StoredSource(SchedulerSource):
    """Entries of a store as last read.

    A subclass starts its threads and passes them to :meth:`_run`. Its entries have the attributes ``id``, ``name``,
    ``instants``, ``signature``, ``run_state``, ``stored_last_run_at``, ``since`` and ``rules``. It has more than 15
    methods because the base class ``ReplicaSource`` has 16.
    """

    _sync: Sync | None

    def __init__(self, scheduler: Any) -> None:
        super().__init__(scheduler)
        self._runtime: Runtime | None = None
        self._sync = None
        #: Number of the table that the leader uses, and whether it was read in the leader's term.
        self._used = (0, False)
        #: Number of the table when :meth:`changed` last looked.
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
        """Take the entries from these threads. After the end of a term they write its last runs soon."""

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
        """True once the entries have been read. Until then a replica that can read them should lead."""
        return self._sync is not None and self._sync.complete_reads > 0

    def stop(self) -> None:
        if self._sync is not None:
            self._sync.stop()

    def join(self) -> None:
        if self._sync is not None:
            self._sync.close(_LAST_WRITE)

    # --- Entries

    def changed(self, term: Term, *, awaits_read: bool) -> ScheduleChange | None:
        """Return the entries that differ from those in use; all if entries waited for a read that is now complete."""
        if not self.ready():
            return None
        sync, (number, read_in_term) = self._running[1], self._used
        if awaits_read and not read_in_term and sync.read_in == term.nonce:
            return ScheduleChange()
        self._found = sync.table.number
        return ScheduleChange(sync.table.changed_since(number)) if self._found != number else None

    def outlines(self) -> Iterable[Outline]:
        # A forecast of only some of the entries would be taken for one of all.
        for entry in self._soonest_first() if self.ready() else ():
            known = entry.stored_last_run_at or entry.since or NEVER
            yield entry.id, None if self.hooks.replaces_is_due(entry) else entry.instants, known

    def _soonest_first(self) -> list[Any]:
        """Return the entries in the order of their next instants.

        Many entries share one schedule. If there are many schedules, those not computed in time come last.
        """
        since, found = self._running[0].enqueuer.now() - _RECENT, {}
        until = self._clock.elapsed() + _ORDER_BUDGET

        def due(entry: Any) -> datetime:
            instants = entry.instants
            if id(instants) not in found:
                at = since
                if instants is not None:
                    with suppress(Exception):  # The leader reports the error.
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
        yield from self._each_scheduled(
            ((entry.name, entry) for entry in entries), lambda entry: self._stored(entry, now)
        )

    def _loading(self, ids: Set[str] | None) -> None:
        """Prepare a load of these entries, ``None`` for all. Called when the number in use has been set."""

    def _stored(self, entry: Any, now: datetime) -> ScheduledEntry:
        stored = entry.stored_last_run_at
        return ScheduledEntry(
            id=entry.id,
            celery_entry=entry,
            recurrence=None if self.hooks.replaces_is_due(entry) else entry.instants,
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
        """Return an absence, which is certain once the entries have been read in this term."""
        self._read_in_term = self._running[1].read_in == term.nonce
        return Absence(self._read_in_term)
