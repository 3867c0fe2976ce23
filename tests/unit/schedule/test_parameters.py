"""Documented parameters of each schedule class: due as in stock beat, however the schedule is made or changed."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from celery.beat import ScheduleEntry
from celery.schedules import crontab, schedule, solar

from ha_beat.schedule.occurrence import NEVER
from ha_beat.schedule.recurrence import recurrence_of
from ha_beat.schedule_sources.entry_source import EntrySource
from ha_beat.schedule_sources.signatures import signature

START = datetime(2030, 3, 6, 9, 58, tzinfo=UTC)
KOLKATA = ZoneInfo("Asia/Kolkata")
MINUTE = timedelta(minutes=1)


class World:
    """Clock that an app and its schedules follow."""

    def __init__(self, zone: str) -> None:
        self.now = START
        self.app = Celery(zone, set_as_current=False, timezone=zone)
        self.app.now = lambda: self.now.astimezone(self.app.timezone)

    def nowfun(self, ahead: timedelta = timedelta(), zone: ZoneInfo = KOLKATA) -> Callable[[], datetime]:
        return lambda: (self.now + ahead).astimezone(zone)

    def wall(self) -> float:
        return self.now.timestamp()

    def ticks(self, hours: int) -> Iterator[datetime]:
        """Yield each minute of a few hours, or every fifth one of some days."""
        step = (5 if hours > 24 else 1) * MINUTE
        for _ in range(timedelta(hours=hours) // step):
            yield self.now
            self.now += step


class Computed(schedule):
    """Interval that is a property: it grows after a while."""

    world: World

    @property
    def run_every(self) -> timedelta:
        return MINUTE * (2 if self.world.now < START + 20 * MINUTE else 5)

    @run_every.setter
    def run_every(self, value: object) -> None: ...


class OwnEstimate(schedule):
    """Interval with its own estimate, twice as long."""

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        return super().remaining_estimate(last_run_at) + self.run_every


class OwnIsDue(crontab):
    """Crontab that is not due in the first minutes."""

    def is_due(self, last_run_at: datetime) -> Any:
        return super().is_due(last_run_at) if self.now() > START + 20 * MINUTE else (False, 60.0)


class OwnDefault(crontab):
    """Crontab with other defaults only."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**{"minute": "*/20", **fields})


def computed(world: World) -> schedule:
    made = Computed(4, app=world.app)
    made.world = world
    return made


def replaced_on_the_object(world: World) -> schedule:
    made: Any = schedule(3 * MINUTE, app=world.app)
    made.remaining_estimate = lambda last: last + 7 * MINUTE - world.now
    return made


SCHEDULES: dict[str, Callable[[World], Any]] = {
    "seconds": lambda world: schedule(180, app=world.app),
    "float": lambda world: schedule(180.0, app=world.app),
    "timedelta": lambda world: schedule(timedelta(minutes=3), app=world.app),
    "relative hours": lambda world: schedule(timedelta(hours=2), relative=True, app=world.app),
    "relative days": lambda world: schedule(timedelta(days=1), relative=True, app=world.app),
    "relative minutes": lambda world: schedule(7 * MINUTE, relative=True, app=world.app),
    "interval, nowfun": lambda world: schedule(7 * MINUTE, nowfun=world.nowfun(), app=world.app),
    "interval, nowfun ahead": lambda world: schedule(7 * MINUTE, nowfun=world.nowfun(5 * MINUTE), app=world.app),
    "crontab": lambda world: crontab(minute="*/7", hour="*/2", app=world.app),
    "crontab, days": lambda world: crontab(minute=0, hour=4, day_of_week="thu", app=world.app),
    "crontab, months": lambda world: crontab(0, 4, day_of_month="1-10", month_of_year="mar", app=world.app),
    "crontab, nowfun": lambda world: crontab(minute=30, hour="*", nowfun=world.nowfun(), app=world.app),
    "crontab, nowfun ahead": lambda world: crontab(0, "*/3", nowfun=world.nowfun(61 * MINUTE), app=world.app),
    "solar": lambda world: solar("sunset", 48, 11, app=world.app),
    "solar, nowfun": lambda world: solar("sunrise", 48, 11, nowfun=world.nowfun(), app=world.app),
    "computed interval": computed,
    "own estimate": lambda world: OwnEstimate(3 * MINUTE, app=world.app),
    "own is_due": lambda world: OwnIsDue(minute="*/5", app=world.app),
    "own defaults": lambda world: OwnDefault(app=world.app),
    "replaced on the object": replaced_on_the_object,
}
COMPUTED = {"seconds", "float", "timedelta", "crontab", "crontab, days", "crontab, months", "own defaults"} | {
    name for name in SCHEDULES if name.startswith(("relative", "solar"))
} - {"solar, nowfun"}


@pytest.fixture(autouse=True)
def _needs_ephem(request: pytest.FixtureRequest) -> None:
    if "solar" in request.node.name:
        pytest.importorskip("ephem")


def entry_of(world: World, source: Any) -> Any:
    return ScheduleEntry(name="e", task="t", schedule=source, app=world.app)


