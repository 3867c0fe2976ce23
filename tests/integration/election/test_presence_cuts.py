"""Electors in threads whose presence connections are cut again and again."""

import time

import pytest

from ha_beat import events
from ha_beat.clock import SystemClock
from ha_beat.election.elector import Elector
from ha_beat.election.states import Timing
from ha_beat.store.keys import Keys
from ha_beat.store.lease_store import RedisLeaseStore
from ha_beat.store.presence import RedisPresence
from tests.support.events import EventLog
from tests.support.leases import replica
from tests.support.servers import RedisServer, wait_for

FAST = Timing(ttl=2.0, renew_interval=0.1, poll_interval=0.05, stall_timeout=30.0)


@pytest.mark.slow
def test_presence_cut_twice_a_second_does_not_cost_the_lease(shared_redis: RedisServer):
    """A proxy may kill idle subscribers. A change of leader for each cut would be a storm."""
    keys, clock, told = Keys("flapping"), SystemClock(), EventLog()
    electors = []
    for name in ("one", "two"):
        client = shared_redis.client()
        store = RedisLeaseStore(lambda client=client: client, keys)
        presence = RedisPresence(lambda client=client: client, keys, clock, ping_interval=1.0)
        electors.append(Elector(store, presence, replica(name), FAST, clock, told.append))
        electors[-1].start()
    try:
        wait_for(lambda: any(elector.handle.term for elector in electors), 10, "a leader")
        time.sleep(0.5)
        for _ in range(12):
            for elector in electors:
                elector.handle.progress()
            shared_redis.admin.client_kill_filter(_type="pubsub")
            time.sleep(0.5)
        assert wait_for(lambda: sum(elector.handle.term is not None for elector in electors) == 1, 10, "one leader")
        assert len(told.of(events.TermStarted)) <= 4, told
        assert told.of(events.PresenceLost), "nothing was cut"
    finally:
        for elector in electors:
            elector.close(lambda _: None)
