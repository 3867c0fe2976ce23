"""Gradual load of a large schedule: what is due first, what waits for its row, and when a loss of state is found."""

from collections.abc import Iterable, Set
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from ha_beat import events
from ha_beat.errors import StoreUnavailable
from ha_beat.leader.entry import ScheduledEntry
from ha_beat.leader.forecast import Forecast, Outline
from ha_beat.leader.loading import schedule_loader
from ha_beat.leader.loading.gradual_load import PART
from ha_beat.leader.planner import ScheduleChange
from ha_beat.reasons import EntryFault, LossKind, Verdict
from tests.integration.leader.stepped_leader import KEYS, CertainSource, Leader, Source, enqueued
from tests.support.servers import RedisServer

COUNT = 3 * PART


class Large(Source):
    """Entries `e0` to `e<COUNT>`, none due, and `last`, which is due and the last one of the schedule."""

    def outlines(self) -> Iterable[Outline]:
        return ((entry.id, entry.recurrence, entry.last_run) for entry in super().load())


@pytest.fixture
def leader(shared_redis: RedisServer, monkeypatch) -> Leader:
    monkeypatch.setattr(schedule_loader, "LARGE", 10)
    monkeypatch.setattr("ha_beat.leader.loading.loaded_schedule.PART_BUDGET", 0.0)
    leader = Leader(shared_redis)
    leader.use(Large(**{f"e{number}": 1.0 for number in range(COUNT)}, last=3601.0))
    return leader


def with_forecast(leader: Leader) -> None:
    parts = leader.enqueuer._parts
    forecast = Forecast(leader.source.outlines, parts.shadow, parts.time.now, leader.clock)
    leader.enqueuer._parts = replace(parts, forecast=forecast)
    leader.enqueuer.stand_by()


def complete(leader: Leader) -> bool:
    return leader.enqueuer.serves(leader.origin.acquired.term)


def load_all(leader: Leader) -> Leader:
    for _ in range(200):
        leader.turn()
        if complete(leader):
            return leader.turn(20)
    raise AssertionError("the schedule was not loaded")


def ready_events(leader: Leader) -> list[tuple[int, int, int]]:
    return [(e.entries, e.overdue, e.new) for e in leader.events.of(events.ScheduleReady)]


def test_forecast_due_entry_is_sent_before_the_rest_is_loaded(leader: Leader):
    with_forecast(leader)
    leader.turn(2)
    assert leader.messages == ["last"]
    assert not complete(leader)
    load_all(leader)
    assert len(leader.enqueuer.due_queue) == COUNT + 1
    assert ready_events(leader) == [(COUNT + 1, 1, COUNT + 1)]
    assert len(leader.client.hgetall(KEYS.ledger)) > COUNT


def test_forecast_knows_entries_that_were_read_after_its_first_turn(leader: Leader):
    """The rows of a database are read by another thread; later on, an entry is added."""
    last_run, leader.source.last_run = leader.source.last_run, {}
    with_forecast(leader)
    forecast = leader.enqueuer._parts.forecast
    leader.source.last_run = dict.fromkeys(["first"], 3601.0)
    leader.enqueuer.stand_by()
    assert list(forecast._heap[0][2][:1]) == ["first"]
    leader.source.last_run |= last_run
    for _ in range(100):
        leader.clock.ahead += 10.0
        leader.enqueuer.stand_by()
    assert {"first", "last"} <= set(forecast.take())


def test_entry_in_a_later_part_is_dispatched_by_its_row_only(leader: Leader):
    """It is due by the forecast and the store, but another leader has enqueued the occurrence."""
    now = leader.source.now()
    for entry in leader.source.last_run:
        leader.client.hset(KEYS.ledger, f"e:{entry}", enqueued(now - timedelta(seconds=1)).encoded())
    with_forecast(leader)
    load_all(leader)
    assert leader.messages == []
    assert leader.losses() == []


@pytest.mark.parametrize("behind", ["row", "counter"])
def test_ledger_that_is_behind_in_any_part_is_a_loss(leader: Leader, behind: str):
    """The shadow knows a later position of one entry, or more records of the journal."""
    load_all(leader)
    leader.client.delete("queue")
    leader.owe(*leader.source.last_run)
    shadow, now = leader.enqueuer._parts.shadow, leader.source.now()
    last = f"e{COUNT - 1}"
    for entry in leader.source.last_run:
        leader.client.hset(KEYS.ledger, f"e:{entry}", enqueued(now - timedelta(seconds=3601)).encoded())
    shadow._positions = dict.fromkeys(leader.source.last_run, now - timedelta(seconds=3601))
    shadow._positions[last] = now - timedelta(seconds=1)
    if behind == "counter":
        shadow.counter = 10**6
    leader.lead("two")
    load_all(leader)
    assert leader.losses() == [LossKind.LEDGER_BEHIND]
    # A whole ledger that was set back is found before anything is sent.
    assert (leader.messages == []) == (behind == "counter")
    assert last not in leader.messages


def test_duplicate_id_in_another_part_is_reported(leader: Leader):
    class Doubled(Large):
        def load(self, ids: Set[str] | None = None) -> Iterable[ScheduledEntry]:
            yield from super().load(ids)
            if ids is None:
                yield from super().load({"e0"})

    leader.use(Doubled(**leader.source.last_run))
    load_all(leader)
    (failure,) = leader.events.of(events.EntryFailed)
    assert failure.detail == "e0"


