"""A standby's shadow of the ledger, on a real Redis: kept from the journal, and never at the election's cost."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ha_beat import events
from ha_beat.clock import SystemClock, to_micros
from ha_beat.election.elector import Elector
from ha_beat.election.state_machine import Timing
from ha_beat.reasons import TermEnd
from ha_beat.store.keys import Keys
from ha_beat.store.lease import Replica
from ha_beat.store.ledger import LedgerRow
from ha_beat.store.shadow import Shadow, ShadowFeed
from ha_beat.testing import MemoryLeaseStore, MemoryPresence
from tests.support.servers import RedisServer, wait_for

KEYS = Keys("feed")
NOW = datetime.now(UTC).replace(microsecond=0)


@dataclass
class Desk:
    """A ledger, its journal and a shadow that follows them."""

    client: Any
    shadow: Shadow = field(default_factory=Shadow)

    def __post_init__(self) -> None:
        self.feed = ShadowFeed(lambda: self.client, KEYS, self.shadow, SystemClock())
        self.client.hset(KEYS.ledger, "m:gen", "g")

    def enqueue(self, entry: str, at: datetime, record: str | None = None, number: object = None) -> None:
        """As the script would; ``record`` and ``number`` are of another hand."""
        self.client.hset(KEYS.ledger, f"e:{entry}", LedgerRow(at, "enqueued").encoded())
        n = self.client.hincrby(KEYS.ledger, "m:journal", 1)
        content = json.dumps({"verdict": "enqueued", "entry": entry, "base": to_micros(at)})
        self.client.xadd(KEYS.journal, {"n": n if number is None else number, "d": record or content})


@pytest.fixture
def desk(shared_redis: RedisServer) -> Desk:
    return Desk(shared_redis.client())


@pytest.mark.parametrize("record", ["{", "[]", "7", '{"base": "soon", "entry": "e"}', '{"base": 1e300, "entry": "e"}'])
def test_a_record_that_cannot_be_read_makes_it_read_the_ledger(desk: Desk, record: str) -> None:
    desk.enqueue("e", NOW)
    desk.feed.poll()
    desk.enqueue("e", NOW + timedelta(seconds=1), record=record)
    desk.feed.poll()
    assert desk.shadow.position("e") == NOW + timedelta(seconds=1)
    desk.enqueue("e", NOW + timedelta(seconds=2))
    desk.feed.poll()
    assert desk.shadow.position("e") == NOW + timedelta(seconds=2)


def test_a_record_without_a_number_makes_it_read_the_ledger(desk: Desk) -> None:
    desk.enqueue("e", NOW)
    desk.feed.poll()
    desk.enqueue("e", NOW + timedelta(seconds=1), record='{"of": "somebody else"}', number="none")
    desk.feed.poll()
    assert desk.shadow.position("e") == NOW + timedelta(seconds=1)


def test_trimmed_records_make_the_feed_read_the_ledger(desk: Desk) -> None:
    """The stream does not say that some are missing; their numbers do."""
    desk.enqueue("e", NOW)
    desk.feed.poll()
    desk.enqueue("e", NOW + timedelta(seconds=1))
    desk.client.xtrim(KEYS.journal, maxlen=0)
    desk.enqueue("other", NOW)
    desk.feed.poll()
    assert desk.shadow.position("e") == NOW + timedelta(seconds=1)


def test_a_journal_that_is_gone_altogether_makes_it_read_the_ledger(desk: Desk) -> None:
    desk.enqueue("e", NOW)
    desk.feed.poll()
    desk.enqueue("e", NOW + timedelta(seconds=1))
    desk.client.delete(KEYS.journal)
    desk.feed.poll()
    assert desk.shadow.position("e") == NOW + timedelta(seconds=1)


def test_new_incarnation_of_the_ledger_moves_no_position_back(desk: Desk) -> None:
    desk.enqueue("e", NOW)
    desk.feed.poll()
    desk.client.hset(KEYS.ledger, "m:gen", "another")
    desk.client.hset(KEYS.ledger, "e:e", LedgerRow(NOW - timedelta(seconds=9), "armed").encoded())
    desk.client.hset(KEYS.ledger, "e:f", LedgerRow(NOW, "armed").encoded())
    desk.feed.poll()
    assert (desk.shadow.gen, desk.shadow.position("e"), desk.shadow.position("f")) == ("another", NOW, NOW)


def test_a_standby_that_cannot_follow_still_campaigns() -> None:
    """A failure in following is reported once, and the election continues."""
    clock = SystemClock()
    told: list[events.Event] = []
    store = MemoryLeaseStore(clock)
    other = Elector(
        store,
        MemoryPresence(store, clock),
        Replica("leads", "host", 1, "0", "app"),
        Timing(1.0, 0.2, 0.05, 30.0),
        clock,
        lambda _: None,
    )
    other.start()
    wait_for(lambda: other.handle.term, 10, "a leader")

    def broken() -> None:
        raise KeyError("a bug")

    follower = Elector(
        store,
        MemoryPresence(store, clock),
        Replica("follows", "host", 2, "0", "app"),
        Timing(1.0, 0.2, 0.05, 30.0),
        clock,
        told.append,
        follow=broken,
    )
    follower.start()
    try:
        wait_for(lambda: any(isinstance(event, events.FollowFailed) for event in told), 10, "word of it")
        other.close(lambda term: store.release(term, TermEnd.SHUTDOWN))
        wait_for(lambda: follower.handle.term, 10, "its turn")
        assert not any(isinstance(event, events.ElectionFailed) for event in told)
        assert sum(isinstance(event, events.FollowFailed) for event in told) == 1
    finally:
        for elector in (other, follower):
            elector.close(lambda _: None)
