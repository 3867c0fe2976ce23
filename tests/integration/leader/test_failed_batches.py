"""Batches that fail: nothing is lost, only the entry at fault waits, and reports are few."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from ha_beat import events
from ha_beat.dispatch import Operation
from ha_beat.errors import StoreRefused, StoreUnavailable
from ha_beat.leader import BrokerOutOfReach
from ha_beat.leader.planner import EVERYTHING, ScheduleChange
from ha_beat.reasons import MisfirePolicy, SkipReason
from ha_beat.schedule.misfire import MisfireRules
from tests.integration.leader.stepped_leader import Leader, Source
from tests.support.entries import scheduled
from tests.support.servers import RedisServer


@pytest.mark.parametrize("change", [EVERYTHING, ScheduleChange(frozenset({"e"}))], ids=["all", "one"])
def test_reload_does_not_postpone_the_verdict_of_a_failing_entry(leader: Leader, change: ScheduleChange):
    due_now = scheduled("e", last_run=leader.source.now() - timedelta(seconds=3601))
    leader.use(Source(lambda _: due_now, e=0.0), publish_deadline=30.0, handover_after=1000.0)
    with leader.failing(StoreUnavailable("away", acted=False), "e"):
        for _ in range(20):
            leader.turn(2, after=2.0)
            leader.enqueuer.reload(change)
    (skipped,) = leader.events.of(events.OccurrenceSkipped)
    assert skipped.reason is SkipReason.NOT_PUBLISHED


def test_batch_that_raises_is_submitted_one_by_one(leader: Leader):
    """Only the entry at fault waits, and it is retried later."""
    leader.owe("one", "bad", "two").turn(3)
    leader.client.delete("queue")
    with leader.failing(ValueError("a bug"), "bad"):
        assert leader.turn(10, after=3600.0).messages == ["one", "two"]
        assert leader.failed() == ["bad"]
    assert "bad" in leader.turn(3, after=61.0).messages


def test_redis_failure_during_one_by_one_submission_loses_nothing(leader: Leader):
    leader.owe("one", "two", "three").turn()
    faults = [ValueError("a bug"), StoreUnavailable("cut"), StoreUnavailable("cut")]

    def fail(_: object) -> None:
        if faults:
            raise faults.pop(0)

    leader.dispatcher.fail = fail
    leader.each_second(20, seconds=2.0)
    assert leader.messages == ["one", "three", "two"]


def test_entry_that_is_refused_repeatedly_is_reported_once(leader: Leader):
    """The key of the entry's queue has another type. The entry is retried each second."""
    leader.owe("e")
    leader.client.set("queue", "not a list")
    for _ in range(60):
        leader.turn(2, after=1.1)
    assert leader.failed() == ["e"]
    leader.client.delete("queue")
    assert leader.turn(3, after=1.1).messages == ["e"]


@pytest.mark.parametrize("error", [StoreUnavailable("broken pipe"), StoreRefused("too large", unexplained=True)])
def test_message_that_redis_rejects_does_not_affect_others(leader: Leader, error):
    """The message exceeds the server's limit, so the server closes the connection. Other commands succeed."""
    leader.owe("one", "large", "two").turn()
    with leader.failing(error, "large"):
        leader.each_second(30)
    assert leader.messages == ["one", "two"]
    assert leader.failed() == ["large"]


# --- Full Redis, and no broker


def outage(leader: Leader, seconds: float) -> int:
    """Return how often the leader steps down in an outage, when it gets the lease again each time."""
    changes, until = 0, leader.clock.ahead + seconds
    while leader.clock.ahead < until:
        try:
            leader.turn(after=1.0)
        except BrokerOutOfReach:
            changes += 1
            leader.lead()
    return changes


def test_full_redis_keeps_its_leader(redis_server: RedisServer):
    """Another replica would meet the same error, and a single replica could not lead again for a while."""
    leader = Leader(redis_server)
    leader.owe("e").turn()
    redis_server.admin.config_set("maxmemory", "1")
    for _ in range(100):
        leader.clock.ahead += 1.0
        leader.turn()
    assert leader.messages == []
    redis_server.admin.config_set("maxmemory", "0")
    assert leader.turn(5, after=1.1).messages == ["e"]


def test_full_redis_keeps_the_batch_whole(leader: Leader):
    """Redis gives the reason, so that no message is suspected."""
    leader.owe("one", "two").turn()
    sizes: set[int] = set()

    def full(operations: Sequence[Operation]) -> None:
        sizes.add(len(operations))
        raise StoreRefused("Redis is out of memory")

    leader.dispatcher.fail = full
    leader.each_second(8)
    assert (sizes, leader.failed()) == ({2}, [])


def test_hour_without_a_broker_causes_few_changes_of_leader(leader: Leader):
    """A change of leader helps only if another replica can reach the broker."""
    leader.owe("e").turn()
    away = StoreUnavailable("no broker", acted=False)
    with leader.failing(away):
        assert outage(leader, 12.0) == 1
        assert 30 < outage(leader, 3600.0) < 100
    outage(leader, 60.0)
    assert leader.messages != []
    leader.owe("e", "another")
    leader.enqueuer.reload()
    with leader.failing(away):
        assert outage(leader, 13.0) == 1


# --- The batch after the outage


@pytest.mark.parametrize(
    ("rules", "deadline", "seconds", "reason"),
    [
        (MisfireRules(grace=2.0), None, 8, SkipReason.MISFIRE_GRACE),
        (MisfireRules(MisfirePolicy.SKIP), None, 25, SkipReason.MISSED),
        (MisfireRules(), 60.0, 70, SkipReason.NOT_PUBLISHED),
        (MisfireRules(grace=20.0), 60.0, 8, None),
    ],
)
def test_refused_batch_is_judged_again_by_the_time_it_is_accepted(rules, deadline, seconds, reason, leader: Leader):
    source = Source(lambda entry: replace(entry, misfire=rules), e=3600.0 - 1.0)
    leader.use(source, publish_deadline=deadline, handover_after=1000.0).turn().later(1.5)
    with leader.failing(StoreRefused("Redis is out of memory")):
        leader.each_second(seconds)
    leader.turn(3, after=1.0)
    (record,) = leader.records()
    assert record.get("why") == reason
    assert leader.messages == ([] if reason else ["e"])
    assert record["ms"] / 1000 > leader.clock.wall() - 2.0


@pytest.mark.parametrize("unexplained", [False, True])
def test_partly_written_batch_is_submitted_unchanged_until_answered(leader: Leader, unexplained: bool):
    """A later attempt, of which nothing was written, does not show that the first one wrote nothing."""
    drops = [] if unexplained else [False]
    leader.dispatcher.drop_refused = lambda _: drops.pop() if drops else True
    leader.use(Source(e=3601.0), handover_after=1000.0).turn()
    with leader.failing(StoreRefused("an error in the script", unexplained=unexplained), "e"):
        leader.turn()
    with leader.failing(StoreRefused("full"), "e"):
        leader.each_second(5, seconds=2.0)
    term: Any = leader.enqueuer._work
    assert (drops, term.submitter.pending) == ([], 1)


def test_record_shows_when_a_batch_without_an_answer_was_accepted(leader: Leader):
    """The batch is submitted unchanged, because the first attempt may have been carried out."""
    leader.owe("e").turn()
    with leader.failing(StoreUnavailable("no answer"), "e"):
        leader.each_second(2, seconds=3.0)
    leader.turn(3, after=1.0)
    (record,) = leader.records()
    assert record["ms"] / 1000 > leader.clock.wall() - 2.0