def test_schedule_edited_during_the_load_is_loaded_once_more(leader: Leader):
    leader.turn(2)
    assert not complete(leader)
    del leader.source.last_run["e0"]
    leader.enqueuer.reload()
    load_all(leader)
    assert leader.enqueuer.due_queue.get("e0") is None
    assert leader.losses() == []
    assert leader.messages == ["last"]


def test_edit_of_many_entries_is_reported_once_when_all_are_loaded(leader: Leader):
    load_all(leader)
    added = {f"new{number}": leader.source.last_run["e0"] for number in range(2 * PART)}
    leader.source.last_run |= added
    leader.enqueuer.reload(ScheduleChange(frozenset(added)))
    leader.turn(20)
    assert len(leader.enqueuer.due_queue) == COUNT + 1 + 2 * PART
    assert [(entries, new) for entries, _, new in ready_events(leader)[1:]] == [(COUNT + 1 + 2 * PART, 2 * PART)]


def test_part_whose_rows_could_not_be_read_is_not_left_out(leader: Leader, monkeypatch):
    ledger, errors = leader.dispatcher.ledger, [StoreUnavailable("no answer", acted=False)]
    read = ledger.read_some

    def fail_once(ids: Any) -> Any:
        if errors and len(leader.enqueuer.due_queue) > 0:
            raise errors.pop()
        return read(ids)

    monkeypatch.setattr(ledger, "read_some", fail_once)
    while not complete(leader):
        leader.turn(after=1.0)
    assert errors == []
    assert len(leader.enqueuer.due_queue) == COUNT + 1


class Certain(Large, CertainSource):
    """Large schedule whose missing entries count as deleted."""


@pytest.mark.parametrize("edits", [1, 1000])
def test_reload_within_a_term_goes_on_in_parts_while_due_entries_are_sent(leader: Leader, monkeypatch, edits: int):
    """Each load is completed, although the schedule changes with every turn."""
    leader.use(Certain(**leader.source.last_run))
    load_all(leader)
    monkeypatch.setattr(leader.dispatcher.ledger, "read", None)
    del leader.source.last_run["e0"]
    leader.source.last_run["new"] = 1.0
    parts = served = 0
    for turn in range(30):
        if turn < edits:
            leader.enqueuer.reload()
        leader.turn()
        if turn == 2:
            assert leader.messages == ["last"]
            owed = leader.enqueuer.due_queue.get("e700")
            owed.position -= timedelta(hours=1)
            leader.enqueuer.due_queue.put(owed, owed.next_due())
            leader.turn()
            assert leader.messages == ["e700", "last"]
        served += complete(leader)
        parts += not leader.enqueuer.up_to_date(leader.origin.acquired.term)
    assert parts > COUNT / PART
    assert served > 20
    assert leader.enqueuer.due_queue.get("new") is not None
    assert leader.enqueuer.due_queue.get("e0") is None
    assert leader.dispatcher.ledger.of(["e0"])["e0"].verdict is Verdict.ABSENT


def test_entry_that_is_deleted_during_the_load_stays_deleted(leader: Leader):
    """The load has listed its entries before, and would add the deleted one again."""
    leader.use(Certain(**leader.source.last_run))
    load_all(leader)
    leader.lead("two").turn(2)
    assert not complete(leader)
    deleted = f"e{COUNT - 1}"
    del leader.source.last_run[deleted]
    leader.enqueuer.reload(ScheduleChange(frozenset({deleted})))
    load_all(leader)
    assert leader.enqueuer.due_queue.get(deleted) is None
    assert leader.dispatcher.ledger.of([deleted])[deleted].verdict is Verdict.ABSENT


class Raising(Certain):
    """Schedule whose first load ends with an error."""

    raised = False

    def load(self, ids: Set[str] | None = None) -> Iterable[ScheduledEntry]:
        for number, entry in enumerate(super().load(ids)):
            if number == 2 * PART and not self.raised:
                self.raised = True
                raise KeyError("schedule")
            yield entry


def test_entries_after_an_error_of_the_schedule_are_not_deleted(leader: Leader):
    """The iterator over the schedule has ended with the error."""
    leader.use(Certain(**leader.source.last_run))
    load_all(leader)
    entries = [f"e{number}" for number in range(COUNT)]
    rows = leader.dispatcher.ledger.read_some(entries)
    leader.use(Raising(**leader.source.last_run)).lead("two")
    with pytest.raises(KeyError):
        leader.turn(20)
    load_all(leader)
    assert len(leader.enqueuer.due_queue) == COUNT + 1
    assert leader.dispatcher.ledger.read_some(entries) == rows


def test_entries_ahead_of_the_clock_are_reported_once(leader: Leader):
    ahead = enqueued(leader.source.now() + timedelta(hours=1)).encoded()
    for number in range(COUNT):
        leader.client.hset(KEYS.ledger, f"e:e{number}", ahead)
    load_all(leader)
    (failure,) = leader.events.of(events.EntryFailed)
    assert failure.reason is EntryFault.AHEAD_OF_CLOCK
    assert f"{COUNT} entries" in failure.detail


def test_redis_that_answers_slowly_is_asked_for_larger_parts(leader: Leader, monkeypatch):
    leader.use(Large(**{f"e{number}": 1.0 for number in range(20 * PART)}))
    ledger, asked = leader.dispatcher.ledger, []
    read = ledger.read_some

    def slow(ids: Any) -> Any:
        asked.append(len(ids))
        leader.later(0.2)
        return read(ids)

    monkeypatch.setattr(ledger, "read_some", slow)
    load_all(leader)
    assert sum(asked) == 20 * PART
    assert len(asked) < 12
