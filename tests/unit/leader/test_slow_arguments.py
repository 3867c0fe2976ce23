"""Slow arguments are computed in a thread, from the second time on."""

import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from ha_beat.leader.entry import ScheduledEntry
from ha_beat.leader.slow_arguments import SlowArguments
from ha_beat.testing import SettableClock
from tests.support.entries import CeleryEntry, scheduled


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
        until = time.monotonic() + 10.0
        while not self.slow.ready(entry) and time.monotonic() < until:
            time.sleep(0.005)

    def wait_for_threads(self, computations: int) -> None:
        until = time.monotonic() + 5.0
        while len(self.threads) < computations and time.monotonic() < until:
            time.sleep(0.005)
        assert len(self.threads) == computations


@pytest.fixture
def computer() -> Computer:
    return Computer()


def test_slow_entry_is_computed_in_a_thread_from_the_second_time(computer: Computer):
    entry, slow = scheduled("e"), computer.slow
    assert slow.ready(entry)
    assert slow.take(entry) == ((["e"], {}, {}), True)
    assert not slow.ready(entry)
    assert not slow.ready(entry)
    assert slow.ready(scheduled("other"))
    computer.finish(entry)
    assert slow.take(entry) == ((["e"], {}, {}), False)
    assert computer.threads == ["MainThread", "ha_beat-arguments"]


def test_entry_that_is_no_longer_slow_returns_to_the_main_loop(computer: Computer):
    entry, slow = scheduled("e"), computer.slow
    slow.take(entry)
    computer.seconds = 0.1
    slow.ready(entry)
    computer.finish(entry)
    slow.take(entry)
    assert slow.ready(entry)
    slow.take(entry)
    assert computer.threads == ["MainThread", "ha_beat-arguments", "MainThread"]


def test_exception_in_the_thread_is_raised_on_the_main_loop(computer: Computer):
    entry, slow = scheduled("e"), computer.slow
    slow.take(entry)
    computer.error = OSError("the database is away")
    slow.ready(entry)
    computer.finish(entry)
    with pytest.raises(OSError, match="the database is away"):
        slow.take(entry)
    assert not slow.ready(entry)


@pytest.mark.parametrize("change", ["edited", "old"])
def test_computed_arguments_of_an_edited_entry_or_of_long_ago_are_dropped(change, computer: Computer):
    class Edited(CeleryEntry):
        args = ("other",)

    entry, slow = scheduled("e"), computer.slow
    slow.take(entry)
    slow.ready(entry)
    computer.finish(entry)
    if change == "old":
        computer.clock.advance(100.0)
    else:
        entry = replace(entry, celery_entry=Edited())
    assert not slow.ready(entry)
    computer.finish(entry)
    slow.take(entry)
    assert len(computer.threads) == 3


def test_hung_entries_use_few_threads(computer: Computer):
    entries = [scheduled(f"e{number}") for number in range(10)]
    for entry in entries:
        computer.slow.take(entry)
    assert not any(computer.slow.ready(entry) for entry in entries)
    while len(computer.threads) < 14:
        time.sleep(0.005)
    assert not any(computer.slow.ready(entry) for entry in entries)
    assert len(computer.threads) == 14
    computer.released.set()


def test_hung_computation_is_followed_by_one_other(computer: Computer):
    """The entry is overdue meanwhile. Once it has finished, the next wait counts from its own start."""
    entry, slow = scheduled("e"), computer.slow
    slow.take(entry)
    for threads in (2, 2, 3, 3, 3):
        assert not slow.ready(entry)
        computer.wait_for_threads(threads)
        computer.clock.advance(400.0)
        assert slow.overdue("e")
    computer.finish(entry)
    computer.clock.advance(100.0)
    assert not slow.ready(entry)
    assert not slow.overdue("e")
    computer.finish(entry)
    assert slow.take(entry) == ((["e"], {}, {}), False)


def test_requested_arguments_are_computed_in_a_thread_at_once(computer: Computer):
    entry, slow = scheduled("e"), computer.slow
    assert not slow.ready_within(entry, 0.01)
    assert not slow.ready_within(entry, 60.0)
    computer.finish(entry)
    assert slow.take(entry) == ((["e"], {}, {}), False)
    assert slow.ready_within(entry, 10.0)
    assert computer.threads == ["ha_beat-arguments"] * 2


def test_hung_entries_do_not_keep_others_from_being_computed(computer: Computer):
    entries = [scheduled(f"e{number}") for number in range(5)]
    for entry in entries:
        computer.slow.take(entry)
    assert not any(computer.slow.ready(entry) for entry in entries)
    computer.clock.advance(60.0)
    assert not computer.slow.ready(entries[4])
    computer.wait_for_threads(10)
    computer.released.set()


def test_edited_entry_does_not_wait_for_the_arguments_that_it_had(computer: Computer):
    class Edited(CeleryEntry):
        args = ("other",)

    entry, slow = scheduled("e"), computer.slow
    slow.take(entry)
    assert not slow.ready(entry)
    edited = replace(entry, celery_entry=Edited())
    assert not slow.ready(edited)
    computer.wait_for_threads(3)
    computer.released.set()
