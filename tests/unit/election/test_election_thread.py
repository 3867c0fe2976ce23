"""Thread of the election: no exception, subscriber or refusal ends it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import Mock

import pytest

from ha_beat import events
from ha_beat.election.elector import Elector
from ha_beat.election.states import Leader
from ha_beat.errors import ForeignApp, StoreUnavailable
from ha_beat.testing import MemoryLeaseStore, MemoryPresence, SettableClock
from tests.support.events import EventLog
from tests.support.leases import replica
from tests.support.servers import wait_for
from tests.unit.election.electors import TIMING


@contextmanager
def running(emit: Callable[[events.Event], None]) -> Iterator[tuple[MemoryLeaseStore, Elector]]:
    """Run the thread of an elector whose clock advances as it waits, until it leads."""
    clock = SettableClock()
    store = MemoryLeaseStore(clock)
    elector = Elector(store, MemoryPresence(store, clock), replica(), replace(TIMING, stall_timeout=1e12), clock, emit)
    elector.start()
    try:
        wait_for(lambda: elector.handle.term, 10, "a first term")
        yield store, elector
    finally:
        elector.close(lambda _: None)


@pytest.mark.parametrize("method", ["observe", "acquire", "renew"])
@pytest.mark.parametrize("error", [ValueError("bug"), MemoryError(), StoreUnavailable("x"), OSError(5)])
def test_exception_ends_the_term_and_not_the_thread(method, error, monkeypatch):
    told = EventLog()
    with running(told.append) as (store, elector):
        with monkeypatch.context() as patch:
            patch.setattr(store, method, Mock(side_effect=error))

            def ended() -> bool:
                if method != "renew":
                    store.lose_state()  # again, as a renewal of this moment restores the lease
                return bool(told.of(events.TermEnded))

            wait_for(ended, 10, "the end of the term")
            time.sleep(0.05)  # many times the lease on the elector's clock
            if method != "renew":
                assert elector.handle.term is None
        wait_for(lambda: elector.handle.term, 15, "another term")
        assert elector.handle.running
    assert bool(told.of(events.ElectionFailed)) is not isinstance(error, StoreUnavailable)


def test_failing_subscriber_does_not_cost_the_lease():
    hub = events.Events()
    hub.subscribe(Mock(side_effect=RuntimeError("broken subscriber")))
    with running(hub.emit) as (store, elector):
        epoch = store.record.epoch
        time.sleep(0.05)
        assert elector.handle.term.epoch == epoch


def test_forbidden_replica_keeps_its_thread_and_does_not_lead(monkeypatch):
    told = EventLog()
    with running(told.append) as (store, elector):
        monkeypatch.setattr(store, "acquire", Mock(side_effect=ForeignApp("c", "ours", "theirs")))
        store.lose_state()
        wait_for(lambda: told.of(events.LeadingForbidden), 10, "the refusal")
        time.sleep(0.05)
        assert elector.handle.running
        assert not isinstance(elector.state, Leader)
