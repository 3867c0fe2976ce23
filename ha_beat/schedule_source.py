"""Schedule sources for Celery's scheduler classes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import suppress
from copy import copy
from datetime import UTC, datetime, timedelta
from functools import cached_property
from operator import attrgetter
from typing import Any, Protocol

from celery import Celery
from celery.beat import BeatLazyFunc, ScheduleEntry
from celery.schedules import crontab

from ha_beat.beat_loop import Runtime
from ha_beat.clock import SystemClock
from ha_beat.leader.entry import ScheduledEntry
from ha_beat.leader.forecast import Outline
from ha_beat.leader.planner import EVERYTHING, Absence, ScheduleChange
from ha_beat.reasons import MisfirePolicy, Verdict
from ha_beat.schedule.entry_options import EntryOptions
from ha_beat.schedule.misfire import MisfireRules
from ha_beat.schedule.occurrence import NEVER
from ha_beat.schedule.recurrence import Recurrence, has_own_is_due, recurrence_of, starting_deadline
from ha_beat.scheduler_hooks import HookedSender, SchedulerHooks
from ha_beat.settings import Settings
from ha_beat.store.lease import Term
from ha_beat.store.ledger import LedgerRow

logger = logging.getLogger("ha_beat")

#: Seconds until the next check of an entry whose schedule does not say when.
_CHECK_AGAIN = 60.0

#: Longest time until the next check, in seconds: a schedule may return infinity for "never".
_CHECK_AT_LATEST = 86_400.0

#: Difference of a schedule's own clock that is taken for intended.
_CLOCKS_APART = timedelta(seconds=5)

#: A last run in a store that is further in the future was written under a wrong clock and is ignored.
CLOCK_TOLERANCE = timedelta(seconds=2)

#: Seconds after which an entry that the leader lacks counts as deleted. In a rolling deploy it lacks it for less.
_DELETED_AFTER = 3600.0


#: Seconds between two comparisons of the entries, and how many times as long as the last one took.
_COMPARE_EVERY = 1.0
_COMPARE_SHARE = 500

#: Attributes of an entry that define it.
_DEFINING = ("task", "schedule", "args", "kwargs", "options")
_CONTAINERS = (dict, list, tuple)
_definition_of = attrgetter(*_DEFINING)


class EntryHooks(Protocol):
    """Scheduler class as the source uses it: the entries, and the hooks of ``HAMixin``."""

    app: Celery
    ha_settings: Settings
    schedule: Any

    def is_due(self, entry: Any) -> Any: ...

    def reserve(self, entry: Any) -> Any: ...

    def schedules_equal(self, old_schedules: Any, new_schedules: Any) -> Any: ...

    def entry_id(self, entry: Any) -> str: ...

    def stored_last_run_at(self, entry: Any) -> datetime | None: ...

    def entry_recorded(self, entry: Any, row: LedgerRow) -> None: ...

    def schedule_digest(self) -> str: ...


class SharedRecurrences:
    """Recurrence and signature of each schedule object, found once: many entries may share one object.

    Use one for each load: a schedule that was changed since needs a new one.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[int, type], tuple[Any, Recurrence | None, str]] = {}

    def of(self, entry: Any) -> tuple[Recurrence | None, str]:
        """Return the recurrence of an entry and the signature. Raises what :func:`recurrence_of` raises."""
        if has_own_is_due(entry):
            return None, signature(entry, None)
        schedule = entry.schedule
        key = id(schedule), type(entry)
        found = self._found.get(key)
        if found is None:
            recurrence = recurrence_of(entry)
            found = self._found[key] = schedule, recurrence, signature(entry, recurrence)
        return found[1:]


