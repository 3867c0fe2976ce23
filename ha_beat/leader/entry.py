"""Entries of the schedule, and their state while this replica leads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from ha_beat.exception_text import printable
from ha_beat.reasons import SkipReason, UncertainPolicy, Verdict
from ha_beat.schedule.misfire import Decision, DueInstants, MisfireRules, Skipped, newest_due, skip_all
from ha_beat.schedule.occurrence import FOREVER, NEVER, Occurrence
from ha_beat.schedule.recurrence import Recurrence
from ha_beat.store.entry_pauses import EntryPause
from ha_beat.store.ledger import LedgerRow


@dataclass(frozen=True, slots=True)
class ScheduledEntry:
    """One entry as its schedule has it. It has more than 15 fields, because it holds all that a schedule may define.

    ``recurrence`` is ``None`` if only the entry itself can tell whether it is due. ``last_run`` is the last run that
    the schedule's own store knows, or ``NEVER``. ``signature`` identifies the schedule of the entry.
    """

    id: str
    #: The scheduler's own object; ``None`` for an entry that is known from the ledger only.
    celery_entry: Any
    recurrence: Recurrence | None
    misfire: MisfireRules
    signature: str
    last_run: datetime
    uncertain: UncertainPolicy = UncertainPolicy.SKIP
    #: Seconds for which a message keeps the entry from its next occurrence unless it ends; 0 for not at all.
    busy_for: float = 0.0
    #: Seconds over which its occurrences are spread.
    jitter: float = 0.0
    #: Name to show, if it differs from the id.
    name: str = ""
    #: Number of runs that the schedule's own store knows.
    run_count: int = 0
    #: True if the entry ends after one run.
    once: bool = False
    #: End of the schedule. Instants before it that are still due then are skipped.
    expires: datetime | None = None
    #: Time from which a new or edited schedule counts; ``None`` for the time at which it is first seen.
    since: datetime | None = None
    #: Last run that a program has set in its store. An entry that is overdue by this last run runs now.
    rescheduled: datetime | None = None
    #: True if its store shows that it was disabled since it was last armed.
    resumed: bool = False
    #: True if its store has a run count and no last run, as after it was disabled.
    cleared: bool = False

    @property
    def label(self) -> str:
        """Return the name to show."""
        return self.name or self.id

    @property
    def task(self) -> str:
        """Return the task's name, empty if the entry is known from the ledger only."""
        return printable(getattr(self.celery_entry, "task", ""))


@dataclass(slots=True)
class Failure:
    """Failed attempts at the occurrence that is due, the first one at ``since``.

    ``error`` is the text of the last error. If it lasts, the occurrence is skipped for ``skip_reason``. ``builds`` is
    how many attempts failed because the message could not be built.
    """

    since: datetime
    error: str = ""
    skip_reason: SkipReason = SkipReason.NOT_PUBLISHED
    builds: int = 0


