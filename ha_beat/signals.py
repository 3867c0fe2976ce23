"""Signals that report events of the cluster to a project's own code.

Connect a handler in a module that the beat process imports, such as the one with the Celery app::

    from ha_beat.signals import leadership_lost, occurrence_uncertain, state_lost

    @state_lost.connect
    @occurrence_uncertain.connect
    def page_the_team(signal, **about):
        requests.post(PAGER_URL, json={"text": f"{signal.name}: {about}"}, timeout=5)

A handler receives the keyword arguments ``sender`` (the Celery app), ``cluster``, ``replica``, ``event`` (a frozen
dataclass) and those named at each signal. Accept ``**about``, because later versions may add arguments. A ``reason`` is
a code, such as ``"expired"``. A signal is sent only on the replica on which the event happens.

A handler cannot harm the scheduler. All handlers run in one separate thread, one after the other. If a handler raises,
the traceback is logged and the others still run. If a handler hangs, later handlers wait. When 1000 signals wait,
further ones are dropped, counted and logged. A handler therefore needs its own timeouts (``timeout=5`` above), and must
not be the only alert: alert on the metrics too. A process that is killed sends no signal, and a process that ends does
not wait for its handlers.
"""

from __future__ import annotations

import logging
from enum import StrEnum
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


_SIGNALS: dict[type[e.Event], Any] = {
    e.TermStarted: leadership_gained,
    e.TermEnded: leadership_lost,
    e.Enqueued: occurrence_enqueued,
    e.OccurrenceSkipped: occurrence_skipped,
    e.OccurrenceUncertain: occurrence_uncertain,
    e.StateLost: state_lost,
    e.Paused: paused,
    e.Resumed: resumed,
}


class SignalRelay:
    """Consumer of events that sends them as signals. Handlers may take long, so it runs in a thread."""

    def __init__(self, app: Any, cluster: str, replica: str) -> None:
        self._app = app
        self._about = {"cluster": cluster, "replica": replica}

    def wants(self, event: e.Event) -> bool:
        """True if a handler is connected to the event's signal."""
        signal = _SIGNALS.get(type(event))
        return signal is not None and bool(signal.receivers) and not (isinstance(event, e.Paused) and event.found)

    def __call__(self, event: e.Event) -> None:
        """Send the signal of a wanted event, with the event's fields of the same names. Never raises."""
        if not self.wants(event):
            return
        signal = _SIGNALS[type(event)]
        values = {name: getattr(event, name) for name in signal.providing_args}
        codes = {name: value.value if isinstance(value, StrEnum) else value for name, value in values.items()}
        try:
            signal.send(sender=self._app, **self._about, event=event, **codes)
        except BaseException:
            extra = {"action": "signal_failed", "signal": signal.name}
            logger.exception("Sending the signal %s failed", signal.name, extra=extra)
