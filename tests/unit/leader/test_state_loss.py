"""What is taken for a loss of state, and from when on the ledger can be believed again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ha_beat.leader.state_loss import Loss, assess
from ha_beat.reasons import LossKind
from ha_beat.store.ledger import KEEP_ABSENT, LedgerRow, ServerFacts
from ha_beat.store.shadow import Shadow

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def rows(**bases: float) -> dict[str, str]:
    """Rows whose positions are so many seconds from now."""
    return {name: LedgerRow(at(seconds), "enqueued").encoded() for name, seconds in bases.items()}


def shadow(gen: str = "g", **positions: float) -> Shadow:
    made = Shadow()
    made.gen = gen
    for name, seconds in positions.items():
        made.learn(name, at(seconds))
    return made


#: Another server process, started ten seconds ago.
RESTARTED = ServerFacts(append_only=False, started_at=at(-10))


#: The clock of who enqueued what was lost may have been ahead by so much.
CLOCKS = timedelta(seconds=2)


def judged(**changes: Any) -> Loss | None:
    """By a replica that knew all of a ledger that stands, on the server that it was written on."""
    given: dict[str, Any] = {
        "gen": "g",
        "previous_gens": ("g", "g"),
        "shadow": shadow(e=-1),
        "rows": rows(e=-1),
        "facts": None,
        "contact_lost": None,
        "now": NOW,
    }
    return assess(**{**given, **changes})


def test_a_ledger_that_stands_is_believed() -> None:
    assert judged() is None


def test_a_first_start_is_no_loss() -> None:
    assert judged(gen="new", previous_gens=("", ""), shadow=Shadow(), rows={}) is None


@pytest.mark.parametrize("previous_gens", [("", ""), ("g", ""), ("", "other"), ("g", "other")])
def test_a_new_incarnation_is_a_loss_for_whoever_knew_the_last(previous_gens: tuple[str, str]) -> None:
    """All that could be due until now, and a little more, may have been enqueued."""
    loss = judged(gen="new", previous_gens=previous_gens, rows={})
    assert loss is not None
    assert loss.total
    assert loss.floor > NOW


def test_a_lost_ledger_is_a_loss_also_for_a_replica_that_knew_nothing() -> None:
    """The lease says that there was one."""
    loss = judged(gen="new", previous_gens=("g", ""), shadow=Shadow(), rows={})
    assert loss is not None
    assert loss.total


def test_a_lost_lease_alone_is_none() -> None:
    assert judged(previous_gens=("", "g")) is None


@pytest.mark.parametrize("found", [rows(e=-2), {}, rows(other=-1)])
def test_a_ledger_behind_what_was_acknowledged_is_a_loss(found: Mapping[str, str]) -> None:
    """The end of an append-only file is missing: the server is the same, or so it says."""
    loss = judged(rows=found)
    assert loss is not None
    assert loss.total
    assert loss.floor > NOW


def test_a_loss_that_another_release_has_seen_to_is_one_for_entries_that_it_lacks() -> None:
    """It gave its own entries their verdicts; what a replica knows of others from before is as much in doubt."""
    loss = judged(shadow=shadow("older", e=-1, of_this_release=-60))
    assert loss is not None
    assert loss.total
    assert loss.floor > NOW
    assert judged(shadow=shadow("older", e=-1)) is None


def test_an_entry_long_gone_is_not_missed() -> None:
    long_ago = -(KEEP_ABSENT.total_seconds() + 60)
    assert judged(shadow=shadow(e=-1, gone=long_ago)) is None
    assert judged(shadow=shadow(e=-1, gone=-60)) is not None


def test_rows_of_newer_software_are_not_behind() -> None:
    assert judged(rows={"e": '{"v": 99}'}) is None


def test_a_restart_with_an_append_only_file_leaves_only_the_last_moment_in_doubt() -> None:
    facts = replace(RESTARTED, append_only=True)
    assert judged(facts=facts) is None
    loss = judged(facts=facts, contact_lost=at(-12))
    assert loss == Loss(LossKind.RESTARTED, at(-12), total=False)


@pytest.mark.parametrize("contact_lost", [None, at(-12)])
@pytest.mark.parametrize("known", [shadow(e=-1), Shadow()], ids=["known", "unknown"])
def test_a_restart_without_one_is_a_loss_whoever_takes_over(contact_lost: datetime | None, known: Shadow) -> None:
    """What ran between the last snapshot and the end may be unknown to all: up to the start nothing is believed."""
    loss = judged(facts=RESTARTED, contact_lost=contact_lost, shadow=known)
    assert loss is not None
    assert loss.total
    assert loss.floor == RESTARTED.started_at + CLOCKS


def test_a_server_whose_clock_was_put_ahead_did_not_start_before_the_last_one_was_heard_of() -> None:
    """Redis counts its uptime by the wall clock."""
    loss = judged(facts=replace(RESTARTED, started_at=at(-3600)), contact_lost=at(-12))
    assert loss is not None
    assert loss.floor == at(-12) + CLOCKS


def test_a_restart_from_old_data_is_a_loss_up_to_the_server_s_start() -> None:
    """What fell due after it can't have been enqueued."""
    loss = judged(facts=replace(RESTARTED, append_only=True), rows=rows(e=-30), contact_lost=at(-12))
    assert loss is not None
    assert loss.total
    assert loss.floor == RESTARTED.started_at + CLOCKS


