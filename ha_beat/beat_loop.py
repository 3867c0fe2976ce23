"""Main loop of a replica. It does not know Celery.

Celery calls the scheduler, and the scheduler takes one turn of the loop. In a turn a standby waits until it is elected,
and a leader serves requests and enqueues what is due. A turn lasts at most about a second, so that Celery can stop.
"""

from __future__ import annotations

import logging
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from ha_beat.clock import SystemClock
from ha_beat.dispatch import FencedOff, ReplicaExhausted
from ha_beat.dispatch.messages.build import Sender
from ha_beat.dispatch.selector import DispatcherSelector
from ha_beat.duties import Duties
from ha_beat.election.elector import Elector
from ha_beat.election.states import Leader
from ha_beat.event_queue import EventQueue
from ha_beat.events import Events, TermEnded, TurnFailed
from ha_beat.exception_text import exception_line
from ha_beat.leader import BrokerOutOfReach, Enqueuer, ScheduleSource
from ha_beat.leader.entry import ScheduledEntry
from ha_beat.leader.forecast import Outline
from ha_beat.leader.planner import ScheduleChange
from ha_beat.leader.requests.handler import RequestHandler
from ha_beat.monitoring.setup import Monitoring
from ha_beat.reasons import TermEnd
from ha_beat.store.lease import Term
from ha_beat.store.ledger import Ledger

logger = logging.getLogger("ha_beat")

#: Longest duration of a turn that waits, in seconds.
_LONGEST_TURN = 1.0

#: Longest time that closing waits for the last lines of the log, in seconds.
_LAST_LINES = 5.0


