"""Begin of a term: another server, a loss of state, and rows and claims of other leaders."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from ha_beat.clock import to_micros
from ha_beat.dispatch import OpenClaim, Operation
from ha_beat.reasons import LossKind
from ha_beat.store.ledger import LedgerRow
from tests.integration.leader.stepped_leader import KEYS, Leader, enqueued


def follow(leader: Leader, previous_holder: str, **fields: Any) -> None:
    """Make the term follow one on another server."""
    acquired = replace(leader.origin.acquired, previous_run_id="another server", previous_holder=previous_holder)
    leader.origin = replace(leader.origin, acquired=acquired, **fields)


def lead_on_another_server(leader: Leader, name: str) -> None:
    """Begin a term with a ledger that names another server than this one."""
    leader.client.hset(KEYS.ledger, "m:run_id", "of the master before")
    leader.lead(name).turn(5)


def test_dispatch_on_another_server_waits_for_the_previous_holder(leader: Leader):
    """After a failover, a partitioned old primary may still accept what the previous leader enqueues."""
    leader.owe("e")
    follow(leader, "another")
    leader.turn(5)
    assert leader.held() == [pytest.approx(10.0)]
    assert leader.turn(5, after=9.0).messages == []
    assert leader.turn(5, after=1.1).messages == ["e"]


def test_previous_holder_itself_does_not_wait_on_another_server(leader: Leader):
    leader.owe("e")
    follow(leader, "one", lost_at=leader.source.now() - timedelta(hours=2))
    assert leader.turn(5).messages == ["e"]


def test_successor_of_a_leader_that_waited_waits_too(leader: Leader):
    """In a rolling deploy the leader stops while it waits, and has not looked for a loss."""
    leader.owe("e")
    lead_on_another_server(leader, "two")
    leader.use(leader.source)
    leader.lead("three")
    assert leader.turn(5).messages == []
    assert leader.held() == [pytest.approx(10.0)] * 2
    leader.turn(5, after=10.1)
    assert leader.losses() == [LossKind.RESTARTED_WITHOUT_AOF]


@pytest.mark.parametrize("stood_by", [True, False])
def test_entries_of_an_earlier_term_are_not_overdue_while_a_new_one_waits(leader: Leader, stood_by):
    """Another replica may have enqueued their occurrences since."""
    leader.owe("e")
    assert leader.turn(5).messages == ["e"]
    leader.later(7200.0)
    assert leader.enqueuer.due_queue.overdue(leader.enqueuer.now()) > 0
    if stood_by:
        leader.enqueuer.stand_by()
        assert len(leader.enqueuer.due_queue) == 0
    lead_on_another_server(leader, "two")
    assert len(leader.held()) == 1
    assert len(leader.enqueuer.due_queue) == 0


def test_leader_that_waits_and_leads_again_continues_to_wait(leader: Leader):
    """The leader was the last holder, but has not dispatched. The previous holder may still dispatch."""
    leader.owe("e")
    lead_on_another_server(leader, "two")
    leader.later(4.0)
    leader.lead("two").turn(5)
    assert leader.held() == [pytest.approx(10.0, abs=0.5), pytest.approx(6.0, abs=0.5)]
    leader.turn(5, after=6.1)
    assert len(leader.losses()) == 1


# --- Loss of state


def test_unfinished_recovery_is_continued_by_the_next_leader(leader: Leader):
    """The first leader wrote only some of the rows, and the next one knows of no loss."""
    leader.owe(*(f"e{number}" for number in range(150)))
    assert len(leader.turn(5).messages) == 150
    leader.client.delete("queue", KEYS.ledger)
    leader.lead().turn(1)
    assert len(leader.enqueuer.due_queue) == 150
    leader.use(leader.source)
    leader.lead("a newcomer")
    assert leader.turn(5).messages == []
    assert leader.losses()[-1] is LossKind.UNFINISHED
    leader.lead("another").turn(3)
    assert len(leader.losses()) == 2


@pytest.mark.parametrize(("noted", "fell_due"), [("{} 1", "after"), ("{} 1", "before"), ("garbage", "before")])
def test_unfinished_recovery_keeps_the_floor_that_its_leader_found(leader: Leader, noted, fell_due):
    """Occurrences that fell due later were not dispatched. An unreadable note puts all occurrences in doubt."""
    due = leader.source.now() - timedelta(seconds=60)
    floor = due + timedelta(seconds=-5 if fell_due == "after" else 5)
    leader.write(LedgerRow(due - timedelta(hours=1), "armed", signature="s"))
    leader.client.hset(KEYS.ledger, "m:unfinished", noted.format(to_micros(floor)))
    leader.source.last_run = {"e": 1e6}
    leader.lead("another").turn(5)
    assert leader.held() == []
    assert leader.messages == (["e"] if fell_due == "after" else [])
    assert leader.client.hget(KEYS.ledger, "m:unfinished") is None


def test_leader_that_loses_the_ledger_keeps_entries_not_due_in_its_term(leader: Leader):
    """The leader has read the ledger once, when its term began. The hourly entry is due in half an hour."""
    base = leader.source.now().replace(microsecond=0) - timedelta(minutes=30)
    leader.write(enqueued(base))
    leader.source.last_run = {"e": 1e6}
    leader.turn(3)
    leader.client.flushall()
    leader.lead().turn(3)
    row = LedgerRow.parse(str(leader.client.hget(KEYS.ledger, "e:e")))
    assert (row.base, row.verdict) == (base, "armed")
    assert leader.state().due_at == base + timedelta(hours=1)


# --- Rows and claims of other leaders


def test_second_term_starts_from_the_ledger(leader: Leader):
    """Another replica led in between, so the earlier state of the entries is stale."""
    leader.owe("e")
    assert leader.turn(5).messages == ["e"]
    row = leader.write(enqueued(leader.source.now(), rev=9))
    leader.lead().turn(5)
    assert leader.state().expected == row
    assert leader.failed() == []


def test_row_changed_by_another_writer_is_followed(leader: Leader):
    """The operation is refused because the row is not the expected one, and the entry continues from that row."""
    leader.owe("e").turn(1)
    at = leader.source.now() + timedelta(minutes=10)
    leader.write(enqueued(at, rev=9, task_id="t"))
    assert leader.turn(5).messages == []
    assert leader.failed() == ["e"]
    assert leader.state().due_at == at + timedelta(hours=1)


def test_row_that_is_changed_repeatedly_is_retried_once_a_second(leader: Leader):
    leader.owe("e").turn()
    tries: list[str] = []

    def change(_: Sequence[Operation]) -> None:
        number = len(tries) + 1
        tries.append(leader.write(enqueued(leader.source.now() - timedelta(hours=2), rev=number, task_id=f"{number}")))

    leader.dispatcher.fail = change
    leader.turn(2)
    assert (leader.idle > 0.5, len(tries)) == (True, 1)
    leader.turn(5, after=1.1)
    assert len(tries) == 2
    leader.dispatcher.fail = lambda _: None
    assert leader.turn(5, after=1.1).messages == ["e"]


def test_claim_of_another_leader_is_uncertain_only_after_its_flight(leader: Leader):
    uncertain: list[float] = []
    claim = OpenClaim("k", json="{}", entry="e", nonce="another", policy="skip", row="", records=())
    leader.dispatcher.open_claims = lambda _: [claim]
    leader.dispatcher.record_uncertain = lambda *_: uncertain.append(leader.clock.ahead) or {}
    leader.turn(2)
    leader.turn(2, after=5.0)
    assert uncertain == []
    leader.turn(2, after=1.5)
    assert uncertain == [6.5]
