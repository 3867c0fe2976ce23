"""Schedule source for redbeat's entries."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Set
from datetime import datetime
from functools import partial

from celery import Celery

from ha_beat import events
from ha_beat.beat_loop import Runtime
from ha_beat.clock import Clock
from ha_beat.duties import Duties
from ha_beat.errors import StoreError
from ha_beat.leader.entry import ScheduledEntry
from ha_beat.leader.forecast import Outline
from ha_beat.leader.planner import ScheduleChange
from ha_beat.leader.reconcile import Absence
from ha_beat.reasons import Duty
from ha_beat.redbeat.connection import connect, keys_of
from ha_beat.redbeat.entries import EntryTable, StoredEntry
from ha_beat.redbeat.invalidations import Invalidations
from ha_beat.redbeat.reader import EntryReader
from ha_beat.redbeat.store import RedBeatStore
from ha_beat.redbeat.writer import EntryWriter
from ha_beat.schedule.occurrence import NEVER
from ha_beat.schedule_source import CLOCK_TOLERANCE, EntryHooks, EntrySource
from ha_beat.store.lease import Term
from ha_beat.store.ledger import LedgerRow
from ha_beat.threads import LastingThread

logger = logging.getLogger("ha_beat")

#: Seconds between turns.
_POLL_INTERVAL = 1.0

#: Seconds without a completed turn after which the reading or the writing is late.
_LATE_AFTER = 10.0

#: Longest time that :meth:`RedBeatSource.join` waits for the last runs to be written, in seconds.
_LAST_WRITE = 3.0


class RedBeatSync:
    """Thread that keeps the table and redbeat's Redis in step. The main loop never waits for that Redis."""

    def __init__(self, runtime: Runtime, reader: EntryReader, writer: EntryWriter, app: Celery, clock: Clock) -> None:
        self._runtime = runtime
        self.reader = reader
        self.writer = writer
        self._app = app
        self._interval = _POLL_INTERVAL
        self._wake = threading.Event()
        self._closing = False
        #: Nonce of the last term under which the entries were read, and for which the mark was set.
        self.read_in = self._begun_in = ""
        self._reading_for = ""
        self._lock_ms = -2
        self._thread = LastingThread(name="ha_beat-redbeat", run=self._run, clock=clock, emit=runtime.events.emit)

    def keep_running(self) -> None:
        """Start the thread, or start it again if it has ended. Must be called after any fork."""
        self._runtime.duties.expect(Duty.READ_SCHEDULE, within=_LATE_AFTER)
        self._thread.keep_running()

    def stop(self) -> None:
        """Start no further turn. Takes no lock, so a signal handler may call it."""
        self._closing = True
        self._thread.stop()

    def close(self, seconds: float) -> None:
        """Write the queued runs and end. Wait at most ``seconds``."""
        self.stop()
        self._wake.set()
        self._thread.join(seconds)

    def wake(self) -> None:
        """Start the next turn now."""
        self._wake.set()

    def _run(self) -> None:
        self._app.set_current()
        while not self._closing:
            self.turn()
            self._wake.wait(self._interval)
            self._wake.clear()
        try:
            self.writer.write()
        except StoreError as exc:
            extra = {"action": "last_runs_not_written", "error": str(exc)}
            logger.warning("The last runs were not written; the next leader writes them: %s", exc, extra=extra)

    def turn(self) -> None:
        """Read and write once. Report each failure."""
        term, duties = self._runtime.elector.handle.term, self._runtime.duties
        if _done(duties, Duty.READ_SCHEDULE, lambda: self._read(term)) and term is not None:
            duties.expect(Duty.WRITE_ROWS, within=_LATE_AFTER)
            _done(duties, Duty.WRITE_ROWS, lambda: self._write(term))
        elif term is None:
            duties.suspend(Duty.WRITE_ROWS)
            _done(None, Duty.WRITE_ROWS, self.writer.write)

    def _read(self, term: Term | None) -> None:
        if term is not None and self._reading_for != term.nonce:
            self._reading_for = term.nonce
            self.reader.begin_full_read()
        self.reader.turn()
        if term is not None:
            self.read_in = term.nonce

    def _write(self, term: Term) -> None:
        reader, writer = self.reader, self.writer
        if reader.lost:
            writer.restore(term, reader)
        if self._begun_in != term.nonce and not reader.lost and writer.begin_term(term, reader):
            writer.record_missing(self._runtime.ledger.read())
            self._begun_in = term.nonce
        if reader.changed:
            writer.note_change(term, reader)
            reader.changed = False
        writer.write()
        held, before, self._lock_ms = reader.lock_ms, self._lock_ms, reader.lock_ms
        if held != -2 and (before == -2 or held > before):
            self._runtime.events.emit(events.OtherSchedulerSeen(held > before > -2, max(held, 0) / 1000))


def _done(duties: Duties | None, duty: Duty, do: Callable[[], None]) -> bool:
    """Do it, and report how it ended. Return whether it did not fail."""
    try:
        do()
    except Exception as exc:
        if duties is not None:
            duties.raised(duty, exc)
        return False
    if duties is not None:
        duties.done(duty)
    return True


