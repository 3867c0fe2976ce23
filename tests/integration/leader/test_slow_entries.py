"""Slow, hung, large and unencodable entries do not hold up the others."""

import gc
import threading
from collections.abc import Iterable, Set
from dataclasses import replace
from datetime import datetime
from itertools import pairwise

from ha_beat.leader.entry import ScheduledEntry
from ha_beat.reasons import EntryFault, MisfirePolicy, SkipReason
from ha_beat.schedule.misfire import MisfireRules
from tests.integration.leader.stepped_leader import Leader, Source
from tests.support.entries import Every, scheduled


def longest(times: list[float]) -> float:
    return max(after - before for before, after in pairwise(times))


def test_entry_with_an_unencodable_name_does_not_affect_others(leader: Leader):
    """A lone surrogate comes from a file with a broken escape."""
    leader.owe("one", "bad \ud800 name", "two")
    assert leader.turn(20).messages == ["one", "two"]
    assert set(leader.failed()) == {"bad \ud800 name"}


def test_loading_many_entries_reports_progress(leader: Leader):
    """On a slow machine 50,000 entries take longer than the stall timeout, on each leader."""

    class SlowHourly(Every):
        def next_after(self, instant: datetime) -> datetime:
            leader.clock.ahead += 5.0
            return super().next_after(instant)

    def slow(entry: ScheduledEntry) -> ScheduledEntry:
        leader.clock.ahead += 5.0
        return replace(entry, recurrence=SlowHourly(3600))

    leader.use(Source(slow, **{f"e{number}": 60.0 for number in range(10)}))
    began = leader.clock.elapsed()
    leader.turn()
    moves = [began, *leader.moves, leader.clock.elapsed()]
    assert moves[-1] - began > 90
    assert longest(moves) < 15


def test_loading_a_large_schedule_pauses_the_garbage_collector(leader: Leader):
    """The collector's longest run would come right before the first message."""
    leader.source.last_run = {f"entry {number}": 10.0 for number in range(1000)}
    runs: list[str] = []
    at_first_event: list[int] = []
    leader.on_event = lambda _: at_first_event.append(len(runs))

    def note(phase: str, _: object) -> None:
        runs.append(phase)

    gc.callbacks.append(note)
    try:
        leader.turn()
    finally:
        gc.callbacks.remove(note)
    assert at_first_event[0] == 0
    assert gc.isenabled()


def test_slow_entries_are_sent_in_pieces_while_others_run(leader: Leader):
    """Thirty entries take 0.3 s each to build, longer than a stall timeout together; another is due each second."""

    class WithQuick(Source):
        def load(self, ids: Set[str] | None = None) -> Iterable[ScheduledEntry]:
            return [*super().load(ids), scheduled("quick", every=1.0, last_run=self.now())]

    leader.use(WithQuick(**{f"e{number}": 3601.0 for number in range(30)}))
    leader.source.on_arguments = lambda name: name == "quick" or leader.later(0.3)
    ran_at, runs = [leader.clock.elapsed()], 0
    for _ in range(100):
        leader.turn(after=0.01)
        if leader.messages.count("quick") > runs:
            runs += 1
            ran_at.append(leader.clock.elapsed())
    assert set(leader.messages) == {"quick", *leader.source.last_run}
    assert longest(ran_at) < 2.5
    assert longest(leader.moves) < 1.0


def test_slow_entries_that_fill_the_time_do_not_stop_the_others(leader: Leader):
    """Each slow entry takes a whole batch, and is due again before the others are sent."""
    slow, others = ["slow1", "slow2"], [f"e{number}" for number in range(5)]
    leader.use(
        Source(
            lambda entry: replace(entry, recurrence=Every(1.0)) if entry.id in slow else entry,
            **dict.fromkeys(slow, 2.0),
            **dict.fromkeys(others, 3600.5),
        )
    )
    leader.source.on_arguments = lambda name: leader.later(0.6 if name in slow else 0.01)
    leader.turn(40)
    assert set(leader.messages) == {*slow, *others}
    assert min(leader.messages.count(name) for name in slow) > 5


def test_entry_with_a_backlog_goes_behind_the_others(leader: Leader):
    """Its instants are the oldest, and would fill every batch until the entry has caught up."""

    def backlog(entry: ScheduledEntry) -> ScheduledEntry:
        rules = MisfireRules(MisfirePolicy.ALL)
        return entry if entry.id == "other" else replace(entry, recurrence=Every(60.0), misfire=rules)

    leader.use(Source(backlog, one=3000.0, two=3000.0, three=3000.0, other=3599.0))
    leader.source.on_arguments = lambda _: leader.later(0.3)
    leader.turn(2).later(2.0)
    sent_before = len(leader.messages)
    leader.turn(3)
    assert "other" in leader.messages
    assert sent_before < len(leader.messages) < 10


def test_hung_arguments_end_with_a_verdict(leader: Leader):
    """The arguments are slow on the main loop first, and hang in the thread of the next occurrence."""
    hung = threading.Event()

    def hang(name: str) -> None:
        if name == "hung":
            leader.later(5.0)
            if threading.current_thread() is not threading.main_thread():
                hung.wait(30.0)

    leader.use(Source(hung=3601.0, other=3601.0), publish_deadline=60.0)
    leader.source.on_arguments = hang
    leader.turn(3)
    assert leader.messages == ["hung", "other"]
    for _ in range(26):
        leader.turn(3, after=150.0)
    hung.set()
    assert leader.messages.count("other") == 2
    assert [record.get("why") for record in leader.records("hung")] == [None, SkipReason.NO_MESSAGE]
    faults = [event.reason for event in leader.events if event.action == "entry_failed"]
    assert faults == [EntryFault.SLOW_ARGUMENTS, EntryFault.HUNG_ARGUMENTS]


def test_batch_is_limited_by_the_size_of_its_messages(leader: Leader, monkeypatch):
    """A hundred large messages at once would block Redis for seconds or exceed its limit."""
    monkeypatch.setattr("ha_beat.leader.batches.batch_builder.BATCH_CHARACTERS", 20)
    leader.source.last_run = {name: 3606.0 - age for age, name in enumerate(("one", "two", "three", "four", "five"))}
    batches: list[list[str]] = []
    leader.dispatcher.fail = lambda operations: batches.append([op.entry for op in operations if op.message])
    leader.turn(10)
    # LPUSH, queue and an id are 13 to 15 characters.
    assert [batch for batch in batches if batch] == [["one", "two"], ["three", "four"], ["five"]]
    assert leader.messages == ["five", "four", "one", "three", "two"]
