"""Slow arguments: a thread computes them from the second time on."""

import threading
from dataclasses import replace
from typing import Any

import pytest

from ha_beat.leader.batches.slow_arguments import SlowArguments
from ha_beat.leader.entry import ScheduledEntry
from ha_beat.testing import SettableClock
from tests.support.entries import CeleryEntry, scheduled
from tests.support.servers import wait_for


class Computer:
    """Arguments that take ``seconds`` on the main loop's clock, and in a thread until the test releases them."""

    def __init__(self) -> None:
        self.clock = SettableClock()
        self.seconds = 5.0
        self.error: Exception | None = None
        self.released = threading.Event()
        self.threads: list[str] = []
        self.slow = SlowArguments(self.compute, self.clock, limit=2.0)

    def compute(self, entry: ScheduledEntry) -> Any:
        self.threads.append(threading.current_thread().name)
        if threading.current_thread() is not threading.main_thread():
            assert self.released.wait(10.0)
        self.clock.advance(self.seconds)
        if self.error is not None:
            raise self.error
        return [entry.id], {}, {}

    def finish(self, entry: ScheduledEntry) -> None:
        self.released.set()
        wait_for(lambda: self.slow.ready(entry), 10, "the arguments")

    def wait_for_threads(self, computations: int) -> None:
        wait_for(lambda: len(self.threads) >= computations, 5, "threads")
        assert len(self.threads) == computations


@pytest.fixture
def computer() -> Computer:
    return Computer()


ENTRY = scheduled("e")
VALUE = (["e"], {}, {})


class Edited(CeleryEntry):
    args = ("other",)


EDITED = replace(ENTRY, celery_entry=Edited())


@pytest.fixture
def slow(computer: Computer) -> SlowArguments:
    """Return the computer after the entry was slow on the main loop once."""
    assert computer.slow.ready(ENTRY)
    assert computer.slow.take(ENTRY) == (VALUE, True)
    return computer.slow


def test_slow_entry_is_computed_in_a_thread_from_the_second_time(computer: Computer, slow: SlowArguments):
    assert not slow.ready(ENTRY)
    assert not slow.ready(ENTRY)
    assert slow.ready(scheduled("other"))
    computer.finish(ENTRY)
    assert slow.take(ENTRY) == (VALUE, False)
    assert computer.threads == ["MainThread", "ha_beat-arguments"]


def test_entry_that_is_no_longer_slow_returns_to_the_main_loop(computer: Computer, slow: SlowArguments):
    computer.seconds = 0.1
    slow.ready(ENTRY)
    computer.finish(ENTRY)
    slow.take(ENTRY)
    assert slow.ready(ENTRY)
    slow.take(ENTRY)
    assert computer.threads == ["MainThread", "ha_beat-arguments", "MainThread"]


def test_exception_in_the_thread_is_raised_on_the_main_loop(computer: Computer, slow: SlowArguments):
    computer.error = OSError("the database is away")
    slow.ready(ENTRY)
    computer.finish(ENTRY)
    with pytest.raises(OSError, match="the database is away"):
        slow.take(ENTRY)
    assert not slow.ready(ENTRY)


@pytest.mark.parametrize("change", ["edited", "old"])
def test_computed_arguments_of_an_edited_entry_or_of_long_ago_are_dropped(change, computer: Computer, slow):
    slow.ready(ENTRY)
    computer.finish(ENTRY)
    if change == "old":
        computer.clock.advance(100.0)
    entry = ENTRY if change == "old" else EDITED
    assert not slow.ready(entry)
    computer.finish(entry)
    slow.take(entry)
    assert len(computer.threads) == 3


def test_edited_entry_does_not_wait_for_its_former_arguments(computer: Computer, slow: SlowArguments):
    assert not slow.ready(ENTRY)
    assert not slow.ready(EDITED)
    computer.wait_for_threads(3)
    computer.released.set()


def test_hung_computation_is_followed_by_one_other(computer: Computer, slow: SlowArguments):
    """The entry is overdue until one has finished. The next wait counts from its own start."""
    for threads in (2, 2, 3, 3, 3):
        assert not slow.ready(ENTRY)
        computer.wait_for_threads(threads)
        computer.clock.advance(400.0)
        assert slow.overdue("e")
    computer.finish(ENTRY)
    computer.clock.advance(100.0)
    assert not slow.ready(ENTRY)
    assert not slow.overdue("e")
    computer.finish(ENTRY)
    assert slow.take(ENTRY) == (VALUE, False)


def test_requested_arguments_are_always_computed_in_a_thread(computer: Computer):
    slow = computer.slow
    assert not slow.ready_within(ENTRY, 0.01)
    assert not slow.ready_within(ENTRY, 60.0)
    computer.finish(ENTRY)
    assert slow.take(ENTRY) == (VALUE, False)
    assert slow.ready_within(ENTRY, 10.0)
    assert computer.threads == ["ha_beat-arguments"] * 2


@pytest.mark.parametrize(("hung", "threads"), [(10, 14), (5, 9)])
def test_hung_entries_use_few_threads_and_hold_up_no_other(computer: Computer, hung, threads):
    entries = [scheduled(f"e{number}") for number in range(hung)]
    for entry in entries:
        computer.slow.take(entry)
    for _ in range(2):
        assert not any(computer.slow.ready(entry) for entry in entries)
        computer.wait_for_threads(threads)
    computer.clock.advance(60.0)
    assert not computer.slow.ready(entries[-1])
    computer.wait_for_threads(threads + 1)
    computer.released.set()
