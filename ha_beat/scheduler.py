"""The scheduler classes that Celery's beat runs."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.beat import BeatLazyFunc, ScheduleEntry, Scheduler

from ha_beat.bootstrap import Runtime, assemble, check_http, misfire
from ha_beat.celery_app import check_topology, load_settings
from ha_beat.clock import SystemClock
from ha_beat.dispatch import FencedOff
from ha_beat.errors import ConfigurationError
from ha_beat.leader import BrokerOutOfReach
from ha_beat.leader.due_queue import Slot
from ha_beat.leader.reconcile import Absence
from ha_beat.reasons import TermEnd
from ha_beat.schedule.entry_options import EntryOptions
from ha_beat.schedule.misfire import MisfireRules
from ha_beat.schedule.occurrence import NEVER
from ha_beat.schedule.recurrence import recurrence_of, starting_deadline
from ha_beat.store.lease import Term
from ha_beat.store.ledger import LedgerRow

logger = logging.getLogger("ha_beat")

#: A tick lasts this many seconds at most, so that Celery hears of a shutdown.
_LONGEST_TICK = 1.0

#: What a tick returns: with 0, Celery's loop would never synchronise.
_AT_ONCE = 1e-6

#: Seconds between looks at entries whose schedule does not say when to look again.
_ASK_AGAIN = 60.0

#: Seconds; an entry may say 'never' by an infinite number.
_ASK_AT_LAST = 86_400.0

#: A leader that has led for so many seconds without an entry takes it to be gone, not only of another release.
_GONE_AFTER = 3600.0

if TYPE_CHECKING:
    _Base = Scheduler
else:
    _Base = object


class HAMixin(_Base):
    """Makes a Celery scheduler class highly available: ``class MyScheduler(HAMixin, AnyScheduler)``.

    The other class says which entries there are; this one, when each is due and who enqueues it. Nothing is done by a
    replica that does not lead.
    """

    def __init__(self, app: Celery, *args: Any, **kwargs: Any) -> None:
        try:
            self.ha_settings = load_settings(app)
            check_topology(app, self.ha_settings)
            if not kwargs.get("lazy"):  # as the one for the banner is
                check_http(self.ha_settings)
        except ConfigurationError as exc:
            # Celery would print a traceback; whoever started beat needs the line.
            raise SystemExit(f"ha_beat can't start: {exc}") from exc
        self._runtime: Runtime | None = None
        self._runtime_pid = 0
        self._observed = False
        self._unsynced = False
        self._seen_schedule: object = None
        self._close_calls = 0
        self._farewell = 0
        self._trouble = ""
        self._suffering_since = 0.0
        self._led_by = ""
        self._led_since = 0.0
        self._told_what_is_gone = False
        super().__init__(app, *args, **kwargs)

    # --- What Celery calls

    def tick(self, *_: Any, **__: Any) -> float:
        """One turn of beat's loop. Waits inside, wakes at a change of leader, and never raises."""
        if self._close_calls:
            # Celery's signal handler has closed this and raised SystemExit, and that got lost: in a destructor, say,
            # where Python ignores exceptions. Nothing would lead here any more.
            raise SystemExit
        try:
            runtime = self._started()
            runtime.elector.progress()
            term = runtime.elector.term
            if term is None:
                self._unsynced = False
                if runtime.mark is not None:
                    runtime.mark.look()
                runtime.enqueuer.stand_by()
                runtime.elector.wait(_LONGEST_TICK)
            else:
                self._lead(runtime, term)
            runtime.observation.board.trouble = ""
            self._trouble, self._suffering_since = "", 0.0
        except Exception as exc:
            self._suffer(exc)
        return _AT_ONCE

    def _suffer(self, exc: Exception) -> None:
        """Say it, once until it is another or has passed, and let a moment go by."""
        trouble = f"{type(exc).__name__}: {exc}"[:300]
        if trouble != self._trouble:
            extra = {"action": "turn_failed", "detail": trouble}
            logger.error("A turn of the scheduler failed; retrying each second", exc_info=exc, extra=extra)
        self._trouble = trouble
        clock, runtime = SystemClock(), self._runtime
        self._suffering_since = self._suffering_since or clock.elapsed()
        if runtime is None:
            clock.sleep(_LONGEST_TICK)
            return
        runtime.observation.board.trouble = trouble
        if (
            clock.elapsed() - self._suffering_since > self.ha_settings.stall_timeout
            and runtime.elector.term is not None
        ):
            # It moves, and gets nowhere: no better than one that hangs.
            self._suffering_since = 0.0
            runtime.elector.step_down(TermEnd.SCHEDULER_FAILED, detail=trouble)
        runtime.elector.wait(_LONGEST_TICK)

    def close(self) -> None:
        """Release the lease and close. Celery calls this inside a signal handler, and again."""
        self._close_calls += 1
        runtime = self._runtime
        if runtime is not None and self._runtime_pid == os.getpid():
            runtime.observation.stop()
            self._release(runtime)
            with suppress(Exception):
                # In a program patched by gevent or eventlet, this may run where nothing may wait.
                runtime.observation.wait_for_farewell()
        if self._close_calls == 1:
            try:
                super().close()
            except Exception:
                logger.exception("Closing the schedule failed", extra={"action": "schedule_close_failed"})

    def sync(self) -> None:
        """Let the other class write to its store what was settled here; a standby writes nothing. Never raises."""
        leads = self._runtime is not None and self._runtime.elector.term is not None
        if not self._unsynced or not (leads or self._close_calls):
            return
        try:
            super().sync()
            self._unsynced = False
        except Exception:
            # Celery would end beat. The ledger has it all; the next time is in minutes.
            logger.exception("Writing the schedule's own store failed", extra={"action": "schedule_write_failed"})

    @property
    def info(self) -> str:
        """Lines for beat's banner."""
        settings = self.ha_settings
        return f"    . cluster -> {settings.cluster}\n    . lease -> {settings.lease_ttl:g} s"

    # --- The leader

    def _started(self) -> Runtime:
        """The replica, put together at the first turn: after any fork, and with the logging set up."""
        if self._runtime is None or self._runtime_pid != os.getpid():
            self._runtime = assemble(self.app, self.ha_settings, self)
            self._runtime_pid = os.getpid()
            self._observed = False
        self._runtime.elector.keep_running()
        if not self._observed:
            self._runtime.observation.start(self.schedule_digest())
            self._observed = True
        return self._runtime

    def _lead(self, runtime: Runtime, term: Term) -> None:
        elector, enqueuer = runtime.elector, runtime.enqueuer
        tenure = elector.tenure
        if tenure is None or tenure.nonce != term.nonce:
            return
        if self._schedule_changed():
            enqueuer.reload()
        clock, idle = SystemClock(), 0.0
        # Not for ever, where more falls due than goes out: the schedule may have changed, and Celery has its own to do.
        until = clock.elapsed() + _LONGEST_TICK
        while (
            idle == 0.0
            and clock.elapsed() < until
            and (current := elector.term) is not None
            and current.nonce == term.nonce
        ):
            try:
                if runtime.mark is not None:
                    runtime.mark.keep(current)
                pause = runtime.request_handler.attend(current, called=elector.called())
                idle = min(enqueuer.advance(tenure, current), pause)
            except FencedOff as exc:
                elector.fenced(current, exc.reason, exc.detail)
                return
            except BrokerOutOfReach as exc:
                elector.step_down(TermEnd.BROKER_UNREACHABLE, detail=str(exc))
                idle = _LONGEST_TICK
            elector.progress()
        elector.wait(min(idle, self.max_interval or _LONGEST_TICK, _LONGEST_TICK))

    def _release(self, runtime: Runtime) -> None:
        def release(term: Term) -> None:
            # Whatever it is: an exception here would take the place of the one that ends beat.
            with suppress(Exception):
                runtime.release(term)
            self._farewell = term.epoch

        runtime.elector.close(release)
        # The first call may be inside a signal handler, where logging is not safe.
        if self._farewell and self._close_calls > 1:
            extra = {"action": "stepped_down", "epoch": self._farewell}
            logger.info("Stepped down (epoch %s): shutdown", self._farewell, extra=extra)
            self._farewell = 0

    # --- What the other class may say better

    def entry_id(self, entry: ScheduleEntry) -> str:
        """What the ledger knows the entry by, whatever becomes of its schedule and arguments."""
        return str(entry.name)

    def stored_last_run_at(self, entry: ScheduleEntry) -> datetime | None:
        """When the schedule's own store says that the entry last ran; ``None`` where it doesn't know."""
        last_run_at: datetime | None = entry.last_run_at
        return last_run_at if entry.total_run_count else None

    def entry_settled(self, entry: ScheduleEntry, row: LedgerRow) -> None:
        """The cluster has settled an occurrence of the entry."""
        entry.last_run_at = row.base
        entry.total_run_count = row.run_count

    def schedule_digest(self) -> str:
        """Tells this replica's schedule from another's, so that a drift is seen; empty where a store is shared."""
        return ""

    def _schedule_changed(self) -> bool:
        """Whether the entries are others than at the last look. Costs nothing per entry."""
        schedule = self.schedule
        changed = schedule is not self._seen_schedule
        first_look, self._seen_schedule = self._seen_schedule is None, schedule
        return (changed and not first_look) or (self._led_long and not self._told_what_is_gone)

    @property
    def _led_long(self) -> bool:
        return bool(self._led_by) and SystemClock().elapsed() - self._led_since >= _GONE_AFTER

    # --- ScheduleSource

    def slots(self) -> Iterable[Slot]:
        default = misfire(self.ha_settings)
        for name, entry in list(self.schedule.items()):
            try:
                yield self._slot(entry, default)
            except Exception:
                logger.exception("Entry %s is left out", name, extra={"action": "entry_left_out", "entry": name})

    def _slot(self, entry: Any, default: MisfireRules) -> Slot:
        instants = recurrence_of(entry)
        options = EntryOptions.of(
            entry.name, entry.options or {}, default, starting_deadline(entry), self.ha_settings.uncertain
        )
        stored = self.stored_last_run_at(entry)
        return Slot(
            id=self.entry_id(entry),
            entry=entry,
            instants=instants,
            misfire=options.misfire,
            uncertain=options.uncertain,
            signature=_signature(entry, known=instants is not None),
            base=NEVER if stored is None else entry.schedule.maybe_make_aware(stored).astimezone(UTC),
        )

    def check(self, slot: Slot) -> tuple[bool, float]:
        entry = slot.entry
        if slot.base > NEVER:
            entry.last_run_at = slot.base
        due, ask_in = entry.is_due()
        usable = isinstance(ask_in, int | float) and ask_in > 0
        if not usable:
            return bool(due), 0.0 if due else _ASK_AGAIN
        return bool(due), min(float(ask_in), _ASK_AT_LAST)

    def arguments(self, slot: Slot) -> tuple[Sequence[Any], Mapping[str, Any], Mapping[str, Any]]:
        entry: ScheduleEntry = slot.entry
        args = [_evaluated(value) for value in entry.args or ()]
        kwargs = {name: _evaluated(value) for name, value in (entry.kwargs or {}).items()}
        return args, kwargs, EntryOptions.without_own(entry.options or {})

    def settled(self, slot: Slot, row: LedgerRow) -> None:
        self._unsynced = True
        self.entry_settled(slot.entry, row)

    def absence(self, term: Term) -> Absence | None:
        """Nothing at first: in a rolling deploy each replica has the entries that its release knows.

        What a leader has been without for an hour is gone; should it come back, it is not owed the time between.
        """
        if self._led_by != term.nonce:
            self._led_by, self._led_since = term.nonce, SystemClock().elapsed()
        self._told_what_is_gone = self._led_long
        if not self._told_what_is_gone:  # guard: absence-not-at-once
            return None
        return Absence(certain=True)  # guard: absence-after-an-hour

    def armed(self, entry_id: str) -> None:
        """Not needed here."""

    def finished(self, slot: Slot) -> None:
        """Not needed here."""


