"""Detection of a loss of state, and the time up to which the ledger is in doubt."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from ha_beat.leader.loading.state_loss import Loss, assess
from ha_beat.reasons import LossKind
from ha_beat.store.ledger import KEEP_ABSENT, LedgerRow
from ha_beat.store.server_facts import ServerFacts
from ha_beat.store.shadow import Shadow
from tests.unit.leader.reconciling import NOW, at


def rows(**bases: float) -> dict[str, str]:
    """Return rows at positions in seconds from now."""
    return {name: LedgerRow(at(seconds), "enqueued").encoded() for name, seconds in bases.items()}


def shadow(gen: str = "g", **positions: float) -> Shadow:
    made = Shadow()
    made.gen = gen
    for name, seconds in positions.items():
        made.learn(name, at(seconds))
    return made


#: Facts of another server process that started ten seconds ago.
RESTARTED = ServerFacts(append_only=False, started_at=at(-10))

#: Margin for the clock of the replica that enqueued what was lost.
CLOCKS = timedelta(seconds=2)


def judged(**changes: Any) -> Loss | None:
    """Assess an intact ledger by a replica that knows all of it, on the server that it was written on."""
    found = {"gen": "g", "previous_gens": ("g", "g"), "rows": rows(e=-1), "facts": None}
    return assess(**{**found, "shadow": shadow(e=-1), "lost_at": None, "now": NOW, **changes})


def all_in_doubt(loss: Loss | None) -> bool:
    """True if all occurrences up to now are in doubt."""
    return loss is not None and loss.total and loss.floor > NOW


INTACT: dict[str, dict[str, Any]] = {
    "intact ledger": {},
    "first start": {"gen": "new", "previous_gens": ("", ""), "shadow": Shadow(), "rows": {}},
    "lost lease alone": {"previous_gens": ("", "g")},
    "unreadable row": {"rows": {"e": '{"v": 99}'}},
    "absent for days": {"shadow": shadow(e=-1, gone=-(KEEP_ABSENT.total_seconds() + 60))},
    "handled by another release": {"shadow": shadow("older", e=-1)},
    "restart with an append-only file": {"facts": replace(RESTARTED, append_only=True)},
}


@pytest.mark.parametrize("case", INTACT)
def test_no_loss(case):
    assert judged(**INTACT[case]) is None


@pytest.mark.parametrize("previous_gens", [("", ""), ("g", ""), ("", "other"), ("g", "other")])
def test_new_incarnation_is_a_loss_for_a_replica_that_knew_the_last(previous_gens):
    assert all_in_doubt(judged(gen="new", previous_gens=previous_gens, rows={}))


def test_lost_ledger_is_a_loss_for_a_replica_that_knew_nothing():
    """The lease shows that there was one."""
    assert judged(gen="new", previous_gens=("g", ""), shadow=Shadow(), rows={}).total


@pytest.mark.parametrize("found", [rows(e=-2), {}, rows(other=-1)])
def test_ledger_behind_the_shadow_is_a_loss(found):
    """The end of the append-only file is missing, although the server has the same run id."""
    assert all_in_doubt(judged(rows=found))


def test_loss_handled_by_another_release_is_a_loss_for_other_entries():
    """The other release skipped only occurrences of entries that it has."""
    assert all_in_doubt(judged(shadow=shadow("older", e=-1, of_this_release=-60)))


def test_entry_absent_for_a_minute_is_missed():
    assert judged(shadow=shadow(e=-1, gone=-60)) is not None


def test_restart_with_an_append_only_file_leaves_writes_in_flight_in_doubt():
    facts = replace(RESTARTED, append_only=True)
    assert judged(facts=facts, lost_at=at(-12)) == Loss(LossKind.RESTARTED, at(-12), total=False)


@pytest.mark.parametrize("lost_at", [None, at(-12)])
@pytest.mark.parametrize("known", [shadow(e=-1), Shadow()], ids=["known", "unknown"])
def test_restart_without_an_append_only_file_is_a_loss(lost_at, known):
    """No replica may know what ran after the last snapshot, so all is in doubt up to the start."""
    loss = judged(facts=RESTARTED, lost_at=lost_at, shadow=known)
    assert (loss.total, loss.floor) == (True, RESTARTED.started_at + CLOCKS)


def test_server_start_is_not_before_the_contact_with_the_last_one_ended():
    """Redis counts its uptime by the wall clock, which may step."""
    assert judged(facts=replace(RESTARTED, started_at=at(-3600)), lost_at=at(-12)).floor == at(-12) + CLOCKS


def test_restart_from_old_data_is_a_loss_up_to_the_start():
    """Occurrences that fell due after the start cannot have been enqueued."""
    loss = judged(facts=replace(RESTARTED, append_only=True), rows=rows(e=-30), lost_at=at(-12))
    assert (loss.total, loss.floor) == (True, RESTARTED.started_at + CLOCKS)


@pytest.mark.parametrize(
    "changes", [{"rows": rows(e=-30), "lost_at": at(-12)}, {}, {"lost_at": at(-12), "shadow": Shadow()}]
)
@pytest.mark.parametrize("append_only", [True, False])
def test_promoted_server_puts_all_in_doubt_until_now(append_only, changes):
    """Start and append-only file of the new primary show nothing about the writes of the old one."""
    assert all_in_doubt(judged(facts=ServerFacts(append_only, started_at=at(-86_400), promoted=True), **changes))


@pytest.mark.parametrize(
    ("min_replicas", "reached", "floor"),
    [(False, -1, at(-12)), (True, -30, at(+2)), (True, -1, at(-1 + 4 + 2)), (True, None, at(4 + 2))],
)
def test_failover_is_in_doubt_until_the_old_primary_stops(min_replicas, reached, floor):
    """With min-replicas it refuses writes, at the latest max_lag after the new primary was reached."""
    facts = ServerFacts(False, at(-86_400), promoted=True, min_replicas=min_replicas, max_lag=4.0)
    reached_at = None if reached is None else at(reached)
    loss = judged(facts=facts, lost_at=at(-12), reached_at=reached_at)
    assert (loss.total, loss.floor) == (False, floor)


@pytest.mark.parametrize("min_replicas", [False, True])
def test_restart_from_a_snapshot_of_a_primary_with_replicas_looks_promoted(min_replicas):
    """Only its start distinguishes it from a promoted replica."""
    facts = ServerFacts(append_only=False, started_at=at(-10), promoted=True, min_replicas=min_replicas)
    assert judged(facts=facts, lost_at=at(-12)).floor >= facts.started_at


def test_claim_that_was_taken_back_is_no_loss():
    """A standby may have read the ledger in between."""
    watching = shadow(e=-10)
    watching.learn_rows({"e": LedgerRow(at(-1), "claimed").encoded()})
    assert judged(shadow=watching, rows=rows(e=-10)) is None


def test_position_never_moves_back():
    known = shadow(e=10)
    known.learn("e", at(5))
    assert known.position("e") == at(10)
    known.learn_rows(rows(e=7, f=3))
    assert (known.position("e"), known.position("f")) == (at(10), at(3))


def test_shadow_forgets_what_an_intact_ledger_has_deleted():
    """With thousands of entries that run once it would grow without limit."""
    made = shadow(gone=-3 * 86_400, recent=-60, monthly=-10 * 86_400)
    made.drop_missing(rows(monthly=-10 * 86_400), NOW)
    assert [name for name in ("gone", "recent", "monthly") if made.position(name)] == ["recent", "monthly"]
