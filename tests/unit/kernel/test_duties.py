"""Duties of a replica."""

import pytest

from ha_beat import events
from ha_beat.duties import Duties
from ha_beat.errors import StoreRefused, StoreUnavailable
from ha_beat.reasons import Duty, DutyFault
from ha_beat.testing import SettableClock
from tests.support.events import EventLog

PRESENCE = Duty.PRESENCE


class Board:
    def __init__(self) -> None:
        self.clock = SettableClock()
        self.events = EventLog()
        self.duties = Duties(self.clock, self.events.append)

    def wait(self, seconds: float) -> list[str]:
        """Let time pass, and return the actions that were reported in it."""
        before = len(self.events)
        for _ in range(round(seconds)):
            self.clock.advance(1)
            self.duties.check()
        return [event.action for event in self.events[before:]]


@pytest.fixture
def board() -> Board:
    return Board()


def test_failed_duty_is_late_until_it_is_done(board):
    board.duties.done(PRESENCE)
    board.clock.advance(5)
    board.duties.failed(PRESENCE, DutyFault.REFUSED, "NOPERM")
    late = board.duties.late()[PRESENCE]
    assert (late.reason, late.detail, late.seconds) == (DutyFault.REFUSED, "NOPERM", 5)
    assert board.wait(1) == ["duty_late"]

    board.duties.done(PRESENCE)
    assert board.duties.late() == {}
    assert board.wait(1) == ["duty_resumed"]
    assert board.wait(60) == []


def test_duty_without_attempts_is_late_after_its_time(board):
    board.duties.expect(PRESENCE, within=10)
    assert board.wait(10) == []
    assert board.wait(1) == ["duty_late"]
    assert board.duties.late()[PRESENCE].reason is DutyFault.OVERDUE
    assert not board.duties.ever_done(PRESENCE)

    board.duties.done(PRESENCE)
    assert board.wait(10) == ["duty_resumed"]
    assert board.wait(1) == ["duty_late"]


def test_late_duty_is_reported_at_growing_intervals(board):
    board.duties.failed(PRESENCE, DutyFault.REFUSED)
    assert len(board.wait(59)) == 1
    assert len(board.wait(2)) == 1
    assert len(board.wait(3600)) == 4
    assert len(board.wait(86400)) == pytest.approx(24, abs=1)


def test_each_reason_of_one_outage_is_reported_once(board):
    for _ in range(3):
        board.duties.failed(PRESENCE, DutyFault.REFUSED)
        board.wait(1)
        board.duties.failed(PRESENCE, DutyFault.UNREACHABLE)
        board.wait(1)
    assert [event.reason for event in board.events.of(events.DutyLate)] == [DutyFault.REFUSED, DutyFault.UNREACHABLE]


def test_suspended_duty_is_not_late(board):
    board.duties.failed(PRESENCE, DutyFault.REFUSED)
    assert board.wait(1) == ["duty_late"]
    board.duties.suspend(PRESENCE)
    assert board.wait(1) == []
    assert PRESENCE not in board.duties.known()


@pytest.mark.parametrize(
    ("exc", "reason"),
    [
        (StoreUnavailable("timeout"), DutyFault.UNREACHABLE),
        (StoreRefused("NOPERM"), DutyFault.REFUSED),
        (KeyError("bug"), DutyFault.FAILED),
    ],
)
def test_exception_has_its_reason(board, exc, reason):
    board.duties.raised(PRESENCE, exc)
    board.duties.check()
    (late,) = board.events.of(events.DutyLate)
    assert late.reason is reason
    assert late.exc is (exc if reason is DutyFault.FAILED else None)


def test_duty_that_makes_progress_is_not_overdue(board):
    board.duties.expect(PRESENCE, within=10)
    for _ in range(3):
        assert board.wait(9) == []
        board.duties.progressed(PRESENCE)
    assert not board.duties.ever_done(PRESENCE)
    board.duties.failed(PRESENCE, DutyFault.REFUSED)
    board.duties.progressed(PRESENCE)
    assert board.wait(11) == ["duty_late"]
