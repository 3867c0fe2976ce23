"""Scheduling time: it outvotes a clock that steps, and follows one that the others agree with."""

from __future__ import annotations

import pytest

from ha_beat import events
from ha_beat.election.cluster_clock import AGREEMENT, SchedulingTime, vote
from ha_beat.testing import SettableClock
from tests.support.events import EventLog

HOUR = 3600.0


class Setup:
    """Scheduling time of a replica, and the clock of its Redis. Each may be ahead of the true time."""

    def __init__(self, wall_ahead: float = 0.0) -> None:
        self.clock = SettableClock()
        self._start = self.clock.wall() - self.clock.elapsed()
        self.wall_ahead = wall_ahead
        self.redis_ahead = 0.0
        self.events = EventLog()
        self.time = SchedulingTime(self.clock, self.events.append)

    @property
    def true(self) -> float:
        return self._start + self.clock.elapsed()

    @property
    def wall_ahead(self) -> float:
        return self.clock.wall() - self.true

    @wall_ahead.setter
    def wall_ahead(self, seconds: float) -> None:
        self.clock.step_wall(seconds - self.wall_ahead)

    def hear_redis(self, trip: float = 0.0) -> None:
        now = self.clock.elapsed()
        self.time.redis_said(round((self.true + self.redis_ahead) * 1000), now - trip / 2, now + trip / 2)

    @property
    def error(self) -> float:
        return self.time.seconds() - self.true

    def followed(self) -> list[bool]:
        """Return for each reported step whether it was followed."""
        return [event.followed for event in self.events.of(events.ClockJumped)]


@pytest.fixture
def setup() -> Setup:
    made = Setup()
    made.hear_redis()
    return made


def test_wall_clock_is_followed_while_it_does_not_step(setup: Setup):
    """A time service slews it: far, but never by a step."""
    for _ in range(100):
        setup.clock.sleep(1)
        setup.wall_ahead += 0.5
        assert setup.error == pytest.approx(setup.wall_ahead)
    assert setup.events == []


@pytest.mark.parametrize("step", [HOUR, -HOUR, AGREEMENT * 2])
def test_step_that_no_other_clock_confirms_is_not_followed(setup: Setup, step):
    setup.wall_ahead = step
    for _ in range(5):
        setup.clock.sleep(10)
        setup.hear_redis()
        assert setup.error == pytest.approx(0, abs=0.01)
    assert setup.followed() == [False]


def test_corrected_clock_is_trusted_again(setup: Setup):
    setup.wall_ahead = HOUR
    assert setup.error == pytest.approx(0)
    setup.wall_ahead = 0.0
    assert setup.error == pytest.approx(0)
    setup.wall_ahead = 1.0
    assert setup.error == pytest.approx(1.0)


@pytest.mark.parametrize("step", [HOUR, -HOUR])
def test_step_that_redis_confirms_is_followed(setup: Setup, step):
    """The time of the whole machine was set."""
    setup.wall_ahead = setup.redis_ahead = step
    assert setup.error == pytest.approx(0), "Redis has not been heard since"
    setup.hear_redis()
    assert setup.error == pytest.approx(step)
    assert setup.followed() == [False, True]


@pytest.mark.parametrize("step", [HOUR, -HOUR])
def test_step_of_redis_is_not_followed_and_reported_once(setup: Setup, step):
    """It shows in the offset, by which the scripts detect early commands."""
    setup.redis_ahead = step
    for _ in range(3):
        setup.hear_redis()
        assert setup.error == pytest.approx(0)
    assert setup.time.offset == pytest.approx(-step, abs=0.01)
    assert len(setup.events.of(events.ClockOffset)) == 1


def test_offset_is_counted_from_the_middle_of_the_trip(setup: Setup):
    setup.hear_redis(trip=4.0)
    assert setup.time.offset == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("wrong", [HOUR, -HOUR])
def test_new_leader_with_a_wrong_clock_is_outvoted(wrong):
    """Redis and the previous leader agreed."""
    setup = Setup(wall_ahead=wrong)
    setup.hear_redis()
    setup.time.join(leaders_offset=0.1)
    assert setup.error == pytest.approx(0, abs=0.2)


@pytest.mark.parametrize("wrong", [HOUR, -HOUR])
def test_wrong_redis_does_not_outvote_two_clocks_that_agree(wrong):
    setup = Setup()
    setup.redis_ahead = wrong
    setup.hear_redis()
    setup.time.join(leaders_offset=-wrong)
    assert setup.error == pytest.approx(0, abs=0.01)


def test_first_leader_trusts_its_clock():
    setup = Setup(wall_ahead=HOUR)
    setup.hear_redis()
    setup.time.join(leaders_offset=None)
    assert setup.error == pytest.approx(HOUR)


def test_own_clock_wins_if_no_two_agree():
    assert vote(0.0, 100.0, 200.0) == 0.0
    assert vote(0.0, 100.0, 101.0) == 100.0
    assert vote(0.0, 1.0, 101.0) == 0.0