class EntrySource:
    """Schedule source for the entries of any Celery scheduler class.

    It has more than 15 methods because the protocol ``ReplicaSource`` has 14.
    """

    #: Modules, besides this package's, whose methods of the scheduler and of its entries count as not replaced.
    stock: tuple[str, ...] = ("celery.beat",)
    #: Methods of the scheduler that this source never calls.
    unused: tuple[str, ...] = ()

    def __init__(self, scheduler: EntryHooks) -> None:
        self._scheduler = scheduler
        self.hooks = SchedulerHooks(scheduler, self.stock, self.unused)
        self.sender = HookedSender(scheduler.app, scheduler, self.hooks)
        self._asks_scheduler = False
        # True for types of entries with their own ``is_due``.
        self._asking: dict[type, bool] = {}
        # Time limit of crontabs, by their app.
        self._deadlines: dict[Celery, float | None] = {}
        # True for types of entries with a way of their own to note a run, or if the scheduler has one.
        self._reserving: dict[type, bool] = {}
        # True if the scheduler has its own comparison of schedules, and the schedule that it compared last.
        self._compares = self.hooks.replaced("schedules_equal")
        self._compared: Any = None
        self._clock = SystemClock()
        self._seen_schedule: object = None
        #: Digest of the objects in the schedule, and when to compare it again.
        self._seen_objects: int | None = None
        self._compare_at = 0.0
        self._term = ""
        self._term_began = 0.0
        self._deletions_reported = False
        #: Names of the entries in the schedule, by id.
        self._names: dict[str, str] = {}
        #: True if entries were updated since the scheduler class last wrote to its own store.
        self.unsynced = False

    # --- Life cycle

    def start(self, runtime: Runtime) -> None:
        """Do nothing: the scheduler class has read its entries."""

    def keep_running(self) -> None:
        """Do nothing: there is no thread."""

    def ready(self) -> bool:
        return True

    def stop(self) -> None:
        """Do nothing: Celery calls ``sync`` when it closes the scheduler."""

    def join(self) -> None:
        """Do nothing."""

    def digest(self) -> str:
        return self._scheduler.schedule_digest()

    def scheduler_class(self) -> str:
        cls = type(self._scheduler)
        return f"{cls.__module__}:{cls.__qualname__}"

    # --- Entries

    def outlines(self) -> Iterable[Outline]:
        scheduler, shared = self._scheduler, SharedRecurrences()
        # What was yielded before stays until this is complete: a replica may have to lead meanwhile.
        names: dict[str, str] = {}
        for name, entry in list(scheduler.schedule.items()):
            with suppress(Exception):  # The leader reports it.
                entry_id = scheduler.entry_id(entry)
                recurrence = None if self.asks(entry) else shared.of(entry)[0]
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
        for name, entry in entries:
            try:
                yield self._scheduled(entry, shared)
            except Exception:
                logger.exception("Entry %s is left out", name, extra={"action": "entry_left_out", "entry": name})

    def detect_hooks(self) -> None:
        """Find the replaced methods of the scheduler. A library may replace them after the scheduler was created."""
        self.sender.detect()
        self._asks_scheduler = self.hooks.replaced("is_due")
        self._asking.clear()
        self._deadlines.clear()
        self._reserving.clear()

    def asks(self, entry: Any) -> bool:
        """True if only ``is_due`` of the scheduler or of the entry can tell whether the entry is due."""
        if self._asks_scheduler:
            return True
        kind = type(entry)
        if kind not in self._asking:
            self._asking[kind] = self.hooks.entry_replaced(entry, "is_due")
        return self._asking[kind]

    def _scheduled(self, entry: Any, shared: SharedRecurrences) -> ScheduledEntry:
        recurrence, digest = (None, signature(entry, None)) if self.asks(entry) else shared.of(entry)
        return ScheduledEntry(
            id=self._scheduler.entry_id(entry),
            celery_entry=entry,
            recurrence=recurrence,
            signature=digest,
            last_run=self._stored_last_run(entry),
            **self.rules_of(entry).as_fields(),
        )

    def rules_of(self, entry: Any) -> EntryOptions:
        """Return an entry's own rules, completed by the cluster's. Raises ConfigurationError."""
        options, deadline = entry.options or {}, self._deadline_of(entry)
        if deadline is None and not options:
            return self._rules_of_most
        uncertain = self._scheduler.ha_settings.uncertain
        return EntryOptions.of(entry.name, options, self._default_misfire, deadline, uncertain)

    def _deadline_of(self, entry: Any) -> float | None:
        """Return Celery's time limit, whose setting is read once for all crontabs: a look-up takes ten microseconds."""
        if not isinstance(entry.schedule, crontab):
            return None
        app = entry.schedule.app
        if app not in self._deadlines:
            self._deadlines[app] = starting_deadline(entry)
        return self._deadlines[app]

    @cached_property
    def _rules_of_most(self) -> EntryOptions:
        return EntryOptions.of("", {}, self._default_misfire, None, self._scheduler.ha_settings.uncertain)

    @cached_property
    def _default_misfire(self) -> MisfireRules:
        settings = self._scheduler.ha_settings
        return MisfireRules(
            MisfirePolicy(settings.misfire),
            settings.misfire_grace,
            settings.misfire_limit,
            usual_lateness=settings.lease_ttl + 1.0,
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
        held_back: bool,  # noqa: ARG002 -- these entries are always up to date
    ) -> ScheduleChange | None:
        """Return all if the schedule or an entry in it was replaced, or entries count as deleted."""
        schedule, seen = self._scheduler.schedule, self._seen_schedule
        self._seen_schedule = schedule
        replaced = self._entry_replaced(schedule) or (seen is not None and schedule is not seen)
        if self._compares and not replaced:
            replaced = not self._scheduler.schedules_equal(self._compared, schedule)
        if self._compares and (replaced or self._compared is None):
            self._compared = copy(schedule)
        deleted = self._term == term.nonce and self._led_long() and not self._deletions_reported
        return EVERYTHING if replaced or deleted else None

    def _entry_replaced(self, schedule: Any) -> bool:
        """True if entries were added, removed or replaced since the last comparison, or were given other values."""
        began = self._clock.elapsed()
        if began < self._compare_at:
            return False
        objects = 0
        # One number, not a list of all entries: for 100,000 of them that would take 16 MB.
        for name, entry in zip(list(schedule), list(schedule.values()), strict=False):
            objects = hash((objects, *_objects_of(name, entry)))
        now = self._clock.elapsed()
        self._compare_at = now + max(_COMPARE_EVERY, _COMPARE_SHARE * (now - began))
        before, self._seen_objects = self._seen_objects, objects
        return before not in (None, objects)

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

    # --- One entry

    def check(self, entry: ScheduledEntry, position: datetime) -> tuple[bool, float]:
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
        self.unsynced = True
        scheduler, celery_entry = self._scheduler, entry.celery_entry
        counter: Any = scheduler
        counter._tasks_since_sync += 1  # noqa: SLF001 -- Celery's beat_sync_every limits it
        if row.verdict is not Verdict.SKIPPED and self._reserves(celery_entry):
            # The leader goes on with the same object.
            vars(celery_entry).update(vars(scheduler.reserve(celery_entry)))
            # It may have replaced the entry.
            self._seen_objects = None
        scheduler.entry_recorded(celery_entry, row)

    def _reserves(self, celery_entry: Any) -> bool:
        """True if the scheduler or the entry has a way of its own to note a run."""
        kind, hooks = type(celery_entry), self.hooks
        if kind not in self._reserving:
            replaced = hooks.replaced("reserve") or hooks.entry_replaced(celery_entry, "__next__", "next")
            self._reserving[kind] = replaced
        return self._reserving[kind]

    def armed(self, entry_id: str) -> None:
        """Do nothing: only the database source records it."""

    def finished(self, entry: ScheduledEntry, runs: int) -> None:
        """Do nothing: only the database source records it."""


