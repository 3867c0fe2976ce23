"""Schedule source for Celery's scheduler classes that hold their entries in memory."""

from __future__ import annotations

from collections.abc import Iterable, Set
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from ha_beat.leader.entry import ScheduledEntry
from ha_beat.leader.forecast import Outline
from ha_beat.leader.planner import EVERYTHING, Absence, ScheduleChange
from ha_beat.schedule.occurrence import NEVER
from ha_beat.schedule_sources.comparison import ScheduleComparison
from ha_beat.schedule_sources.signatures import SharedRecurrences, signature
from ha_beat.schedule_sources.source import SchedulerSource
from ha_beat.store.lease import Term
from ha_beat.store.ledger import LedgerRow

#: Seconds after which an entry that the leader lacks counts as deleted. During a rolling deploy a leader of the older
#: release may lack an entry for a short time.
_DELETED_AFTER = 3600.0


class EntrySource(SchedulerSource):
    """Entries of the scheduler's ``schedule``. The scheduler class has read them."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__(scheduler)
        asks_scheduler = self.hooks.replaced("schedules_equal")
        self._comparison = ScheduleComparison(scheduler, self._clock, asks_scheduler=asks_scheduler)
        #: Names of the entries in the schedule, by id.
        self._names: dict[str, str] = {}
        #: Nonce of the last term that asked for absences, and when it asked first.
        self._term = ""
        self._term_began = 0.0
        self._deletions_reported = False

    def outlines(self) -> Iterable[Outline]:
        shared = SharedRecurrences()
        # The earlier names stay until all outlines are yielded: the replica may have to load entries before that.
        names: dict[str, str] = {}
        for name, entry in list(self._scheduler.schedule.items()):
            with suppress(Exception):  # The leader reports the error.
                entry_id = self._scheduler.entry_id(entry)
                recurrence = None if self.hooks.replaces_is_due(entry) else shared.of(entry)[0]
                names.setdefault(entry_id, name)
                self._names.setdefault(entry_id, name)
                yield entry_id, recurrence, self._stored_last_run(entry)
        self._names = names

    def load(self, ids: Set[str] | None = None) -> Iterable[ScheduledEntry]:
        """Return all entries, or of these ``ids`` those that :meth:`outlines` has yielded."""
        self.detect_hooks()
        shared, schedule = SharedRecurrences(), self._scheduler.schedule
        if ids is None:
            entries = list(schedule.items())
        else:
            names = [name for entry_id in ids if (name := self._names.get(entry_id)) in schedule]
            entries = [(name, schedule[name]) for name in names]
        yield from self._each_scheduled(entries, lambda entry: self._scheduled(entry, shared))

    def _scheduled(self, entry: Any, shared: SharedRecurrences) -> ScheduledEntry:
        if self.hooks.replaces_is_due(entry):
            recurrence, digest = None, signature(entry, None)
        else:
            recurrence, digest = shared.of(entry)
        return ScheduledEntry(
            id=self._scheduler.entry_id(entry),
            celery_entry=entry,
            recurrence=recurrence,
            signature=digest,
            last_run=self._stored_last_run(entry),
            **self.rules.of(entry).as_fields(),
        )

    def _stored_last_run(self, entry: Any) -> datetime:
        stored = self._scheduler.stored_last_run_at(entry)
        if stored is None:
            return NEVER
        aware: datetime = entry.schedule.maybe_make_aware(stored)
        return aware.astimezone(UTC)

    def changed(
        self,
        term: Term,
        *,
        awaits_read: bool,  # noqa: ARG002 -- these entries are always up to date
    ) -> ScheduleChange | None:
        """Return all entries if the schedule or an entry was replaced, or missing entries now count as deleted."""
        deleted = self._term == term.nonce and self._led_long() and not self._deletions_reported
        return EVERYTHING if self._comparison.differs() or deleted else None

    def absence(self, term: Term) -> Absence | None:
        """Return nothing for the first hour of a term: another release may have entries that this one lacks.

        An entry missing for an hour counts as deleted. If it reappears, the gap is not caught up.
        """
        if self._term != term.nonce:
            self._term, self._term_began = term.nonce, self._clock.elapsed()
        self._deletions_reported = self._led_long()
        if not self._deletions_reported:  # guard: absence-not-at-once
            return None
        return Absence(certain=True)  # guard: absence-after-an-hour

    def _led_long(self) -> bool:
        return self._clock.elapsed() - self._term_began >= _DELETED_AFTER

    def recorded(self, entry: ScheduledEntry, row: LedgerRow) -> None:
        self.unsynced = True
        counter: Any = self._scheduler
        counter._tasks_since_sync += 1  # noqa: SLF001 -- Celery's beat_sync_every limits it
        super().recorded(entry, row)

    def _reserve(self, celery_entry: Any) -> None:
        super()._reserve(celery_entry)
        self._comparison.accept_entries()
