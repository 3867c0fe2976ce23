"""Lease marker: two stores for one cluster's lease refuse each other, and one store is never refused.

The broker and the two stores are three databases of a real Redis.
"""

from dataclasses import replace
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ha_beat import events
from ha_beat.dispatch import FencedOff, lease_marker
from ha_beat.dispatch.lease_marker import LeaseMark, LeaseMarker, read_mark
from ha_beat.duties import Duties
from ha_beat.errors import StoreUnavailable
from ha_beat.reasons import Duty, DutyFault, ForbiddenReason, TermEnd
from ha_beat.store.connections import WatchedClient
from ha_beat.store.keys import Keys
from ha_beat.store.lease import Term
from ha_beat.testing import SettableClock
from tests.support.servers import RedisServer, free_port

KEYS = Keys("marked")
TTL = 4.0
#: Seconds without a move after which a marker is abandoned.
LIFETIME = 2 * TTL + 1
#: Term after the server process and the records were replaced.
RESTARTED = {"gen": "gen after", "run_id": "another", "nonce": "another"}


class Side:
    """Replica with its own store, and a term there."""

    def __init__(self, server: RedisServer, db: int, name: str, clock: SettableClock | None = None) -> None:
        self.server = server
        self.broker: Any = server.client(db=0)
        self.store: Any = server.client(db=db)
        self.clock = clock or SettableClock()
        self.reported: list[events.Event] = []
        self.term = Term(name, 1, f"nonce {name}", f"gen {db}", server.admin.info("server")["run_id"], 1e9)
        self.store.hset(KEYS.ledger, "m:gen", self.term.gen)
        own = LeaseMark("", name=f"redis://{name}:6379/{db}", ttl_ms=round(TTL * 1000), holder=f"replica {name}")
        self.duties = Duties(self.clock, self.reported.append)
        self.marker = LeaseMarker(
            lambda: self.broker, lambda: self.store, KEYS, own, self.clock, self.reported.append, self.duties
        )

    def become(self, **changes: str) -> None:
        """Begin another term, on a store with the term's incarnation."""
        self.term = replace(self.term, **changes)
        self.store.hset(KEYS.ledger, "m:gen", self.term.gen)

    def require(self) -> None:
        self.marker.require(self.term)

    def keep(self) -> None:
        self.marker.refresh(self.term)

    def may_campaign(self) -> bool:
        self.clock.advance(1)
        self.marker.observe_as_standby()
        return self.marker.may_campaign()


@pytest.fixture
def one(shared_redis: RedisServer) -> Side:
    return Side(shared_redis, 1, "one")


@pytest.fixture
def two(shared_redis: RedisServer, one: Side) -> Side:
    return Side(shared_redis, 2, "two", one.clock)


def test_replica_does_not_campaign_before_its_first_check(one: Side):
    assert not one.marker.may_campaign()
    assert one.may_campaign()


def test_second_store_is_refused_and_the_error_names_both(one: Side, two: Side):
    """Its leader is refused, and its standbys, which report the other store once."""
    one.require()
    assert not two.may_campaign()
    assert not two.may_campaign()
    with pytest.raises(FencedOff) as caught:
        two.require()
    (reported,) = two.reported
    assert isinstance(reported, events.LeadingForbidden)
    assert (reported.reason, caught.value.reason) == (ForbiddenReason.OTHER_STORE, TermEnd.FORBIDDEN)
    for text in (reported.detail, str(caught.value)):
        for part in ("redis://one:6379/1", "redis://two:6379/2", "replica one", KEYS.store, "'marked'"):
            assert part in text
    one.require()
    assert one.may_campaign()


def test_marker_that_moves_is_never_abandoned(one: Side, two: Side):
    for _ in range(20):
        one.keep()
        assert not two.may_campaign()


def test_abandoned_marker_is_replaced(one: Side, two: Side):
    """The lease was moved. If the old store's leader returns, it is refused."""
    one.require()
    assert not two.may_campaign()
    two.clock.advance(LIFETIME)
    assert two.may_campaign()
    two.require()
    with pytest.raises(FencedOff, match="redis://two"):
        one.require()
    assert not one.may_campaign()


def test_marker_that_moved_since_the_last_check_is_not_replaced(one: Side, two: Side):
    """Only the marker that was watched may be replaced."""
    one.require()
    two.may_campaign()
    two.clock.advance(LIFETIME + 1)
    assert two.marker.may_campaign()
    one.require()
    with pytest.raises(FencedOff):
        two.require()
    assert not two.marker.may_campaign()


def test_deleted_marker_permits_the_other_store_without_a_wait(one: Side, two: Side):
    one.require()
    assert not two.may_campaign()
    two.broker.delete(KEYS.store)
    assert two.may_campaign()
    two.require()