def _objects_of(name: str, entry: Any) -> tuple[Any, ...]:
    """Return what differs if an entry was replaced, but not if it was copied after a run."""
    if type(entry) is ScheduleEntry:
        # As below, at half the cost: the object makes no dict, which it would keep.
        task, schedule, args, kwargs, options = _definition_of(entry)
        return name, id(task), id(schedule), _id_of(args), _id_of(kwargs), _id_of(options)
    own = getattr(entry, "__dict__", {})
    return name, *(_id_of(own.get(attribute)) for attribute in _DEFINING)


def _id_of(value: Any) -> int:
    """Return the identity of a value, 0 if it is empty: Celery makes a new object for what is empty.

    An object of the project's own class is not asked: it may raise, or load rows.
    """
    return 0 if type(value) in _CONTAINERS and not value else id(value)


def signature(entry: ScheduleEntry, recurrence: Recurrence | None) -> str:
    """Return a digest of the entry's schedule, the same in every process and for each schedule with its instants.

    A schedule that can only be asked has a digest of its class: a change of its values is not an edit.
    """
    return short_digest(type(entry.schedule).__qualname__ if recurrence is None else recurrence.identity)


def _by_clock_of(schedule: Any, instant: datetime, wall: float) -> datetime:
    """Return the instant by the schedule's own clock, which may be in another zone (``nowfun``) and run apart."""
    now: datetime = schedule.now()
    if now.tzinfo is None:
        # As Celery reads it.
        now = now.replace(tzinfo=UTC)
    apart = now - datetime.fromtimestamp(wall, UTC)
    return instant.astimezone(now.tzinfo) + (apart if abs(apart) > _CLOCKS_APART else timedelta())


def short_digest(content: str) -> str:
    """Return 12 hex digits. ``content`` may hold lone surrogates."""
    return hashlib.sha256(content.encode("utf-8", "backslashreplace")).hexdigest()[:12]


def _evaluated(value: Any) -> Any:
    return value() if isinstance(value, BeatLazyFunc) else value
