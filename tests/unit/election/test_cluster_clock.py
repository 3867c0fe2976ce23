"""The scheduling time outvotes a clock that steps, and follows one that the others agree with."""

from __future__ import annotations

import pytest

from ha_beat import events
from ha_beat.election.cluster_clock import AGREEMENT, SchedulingTime, vote

HOUR = 3600.0
START = 1_900_000_000.0


class Clocks:
    """A wall clock, one that never steps, and the server's."""

    def __init__(self, wall_ahead: float = 0.0) -> None:
        self.passed = 100.0
        self.wall_ahead = wall_ahead
        self.redis_ahead = 0.0

    @property
    def true(self) -> float:
        return START + self.passed

    def wall(self) -> float:
        return self.true + self.wall_ahead

    def elapsed(self) -> float:
        return self.passed

    def sleep(self, seconds: float) -> None:
        self.passed += seconds


class Setup:
    def __init__(self, wall_ahead: float = 0.0) -> None:
        self.clocks = Clocks(wall_ahead)
        self.said: list[events.Event] = []
        self.time = SchedulingTime(self.clocks, self.said.append)

    def hear_redis(self, trip: float = 0.0) -> None:
        clocks = self.clocks
        middle = round((clocks.true + clocks.redis_ahead) * 1000)
        self.time.redis_said(middle, clocks.passed - trip / 2, clocks.passed + trip / 2)

    @property
    def error(self) -> float:
        return self.time.seconds() - self.clocks.true


@pytest.fixture
def setup() -> Setup:
    made = Setup()
    made.hear_redis()
    return made


def test_the_wall_clock_is_followed_while_it_runs_smoothly(setup: Setup):
    """As a time service slews it: far, but never by a step."""
    for _ in range(100):
        setup.clocks.sleep(1)
        setup.clocks.wall_ahead += 0.5
        assert setup.error == pytest.approx(setup.clocks.wall_ahead)
    assert setup.said == []


@pytest.mark.parametrize("step", [HOUR, -HOUR, AGREEMENT * 2])
def test_step_that_no_other_clock_confirms_is_not_followed(setup: Setup, step):
    """Time goes on as if nothing had happened, and one line says so."""
    setup.clocks.wall_ahead = step
    for _ in range(5):
        setup.clocks.sleep(10)
        setup.hear_redis()
        assert setup.error == pytest.approx(0, abs=0.01)
    assert [event.followed for event in setup.said if isinstance(event, events.ClockJumped)] == [False]


def test_a_clock_put_right_again_is_believed_again(setup: Setup):
    setup.clocks.wall_ahead = HOUR
    assert setup.error == pytest.approx(0)
    setup.clocks.wall_ahead = 0.0
    assert setup.error == pytest.approx(0)
    setup.clocks.wall_ahead = 1.0
    assert setup.error == pytest.approx(1.0)


@pytest.mark.parametrize("step", [HOUR, -HOUR])
def test_a_step_that_redis_confirms_is_followed(setup: Setup, step):
    """The time of the whole machine was set."""
    setup.clocks.wall_ahead = setup.clocks.redis_ahead = step
    assert setup.error == pytest.approx(0), "Redis has not been heard since"
    setup.hear_redis()
    assert setup.error == pytest.approx(step)
    assert [e.followed for e in setup.said if isinstance(e, events.ClockJumped)] == [False, True]


@pytest.mark.parametrize("step", [HOUR, -HOUR])
def test_a_step_of_redis_moves_nothing(setup: Setup, step):
    """It shows in the offset, by which the scripts know what is early; one line warns."""
    setup.clocks.redis_ahead = step
    for _ in range(3):
        setup.hear_redis()
        assert setup.error == pytest.approx(0)
    assert setup.time.offset == pytest.approx(-step, abs=0.01)
    assert len([e for e in setup.said if isinstance(e, events.ClockOffset)]) == 1


def test_the_offset_is_counted_from_the_middle_of_the_trip(setup: Setup):
    setup.hear_redis(trip=4.0)
    assert setup.time.offset == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("wrong", [HOUR, -HOUR])
def test_new_leader_with_a_wrong_clock_is_outvoted(wrong):
    """By Redis and by the leader before it, who agreed."""
    setup = Setup(wall_ahead=wrong)
    setup.hear_redis()
    setup.time.join(leaders_offset=0.1)
    assert setup.error == pytest.approx(0, abs=0.2)


@pytest.mark.parametrize("wrong", [HOUR, -HOUR])
def test_a_redis_that_is_wrong_does_not_outvote_two_who_agree(wrong):
    setup = Setup()
    setup.clocks.redis_ahead = wrong
    setup.hear_redis()
    setup.time.join(leaders_offset=-wrong)
    assert setup.error == pytest.approx(0, abs=0.01)


def test_without_a_leader_before_it_a_replica_believes_itself():
    setup = Setup(wall_ahead=HOUR)
    setup.hear_redis()
    setup.time.join(leaders_offset=None)
    assert setup.error == pytest.approx(HOUR)


def test_where_no_two_agree_mine_stands():
    assert vote(0.0, 100.0, 200.0) == 0.0
    assert vote(0.0, 100.0, 101.0) == 100.0
    assert vote(0.0, 1.0, 101.0) == 0.0
