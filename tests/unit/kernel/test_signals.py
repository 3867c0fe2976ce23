"""Signals: the arguments of handlers, and their isolation from the replica."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from unittest.mock import Mock

import pytest

from ha_beat import events, signals
from ha_beat.reasons import LossKind, SkipReason, TermEnd, TermStart, UncertainReason
from ha_beat.signals import SignalRelay

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
def relay(request) -> SignalRelay:
    return SignalRelay(None, "c", request.node.name)


@contextmanager
def connected(relay: SignalRelay, handler: Callable[..., object], *names: str) -> Iterator[None]:
    """Call a handler for some signals of a relay."""

    def handle(*, replica: str, **about: Any) -> None:
        if replica == relay._about["replica"]:
            handler(**about)

    for name in names:
        getattr(signals, name).connect(handle, weak=False, dispatch_uid=f"{id(handler)}")
    try:
        yield
    finally:
        for name in names:
            getattr(signals, name).disconnect(dispatch_uid=f"{id(handler)}")


@pytest.mark.parametrize("name", EVENTS)
def test_signal_has_its_event_and_arguments(name, relay: SignalRelay):
    got: list[dict[str, Any]] = []
    with connected(relay, lambda **about: got.append(about), name):
        relay(EVENTS[name])
    (about,) = got
    assert (about["cluster"], about["event"]) == ("c", EVENTS[name])
    assert set(getattr(signals, name).providing_args) <= {*about, "replica"}


def test_exception_in_a_handler_does_not_affect_the_others(relay: SignalRelay):
    reached = Mock()
    failing = connected(relay, Mock(side_effect=SystemExit), "paused")
    with failing, connected(relay, reached, "resumed"):
        relay(EVENTS["paused"])
        relay(EVENTS["resumed"])
    assert reached.called


def test_only_events_with_a_connected_handler_are_wanted(relay: SignalRelay):
    assert not any(relay.wants(event) for event in EVENTS.values())
    with connected(relay, Mock(), "paused"):
        assert [name for name, event in EVENTS.items() if relay.wants(event)] == ["paused"]


def test_pause_found_at_the_start_of_a_term_sends_no_signal(relay: SignalRelay):
    got: list[str] = []
    with connected(relay, lambda signal, **_: got.append(signal.name), "paused", "resumed"):
        relay(events.Paused(AT, "me", "", found=True))
        relay(EVENTS["resumed"])
        assert got == ["resumed"]
