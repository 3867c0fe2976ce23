"""Queue between emitters and a consumer that may wait."""

import threading
import time
from collections.abc import Callable
from unittest.mock import Mock, patch

import pytest

from ha_beat import events
from ha_beat.clock import SystemClock
from ha_beat.duties import Duties
from ha_beat.event_queue import EventQueue
from ha_beat.reasons import Duty
from ha_beat.threads import LastingThread
from tests.support.events import EventLog
from tests.support.servers import wait_for


def numbered(number: int) -> events.LeaderSeen:
    return events.LeaderSeen("beat-1", number)


class Queued:
    """Queue whose consumer can be blocked."""

    def __init__(self, size: int = 10, consume: Callable[[events.Event], None] | None = None) -> None:
        self.open = threading.Event()
        self.open.set()
        self.taken, self.emitted = EventLog(), EventLog()
        self.hub = events.Events()
        self.duties = Duties(SystemClock(), self.hub.emit)
        self.consumer = Mock(side_effect=consume or self._take)
        parts = {"clock": SystemClock(), "hub": self.hub, "duties": self.duties}
        self.queue = EventQueue(self.consumer, "queued", Duty.WRITE_LOG, size, **parts)
        self.hub.subscribe(self.queue)
        self.hub.subscribe(self.emitted.append)

    def _take(self, event: events.Event) -> None:
        self.open.wait(30)
        self.taken.append(event)

    def emit(self, count: int) -> None:
        for number in range(count):
            self.hub.emit(numbered(number))


def test_events_arrive_in_order_before_the_queue_closes():
    queued = Queued(size=1000)
    queued.emit(500)
    queued.queue.close(10)
    assert [event.epoch for event in queued.taken.of(events.LeaderSeen)] == list(range(500))


def test_unwanted_event_does_not_start_the_thread():
    queued = Queued()
    queued.consumer.wants.return_value = False
    with patch.object(threading.Thread, "start") as start:
        queued.emit(3)
    queued.queue.close(0.1)
    assert (start.called, len(queued.taken)) == (False, 0)


def test_blocked_consumer_does_not_delay_the_emitter():
    queued = Queued(size=10)
    queued.open.clear()
    before = time.monotonic()
    queued.emit(50)
    queued.queue.close(0.1)
    assert time.monotonic() - before < 5
    queued.open.set()
    wait_for(lambda: queued.emitted.of(events.EventsDropped), 10, "the report")
    (dropped,) = queued.emitted.of(events.EventsDropped)
    assert 39 <= dropped.count <= 40
    assert len(queued.taken.of(events.LeaderSeen)) == 50 - dropped.count


def test_full_queue_is_consumed_once_the_thread_can_start(monkeypatch):
    queued = Queued(size=10)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", Mock(side_effect=RuntimeError("can't start new thread")))
        queued.emit(11)
    queued.emit(1)
    queued.queue.close(10)
    assert len(queued.taken.of(events.LeaderSeen)) == 10


def test_blocked_consumer_is_a_late_duty(monkeypatch):
    monkeypatch.setattr("ha_beat.event_queue._LATE_AFTER", 0.2)
    queued = Queued()
    queued.open.clear()
    queued.emit(1)
    wait_for(lambda: Duty.WRITE_LOG in queued.duties.late(), 10, "the late duty")
    queued.open.set()
    wait_for(lambda: Duty.WRITE_LOG not in queued.duties.late(), 10, "the end")
    queued.queue.close(10)


def test_failing_consumer_receives_the_next_events():
    seen: list[int] = []

    def consume(event: events.Event) -> None:
        seen.append(event.epoch)
        raise KeyError("a bug")

    queued = Queued(consume=consume)
    queued.emit(3)
    queued.queue.close(10)
    assert seen == [0, 1, 2]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_thread_that_ends_is_started_again():
    emitted, runs = EventLog(), []

    def run() -> None:
        runs.append(1)
        if len(runs) == 1:
            raise SystemExit("a library did it")
        time.sleep(60)

    thread = LastingThread(name="lasting", run=run, clock=SystemClock(), emit=emitted.append)

    def restarted() -> bool:
        thread.keep_running()
        return len(runs) == 2

    wait_for(restarted, 10, "another run")
    (restart,) = emitted.of(events.ThreadRestarted)
    assert (restart.thread_name, restart.detail) == ("lasting", "SystemExit: a library did it")
    thread.stop()


def test_stopped_thread_is_not_started_again():
    runs: list[int] = []
    thread = LastingThread(name="lasting", run=lambda: runs.append(1), clock=SystemClock(), emit=EventLog().append)
    thread.keep_running()
    thread.stop()
    for _ in range(2):
        thread.join(10)
        thread.keep_running()
    thread.join(10)
    assert runs == [1]