def test_other_store_whose_marker_returns_is_reported_again(one: Side, two: Side):
    for _ in range(2):
        one.require()
        assert not two.may_campaign()
        two.broker.delete(KEYS.store)
        assert two.may_campaign()
    assert len(two.reported) == 2


def test_standby_reads_the_marker_once_per_second(one: Side, monkeypatch: pytest.MonkeyPatch):
    reads: list[float] = []
    monkeypatch.setattr(lease_marker, "read_mark", lambda *_: reads.append(one.clock.elapsed()))
    for _ in range(10):
        one.clock.advance(0.25)
        one.marker.observe_as_standby()
    assert len(reads) == 3


def test_flushed_store_is_the_same_store(one: Side):
    """It has the same server process and database, so that no wait is needed."""
    one.require()
    one.become(gen="gen after", nonce="next")
    assert one.may_campaign()
    one.require()
    one.store.delete(KEYS.ledger)
    assert one.may_campaign()


def test_store_after_a_failover_is_the_same_store(one: Side):
    """Another server has the same records."""
    one.require()
    one.become(run_id="the replica's", nonce="next")
    one.require()
    assert one.may_campaign()


def test_store_that_restarted_empty_waits(one: Side, two: Side):
    """It cannot be distinguished from another store."""
    one.require()
    two.become(**RESTARTED)
    assert not two.may_campaign()
    two.clock.advance(LIFETIME)
    assert two.may_campaign()
    two.require()


def lost_but_for_a_late_mark(one: Side) -> Side:
    """Return another replica of a store that restarted empty, after one more write by the old leader."""
    one.term = replace(one.term, run_id="before")
    other = Side(one.server, 1, "one's standby", one.clock)
    one.require()
    assert other.may_campaign()
    one.broker.delete(KEYS.store)
    one.clock.advance(TTL)
    one.require()
    other.become(**RESTARTED)
    return other


def test_late_marker_before_a_loss_delays_by_its_lifetime_at_most(one: Side):
    """A standby that took this marker for its own store's would restart the wait at each check."""
    other = lost_but_for_a_late_mark(one)
    began = one.clock.elapsed()
    while one.clock.elapsed() < began + 3 * LIFETIME:
        if other.may_campaign():
            try:
                other.require()
            except FencedOff:
                continue
            break
    assert LIFETIME <= one.clock.elapsed() - began < LIFETIME + 3


def test_marker_of_a_registered_replica_is_of_the_same_store(one: Side):
    """A replica has one store, and its id is unique."""
    other = lost_but_for_a_late_mark(one)
    one.store.hset(KEYS.members, "replica one", "{}")
    assert other.may_campaign()
    other.require()
    assert read_mark(other.broker, KEYS).gen == other.term.gen


def test_marker_is_written_once_per_quarter_of_a_lease(one: Side):
    one.require()
    before = read_mark(one.broker, KEYS)
    for _ in range(50):
        one.require()
        one.keep()
    assert read_mark(one.broker, KEYS) == before
    one.clock.advance(TTL / 4)
    one.keep()
    assert read_mark(one.broker, KEYS) != before


def test_marker_that_cannot_be_kept_prevents_dispatch(one: Side):
    """The other store may replace the marker while the broker is unreachable."""
    one.require()
    good = one.broker
    one.broker = redis.Redis(port=free_port(), retry=Retry(NoBackoff(), 0))
    one.require()
    one.clock.advance(TTL / 4)
    one.keep()
    with pytest.raises(StoreUnavailable) as caught:
        one.require()
    assert not caught.value.acted
    assert Duty.MARK_LEASE in one.duties.late()
    one.broker = good
    one.require()
    assert one.duties.late() == {}


def test_standby_is_not_late_with_the_marker(one: Side):
    good = one.broker
    one.broker = redis.Redis(port=free_port(), retry=Retry(NoBackoff(), 0))
    with pytest.raises(StoreUnavailable):
        one.require()
    one.broker = good
    assert one.may_campaign()
    assert one.duties.late() == {}


def test_missing_right_disables_the_marker(redis_server: RedisServer):
    side = Side(redis_server, 1, "one")
    redis_server.admin.execute_command("ACL", "SETUSER", "poor", "on", ">pw", "~celery", "+@all")
    side.broker = redis_server.client(db=0, username="poor", password="pw")
    assert side.may_campaign()
    side.require()
    side.clock.advance(TTL)
    side.require()
    late = side.duties.late()[Duty.MARK_LEASE]
    assert late.reason is DutyFault.REFUSED
    assert "NOPERM" in late.detail


def test_marker_is_read_after_its_idle_connection_was_closed(one: Side):
    one.require()
    client = WatchedClient(one.server.client(db=0).connection_pool)
    mark = read_mark(client, KEYS)
    one.server.admin.client_kill_filter(_type="normal", skipme=True)
    assert read_mark(client, KEYS) == mark
