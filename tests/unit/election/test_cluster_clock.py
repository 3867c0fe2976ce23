"""Scheduling time: it outvotes a clock that steps, and follows one that the others agree with."""

import pytest

from ha_beat import events
from ha_beat.election.cluster_clock import AGREEMENT, CONFIRMED, SchedulingTime, vote
from ha_beat.testing import SettableClock
from tests.support.events import EventLog

HOUR = 3600.0


class Setup:
    """Scheduling time of a replica, and the clock of its Redis. Each may be ahead of the true time."""

    def __init__(self, wall_ahead: float = 0.0) -> None:
        self.clock = SettableClock()
        self.started = self.clock.elapsed()
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


@pytest.mark.parametrize("rate", [0.2, -0.2, 0.05, 0.001])
@pytest.mark.parametrize(
    ("wall", "redis", "followed"),
    [(1, 0, False), (0, 1, False), (1, 1, True), (1, -1, False)],
    ids=["wall", "redis", "both", "apart"],
)
def test_drift_is_followed_as_far_as_two_clocks_agree(setup: Setup, rate, wall, redis, followed):
    """The drift reaches ten minutes. The clock that never steps is right unless both others differ from it equally."""
    for _ in range(1000):
        setup.clock.sleep(max(0.25, 0.01 / abs(rate)))
        passed = setup.clock.elapsed() - setup.started
        setup.wall_ahead, setup.redis_ahead = wall * rate * passed, redis * rate * passed
        setup.hear_redis(trip=0.01)
        assert abs(setup.error - (setup.wall_ahead if followed else 0.0)) <= AGREEMENT + 0.01
    assert abs(rate * passed) > AGREEMENT * 2
    assert setup.error == pytest.approx(setup.wall_ahead if followed else 0.0, abs=CONFIRMED + 0.01)
    assert setup.followed() == ([False] if wall and not followed else [])


@pytest.mark.parametrize("rate", [0.2, -0.2, 0.01])
@pytest.mark.parametrize(
    ("others", "with_redis"),
    [((), False), ((0,), True), ((0, 0), True), ((1,), False), ((0, 1), False), ((5,), False)],
    ids=["lone", "one", "two", "redis", "split", "apart"],
)
def test_other_replicas_decide_if_the_whole_machine_or_redis_drifts(setup: Setup, rate, others, with_redis):
    """All clocks of this machine agree, and Redis' clock drifts away. 0: another replica's clock drifts with it."""
    for _ in range(500):
        setup.clock.sleep(max(0.25, 0.02 / abs(rate)))
        away = rate * (setup.clock.elapsed() - setup.started)
        setup.redis_ahead = -away
        setup.time.others_said([share * away for share in others])
        setup.hear_redis(trip=0.01)
        if with_redis:
            assert abs(setup.error - setup.redis_ahead) <= AGREEMENT + 0.1
        else:
            assert setup.error == pytest.approx(0, abs=0.1)
    assert abs(away) > AGREEMENT * 2
    assert setup.followed() == ([False] if with_redis else [])


def test_step_of_redis_is_not_followed_while_the_others_have_not_seen_it(setup: Setup):
    setup.redis_ahead = HOUR
    for others in (0.0, -HOUR):
        setup.time.others_said([others, others])
        setup.hear_redis()
        assert setup.error == pytest.approx(0)


def test_old_report_of_other_replicas_does_not_count(setup: Setup):
    """They may be gone."""
    setup.time.others_said([0.0])
    for second in range(60):
        setup.clock.sleep(1)
        setup.redis_ahead = -0.1 * second
        setup.hear_redis()
    assert setup.error == pytest.approx(0)


def test_small_corrections_of_a_synchronised_clock_are_followed_for_months(setup: Setup):
    """The clock that never steps runs at a slightly wrong rate. The wall clock and Redis' clock are corrected."""
    for step in range(1000):
        setup.clock.sleep(3600)
        setup.redis_ahead = 0.1 * step
        setup.wall_ahead = 0.1 * step + 0.05
        setup.hear_redis(trip=0.01)
        assert setup.error == pytest.approx(setup.wall_ahead, abs=0.01)
    assert setup.events == []