@pytest.mark.parametrize("append_only", [True, False])
def test_a_promoted_server_was_there_before_and_its_start_tells_nothing(append_only: bool) -> None:
    """What it lacks may have been enqueued on the one before until now; its own append-only file is no witness."""
    facts = ServerFacts(append_only, started_at=at(-86_400), promoted=True)
    for changes in (
        {"rows": rows(e=-30), "contact_lost": at(-12)},
        {"contact_lost": None},
        {"contact_lost": at(-12), "shadow": Shadow()},
    ):
        loss = judged(facts=facts, **changes)
        assert loss is not None
        assert loss.total
        assert loss.floor > NOW


@pytest.mark.parametrize(
    ("min_replicas", "reached", "floor"),
    [(False, -1, at(-12)), (True, -30, at(+2)), (True, -1, at(-1 + 4 + 2)), (True, None, at(4 + 2))],
)
def test_after_a_failover_that_lost_nothing_known_the_old_primary_may_have_gone_on(
    min_replicas: bool, reached: float | None, floor: datetime
) -> None:
    """Where it stops by itself, the promise holds, and until then it takes what nobody else sees: counted from when
    this one was found, since it may have had its replicas until then.
    """
    facts = ServerFacts(False, at(-86_400), promoted=True, min_replicas=min_replicas, max_lag=4.0)
    reached_at = None if reached is None else at(reached)
    loss = judged(facts=facts, contact_lost=at(-12), reached_at=reached_at)
    assert loss is not None
    assert (loss.total, loss.floor) == (False, floor)


@pytest.mark.parametrize("min_replicas", [False, True])
def test_a_primary_with_replicas_that_came_back_from_a_snapshot_looks_promoted(min_replicas: bool) -> None:
    """It can't be told from a replica, but for its start; nor can what ran after the snapshot."""
    facts = ServerFacts(append_only=False, started_at=at(-10), promoted=True, min_replicas=min_replicas)
    loss = judged(facts=facts, contact_lost=at(-12))
    assert loss is not None
    assert loss.floor >= facts.started_at


def test_a_claim_that_was_taken_back_is_no_loss() -> None:
    """A standby that read the ledger in between must not hold the broker's refusal for one."""
    watching = shadow(e=-10)
    watching.learn_rows({"e": LedgerRow(at(-1), "claimed").encoded()})
    assert judged(shadow=watching, rows=rows(e=-10)) is None


def test_positions_never_move_back() -> None:
    known = shadow(e=10)
    known.learn("e", at(5))
    assert known.position("e") == at(10)
    known.learn_rows(rows(e=7, f=3))
    assert (known.position("e"), known.position("f")) == (at(10), at(3))


def test_what_a_ledger_that_stands_has_forgotten_is_forgotten() -> None:
    """Thousands of entries that run once, each day: the memory of them must not grow without end."""
    made = shadow(gone=-3 * 86_400, recent=-60, monthly=-10 * 86_400)
    made.forget(rows(monthly=-10 * 86_400), NOW)
    assert [name for name in ("gone", "recent", "monthly") if made.position(name)] == ["recent", "monthly"]
