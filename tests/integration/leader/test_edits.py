"""Edits within a term: only changed entries are read, and rows of deleted entries are dropped later."""

from collections.abc import Iterable, Set
from dataclasses import replace

import pytest

from ha_beat.errors import StoreUnavailable
from ha_beat.leader.entry import ScheduledEntry
from ha_beat.leader.planner import Absence, ScheduleChange
from ha_beat.reasons import Verdict
from ha_beat.store.lease import Term
from tests.integration.leader.stepped_leader import KEYS, CertainSource, Leader, Source


def begun(leader: Leader, *entries: str) -> Leader:
    """Begin a term with entries that ran a minute ago."""
    leader.use(CertainSource(**dict.fromkeys(entries, 60.0)))
    return leader.turn(3)


def edit(leader: Leader, *ids: str) -> None:
    leader.enqueuer.reload(ScheduleChange(frozenset(ids)))
    leader.turn(3)


def test_edit_reads_only_the_entries_that_changed(leader: Leader, monkeypatch):
    queue = begun(leader, "e", "other", "gone").enqueuer.due_queue
    before = {entry: queue.get(entry) for entry in ("e", "other")}
    monkeypatch.setattr(leader.dispatcher.ledger, "read", None)
    leader.source.last_run = {"e": 3601.0, "other": 3601.0, "new": 60.0}
    edit(leader, "e", "gone", "new")
    assert leader.enqueuer.due_queue is queue
    assert queue.get("e") is not before["e"]
    assert queue.get("other") is before["other"]
    assert queue.get("gone") is None
    rows = leader.dispatcher.ledger.of(["gone", "new"])
    assert {entry: row.verdict for entry, row in rows.items()} == {"gone": "absent", "new": "armed"}
    assert leader.turn(3, after=3600.0).messages == ["e", "new", "other"]


def test_rows_of_deleted_entries_are_dropped_within_a_term(leader: Leader, monkeypatch):
    """Entries come and go for months, and the schedule is never read as a whole again."""
    begun(leader, "e")
    monkeypatch.setattr(leader.dispatcher.ledger, "read", None)
    shadow, absent = leader.enqueuer._parts.shadow, leader.enqueuer._work.schedule._loader._entries.absent
    kept = []
    for number in range(60):
        leader.source.last_run = {"e": 60.0, f"new{number}": 60.0}
        edit(leader, f"new{number}", f"new{number - 1}")
        leader.turn(3, after=6 * 3600.0)
        kept.append((leader.client.hlen(KEYS.ledger), len(shadow._positions), len(absent._noted)))
    # Nine names are younger than two days.
    assert max(kept) == max(kept[10:30])
    assert all(number <= 22 for numbers in kept for number in numbers)
    assert leader.enqueuer.due_queue.get("e") is not None
    assert leader.dispatcher.ledger.of(["new58"])["new58"].verdict is Verdict.ABSENT


def test_old_absent_row_of_an_entry_that_is_back_is_kept(leader: Leader):
    begun(leader, "e", "other")
    del leader.source.last_run["e"]
    edit(leader, "e")
    leader.later(24 * 3600.0)
    leader.source.last_run["e"] = 60.0
    edit(leader, "e")
    leader.turn(3, after=26 * 3600.0)
    assert leader.dispatcher.ledger.of(["e"])["e"].verdict is not Verdict.ABSENT
    assert leader.state() is not None


@pytest.mark.parametrize("resent", [False, True])
def test_edit_of_an_entry_with_an_open_claim_reads_all(leader: Leader, resent):
    """Otherwise the message that must be sent again would be lost."""
    queue = begun(leader, "e", "other").enqueuer.due_queue
    if resent:
        leader.state().resend = True
    else:
        leader.write(replace(leader.state().row, verdict=Verdict.CLAIMED, raw=""))
    edit(leader, "other")
    assert leader.enqueuer.due_queue is queue
    edit(leader, "e")
    assert leader.enqueuer.due_queue is not queue


class LateSource(Source):
    """Source whose store is read under the term as soon as its entries were loaded."""

    read = False

    def load(self, ids: Set[str] | None = None) -> Iterable[ScheduledEntry]:
        yield from super().load(ids)
        self.read = True

    def absence(self, _: Term) -> Absence | None:
        return Absence(certain=self.read)


@pytest.mark.parametrize("ids", [None, frozenset({"e"})], ids=["all", "changed"])
def test_entry_that_an_older_reading_lacks_is_not_deleted(leader: Leader, ids):
    source = LateSource(e=60.0, other=60.0)
    leader.use(source).turn(3)
    source.read, source.last_run = False, {"other": 60.0}
    leader.enqueuer.reload(ScheduleChange(ids))
    leader.turn(3)
    assert source.read
    assert leader.dispatcher.ledger.of(["e"])["e"].verdict is Verdict.ARMED


def test_change_is_kept_until_the_ledger_answers(leader: Leader, monkeypatch):
    begun(leader, "e").source.last_run["new"] = 60.0
    with monkeypatch.context() as fault:
        error = StoreUnavailable("no answer", acted=False)
        fault.setattr(leader.dispatcher.ledger, "read_some", lambda _: (_ for _ in ()).throw(error))
        edit(leader, "new")
    leader.turn(3, after=10.0)
    assert leader.enqueuer.due_queue.get("new") is not None