def test_constant_offset_from_redis_is_kept(setup: Setup):
    """Redis' clock limits the drift of the wall clock, but does not set it."""
    setup = Setup(wall_ahead=20.0)
    setup.hear_redis()
    assert (setup.error, setup.time.offset) == (pytest.approx(20), pytest.approx(20))
    setup.wall_ahead = 21.0
    assert (setup.error, setup.time.offset) == (pytest.approx(21), pytest.approx(20))
    setup.wall_ahead = 23.0
    assert setup.error == pytest.approx(20)


@pytest.mark.parametrize("step", [HOUR, -HOUR, AGREEMENT * 2])
def test_step_that_no_other_clock_confirms_is_not_followed(setup: Setup, step):
    setup.wall_ahead = step
    for _ in range(5):
        setup.clock.sleep(10)
        setup.hear_redis()
        assert setup.error == pytest.approx(0, abs=0.01)
    assert setup.followed() == [False]


def test_corrected_clock_is_trusted_again(setup: Setup):
    for ahead, error in ((HOUR, 0.0), (0.0, 0.0), (1.0, 1.0)):
        setup.wall_ahead = ahead
        assert setup.error == pytest.approx(error)


@pytest.mark.parametrize("step", [HOUR, -HOUR])
def test_step_that_redis_confirms_is_followed(setup: Setup, step):
    """The clocks of all machines were set."""
    setup.wall_ahead = setup.redis_ahead = step
    assert setup.error == pytest.approx(0), "followed before Redis confirmed it"
    setup.hear_redis()
    assert setup.error == pytest.approx(step)
    assert setup.followed() == [False, True]


@pytest.mark.parametrize("step", [HOUR, -HOUR])
def test_step_of_redis_is_not_followed_and_reported_once(setup: Setup, step):
    """The offset shows it: the scripts use it to refuse early occurrences."""
    setup.redis_ahead = step
    for _ in range(3):
        setup.hear_redis()
        assert setup.error == pytest.approx(0)
    assert setup.time.offset == pytest.approx(-step, abs=0.01)
    assert len(setup.events.of(events.ClockOffset)) == 1


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("late", [-1, 0, 1])
def test_slow_trip_is_no_clock_difference(first, late):
    """Redis may have answered at its beginning or at its end."""
    setup = Setup()
    if not first:
        setup.hear_redis()
    setup.redis_ahead = late * 4.9
    setup.hear_redis(trip=10.0)
    assert setup.time.offset == pytest.approx(-setup.redis_ahead if first else 0.0, abs=0.01)
    assert setup.events == []
    setup.redis_ahead = 0.0
    setup.hear_redis(trip=0.01)
    assert setup.time.offset == pytest.approx(0, abs=0.01)
    assert setup.events == []


def test_pause_between_two_readings_is_no_step(setup: Setup, monkeypatch):
    """The process was stopped after it had read one clock."""
    read, calls = setup.clock.wall, []

    def wall() -> float:
        found = read()
        if not calls:
            setup.clock.advance(60)
        calls.append(found)
        return found

    monkeypatch.setattr(setup.clock, "wall", wall)
    assert setup.error == pytest.approx(0)
    assert setup.events == []


@pytest.mark.parametrize("wrong", [HOUR, -HOUR])
@pytest.mark.parametrize(
    ("wall", "redis", "leader", "error"),
    [(1, 0, 0.0, 0), (0, 1, -1.0, 0), (1, 0, None, 1)],
    ids=["wrong wall clock", "wrong Redis", "first leader"],
)
def test_new_leader_follows_the_clock_on_which_two_agree(wrong, wall, redis, leader, error):
    """The clock of the last leader has the third vote. Without it, the own clock counts."""
    setup = Setup(wall_ahead=wall * wrong)
    setup.redis_ahead = redis * wrong
    setup.hear_redis()
    leaders_offset = None if leader is None else leader * wrong + 0.1
    offset = pytest.approx((error - redis) * wrong, abs=0.2)
    assert setup.time.offset_in_term(leaders_offset) == offset
    setup.time.vote_at_term_start(leaders_offset)
    assert setup.time.offset == offset
    assert setup.error == pytest.approx(error * wrong, abs=0.2 if wall and not error else 0.01)


def test_own_clock_wins_if_no_two_agree():
    assert vote(0.0, 100.0, 200.0) == 0.0
    assert vote(0.0, 100.0, 101.0) == 100.0
    assert vote(0.0, 1.0, 101.0) == 0.0
