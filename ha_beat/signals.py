"""Signals that report events of the cluster to a project's own code.

Connect a handler in a module that the beat process imports, such as the one with the Celery app::

    from ha_beat.signals import leadership_lost, occurrence_uncertain, state_lost

    @state_lost.connect
    @occurrence_uncertain.connect
    def page_the_team(signal, **about):
        requests.post(PAGER_URL, json={"text": f"{signal.name}: {about}"}, timeout=5)

A handler receives the keyword arguments ``sender`` (the Celery app), ``cluster``, ``replica``, ``event`` (a frozen
dataclass) and those named at each signal. Accept ``**about``, because later versions may add arguments. A ``reason`` is
a code, such as ``"expired"``. Only the replica that the event happens to sends the signal.

A handler cannot harm the scheduler. All handlers run one after the other in one separate thread. If a handler raises,
the traceback is logged and the others still run. If a handler hangs, only later handlers wait: beyond ``QUEUE_SIZE``
waiting signals, further ones are dropped, counted and logged. A handler therefore needs its own timeouts (``timeout=5``
above) and must not be the only alert: alert on the metrics too. A process that is killed sends no signal, and one that
ends does not wait for its handlers.
"""

from __future__ import annotations

import logging
import queue
import threading
from typing import Any

from celery.utils.dispatch import Signal

from ha_beat import events as e

__all__ = [
    "leadership_gained",
    "leadership_lost",
    "occurrence_enqueued",
    "occurrence_skipped",
    "occurrence_uncertain",
    "state_lost",
    "paused",
    "resumed",
]

logger = logging.getLogger("ha_beat")

#: Most signals that wait for their handlers.
QUEUE_SIZE = 1000

leadership_gained = Signal(name="leadership_gained", providing_args=["epoch", "previous", "reason"])
"""This replica became leader. ``previous`` is the last leader; ``reason`` is why the lease was free."""

leadership_lost = Signal(name="leadership_lost", providing_args=["epoch", "reason", "led_for"])
"""This replica is no longer leader. ``led_for`` is in seconds. Not sent at shutdown."""

occurrence_enqueued = Signal(
    name="occurrence_enqueued", providing_args=["entry", "task", "task_id", "scheduled_at", "lateness"]
)
"""An occurrence was enqueued. ``lateness`` is in seconds. Not sent for manual runs and backfills."""

occurrence_skipped = Signal(name="occurrence_skipped", providing_args=["entry", "first", "until", "count", "reason"])
"""Due instants from ``first`` to before ``until`` were skipped. ``count`` is -1 if there are too many to count."""

occurrence_uncertain = Signal(
    name="occurrence_uncertain", providing_args=["entry", "scheduled_at", "task_id", "reason", "detail"]
)
"""The delivery of a message is unknown (only with brokers other than the lease's Redis)."""

state_lost = Signal(name="state_lost", providing_args=["reason"])
"""Redis lost the cluster's records. The setting ``ha_beat_on_state_loss`` decides what happens."""

paused = Signal(name="paused", providing_args=["since", "by", "reason"])
"""The cluster was paused. A new leader that finds it paused does not send it again."""

resumed = Signal(name="resumed", providing_args=["by", "after"])
"""The pause ended, ``after`` seconds after it began."""


def _signal_of(event: e.Event) -> tuple[Any, dict[str, Any]] | None:
    """Return the signal for an event, and its arguments."""
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
            return occurrence_skipped, {**about, "count": count, "reason": reason.value}
        case e.OccurrenceUncertain(entry, scheduled_at, task_id, reason, detail):
            about = {"entry": entry, "scheduled_at": scheduled_at, "task_id": task_id}
            return occurrence_uncertain, {**about, "reason": reason.value, "detail": detail}
        case e.StateLost(reason):
            return state_lost, {"reason": reason.value}
        case e.Paused(since, by, reason, found=False):
            return paused, {"since": since, "by": by, "reason": reason}
        case e.Resumed(by, after):
            return resumed, {"by": by, "after": after}
        case _:
            return None


class SignalRelay:
    """Subscriber to events that sends them as signals from a separate thread. The first signal starts the thread."""

    def __init__(self, app: Any, cluster: str, replica: str, queue_size: int = QUEUE_SIZE) -> None:
        self._app = app
        self._cluster = cluster
        self._replica = replica
        self._waiting: queue.Queue[tuple[e.Event, Any, dict[str, Any]] | None] = queue.Queue(queue_size)
        self._thread: threading.Thread | None = None
        self.dropped = 0

    def __call__(self, event: e.Event) -> None:
        """Queue an event for its handlers. Never waits and never raises."""
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
                logger.error(  # noqa: TRY400 -- the traceback of queue.Full says nothing
                    "Signal handlers are too slow: %d signals were dropped so far, the last one is %s",
                    self.dropped,
                    found[0].name,
                    extra={"action": "signal_dropped", "dropped": self.dropped, "signal": found[0].name},
                )

    def close(self, wait: float = 1.0) -> None:
        """End the thread after the waiting signals, and wait for it for at most ``wait`` seconds."""
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
                signal.send(sender=self._app, **about)
            except BaseException:
                extra = {"action": "signal_failed", "signal": signal.name}
                logger.exception("Sending the signal %s failed", signal.name, extra=extra)
