"""Shadow of the ledger in a standby, fed from the journal of a real Redis."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ha_beat import events
from ha_beat.clock import SystemClock, to_micros
from ha_beat.duties import Duties
from ha_beat.election.elector import Elector
from ha_beat.election.states import Timing
from ha_beat.reasons import Duty, TermEnd
from ha_beat.store.keys import Keys
from ha_beat.store.ledger import LedgerRow
from ha_beat.store.shadow import Shadow, ShadowFeed
from ha_beat.testing import MemoryLeaseStore, MemoryPresence
from tests.support.events import EventLog
from tests.support.leases import replica
from tests.support.servers import RedisServer, wait_for

KEYS = Keys("feed")
NOW = datetime.now(UTC).replace(microsecond=0)
NEXT = NOW + timedelta(seconds=1)


class Followed:
    """A ledger, its journal and a shadow that follows them."""

    def __init__(self, server: RedisServer) -> None:
        self.client = server.client()
        self.shadow = Shadow()
        self.feed = ShadowFeed(lambda: self.client, KEYS, self.shadow, SystemClock())
        self.client.hset(KEYS.ledger, "m:gen", "g")

    def enqueue(self, entry: str, at: datetime, record: str | None = None, number: object = None) -> None:
        """Write as the script does, except for the given content or number of the journal's record."""
        self.client.hset(KEYS.ledger, f"e:{entry}", LedgerRow(at, "enqueued").encoded())
        n = self.client.hincrby(KEYS.ledger, "m:journal", 1)
        content = json.dumps({"verdict": "enqueued", "entry": entry, "base": to_micros(at)})
        self.client.xadd(KEYS.journal, {"n": n if number is None else number, "d": record or content})

    def position(self, entry: str = "e") -> datetime | None:
        """Return the shadow's position after a poll."""
        self.feed.poll()
        return self.shadow.position(entry)


@pytest.fixture
def followed(shared_redis: RedisServer) -> Followed:
    """The shadow has the entry ``e``."""
    made = Followed(shared_redis)
    made.enqueue("e", NOW)
    assert made.position() == NOW
    return made


@pytest.mark.parametrize(
    ("record", "number"),
    [
        *((record, None) for record in ("{", "[]", "7", '{"base": "soon", "entry": "e"}')),
        ('{"base": 1e300, "entry": "e"}', None),
        ('{"of": "another program"}', "none"),
    ],
)
def test_unreadable_record_makes_the_feed_read_the_ledger(followed: Followed, record: str, number: str | None):
    followed.enqueue("e", NEXT, record, number)
    assert followed.position() == NEXT
    followed.enqueue("e", NEXT + timedelta(seconds=1))
    assert followed.position() == NEXT + timedelta(seconds=1)


def test_trimmed_records_make_the_feed_read_the_ledger(followed: Followed):
    """Only their numbers show that some are missing."""
    followed.enqueue("e", NEXT)
    followed.client.xtrim(KEYS.journal, maxlen=0)
    followed.enqueue("other", NOW)
    assert followed.position() == NEXT


@pytest.mark.parametrize("records", [999, 1000, 10_000])
def test_burst_makes_the_feed_read_the_ledger_once(followed: Followed, monkeypatch, records: int):
    reads = []
    read = followed.feed._ledger.read
    monkeypatch.setattr(followed.feed._ledger, "read", lambda: reads.append(1) or read())
    with followed.client.pipeline(transaction=False) as pipe:
        for number in range(records):
            content = json.dumps({"verdict": "enqueued", "entry": f"e{number}", "base": to_micros(NEXT)})
            pipe.xadd(KEYS.journal, {"n": number + 2, "d": content})
            pipe.hset(KEYS.ledger, f"e:e{number}", LedgerRow(NEXT, "enqueued").encoded())
        pipe.hincrby(KEYS.ledger, "m:journal", records)
        pipe.execute()
    assert followed.position(f"e{records - 1}") == NEXT
    followed.enqueue("e", NEXT)
    for _ in range(10):
        assert followed.position("e") == NEXT
    assert len(reads) == (records >= 1000)


def test_deleted_journal_makes_the_feed_read_the_ledger(followed: Followed):
    followed.enqueue("e", NEXT)
    followed.client.delete(KEYS.journal)
    assert followed.position() == NEXT


def test_new_incarnation_of_the_ledger_moves_no_position_back(followed: Followed):
    followed.client.hset(KEYS.ledger, "m:gen", "another")
    followed.client.hset(KEYS.ledger, "e:e", LedgerRow(NOW - timedelta(seconds=9), "armed").encoded())
    followed.client.hset(KEYS.ledger, "e:f", LedgerRow(NOW, "armed").encoded())
    assert (followed.position("e"), followed.position("f"), followed.shadow.gen) == (NOW, NOW, "another")


def test_pauses_are_kept_until_a_leader_has_restored_them(followed: Followed):
    def pauses() -> set[str]:
        followed.feed.poll()
        return {raw for raw in followed.shadow.pauses.values() if raw}

    followed.client.hset(KEYS.ledger, mapping={"m:paused": "the pause", "m:paused_gen": "g"})
    assert pauses() == {"the pause"}
    followed.client.delete(KEYS.ledger)
    # A leader has acquired the lease and died.
    followed.client.hset(KEYS.ledger, "m:gen", "another")
    assert pauses() == {"the pause"}
    assert followed.shadow.paused_gen == "g"
    # The next one has restored the pause, and a user has ended it.
    followed.client.hset(KEYS.ledger, "m:paused_gen", "another")
    assert pauses() == set()
    assert followed.shadow.paused_gen == "another"


def test_standby_that_cannot_follow_campaigns():
    clock, seen = SystemClock(), EventLog()
    duties = Duties(clock, seen.append)
    store = MemoryLeaseStore(clock)

    def elector(name: str, emit: Any, **more: Any) -> Elector:
        timing = Timing(1.0, 0.2, 0.05, 30.0)
        made = Elector(store, MemoryPresence(store, clock), replica(name), timing, clock, emit, **more)
        made.start()
        return made

    def broken() -> None:
        raise KeyError("a bug")

    other = elector("leads", lambda _: None)
    wait_for(lambda: other.handle.term, 10, "a leader")
    follower = elector("follows", seen.append, follow=broken, duties=duties)
    try:
        wait_for(lambda: Duty.FOLLOW_JOURNAL in duties.late(), 10, "the failure")
        other.close(lambda term: store.release(term, TermEnd.SHUTDOWN))
        wait_for(lambda: follower.handle.term, 10, "the follower's term")
        assert not seen.of(events.ElectionFailed)
        assert Duty.FOLLOW_JOURNAL not in duties.late()
    finally:
        for made in (other, follower):
            made.close(lambda _: None)