class HAScheduler(HAMixin, Scheduler):
    """Celery's own scheduler for a static ``beat_schedule``, highly available: ``celery beat -S ha_beat``."""

    _edits = 0
    _seen_state: tuple[int, int] | None = None

    def __init__(self, app: Celery, *args: Any, schedule_filename: str | None = None, **kwargs: Any) -> None:
        super().__init__(app, *args, **kwargs)
        if schedule_filename not in (None, app.conf.beat_schedule_filename) and not kwargs.get("lazy"):
            logger.warning(
                "-s/--schedule %s is ignored: the run state is in the ledger, for all replicas",
                schedule_filename,
                extra={"action": "schedule_file_ignored", "file": schedule_filename},
            )

    def stored_last_run_at(self, entry: ScheduleEntry) -> datetime | None:
        # A static entry has no store of its own; Celery fills in the time at which this process started.
        configured = self.app.conf.beat_schedule.get(entry.name)
        stored: datetime | None = configured.get("last_run_at") if isinstance(configured, Mapping) else None
        return stored

    def schedule_digest(self) -> str:
        lines = []
        for name, entry in self.schedule.items():
            with suppress(Exception):
                lines.append(f"{name} {entry.task} {_signature(entry, known=recurrence_of(entry) is not None)}")
        return _digest("\n".join(sorted(lines)))

    def merge_inplace(self, b: Mapping[str, Any]) -> None:
        """Take over the configured entries; one that can't be read is reported and left out."""
        for name, configured in b.items():
            try:
                super().update_from_dict({name: configured})
            except Exception as exc:
                logger.error(  # noqa: TRY400 -- the line says it all
                    "Entry %s is left out: %s: %s",
                    name,
                    type(exc).__name__,
                    exc,
                    extra={"action": "entry_left_out", "entry": name, "detail": str(exc)},
                )

    def add(self, **kwargs: Any) -> Any:
        self._edits += 1
        return super().add(**kwargs)

    def update_from_dict(self, dict_: dict[str, Any]) -> None:
        self._edits += 1
        super().update_from_dict(dict_)

    def _schedule_changed(self) -> bool:
        # By the methods above, or in the dict itself, of which only the number of entries tells.
        changed = super()._schedule_changed()
        state = (self._edits, len(self.schedule))
        before, self._seen_state = self._seen_state, state
        return changed or before not in (None, state)


def _evaluated(value: Any) -> Any:
    return value() if isinstance(value, BeatLazyFunc) else value


def _signature(entry: Any, *, known: bool) -> str:
    """Tells the entry's schedule from another; the same in every process."""
    schedule = entry.schedule
    text = f"{type(schedule).__qualname__}"
    if known:
        text += f" {schedule!r} {getattr(schedule, 'run_every', '')} {schedule.tz}"
    return _digest(text)


def _digest(text: str) -> str:
    # A name may be of a string that is no text, such as half of an emoji.
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:12]
