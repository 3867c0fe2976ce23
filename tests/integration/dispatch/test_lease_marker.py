"""The mark in the broker's Redis: two stores for one cluster's lease refuse each other, and one store is never refused.

The broker and the two stores are three databases of a real Redis, but for what concerns servers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import redis

from ha_beat import events
from ha_beat.dispatch import FencedOff
from ha_beat.dispatch.lease_marker import LeaseMark, LeaseMarker, read_mark
from ha_beat.errors import StoreUnavailable
from ha_beat.store.keys import Keys
from ha_beat.store.lease import Term
from ha_beat.testing import SettableClock
from tests.support.servers import RedisServer, free_port

KEYS = Keys("marked")
TTL = 4.0
#: After so long without a move a mark is nobody's.
PATIENCE = 2 * TTL + 1


class Side:
    """A replica with its store, in a database of its own, and a term there."""

    def __init__(self, server: RedisServer, db: int, name: str, clock: SettableClock | None = None) -> None:
        self.server = server
        self.broker: Any = server.client(db=0)
        self.store: Any = server.client(db=db)
        self.clock = clock or SettableClock()
        self.told: list[events.Event] = []
        self.term = Term(name, 1, f"nonce {name}", f"gen {db}", server.admin.info("server")["run_id"], 1e9)
        self.store.hset(KEYS.ledger, "m:gen", self.term.gen)
        own = LeaseMark("", name=f"redis://{name}:6379/{db}", ttl_ms=round(TTL * 1000), holder=f"replica {name}")
        self.mark = LeaseMarker(lambda: self.broker, lambda: self.store, KEYS, own, self.clock, self.told.append)

    def restarted(self) -> None:
        """Its server is another process, and its records are others."""
        self.term = replace(self.term, gen="gen after", run_id="another", nonce="another")
        self.store.hset(KEYS.ledger, "m:gen", self.term.gen)

    def looks(self) -> bool:
        self.clock.advance(1)
        self.mark.check()
        return self.mark.permits()


@pytest.fixture
def one(shared_redis: RedisServer) -> Side:
    return Side(shared_redis, 1, "one")


@pytest.fixture
def two(shared_redis: RedisServer, one: Side) -> Side:
    return Side(shared_redis, 2, "two", one.clock)


def test_a_replica_does_not_campaign_before_it_has_looked(one: Side) -> None:
    assert not one.mark.permits()
    assert one.looks()


def test_another_stores_leader_is_left_alone_and_both_are_named(one: Side, two: Side) -> None:
    """By the leader of the second store, and by its standbys, who say so once."""
    one.mark.require(one.term)
    assert not two.looks()
    assert not two.looks()
    with pytest.raises(FencedOff) as caught:
        two.mark.require(two.term)
    (told,) = two.told
    assert isinstance(told, events.LeadingForbidden)
    for text in (told.detail, str(caught.value)):
        for part in ("redis://one:6379/1", "redis://two:6379/2", "replica one", KEYS.store, "'marked'"):
            assert part in text
    one.mark.require(one.term)
    assert one.looks()


def test_a_mark_that_moves_is_never_stale(one: Side, two: Side) -> None:
    for _ in range(20):
        one.mark.keep(one.term)
        assert not two.looks()


def test_a_mark_that_nobody_keeps_is_taken_over(one: Side, two: Side) -> None:
    """The lease was moved. The old store's leader, should it come back, is refused in its turn."""
    one.mark.require(one.term)
    assert not two.looks()
    two.clock.advance(PATIENCE)
    assert two.looks()
    two.mark.require(two.term)
    with pytest.raises(FencedOff, match="redis://two"):
        one.mark.require(one.term)
    assert not one.looks()


def test_a_mark_that_moved_while_nobody_looked_is_not_taken_over(one: Side, two: Side) -> None:
    """What is taken over is the mark that was watched, and no other."""
    one.mark.require(one.term)
    two.looks()
    two.clock.advance(PATIENCE + 1)
    assert two.mark.permits()
    one.mark.require(one.term)
    with pytest.raises(FencedOff):
        two.mark.require(two.term)
    assert not two.mark.permits()


def test_the_way_out_that_the_error_names(one: Side, two: Side) -> None:
    """The key is deleted: at once."""
    one.mark.require(one.term)
    assert not two.looks()
    two.broker.delete(KEYS.store)
    assert two.looks()
    two.mark.require(two.term)


