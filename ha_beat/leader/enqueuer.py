"""Enqueuer: the leader's work over all terms of a replica.

It creates a :class:`TermWork` for each term, decides when that may work, and handles failures of a whole batch. From
one term to the next it keeps the back-off, the dispatcher for late confirmations, the entries with slow arguments, and
the server on which it had to wait.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime

from ha_beat import events
from ha_beat.dispatch import Dispatcher, FencedOff
from ha_beat.election.leader_handle import TermOrigin
from ha_beat.errors import StoreError
from ha_beat.leader.batches.backoff import Backoff
from ha_beat.leader.batches.slow_arguments import SlowArguments
from ha_beat.leader.due_queue import DueQueue
from ha_beat.leader.loading.loaded_schedule import LoadedSchedule
from ha_beat.leader.parts import LeaderParts
from ha_beat.leader.planner import EVERYTHING, ScheduleChange
from ha_beat.leader.term_work import TermWork
from ha_beat.store.lease import Term

#: Failures in a row after which the batch itself may be at fault.
_BATCH_FAILURES = 3

#: Arguments are slow if they take longer than this many times the budget of a whole batch.
_SLOW_BUDGETS = 4.0


class Enqueuer:
    """Creator and driver of this replica's terms. Used by the main loop only."""

    def __init__(self, parts: LeaderParts) -> None:
        self._parts = parts
        self._clock = parts.clock
        self._slow = SlowArguments(parts.source.arguments, parts.clock, _SLOW_BUDGETS * parts.pace.seconds)
        self._backoff = Backoff(parts.clock, parts.emit, parts.options.handover_after)
        #: The server on which this replica had to wait for the previous holder, and since when it was reachable.
        self._changed_server = ("", 0.0)
        self._dispatch_from = 0.0
        self._work: TermWork | None = None

    @property
    def dispatcher(self) -> Dispatcher | None:
        """Return the dispatcher that was chosen last; ``None`` before the first choice."""
        return self._work.dispatcher if self._work is not None else None

    @property
    def due_queue(self) -> DueQueue:
        """Return the queue of the current term, empty if there is none."""
        return self._work.schedule.queue if self._work is not None else DueQueue()

    @property
    def awaits_read(self) -> bool:
        """Return True if some entries wait until the schedule has been read under this term."""
        return self._work is not None and self._work.schedule.awaits_read

    def now(self) -> datetime:
        """Return the scheduling time, in UTC."""
        return self._parts.time.now()

    def serves(self, term: Term) -> bool:
        """Return True if the due queue holds all entries under this term."""
        schedule = self._schedule_of(term)
        return schedule is not None and schedule.complete

    def up_to_date(self, term: Term) -> bool:
        """Return True if the due queue holds all entries under this term, and none is to be read again."""
        schedule = self._schedule_of(term)
        return schedule is not None and schedule.up_to_date

    def taken_up(self, term: Term) -> bool:
        """Return True if entries are dispatched under this term, although some may not be loaded yet."""
        schedule = self._schedule_of(term)
        return schedule is not None and schedule.loaded

    def _schedule_of(self, term: Term) -> LoadedSchedule | None:
        current = self._work
        return current.schedule if current is not None and current.nonce == term.nonce else None

    def reload(self, change: ScheduleChange = EVERYTHING) -> None:
        """Read what has changed of the schedule, and its rows in the ledger, before the next batch."""
        if self._work is not None:
            self._work.schedule.reload(change)

    def stand_by(self) -> None:
        """Discard the queue, and confirm or take back what was claimed. Never raises.

        If the same term continues after a late renewal, it reads the outcome from the ledger.
        """
        if self._work is not None:
            self._work.unload()
        if self._parts.forecast is not None:
            self._parts.forecast.turn()
        if self.dispatcher is not None:
            with suppress(StoreError):
                self.dispatcher.confirm_late()

    def advance(self, origin: TermOrigin, term: Term) -> float:
        """Submit one batch. Return for how many seconds there is nothing to do.

        Raises:
            FencedOff: the term is over.
            BrokerOutOfReach: another replica should try.
        """
        current = self._work
        if current is None or current.nonce != origin.nonce:
            current = self._begin(origin)
        waiting = max(self._backoff.try_at, self._dispatch_from) - self._clock.elapsed()
        if waiting > 0:
            return waiting
        try:
            idle = current.step(term)
        except StoreError as exc:
            if self._backoff.failures >= _BATCH_FAILURES and current.isolate_pending(exc):
                self._backoff.succeeded()
                return 0.0
            return self._backoff.failed(exc, current.submitter.pending)
        except FencedOff:
            raise
        except Exception:
            # This reads the entries again that were popped for the failed batch.
            current.schedule.reload()
            raise
        if current.submitter.sent:
            self._backoff.broker_accepted()
        if current.submitter.broker_failure is not None:
            return self._backoff.failed(*current.submitter.broker_failure)
        self._backoff.succeeded()
        return idle

    def _begin(self, origin: TermOrigin) -> TermWork:
        """Start a term. On another server than the previous holder's, wait until that holder must have stopped."""
        self._work = TermWork(self._parts, origin, self._slow, self.dispatcher)
        self._backoff.begin()
        now = self._clock.elapsed()
        pause = max(self._previous_holder_until(origin, now) - now, 0.0)
        self._dispatch_from = now + pause
        if pause:
            self._parts.emit(events.DispatchHeld(pause))
        return self._work

    def _previous_holder_until(self, origin: TermOrigin, now: float) -> float:
        """Return until when another holder may dispatch through another server; ``now`` if there is none."""
        acquired = origin.acquired
        others = acquired.previous_holder not in ("", acquired.term.holder)
        waited_for, since = self._changed_server
        waited_here = waited_for == acquired.term.run_id
        must_wait = others or waited_here  # guard: hold-continued
        if acquired.server_changed and must_wait:  # guard: hold-on-changed-server
            if not waited_here:
                # The pause counts from the first contact with this server, before the replica waited for the lease.
                since = now if origin.back_at is None else origin.back_at
                self._changed_server = (acquired.term.run_id, since)
            return since + self._parts.options.changed_server_pause
        return now
