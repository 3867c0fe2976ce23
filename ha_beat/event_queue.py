"""Queue between the code that emits events and a consumer that may wait, such as the log or a signal handler."""

from __future__ import annotations

from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Protocol

from ha_beat import events
from ha_beat.clock import Clock
from ha_beat.duties import Duties
from ha_beat.reasons import Duty
from ha_beat.threads import LastingThread

#: Seconds without progress after which the consumer counts as late.
_LATE_AFTER = 10.0

#: Seconds between two signs of life of an idle consumer.
_IDLE = 2.0


class Consumer(Protocol):
    """Subscriber that may wait."""

    def wants(self, event: events.Event, /) -> bool:
        """True if the event must be queued. Called by the emitter, so it must not wait."""
        ...

    def __call__(self, event: events.Event, /) -> None:
        """Consume the event. Called in the queue's thread."""
        ...


class EventQueue:
    """Subscriber that hands events to a consumer in a thread, in order. The emitter never waits.

    While the consumer blocks, up to ``size`` events wait; later ones are dropped and counted. The thread starts with
    the first event. :class:`~queue.SimpleQueue` takes no lock of Python's, so that a signal handler may emit.
    """

    def __init__(
        self, consumer: Consumer, name: str, duty: Duty, size: int, *, clock: Clock, hub: events.Events, duties: Duties
    ) -> None:
        """``name`` is the thread's. ``duty`` becomes late while the consumer blocks."""
        self._consumer = consumer
        self._duty = duty
        self._size = size
        self._duties = duties
        self._hub = hub
        self._waiting: SimpleQueue[events.Event | None] = SimpleQueue()
        self._dropped = self._reported = 0
        self._thread = LastingThread(name=name, run=self._run, clock=clock, emit=hub.emit)

    def __call__(self, event: events.Event) -> None:
        """Queue an event. Never waits."""
        if not self._consumer.wants(event):
            return
        if self._waiting.qsize() >= self._size:
            self._dropped += 1
        else:
            self._waiting.put(event)
        with suppress(RuntimeError):  # No thread can be started: the next event tries again.
            self._thread.keep_running()

    def close(self, seconds: float) -> None:
        """End the thread after the waiting events, and wait for it at most ``seconds``."""
        self._thread.stop()
        self._waiting.put(None)
        self._thread.join(seconds)

    def _run(self) -> None:
        self._duties.expect(self._duty, within=_LATE_AFTER)
        while True:
            try:
                event = self._waiting.get(timeout=_IDLE)
            except Empty:
                self._duties.done(self._duty)
                continue
            if event is None:
                return
            events.deliver(event, self._consumer)
            self._duties.done(self._duty)
            self._report_dropped()

    def _report_dropped(self) -> None:
        """Report how many events were dropped, once there is room again."""
        dropped = self._dropped
        if dropped > self._reported and self._waiting.qsize() < self._size // 2:
            self._hub.emit(events.EventsDropped(self._duty, dropped - self._reported))
            self._reported = dropped
