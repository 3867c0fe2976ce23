"""Retries of entries whose message cannot be built."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from ha_beat.dispatch import MessageFailed
from ha_beat.leader.batches.build_retries import BuildRetries
from ha_beat.leader.due_queue import DueQueue
from ha_beat.leader.entry import EntryState, Failure
from ha_beat.leader.open_claims import OpenClaims
from ha_beat.reasons import BuildFault, Verdict
from ha_beat.store.ledger import LedgerRow
from ha_beat.testing import SettableClock
from tests.support.entries import scheduled
from tests.support.events import EventLog

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FAILED = MessageFailed(BuildFault.DESTINATION, "refused", ValueError("refused"))


def test_occurrence_after_an_abandoned_one_has_fresh_retries():
    """The failure of the next occurrence is reported, and it is retried as quickly as the first one."""
    log, nothing = EventLog(), SimpleNamespace(open_claims=lambda _: [], record_uncertain=lambda *_: {})
    claims: Any = OpenClaims(SettableClock(), log.append, 6.0)
    retries = BuildRetries(60.0, log.append)
    state = EntryState(scheduled(), NOW, LedgerRow(NOW, Verdict.CLAIMED, NOW, signature="s"), resend=True)

    def fail() -> float:
        """Return the seconds until the message is built again."""
        queue = DueQueue()
        retries.retry(state, FAILED, queue, NOW, took=0.0)
        return ((queue.next_due() or NOW) - NOW).total_seconds()

    assert [fail(), fail(), len(log)] == [0.5, 1.0, 1]
    claims.record_resend_uncertain(nothing, DueQueue(), None, state)
    assert not state.resend
    assert [fail(), len(log)] == [0.5, 2]


@pytest.mark.parametrize(
    ("due", "first_tried", "past"),
    [(59, 59, False), (61, 59, True), (3600, 59, False), (3600, 61, True)],
    ids=["on time", "too late", "caught up", "caught up too late"],
)
def test_deadline_of_a_late_catch_up_counts_from_its_first_attempt(due: float, first_tried: float, past: bool):
    """Both are in seconds before now."""
    state = EntryState(scheduled(), NOW, failure=Failure(NOW - timedelta(seconds=first_tried)))
    failure = BuildRetries(60.0, EventLog().append).past_deadline(state, NOW - timedelta(seconds=due), NOW)
    assert (failure is state.failure) == past


@pytest.mark.parametrize("builds", [0, 1])
def test_old_instants_expire_only_if_the_message_cannot_be_built(builds: int):
    """If the broker fails, they are coalesced with the newest one."""
    since = NOW - timedelta(seconds=100)
    state = EntryState(scheduled(every=10, last_run=since), since, failure=Failure(since, builds=builds), due_at=since)
    expired = BuildRetries(60.0, EventLog().append).expired(state, NOW)
    assert (expired and expired[0].count) == (5 if builds else None)
