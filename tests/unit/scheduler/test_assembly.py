"""Assembly of a replica: its events reach every part that follows them."""

import logging
from types import SimpleNamespace
from typing import Any

from celery import Celery

from ha_beat import events, signals
from ha_beat.event_queue import EventQueue
from ha_beat.reasons import EntryFault, RequestKind, TermStart
from ha_beat.scheduler import HAScheduler
from tests.support.log_format import actions


def test_events_of_an_assembled_replica_reach_every_part(monkeypatch, caplog):
    pings: list[int] = []
    client = SimpleNamespace(ping=lambda: pings.append(1))
    link = SimpleNamespace(client=lambda: client, sharded=False)
    monkeypatch.setattr("ha_beat.bootstrap.lease_link", lambda *_: link)
    app = Celery("assembly", broker="redis://", set_as_current=False)
    app.conf.ha_beat_http_bind = "127.0.0.1:0"
    scheduler = HAScheduler(app, lazy=True)
    runtime: Any = scheduler._assemble()
    epochs: list[int] = []

    def gained(epoch: int, **_: Any) -> None:
        epochs.append(epoch)

    signals.leadership_gained.connect(gained, sender=app)
    caplog.set_level(logging.INFO, "ha_beat")
    runtime.events.emit(events.TermStarted(7, "", TermStart.NO_LEASE))
    runtime.events.emit(events.EntryFailed("e", EntryFault.REFUSED, "no right"))
    for subscriber in runtime.events._subscribers:
        if isinstance(subscriber, EventQueue):
            subscriber.close(10)
    signals.leadership_gained.disconnect(gained, sender=app)

    assert [action for action in actions(caplog) if action in {"term_started", "entry_failed"}] == [
        "term_started",
        "entry_failed",
    ]
    # The connection that releases the lease is ready before a signal handler needs it.
    assert (epochs, pings) == ([7], [1])
    report = runtime.request_handler._handlers[RequestKind.REPORT](None, None)
    assert set(report.data["failing"]) == set(runtime.monitoring.status.memory.failing) == {"e"}
    metrics = runtime.monitoring.http.site.answer("GET", "/metrics").body
    assert b"ha_beat_entry_failures_total 1.0" in metrics
