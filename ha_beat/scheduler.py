"""Scheduler classes for ``celery beat``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from celery import Celery, schedules
from celery.beat import ScheduleEntry, Scheduler

from ha_beat.beat_loop import BeatLoop, Runtime
from ha_beat.bootstrap import assemble
from ha_beat.celery_app import check_topology, load_settings
from ha_beat.errors import ConfigurationError
from ha_beat.exception_text import printable
from ha_beat.monitoring.http.address import check_bind
from ha_beat.schedule_sources.entry_source import EntrySource
from ha_beat.schedule_sources.signatures import SharedRecurrences, short_digest
from ha_beat.schedule_sources.source import SchedulerSource
from ha_beat.store.ledger import LedgerRow

__all__ = ["HAMixin", "HAScheduler"]

logger = logging.getLogger("ha_beat")

#: Seconds that a tick returns. With 0 Celery's loop would never call ``sync``.
_NO_WAIT = 1e-6

#: Types of schedules that read the time from the app.
_SCHEDULES = frozenset({int, float, timedelta, schedules.schedule, schedules.crontab, schedules.solar})

if TYPE_CHECKING:
    _Base = Scheduler
else:
    _Base = object


class HAMixin(_Base):
    """Mixin that makes a Celery scheduler class highly available: ``class MyScheduler(HAMixin, AnyScheduler)``.

    ``AnyScheduler`` provides the entries. The cluster decides when each is due, and which replica enqueues it.

    **Override** these methods if their defaults do not fit the entries: :meth:`entry_id`, :meth:`stored_last_run_at`,
    :meth:`entry_recorded` and :meth:`schedule_digest`.

    **Creation.** Each replica creates the scheduler with ``app`` as a keyword argument. Its ``schedule`` must return
    the entries by name.

    **When entries are read.** The leader reads ``schedule`` when its term begins, when ``schedule`` or an entry in it
    is another object than before, and when an overridden ``schedules_equal`` returns False.

    **Methods that are called if a class or its entries override them**, on the leader only:

    - ``is_due`` decides when an entry is due. Without it the entry's schedule decides.
    - ``apply_entry``, ``apply_async`` and ``send_task`` make the messages. They are called again after a failure.
    - ``reserve``, or ``__next__`` of the entry, is called after a run was recorded, before :meth:`entry_recorded`.
    - ``sync`` is called when Celery calls it, and when the scheduler closes.

    **Methods that are never called:** Celery's heap and ``maybe_due``, and ``tick``, ``producer`` and ``connection`` of
    ``AnyScheduler``. A class that overrides one is refused.
    """

    def __init__(self, app: Celery, *args: Any, **kwargs: Any) -> None:
        """Read the settings and create the scheduler.

        Raises:
            SystemExit: a setting is wrong, or the class relies on a method that is never called.
        """
        # The constructor of AnyScheduler may need the schedule source, and the source needs the app.
        self.app = app
        self.schedule_source = self._new_schedule_source()
        try:
            self.schedule_source.hooks.refuse_unused()
            self.ha_settings = load_settings(app)
            check_topology(app, self.ha_settings)
            # Celery creates a lazy scheduler for its banner.
            if self.ha_settings.http_address is not None and not kwargs.get("lazy"):
                check_bind(*self.ha_settings.http_address)
        except ConfigurationError as exc:
            # Celery would print a traceback.
            raise SystemExit(f"ha_beat can't start: {exc}") from exc
        self._loop = BeatLoop(self._assemble, self.ha_settings.stall_timeout)
        if args:
            super().__init__(app, *args, **kwargs)
        else:
            # By name, as Celery does, because some classes read it from the keyword arguments.
            super().__init__(app=app, **kwargs)

    # --- Methods that Celery calls

    def tick(self, *_: Any, **__: Any) -> float:
        """Do one turn of the loop, which waits if there is nothing to do. Never raises an ``Exception``."""
        if self._loop.closed:
            # Celery's signal handler has closed this scheduler and raised SystemExit. It ran in a destructor, where
            # Python ignores exceptions.
            raise SystemExit
        self._loop.turn(self.max_interval)
        self.schedule_source.hooks.call_patched_tick(super().tick)
        if not self._loop.leads:
            self.schedule_source.unsynced = False
        return _NO_WAIT

    def close(self) -> None:
        """Release the lease and close. Celery calls it in its signal handler, and again when beat ends."""
        self._loop.close()
        if self._loop.closed == 1:
            try:
                super().close()
            except Exception:
                logger.exception("Closing the schedule failed", extra={"action": "schedule_close_failed"})

    def sync(self) -> None:
        """Let ``AnyScheduler`` write the state of its entries, if this replica leads or has led. Never raises."""
        if not self.schedule_source.unsynced or not (self._loop.leads or self._loop.closed):
            return
        try:
            super().sync()
            self.schedule_source.unsynced = False
        except Exception:
            # The exception would end beat. The ledger has the state, and Celery calls again within minutes.
            logger.exception("Writing the schedule's own store failed", extra={"action": "schedule_write_failed"})

    @property
    def info(self) -> str:
        """Return lines for the banner of beat."""
        settings = self.ha_settings
        return f"    . cluster -> {settings.cluster}\n    . lease -> {settings.lease_ttl:g} s"

    def apply_async(self, entry: ScheduleEntry, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
        """Make one message of an entry. Called only if a method that makes messages is replaced."""
        send = self.schedule_source.sender.apply_async
        return send(super().apply_async, entry, producer=producer, advance=advance, **kwargs)

    # --- Methods to override

    def entry_id(self, entry: ScheduleEntry) -> str:
        """Return the id of the entry in the ledger. It must not change when its schedule or arguments change."""
        return printable(entry.name)

    def stored_last_run_at(self, entry: ScheduleEntry) -> datetime | None:
        """Return the last run according to the schedule's own store, or ``None`` if the store does not know it."""
        last_run_at: datetime | None = entry.last_run_at
        return last_run_at if entry.total_run_count else None

    def entry_recorded(self, entry: ScheduleEntry, row: LedgerRow) -> None:
        """Update the entry after the ledger recorded an occurrence of it in ``row``."""
        entry.last_run_at = row.base
        entry.total_run_count = row.run_count

    def schedule_digest(self) -> str:
        """Return a digest of this replica's schedule, to detect drift, or ``""`` if all replicas share a store."""
        return ""

    # --- Assembly

    def _new_schedule_source(self) -> SchedulerSource:
        return EntrySource(self)

    def _assemble(self) -> Runtime:
        return assemble(self.app, self.ha_settings, self.schedule_source)