class ReplicaSource(ScheduleSource):
    """Base class of the schedule of one replica: its entries, and the life cycle of the threads that provide them."""

    #: Publishes the messages of the entries.
    sender: Sender

    def start(self, runtime: Runtime) -> None:
        """Start to provide entries. Called after any fork, and again in the next turn if it raises."""

    def keep_running(self) -> None:
        """Restart threads that have ended. Called in each turn."""

    def ready(self) -> bool:
        """True if there is a schedule to lead with. Called often."""
        return True

    @abstractmethod
    def outlines(self) -> Iterable[Outline]:
        """Yield an outline of each entry, for a forecast. Called on a standby, and must be cheap."""

    @abstractmethod
    def changed(self, term: Term, *, awaits_read: bool) -> ScheduleChange | None:
        """Return the entries that must be loaded again. ``awaits_read``: entries wait for a read under this term."""

    @abstractmethod
    def digest(self) -> str:
        """Return a digest that tells this replica's schedule from another's, or ``""`` if they share a store."""

    @abstractmethod
    def scheduler_class(self) -> str:
        """Return the scheduler class, as ``module:Class``."""

    def armed(self, entry_id: str) -> None:
        """Do nothing. A source that keeps a deleted entry until the ledger records the deletion overrides it."""

    def finished(self, entry: ScheduledEntry, runs: int) -> None:
        """Do nothing. A source that disables an entry without a further instant in its store overrides it."""

    def stop(self) -> None:
        """Stop soon, without waiting. Called in a signal handler."""

    def join(self) -> None:
        """Wait until the last run state is written."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """Parts of one replica. No connection is made before its first use."""

    source: ReplicaSource
    elector: Elector
    enqueuer: Enqueuer
    request_handler: RequestHandler
    dispatch: DispatcherSelector
    monitoring: Monitoring
    events: Events
    duties: Duties
    log: EventQueue
    #: Releases the lease on a connection that nothing else uses.
    release: Callable[[Term], object]
    #: For a thread of the schedule source.
    ledger: Ledger


class BeatLoop:
    """Main loop of a replica. The first turn assembles the replica, and so does the first one after a fork."""

    def __init__(self, assemble: Callable[[], Runtime], stall_timeout: float) -> None:
        """``assemble`` builds the replica. A leader whose turns fail for ``stall_timeout`` seconds steps down."""
        self._assemble = assemble
        self._stall_timeout = stall_timeout
        self._clock = SystemClock()
        self._pid = 0
        self._monitored = False
        self._started = False
        #: Error of the last turn, and since when turns have failed (0 for not at all).
        self._failure = ""
        self._failing_since = 0.0
        #: Epoch of the term that :meth:`close` released, and its duration in seconds.
        self._released: tuple[int, float] | None = None
        self.runtime: Runtime | None = None
        #: Number of calls of :meth:`close`.
        self.closed = 0

    @property
    def leads(self) -> bool:
        """True if this replica leads now."""
        return self.runtime is not None and self.runtime.elector.handle.term is not None

    def turn(self, longest_wait: float | None = None) -> None:
        """Do one turn, and wait until there is more to do, at most ``longest_wait`` seconds. Never raises."""
        try:
            runtime = self._running()
            runtime.elector.handle.progress()
            term = runtime.elector.handle.term
            if term is None:
                self._stand_by(runtime)
            else:
                self._lead(runtime, term, min(longest_wait or _LONGEST_TURN, _LONGEST_TURN))
            runtime.monitoring.status.last_error = ""
            self._failure, self._failing_since = "", 0.0
        except Exception as exc:
            self._back_off(exc)

    def close(self) -> None:
        """Release the lease and stop every part. Never raises.

        Celery calls it twice: in its signal handler, where no lock may be taken, and when beat ends. The second call
        waits for the last writes.
        """
        self.closed += 1
        runtime = self.runtime
        if runtime is None or self._pid != os.getpid():
            return
        runtime.source.stop()
        runtime.monitoring.stop()
        runtime.elector.close(self._release)
        with suppress(Exception):
            # gevent and eventlet may run the signal handler in their hub, where waiting raises.
            runtime.monitoring.finish_stop()
        if self.closed == 2:
            if self._released is not None:
                # Only to the log, and not in the first call, because logging takes locks.
                epoch, led_for = self._released
                runtime.log(TermEnded(epoch, TermEnd.SHUTDOWN, led_for))
            runtime.source.join()
            runtime.log.close(_LAST_LINES)

    # --- Parts of a turn

    def _running(self) -> Runtime:
        """Return the runtime of this process, and start the parts that do not run."""
        runtime = self.runtime
        if runtime is None or self._pid != os.getpid():
            runtime = self.runtime = self._assemble()
            self._pid = os.getpid()
            self._monitored = self._started = False
        runtime.elector.keep_running()
        # A flag for each, because a source that fails to start is started again in the next turn.
        if not self._monitored:
            runtime.monitoring.set_scheduler(runtime.source.digest(), runtime.source.scheduler_class())
            self._monitored = True
        runtime.monitoring.keep_running()
        if not self._started:
            runtime.source.start(runtime)
            self._started = True
        runtime.source.keep_running()
        return runtime

    def _stand_by(self, runtime: Runtime) -> None:
        runtime.dispatch.marker.observe_as_standby()
        runtime.elector.handle.progress()
        runtime.enqueuer.stand_by()
        runtime.elector.handle.progress()
        runtime.elector.handle.wait(_LONGEST_TURN)

    def _lead(self, runtime: Runtime, term: Term, longest_wait: float) -> None:
        handle, enqueuer = runtime.elector.handle, runtime.enqueuer
        origin = handle.origin
        if origin is None or origin.nonce != term.nonce:
            return
        change = runtime.source.changed(term, awaits_read=enqueuer.awaits_read)
        if change is not None:
            enqueuer.reload(change)
        idle = 0.0
        # Under overload a turn must end, too: the schedule may have changed, and Celery may have to stop.
        until = self._clock.elapsed() + _LONGEST_TURN
        while (
            idle == 0.0
            and self._clock.elapsed() < until
            and (current := handle.term) is not None
            and current.nonce == term.nonce
        ):
            try:
                runtime.dispatch.marker.refresh(current)
                # After each step, because each may wait for a server.
                handle.progress()
                pause = runtime.request_handler.attend(current, requests_pending=handle.take_requests_pending())
                handle.progress()
                idle = min(enqueuer.advance(origin, current), pause)
            except FencedOff as exc:
                handle.fenced(current, exc.reason, exc.detail)
                return
            except (BrokerOutOfReach, ReplicaExhausted) as exc:
                handle.step_down(exc.reason, detail=str(exc))
                idle = _LONGEST_TURN
            handle.progress()
        handle.wait(min(idle, longest_wait))

    def _back_off(self, exc: Exception) -> None:
        """Log a failing turn once per distinct error, then back off for a second.

        A leader whose turns fail for longer than ``stall_timeout`` steps down, like one that hangs.
        """
        failure, runtime = exception_line(exc), self.runtime
        is_new, self._failure = failure != self._failure, failure
        self._failing_since = self._failing_since or self._clock.elapsed()
        if runtime is None:
            if is_new:
                extra = {"action": "turn_failed", "detail": failure}
                logger.error("A turn of the scheduler failed; retrying each second", exc_info=exc, extra=extra)
            self._clock.sleep(_LONGEST_TURN)
            return
        if is_new:
            runtime.events.emit(TurnFailed(failure, exc))
        runtime.monitoring.status.last_error = failure
        if self._clock.elapsed() - self._failing_since > self._stall_timeout and self.leads:
            self._failing_since = 0.0
            runtime.elector.handle.step_down(TermEnd.SCHEDULER_FAILED, detail=failure)
        runtime.elector.handle.wait(_LONGEST_TURN)

    def _release(self, term: Term) -> None:
        if self.runtime is not None:
            state = self.runtime.elector.state
            since = state.since if isinstance(state, Leader) else self._clock.elapsed()
            self._released = term.epoch, self._clock.elapsed() - since
            # An exception here would replace the SystemExit by which Celery's signal handler ends beat.
            with suppress(Exception):
                self.runtime.release(term)
