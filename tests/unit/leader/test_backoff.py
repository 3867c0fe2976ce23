"""Back-off: each failure of a batch is an event, and the first in a row is logged."""

import pytest

from ha_beat import events
from ha_beat.errors import StoreRefused, StoreUnavailable
from ha_beat.leader.batches.backoff import Backoff, BrokerOutOfReach
from ha_beat.monitoring.logs import LogWriter
from ha_beat.testing import SettableClock
from tests.support.events import EventLog
from tests.support.log_format import actions

AWAY = StoreUnavailable("away")


def test_each_failure_is_an_event_and_the_first_in_a_row_is_logged(caplog):
    """A metric of the events must grow during an outage."""
    caplog.set_level("DEBUG", "ha_beat")
    clock, told, hub = SettableClock(), EventLog(), events.Events()
    hub.subscribe(told.append)
    hub.subscribe(LogWriter("replica", "shop"))
    backoff = Backoff(clock, hub.emit, handover_after=60.0)
    for _ in range(5):
        clock.advance(backoff.failed(AWAY, 3))
    backoff.succeeded()
    backoff.failed(AWAY, 3)
    assert told == [events.DispatchFailed(3, "away", tries) for tries in (1, 2, 3, 4, 5, 1)]
    assert actions(caplog) == ["dispatch_failed"] * 2


def test_error_that_each_replica_would_meet_hands_nothing_over():
    """A full Redis, for example. The time counts from the first other error."""
    clock, told = SettableClock(), EventLog()
    backoff = Backoff(clock, told.append, handover_after=5.0)
    full = StoreRefused("full")
    full.same_for_all = True
    for _ in range(100):
        backoff.failed(full, 1)
        clock.advance(1)
    for _ in range(6):
        backoff.failed(AWAY, 1)
        clock.advance(1)
    with pytest.raises(BrokerOutOfReach):
        backoff.failed(AWAY, 1)


def test_failure_that_hands_over_is_an_event_too():
    clock, told = SettableClock(), EventLog()
    backoff = Backoff(clock, told.append, handover_after=5.0)
    backoff.failed(AWAY, 1)
    clock.advance(6)
    with pytest.raises(BrokerOutOfReach):
        backoff.failed(AWAY, 1)
    assert len(told) == 2
