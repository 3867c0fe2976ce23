"""Signals: the arguments of handlers, and their isolation from the replica."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from ha_beat import events, signals
from ha_beat.reasons import LossKind, SkipReason, TermEnd, TermStart, UncertainReason
from ha_beat.signals import SignalRelay
from tests.support.servers import wait_for

AT = datetime(2026, 1, 1, tzinfo=UTC)

EVENTS: dict[str, events.Event] = {
    "leadership_gained": events.TermStarted(5, "b", TermStart.RELEASED),
    "leadership_lost": events.TermEnded(5, TermEnd.SUPERSEDED, 3.0),
    "occurrence_enqueued": events.Enqueued("e", "task", "id", AT, 0.1),
    "occurrence_skipped": events.OccurrenceSkipped("e", AT, AT, 1, SkipReason.MISSED),
    "occurrence_uncertain": events.OccurrenceUncertain("e", AT, "id", UncertainReason.NO_ANSWER),
    "state_lost": events.StateLost(LossKind.LEDGER_LOST, catch_up=False),
    "paused": events.Paused(AT, "me", "why", found=False),
    "resumed": events.Resumed("me", 3.0),
}


@pytest.fixture
def relay() -> Iterator[SignalRelay]:
    relay = SignalRelay(None, "c", "r", queue_size=3)
    yield relay
    relay.close()


@pytest.mark.parametrize("name", EVENTS)
def test_signal_has_its_event_and_arguments(name, relay: SignalRelay):
    signal = getattr(signals, name)
    got: list[dict[str, Any]] = []

    @signal.connect(weak=False, dispatch_uid="test")
    def handler(signal: Any, **about: Any) -> None:
        got.append(about)

    try:
        relay(EVENTS[name])
        (about,) = wait_for(lambda: got, what="the signal")
    finally:
        signal.disconnect(dispatch_uid="test")
    assert about["cluster"] == "c"
    assert about["event"] == EVENTS[name]
    assert set(signal.providing_args) <= set(about)


def test_exception_in_a_handler_does_not_affect_the_others(relay: SignalRelay):
    reached = threading.Event()

    def bad(**_: Any) -> None:
        raise SystemExit("no more")

    def good(**_: Any) -> None:
        reached.set()

    signals.paused.connect(bad, weak=False, dispatch_uid="bad")
    signals.resumed.connect(good, weak=False, dispatch_uid="good")
    try:
        relay(EVENTS["paused"])
        relay(EVENTS["resumed"])
        assert reached.wait(10)
    finally:
        signals.paused.disconnect(dispatch_uid="bad")
        signals.resumed.disconnect(dispatch_uid="good")


def test_hanging_handler_delays_only_later_signals(relay: SignalRelay):
    """Emitting never blocks: when the queue is full, signals are dropped and counted."""
    release = threading.Event()

    def hang(**_: Any) -> None:
        release.wait(30)

    signals.paused.connect(hang, weak=False, dispatch_uid="hang")
    try:
        done = threading.Event()

        def emit() -> None:
            for _ in range(10):
                relay(EVENTS["paused"])
            done.set()

        threading.Thread(target=emit, daemon=True).start()
        assert done.wait(10)
        assert relay.dropped >= 6
    finally:
        release.set()
        signals.paused.disconnect(dispatch_uid="hang")


def test_no_thread_is_started_without_a_handler(relay: SignalRelay):
    before = threading.active_count()
    for event in EVENTS.values():
        relay(event)
    assert threading.active_count() == before


def test_pause_found_at_the_start_of_a_term_sends_no_signal():
    relay = SignalRelay(None, "c", "finder", queue_size=3)
    got: list[str] = []

    def note(signal: Any, replica: str, **_: Any) -> None:
        # Signals are global: the relay of another test may still be at work.
        if replica == "finder":
            got.append(signal.name)

    signals.paused.connect(note, weak=False, dispatch_uid="found")
    signals.resumed.connect(note, weak=False, dispatch_uid="found")
    try:
        relay(events.Paused(AT, "me", "", found=True))
        relay(EVENTS["resumed"])
        wait_for(lambda: got, what="a signal")
        assert got == ["resumed"]
    finally:
        relay.close()
        signals.paused.disconnect(dispatch_uid="found")
        signals.resumed.disconnect(dispatch_uid="found")