@dataclass(eq=False, slots=True)
class EntryState:
    """State of one entry while this replica leads.

    ``position`` is the instant from which the next occurrence is counted.
    """

    entry: ScheduledEntry
    position: datetime
    _row: LedgerRow | str | None = None
    #: True until the first write after the entry was disabled and enabled again.
    resumed: bool = False
    #: Due instant in addition to those of the recurrence: an edit has moved one to the position or before, or asks the
    #: entry to run now.
    owed: datetime | None = None
    #: Occurrences up to this time may have been enqueued before a loss of state, so that a skip proves nothing.
    doubted_until: datetime | None = None
    due_at: datetime | None = None
    #: Time from which the occurrence that is due is enqueued: its instant, or later by the entry's jitter.
    sends_at: datetime | None = None
    #: Due instants as last found, so that a backlog is not searched again for each of its occurrences.
    due: DueInstants | None = None
    #: Failed attempts at the occurrence that is due.
    failure: Failure | None = None
    #: True if the row's own occurrence is sent again, because the outcome of the first attempt is unknown.
    resend: bool = False
    #: Time of the last batch in which the entry was decided on.
    tried_at: datetime = NEVER
    #: Number of the entry's place in the due queue; 0 if it has none.
    ticket: int = 0
    #: Without a recurrence: seconds after a run until the entry is asked again.
    ask_in: float = 0.0

    @property
    def id(self) -> str:
        """Return the entry's id."""
        return self.entry.id

    @property
    def label(self) -> str:
        """Return the name to show."""
        return self.entry.label

    @property
    def row(self) -> LedgerRow | None:
        """Return the ledger's row as last seen."""
        if isinstance(self._row, str):
            self._row = LedgerRow.parse(self._row)
        return self._row

    @row.setter
    def row(self, row: LedgerRow | None) -> None:
        self._row = row

    def rest(self) -> None:
        """Keep only the row's text until the row is needed, to save memory. Entries armed together share a text."""
        if isinstance(self._row, LedgerRow) and self._row.raw:
            self._row = _shared(str(self._row.raw))

    @property
    def runs(self) -> int:
        """Return how often the entry has run since it was last enabled; if it is one-off, with its present schedule."""
        row = self.row
        if (
            self.entry.once
            and row is not None
            and row.signature != self.entry.signature  # guard: runs-of-this-schedule
        ):
            return 0
        if (
            row is None
            or row.verdict is Verdict.ABSENT  # guard: runs-after-absence
            or self.resumed
        ):
            return self.entry.run_count
        return row.run_count

    @property
    def expected(self) -> str:
        """Return the raw row that the next write replaces, empty for none."""
        return self.row.raw if self.row is not None else ""

    def next_due(self) -> datetime:
        """Return the next due instant; ``FOREVER`` if there is none. The entry must have a recurrence."""
        if self.owed is not None:
            return self.owed
        recurrence = self.entry.recurrence
        return FOREVER if recurrence is None else recurrence.next_after(self.position)

    def send_at(self, instant: datetime) -> datetime:
        """Return when an occurrence is enqueued: at its instant, or later by a part of the jitter.

        The part is the same in each replica. The result is before the next instant and the entry's end.
        """
        recurrence = self.entry.recurrence
        if not self.entry.jitter or recurrence is None:
            return instant
        span = min(recurrence.next_after(instant), self.entry.expires or FOREVER) - instant
        span = max(min(span, timedelta(seconds=self.entry.jitter)), timedelta())  # guard: jitter-in-order
        return instant + span * Occurrence(self.id, instant).fraction

    def decide(self, now: datetime, pause: EntryPause | None = None) -> Decision:
        """Decide on the occurrences of a due entry. Those that its ``pause`` covers are skipped."""
        due_at = self.due_at or now
        if self.resend and self.row is not None:
            return Decision(due_at, self.row.base)
        recurrence, expires = self.entry.recurrence, self.entry.expires
        paused = pause is not None and pause.covers(due_at)
        if recurrence is None:
            return _skip_one(due_at, SkipReason.PAUSED) if paused else Decision(due_at, due_at)
        if pause is not None and paused:
            until = now if pause.in_force else min(now, pause.until)
            return skip_all(recurrence, newest_due(recurrence, due_at, until, keep=1), SkipReason.PAUSED)
        misfire = self.entry.misfire
        self.due = newest_due(recurrence, due_at, now, misfire.keep, self.due)
        if self.due.newest > due_at and self.send_at(self.due.newest) > now:  # guard: jitter-not-early
            # Only the newest occurrence may wait for its jitter, because each is enqueued before the next instant.
            self.due = newest_due(recurrence, due_at, self.due.newest - timedelta(microseconds=1), misfire.keep)
        if expires is not None and expires <= now:  # guard: expired-not-sent
            return skip_all(recurrence, self.due, SkipReason.EXPIRED)
        decision = misfire.decide(recurrence, self.due, now)
        if decision.skipped is None:
            return decision
        return replace(decision, skipped=self.in_doubt(decision.skipped))

    def in_doubt(self, skipped: Skipped) -> Skipped:
        """Return ``skipped`` with the reason ``state_loss`` if a part of it may have been enqueued before the loss."""
        if self.doubted_until is None or skipped.first > self.doubted_until:
            return skipped
        return replace(skipped, reason=SkipReason.STATE_LOSS)

    def record_failure(
        self, now: datetime, error: str = "", skip_reason: SkipReason = SkipReason.NOT_PUBLISHED
    ) -> Failure:
        """Record a failed attempt at the occurrence that is due. Return all failed attempts at it."""
        if self.failure is None:
            self.failure = Failure(now)
        self.failure.error, self.failure.skip_reason = error, skip_reason
        return self.failure

    def record_row(self, row: LedgerRow) -> None:
        """Record the row that was written: the occurrence has its verdict."""
        self.row, self.position, self.owed = row, row.base, row.owed
        self.failure, self.resend = None, False


@lru_cache(maxsize=4096)
def _shared(text: str) -> str:
    """Return one object for equal texts. ``sys.intern`` of Python 3.12.1 never frees a text."""
    return text


def _skip_one(instant: datetime, reason: SkipReason) -> Decision:
    return Decision(None, instant, Skipped(instant, instant + timedelta(microseconds=1), 1, reason))