def stock(world: World, source: Any, hours: int) -> list[datetime]:
    """Return the minutes in which stock beat would send."""
    entry, found = entry_of(world, source), []
    for now in world.ticks(hours):
        if entry.is_due()[0]:
            found.append(now)
            entry = next(entry)
    return found


class Ours:
    """Entry as a leader asks it. Its only state is the position, as after a change of leader."""

    def __init__(self, world: World, source: Any) -> None:
        self.world, self.entry = world, entry_of(world, source)
        self.position = world.now
        self.source: Any = object.__new__(EntrySource)
        self.source._scheduler = SimpleNamespace(is_due=lambda entry: entry.is_due())
        self.source._clock = SimpleNamespace(wall=world.wall)

    def run(self, hours: int) -> list[datetime]:
        found = []
        for now in self.world.ticks(hours):
            recurrence = recurrence_of(self.entry)
            if recurrence is None:
                due = self.source.ask_if_due(SimpleNamespace(celery_entry=self.entry), self.position)[0]
            else:
                due = recurrence.next_after(self.position) <= now
            if due:
                found.append(now)
                self.position = now
        return found


@pytest.mark.parametrize("zone", ["UTC", "America/St_Johns"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_is_due_as_in_stock_beat(name, zone):
    hours = 48 if any(rare in name for rare in ("days", "months", "solar")) else 8
    world, ours = World(zone), World(zone)
    expected = stock(world, SCHEDULES[name](world), hours)
    assert expected
    assert Ours(ours, SCHEDULES[name](ours)).run(hours) == expected


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_is_asked_unless_it_is_plainly_constant(name):
    world = World("UTC")
    assert (recurrence_of(entry_of(world, SCHEDULES[name](world))) is not None) is (name in COMPUTED)


def assign_run_every(source: Any) -> None:
    source.run_every = 11 * MINUTE


def assign_minutes(source: Any) -> None:
    source.minute, source.hour = {8, 44}, set(range(24))


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (lambda world: schedule(4 * MINUTE, app=world.app), assign_run_every),
        (lambda world: schedule(4 * MINUTE, relative=True, app=world.app), assign_run_every),
        (lambda world: crontab(minute="*/5", app=world.app), assign_minutes),
    ],
    ids=["interval", "relative", "crontab"],
)
def test_value_assigned_at_run_time_is_used_after_the_next_run(make, change):
    world = World("UTC")
    source = make(world)
    recurrence = recurrence_of(entry_of(world, source))
    first = recurrence.next_after(START)
    change(source)
    world.now = first
    expected = stock(world, source, 2)[0]
    assert recurrence.next_after(first) == expected


def test_entry_that_is_asked_replaces_the_recurrence():
    world = World("UTC")

    class Own(ScheduleEntry):
        schedule = property(lambda self: crontab(), lambda self, value: None)

    assert recurrence_of(Own(name="e", task="t", app=world.app)) is None
    entry = entry_of(world, crontab())
    entry.is_due = lambda: (True, 60.0)
    assert recurrence_of(entry) is None


def signature_of(source: Any, zone: str = "UTC") -> str:
    entry = ScheduleEntry(name="e", task="t", schedule=source, app=World(zone).app)
    return signature(entry, recurrence_of(entry))


class Renamed(schedule):
    """Interval of another class."""


@pytest.mark.parametrize(
    ("sources", "same"),
    [
        ([6, 6.0, timedelta(seconds=6), schedule(6), schedule(run_every=6.0, relative=False), Renamed(6)], True),
        ([60, timedelta(minutes=1)], True),
        ([6, 7], False),
        ([schedule(0.0000012), schedule(0.0000014)], True),
        ([schedule(0.1), schedule(0.1001)], False),
        ([schedule(3600), schedule(3600, relative=True)], False),
        ([crontab(minute="0,30"), crontab(minute="*/30"), crontab(minute=[0, 30]), OwnDefault(minute="*/30")], True),
        ([crontab(day_of_week="mon"), crontab(day_of_week=1)], True),
        ([crontab(minute="1"), crontab(hour="1")], False),
    ],
)
def test_signature_is_equal_if_the_instants_are(sources, same):
    assert (len({signature_of(source) for source in sources}) == 1) is same


def test_signature_of_a_solar_schedule_depends_on_its_event_and_place():
    same, other = (solar("sunset", 48, 11), solar("sunset", 48.0, 11.0)), solar("sunset", 11, 48)
    assert len({signature_of(source) for source in same}) == 1
    assert len({signature_of(source) for source in (*same, other)}) == 2


@pytest.mark.parametrize(
    ("make", "same"),
    [
        (lambda: 6, True),
        (lambda: schedule(timedelta(days=1), relative=True), False),
        (lambda: crontab(hour=4), False),
        (lambda: Computed(6), True),
    ],
    ids=["interval", "relative", "crontab", "asked"],
)
def test_signature_depends_on_the_time_zone_only_if_the_instants_do(make, same):
    assert (signature_of(make(), "UTC") == signature_of(make(), "Europe/Berlin")) is same


def test_position_before_the_first_run_is_left_to_the_entry():
    world = World("UTC")
    ours = Ours(world, schedule(60, app=world.app))
    ours.source.ask_if_due(SimpleNamespace(celery_entry=ours.entry), NEVER)
    assert ours.entry.last_run_at == START
