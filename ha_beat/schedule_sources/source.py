"""Base class of the schedule sources: it calls the methods of Celery's scheduler class for one entry."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from celery.beat import BeatLazyFunc, ScheduleEntry

from ha_beat.beat_loop import ReplicaSource
from ha_beat.clock import SystemClock
from ha_beat.leader.entry import ScheduledEntry
from ha_beat.reasons import Verdict
from ha_beat.schedule.entry_options import EntryOptions
from ha_beat.schedule.occurrence import NEVER
from ha_beat.schedule_sources.hooks import SchedulerHooks
from ha_beat.schedule_sources.rules import EntryRules
from ha_beat.schedule_sources.sender import HookedSender
from ha_beat.store.ledger import LedgerRow

logger = logging.getLogger("ha_beat")

#: Seconds until the next check of an entry whose schedule does not say when.
_CHECK_AGAIN = 60.0

#: Longest time until the next check, in seconds: a schedule may return infinity for "never".
_CHECK_AT_LATEST = 86_400.0

#: A schedule whose clock differs by more than this from the machine's does so on purpose.
_CLOCKS_DIFFER = timedelta(seconds=5)


class SchedulerSource(ReplicaSource):
    """Schedule source for one scheduler, an :class:`~ha_beat.scheduler.HAMixin`."""

    #: Modules, besides this package's, whose methods of the scheduler and of its entries count as not replaced.
    stock: tuple[str, ...] = ("celery.beat",)
    #: Methods of the scheduler that this source never calls.
    unused: tuple[str, ...] = ()
    #: True if entries were updated since the scheduler class last wrote to its own store.
    unsynced = False

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self.hooks = SchedulerHooks(scheduler, self.stock, self.unused)
        self.sender: HookedSender = HookedSender(scheduler.app, scheduler, self.hooks)
        self.rules = EntryRules(scheduler)
        self._clock = SystemClock()

    def digest(self) -> str:
        digest: str = self._scheduler.schedule_digest()
        return digest

    def scheduler_class(self) -> str:
        cls = type(self._scheduler)
        return f"{cls.__module__}:{cls.__qualname__}"

    def detect_hooks(self) -> None:
        """Find the replaced methods of the scheduler. A library may replace them after the scheduler was created."""
        self.hooks.detect()
        self.sender.detect()
        self.rules.forget_deadlines()

    def _each_scheduled(
        self, entries: Iterable[tuple[str, Any]], make: Callable[[Any], ScheduledEntry]
    ) -> Iterator[ScheduledEntry]:
        """Yield each of the named entries as ``make`` returns it. An entry that raises is logged and left out."""
        for name, entry in entries:
            try:
                yield make(entry)
            except Exception:
                logger.exception("Entry %s is left out", name, extra={"action": "entry_left_out", "entry": name})

    def ask_if_due(self, entry: ScheduledEntry, position: datetime) -> tuple[bool, float]:
        celery_entry = entry.celery_entry
        if position > NEVER:
            celery_entry.last_run_at = _by_clock_of(celery_entry.schedule, position, self._clock.wall())
        due, check_in = self._scheduler.is_due(celery_entry)
        usable = isinstance(check_in, int | float) and check_in > 0
        if not usable:
            return bool(due), 0.0 if due else _CHECK_AGAIN
        return bool(due), min(float(check_in), _CHECK_AT_LATEST)

    def arguments(self, entry: ScheduledEntry) -> tuple[Sequence[Any], Mapping[str, Any], Mapping[str, Any]]:
        source: ScheduleEntry = entry.celery_entry
        args = [_evaluated(value) for value in source.args or ()]
        kwargs = {name: _evaluated(value) for name, value in (source.kwargs or {}).items()}
        return args, kwargs, EntryOptions.without_own(source.options or {})

    def recorded(self, entry: ScheduledEntry, row: LedgerRow) -> None:
        if row.verdict is not Verdict.SKIPPED and self.hooks.replaces_reserve(entry.celery_entry):
            self._reserve(entry.celery_entry)
        self._scheduler.entry_recorded(entry.celery_entry, row)

    def _reserve(self, celery_entry: Any) -> None:
        """Call the scheduler's ``reserve``. Its result is copied, because the leader keeps the entry's object."""
        vars(celery_entry).update(vars(self._scheduler.reserve(celery_entry)))


def _by_clock_of(schedule: Any, instant: datetime, wall: float) -> datetime:
    """Return the instant by the schedule's own clock (``nowfun``), which may have another zone and another time."""
    now: datetime = schedule.now()
    if now.tzinfo is None:
        # As Celery reads it.
        now = now.replace(tzinfo=UTC)
    difference = now - datetime.fromtimestamp(wall, UTC)
    return instant.astimezone(now.tzinfo) + (difference if abs(difference) > _CLOCKS_DIFFER else timedelta())


def _evaluated(value: Any) -> Any:
    return value() if isinstance(value, BeatLazyFunc) else value