class HAScheduler(HAMixin, Scheduler):
    """Highly available scheduler for a static ``beat_schedule``: ``celery beat -S ha_beat``."""

    def __init__(self, app: Celery, *args: Any, schedule_filename: str | None = None, **kwargs: Any) -> None:
        #: Last runs from the definitions of entries. Without one, Celery uses the start of the process.
        self._given_last_runs: dict[Any, datetime] = {}
        super().__init__(app, *args, **kwargs)
        if schedule_filename not in (None, app.conf.beat_schedule_filename) and not kwargs.get("lazy"):
            logger.warning(
                "-s/--schedule %s is ignored: the run state is in the ledger, for all replicas",
                schedule_filename,
                extra={"action": "schedule_file_ignored", "file": schedule_filename},
            )

    def stored_last_run_at(self, entry: ScheduleEntry) -> datetime | None:
        """Return the ``last_run_at`` that the entry was defined with."""
        return self._given_last_runs.get(entry.name)

    def schedule_digest(self) -> str:
        lines, shared = [], SharedRecurrences()
        for name, entry in self.schedule.items():
            with suppress(Exception):
                lines.append(f"{name} {entry.task} {shared.of(entry)[1]}")
        return short_digest("\n".join(sorted(lines)))

    def setup_schedule(self) -> None:
        """Read the configured entries, then add Celery's own, as its persistent scheduler does."""
        self.merge_inplace(self.app.conf.beat_schedule)
        self.install_default_entries(self.schedule)

    def merge_inplace(self, b: Mapping[str, Any]) -> None:
        """Replace the entries of the schedule. An entry that cannot be read is logged and left out."""
        for name in set(self.schedule) - set(b):
            del self.schedule[name]
        schedule = self.schedule
        for name, configured in b.items():
            try:
                before = schedule.get(name)
                self.update_from_dict({name: configured})
                if before is not None:
                    before.update(schedule[name])
                    schedule[name] = before
            except Exception as exc:
                self.schedule.pop(name, None)
                logger.error(  # noqa: TRY400 -- the line names the cause
                    "Entry %s is left out: %s: %s",
                    name,
                    type(exc).__name__,
                    exc,
                    extra={"action": "entry_left_out", "entry": name, "detail": str(exc)},
                )

    def add(self, **kwargs: Any) -> Any:
        self._note_last_run(kwargs.get("name"), kwargs.get("last_run_at"))
        return super().add(**kwargs)

    def update_from_dict(self, dict_: dict[str, Any]) -> None:
        for name, entry in dict_.items():
            self._note_last_run(name, entry.get("last_run_at") if isinstance(entry, Mapping) else None)
        super().update_from_dict({name: self._with_start(entry) for name, entry in dict_.items()})

    def _with_start(self, entry: Any) -> Any:
        """Return the definition with the start as its last run, as in Celery, but with one object for all entries."""
        if self.Entry is not ScheduleEntry or not isinstance(entry, Mapping) or entry.get("last_run_at"):
            return entry
        source = entry.get("schedule")
        if type(source) not in _SCHEDULES or getattr(source, "nowfun", None) is not None:
            return entry
        return {**entry, "last_run_at": self._started_at}

    @cached_property
    def _started_at(self) -> datetime:
        # Not in the constructor: an app with a wrong time zone has no time, and its settings are checked first.
        started_at: datetime = self.app.now()
        return started_at

    def _note_last_run(self, name: Any, last_run: datetime | None) -> None:
        if last_run is None:
            self._given_last_runs.pop(name, None)
        else:
            self._given_last_runs[name] = last_run