def test_a_store_that_was_flushed_is_the_same_store(one: Side) -> None:
    """The server process and the database tell: nothing waits for the mark to grow old."""
    one.mark.require(one.term)
    one.term = replace(one.term, gen="gen after", nonce="next")
    one.store.hset(KEYS.ledger, "m:gen", one.term.gen)
    assert one.looks()
    one.mark.require(one.term)
    one.store.delete(KEYS.ledger)
    assert one.looks()


def test_a_store_that_moved_with_its_records_is_the_same_store(one: Side) -> None:
    """After a failover another server has them."""
    one.mark.require(one.term)
    one.term = replace(one.term, run_id="the replica's", nonce="next")
    one.mark.require(one.term)
    assert one.looks()


def test_a_store_that_restarted_without_its_records_waits(one: Side, two: Side) -> None:
    """It can't be told from another one."""
    one.mark.require(one.term)
    two.restarted()
    assert not two.looks()
    two.clock.advance(PATIENCE)
    assert two.looks()
    two.mark.require(two.term)


def lost_but_for_a_late_mark(one: Side) -> Side:
    """Redis restarts empty, and its leader keeps its mark once more before it hears of it. Another replica of its."""
    one.term = replace(one.term, run_id="before")
    other = Side(one.server, 1, "one's standby", one.clock)
    one.mark.require(one.term)
    assert other.looks()
    one.broker.delete(KEYS.store)
    one.clock.advance(TTL)
    one.mark.require(one.term)
    other.restarted()
    return other


def test_a_late_mark_of_ones_own_store_before_a_loss_is_waited_out_at_most(one: Side) -> None:
    """Not for ever: a standby that took it for its store's own, as it had been, began to wait anew at each look."""
    other = lost_but_for_a_late_mark(one)
    began = one.clock.elapsed()
    while one.clock.elapsed() < began + 3 * PATIENCE:
        if other.looks():
            try:
                other.mark.require(other.term)
            except FencedOff:
                continue
            break
    assert PATIENCE <= one.clock.elapsed() - began < PATIENCE + 3


def test_a_mark_of_a_replica_that_is_registered_in_ones_own_store_is_no_other_stores(one: Side) -> None:
    """It has no other: its id is its own."""
    other = lost_but_for_a_late_mark(one)
    one.store.hset(KEYS.members, "replica one", "{}")
    assert other.looks()
    other.mark.require(other.term)
    mark = read_mark(other.broker, KEYS)
    assert mark is not None
    assert mark.gen == other.term.gen


def test_the_mark_costs_no_round_trip_for_each_batch(one: Side) -> None:
    """One for each quarter of a lease."""
    one.mark.require(one.term)
    before = read_mark(one.broker, KEYS)
    for _ in range(50):
        one.mark.require(one.term)
        one.mark.keep(one.term)
    assert read_mark(one.broker, KEYS) == before
    one.clock.advance(TTL / 4)
    one.mark.keep(one.term)
    assert read_mark(one.broker, KEYS) != before


def test_nothing_is_dispatched_while_the_mark_cannot_be_kept(one: Side) -> None:
    """The broker is away: the other side may take the mark over meanwhile."""
    one.mark.require(one.term)
    good = one.broker
    one.broker = redis.Redis(port=free_port())
    one.mark.require(one.term)
    one.clock.advance(TTL / 4)
    one.mark.keep(one.term)
    with pytest.raises(StoreUnavailable) as caught:
        one.mark.require(one.term)
    assert not caught.value.acted
    one.broker = good
    one.mark.require(one.term)


def test_without_the_right_there_is_no_check(redis_server: RedisServer) -> None:
    """It is said, once."""
    side = Side(redis_server, 1, "one")
    redis_server.admin.execute_command("ACL", "SETUSER", "poor", "on", ">pw", "~celery", "+@all")
    side.broker = redis_server.client(db=0, username="poor", password="pw")
    assert side.looks()
    side.mark.require(side.term)
    side.clock.advance(TTL)
    side.mark.require(side.term)
    (told,) = side.told
    assert isinstance(told, events.StoreUnmarked)
    assert "NOPERM" in told.detail
