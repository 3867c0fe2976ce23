"""Signals: what a project can connect to, to be told when something happens to the cluster.

Connect a handler in a module that the beat process imports (the one with the Celery app will do)::

    from ha_beat.signals import leadership_lost, occurrence_uncertain, state_lost

    @state_lost.connect
    @occurrence_uncertain.connect
    def page_somebody(signal, **about):
        requests.post(PAGER_URL, json={"text": f"{signal.name}: {about}"}, timeout=5)

Every handler gets keyword arguments: ``sender`` (the Celery app), ``cluster``, ``replica``, ``event`` (the frozen
dataclass of :mod:`ha_beat.events`) and those named at each signal; take ``**about`` for the ones to come. Only the
replica to which something happens sends the signal.

A handler can't hurt the scheduler. Handlers run in one thread of their own, one after the other, and in no other.
One that raises is logged, with its traceback, and the others still run. One that hangs keeps later handlers waiting,
and nothing else: beyond ``QUEUE_SIZE`` waiting signals, further ones are dropped, counted and logged. So a handler
has to bound its own waits (``timeout=5`` above), and must not be the only way in which an incident is noticed: alert
on the metrics as well. A signal is sent after the fact; a process that is killed sends none, and one that ends does
not wait for its handlers.
"""

from __future__ import annotations

import logging
import queue
import threading
from typing import Any

from celery.utils.dispatch import Signal

from ha_beat import events as e

logger = logging.getLogger("ha_beat")

#: So many signals wait for their handlers at most.
QUEUE_SIZE = 1000

leadership_gained = Signal(name="leadership_gained", providing_args=["epoch", "previous", "reason"])
"""This replica leads. ``previous`` led before, ``reason``: why the lease was free."""

leadership_lost = Signal(name="leadership_lost", providing_args=["epoch", "reason", "led_for"])
"""This replica leads no more, by its own choice (a step-down) or not. ``led_for`` in seconds. Not sent at shutdown."""

occurrence_enqueued = Signal(
    name="occurrence_enqueued", providing_args=["entry", "task", "task_id", "scheduled_at", "lateness"]
)
"""An occurrence was enqueued. ``lateness`` in seconds. Manual runs and backfills are not occurrences that fell due."""

occurrence_skipped = Signal(name="occurrence_skipped", providing_args=["entry", "first", "until", "count", "reason"])
"""Due instants from ``first`` up to, not including, ``until`` get no message; ``count`` is -1 for too many to count."""

occurrence_uncertain = Signal(
    name="occurrence_uncertain", providing_args=["entry", "scheduled_at", "task_id", "reason", "detail"]
)
"""The outcome of a publish is unknown (only with brokers other than the lease's Redis)."""

state_lost = Signal(name="state_lost", providing_args=["reason"])
"""Redis lost what the cluster had recorded. What follows is the setting ``ha_beat_on_state_loss``."""

paused = Signal(name="paused", providing_args=["since", "by", "reason"])
"""Somebody has paused the cluster. Not sent again by a leader that finds it paused."""

resumed = Signal(name="resumed", providing_args=["by", "after"])
"""The pause is over, after so many seconds."""

ALL = (
    leadership_gained,
    leadership_lost,
    occurrence_enqueued,
    occurrence_skipped,
    occurrence_uncertain,
    state_lost,
    paused,
    resumed,
)


def _signal_of(event: e.Event) -> tuple[Any, dict[str, Any]] | None:
    """The signal that an event is sent as, and its arguments."""
    about: dict[str, Any]
    match event:
        case e.TermStarted(epoch, previous, reason):
            return leadership_gained, {"epoch": epoch, "previous": previous, "reason": reason.value}
        case e.TermEnded(epoch, reason, led_for):
            return leadership_lost, {"epoch": epoch, "reason": reason.value, "led_for": led_for}
        case e.Enqueued(entry, task, task_id, scheduled_at, lateness):
            about = {"entry": entry, "task": task, "task_id": task_id}
            return occurrence_enqueued, {**about, "scheduled_at": scheduled_at, "lateness": lateness}
        case e.OccurrenceSkipped(entry, first, until, count, reason):
            about = {"entry": entry, "first": first, "until": until}
            return occurrence_skipped, {**about, "count": count, "reason": reason}
        case e.OccurrenceUncertain(entry, scheduled_at, task_id, reason, detail):
            about = {"entry": entry, "scheduled_at": scheduled_at, "task_id": task_id}
            return occurrence_uncertain, {**about, "reason": reason, "detail": detail}
        case e.StateLost(reason):
            return state_lost, {"reason": reason}
        case e.Paused(since, by, reason, found=False):
            return paused, {"since": since, "by": by, "reason": reason}
        case e.Resumed(by, after):
            return resumed, {"by": by, "after": after}
        case _:
            return None


class SignalRelay:
    """Subscribes to events, and sends them as signals from a thread of its own, which starts with the first one."""

    def __init__(self, app: Any, cluster: str, replica: str, queue_size: int = QUEUE_SIZE) -> None:
        self._app = app
        self._cluster = cluster
        self._replica = replica
        self._waiting: queue.Queue[tuple[e.Event, Any, dict[str, Any]] | None] = queue.Queue(queue_size)
        self._thread: threading.Thread | None = None
        self.dropped = 0

    def __call__(self, event: e.Event) -> None:
        """Take in an event. Never waits and never raises for a handler's sake."""
        found = _signal_of(event)
        if found is None or not found[0].receivers:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="ha_beat-signals", daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait((event, *found))
        except queue.Full:
            self.dropped += 1
            if self.dropped == 1 or self.dropped % 1000 == 0:
                logger.error(  # noqa: TRY400 -- that the queue is full is no news
                    "Signal handlers are too slow: %d signals were dropped so far, the last one is %s",
                    self.dropped,
                    found[0].name,
                    extra={"action": "signal_dropped", "dropped": self.dropped, "signal": found[0].name},
                )

    def close(self, wait: float = 1.0) -> None:
        """End the thread once what waits is handled, and wait for it so many seconds at most."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            return
        thread.join(wait)

    def _run(self) -> None:
        while (found := self._waiting.get()) is not None:
            event, signal, about = found
            about = {"cluster": self._cluster, "replica": self._replica, "event": event, **about}
            try:
                # Catches what handlers raise, and logs it.
                signal.send(sender=self._app, **about)
            except BaseException:
                extra = {"action": "signal_failed", "signal": signal.name}
                logger.exception("Sending the signal %s failed", signal.name, extra=extra)