class RedBeatSource(EntrySource):
    """Entries of redbeat's Redis as last read. Most methods belong to the interface of a schedule source."""

    stock = ("celery.beat", "redbeat.schedulers")

    def __init__(self, scheduler: EntryHooks) -> None:
        super().__init__(scheduler)
        self._runtime: Runtime | None = None
        self._sync: RedBeatSync | None = None
        # Number of the table that the leader uses, and whether it was read in the leader's term.
        self._used = (0, False)
        self._found = 0
        self._read_in_term = False
        self._began_ms = round(self._clock.wall() * 1000)

    @property
    def entries(self) -> dict[str, StoredEntry]:
        """Return the enabled entries as last read, by name."""
        found = self._sync.reader.table.entries.copy() if self._sync else {}
        return {entry.name: entry for entry in found.values()}

    # --- Life cycle

    def start(self, runtime: Runtime) -> None:
        app, emit = self._scheduler.app, runtime.events.emit
        keys = keys_of(app)
        connection = connect(app, runtime.settings.command_timeout)
        store, table = RedBeatStore(connection, keys), EntryTable(keys.prefix, app, self.rules_of, emit)
        changes = Invalidations(connection.listener, keys.prefix) if connection.listener is not None else None
        reads = partial(runtime.duties.progressed, Duty.READ_SCHEDULE)
        reader = EntryReader(store, table, changes, self._clock, reads)
        writer = EntryWriter(app, store, table, now=runtime.enqueuer.now, emit=emit, began_ms=self._began_ms)
        sync = RedBeatSync(runtime, reader, writer, app, self._clock)

        def write_last_runs(event: events.Event) -> None:
            if isinstance(event, events.TermEnded):
                sync.wake()

        runtime.events.subscribe(write_last_runs)
        self._runtime, self._sync = runtime, sync

    def keep_running(self) -> None:
        if self._sync is not None:
            self._sync.keep_running()

    def ready(self) -> bool:
        """True once the entries have been read. Another replica may be able to read them."""
        return self._sync is not None and self._sync.reader.complete > 0

    def stop(self) -> None:
        if self._sync is not None:
            self._sync.stop()

    def join(self) -> None:
        if self._sync is not None:
            self._sync.close(_LAST_WRITE)

    @property
    def _started(self) -> tuple[Runtime, RedBeatSync]:
        if self._runtime is None or self._sync is None:
            raise RuntimeError("the schedule source has not been started")
        return self._runtime, self._sync

    # --- Entries

    def changed(self, term: Term, *, held_back: bool) -> ScheduleChange | None:
        """Return the entries that differ from those in use; all if some wait for a read in this term that is done."""
        if not self.ready():
            return None
        sync, (number, read_in_term) = self._started[1], self._used
        if held_back and not read_in_term and sync.read_in == term.nonce:
            return ScheduleChange()
        table = sync.reader.table
        self._found = table.number
        return ScheduleChange(table.changed_since(number)) if self._found != number else None

    def outlines(self) -> Iterable[Outline]:
        entries = self._sync.reader.table.entries.copy() if self._sync else {}
        for entry in entries.values():
            yield entry.id, None if self.asks(entry) else entry.recurrence, entry.run_state[0] or NEVER

    def load(self, ids: Set[str] | None = None) -> Iterable[ScheduledEntry]:
        runtime, sync = self._started
        table, now = sync.reader.table, runtime.enqueuer.now()
        if ids is None:
            self._used = (table.number, self._read_in_term)
            entries = list(table.entries.copy().values())
            self.detect_hooks()
        else:
            self._used = (self._found, self._used[1])
            entries = [entry for entry_id in ids if (entry := table.entries.get(entry_id)) is not None]
        for entry in entries:
            try:
                yield self._scheduled_entry(entry, now)
            except Exception:
                extra = {"action": "entry_left_out", "entry": entry.name}
                logger.exception("Entry %s is left out", entry.name, extra=extra)

    def _scheduled_entry(self, entry: StoredEntry, now: datetime) -> ScheduledEntry:
        last, count = entry.run_state
        return ScheduledEntry(
            id=entry.id,
            celery_entry=entry,
            recurrence=None if self.asks(entry) else entry.recurrence,
            signature=entry.signature,
            last_run=NEVER if last is None or last > now + CLOCK_TOLERANCE else last,
            name=entry.name,
            run_count=count,
            since=entry.since,
            rescheduled=entry.since,
            **entry.rules.as_fields(),
        )

    def absence(self, term: Term) -> Absence | None:
        """Return a certain absence once the entries have been read in this term."""
        self._read_in_term = self._started[1].read_in == term.nonce
        return Absence(self._read_in_term)

    def recorded(self, entry: ScheduledEntry, row: LedgerRow) -> None:
        super().recorded(entry, row)
        self.unsynced = False
        self._started[1].writer.record(entry.id, row)
