"""Generated edits of a row while leaders come and go: what was due is sent once or has a verdict.

The rows, their reader and writer, and the rules of the leader are the real ones. Time and Redis are simulated.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, patch

import pytest
from django_celery_beat.models import PeriodicTask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ha_beat.django.schedulers import HADatabaseScheduler
from ha_beat.leader.due_queue import DueQueue
from ha_beat.leader.entry import EntryState
from ha_beat.leader.ledger_writer import EntryOperation, LedgerWriter
from ha_beat.leader.loading.reconcile import reconcile
from ha_beat.leader.planner import Absence, Planner
from ha_beat.reasons import Verdict
from ha_beat.store.lease import Term
from ha_beat.store.shadow import Shadow
from tests.integration.django.conftest import SQLITE, migrate, use
from tests.integration.django.project.app import app
from tests.integration.django.rows import at, cron, every, row

START = datetime(2030, 1, 1, 12, 0, 3, tzinfo=UTC)
TICK = timedelta(seconds=5)

#: Start of the calendar's minutes.
HOUR = datetime(2030, 1, 1, tzinfo=UTC)

#: Seconds of the leader's work at the end, without edits.
QUIET_END = 300


class Changes:
    """Mark of changed rows, without a query."""

    count = 0

    def last_change(self) -> datetime:
        return START + timedelta(microseconds=self.count)

    def update_changed(self) -> None:
        self.count += 1


@dataclass
class World:
    """Simulated time, and Redis: the ledger and the journal."""

    now: datetime = START
    ledger: dict[str, str] = field(default_factory=dict)
    verdicts: list[tuple[datetime, Verdict, datetime, datetime]] = field(default_factory=list)
    epoch: int = 0
    changes: Changes = field(default_factory=Changes)

    def elapsed(self) -> float:
        return (self.now - START).total_seconds()

    def write(self, record: str) -> None:
        data = json.loads(record)
        first = datetime.fromisoformat(data.get("at") or data["from"])
        until = datetime.fromisoformat(data["until"]) if "until" in data else first + timedelta(microseconds=1)
        self.verdicts.append((self.now, Verdict(data["verdict"]), first, until))

    def sent(self) -> list[tuple[datetime, datetime]]:
        """Return the instant of each message, and when it was sent."""
        return [(first, when) for when, verdict, first, _ in self.verdicts if verdict is Verdict.ENQUEUED]

    def accounts_for(self, instant: datetime) -> bool:
        """True if the instant has a verdict."""
        return any(first <= instant < until for _, _, first, until in self.verdicts)


class Replica:
    """Leader with the real reader, writer and rules. A test kills it by dropping it."""

    def __init__(self, world: World, on_send: Callable[[], None]) -> None:
        self.world, self.on_send = world, on_send
        world.epoch += 1
        self.term = Term("r", world.epoch, f"n{world.epoch}", "g", "s", 0.0)
        self.loaded = False
        scheduler = HADatabaseScheduler(app=app, lazy=True)
        scheduler.Changes = world.changes
        self.source: Any = scheduler.schedule_source
        self.source._clock = world
        self.enqueuer = SimpleNamespace(
            now=self.now, up_to_date=lambda _: self.loaded, awaits_read=False, due_queue=DueQueue()
        )
        runtime = SimpleNamespace(
            duties=Mock(),
            elector=SimpleNamespace(handle=SimpleNamespace(term=self.term)),
            enqueuer=self.enqueuer,
            events=SimpleNamespace(emit=self.report, subscribe=lambda _: None),
        )
        self.source.start(runtime)
        self.sync = self.source._sync
        self.reader, self.sync.reading.read_in = self.sync.reading.reader, self.term.nonce
        self.planner = Planner(self.source, self.report)

    def now(self) -> datetime:
        return self.world.now

    def report(self, event: object) -> None:
        raise AssertionError(event)

    def tick(self, *, reads_first: bool) -> None:
        """Do what falls due. The read of the rows and the main loop are two threads: either may come first."""
        if reads_first or not self.loaded:
            self.read()
        if not self.loaded or self.source.changed(self.term, awaits_read=False) is not None:
            self.load()
        self.dispatch()
        if not reads_first:
            self.read()
        self.sync.writer.write()
        self.sync.writer.disable_expired()

    def read(self) -> None:
        """Read all that has changed. A read goes through the table in several turns."""
        self.reader._full_reads._urgent_from = 0.0
        for _ in range(3):
            self.reader.turn()

    def load(self) -> None:
        queue = self.enqueuer.due_queue = DueQueue()
        done = reconcile(
            self.source.load(),
            dict(self.world.ledger),
            Shadow(),
            None,
            writer=LedgerWriter(self.term, self.now()),
            catch_up=False,
            absence=Absence(certain=True),
        )
        assert done.failures == []
        self.loaded = True
        for state in done.states:
            self.planner.plan(queue, state, self.now())
        for operation in done.operations:
            self.submit(operation)

    def dispatch(self) -> None:
        for _ in range(50):
            due = list(self.enqueuer.due_queue.pop_due(self.now(), 100))
            if not due:
                return
            for state in due:
                self.submit(self.operation(state))
        raise AssertionError("no end of due occurrences")

    def operation(self, state: EntryState) -> EntryOperation:
        writer = LedgerWriter(self.term, self.now())
        decision = state.decide(self.now())
        if decision.send is None:
            return writer.skip(state, decision.skipped, decision.position)
        made = writer.row(state, decision.position, Verdict.ENQUEUED, scheduled_at=decision.send, task_id="id")
        records = [writer.enqueued_record(state, decision.send, "id")]
        if decision.skipped is not None:
            records.insert(0, writer.skip_record(state, decision.skipped))
        operation = SimpleNamespace(expected=state.expected, row=made.raw, records=records)
        return EntryOperation(state, operation, made, decision)

    def submit(self, done: EntryOperation) -> None:
        state, operation = done.state, done.operation
        assert self.world.ledger.get(state.id, "") == operation.expected
        self.world.ledger[state.id] = operation.row
        for record in operation.records:
            self.world.write(record)
        if state.entry.celery_entry is None:
            self.source.armed(state.id)
            return
        if done.sends:
            self.on_send()
        state.record_row(done.row)
        if done.decision is None or state.resumed:
            state.resumed = False
            self.source.armed(state.id)
        if done.decision is not None:
            self.source.recorded(state.entry, done.row)
            self.planner.plan(self.enqueuer.due_queue, state, self.now())


@contextmanager
def frozen(world: World) -> Iterator[None]:
    with patch("django.utils.timezone.now", lambda: world.now):
        yield


# --- Edits

#: Time of the edit -> fields of the row that the edit sets.
Edit = Callable[[datetime], dict[str, Any]]

NO_SCHEDULE = dict.fromkeys(("interval", "crontab", "clocked"))


def clocked(seconds: int) -> Edit:
    return lambda now: {**NO_SCHEDULE, "clocked": at(now + timedelta(seconds=seconds)), "one_off": True}


def recurring(kind: str, make: Callable[[], Any]) -> Edit:
    return lambda _: {**NO_SCHEDULE, kind: make(), "one_off": False}


def moment(name: str, seconds: int | None) -> Edit:
    return lambda now: {name: None if seconds is None else now + timedelta(seconds=seconds)}


EDITS: dict[str, Edit] = {
    **{f"clocked {seconds:+}": clocked(seconds) for seconds in (-100, -7, 0, 8, 33, 95)},
    **{f"crontab {minutes}": recurring("crontab", partial(cron, minutes)) for minutes in ("*", "*/2")},
    **{f"interval {seconds}": recurring("interval", partial(every, seconds)) for seconds in (10, 45)},
    "one off": lambda _: {"one_off": True},
    **{f"start {seconds}": moment("start_time", seconds) for seconds in (None, -30, 40)},
    **{f"expires {seconds}": moment("expires", seconds) for seconds in (None, -30, 25, 90)},
    "disable": lambda _: {"enabled": False},
    "enable": lambda _: {"enabled": True},
}


def schedule_of(task: Any) -> tuple[Any, ...]:
    return task.interval_id, task.crontab_id, task.clocked_id, task.start_time


def definition_of(task: Any) -> tuple[Any, ...]:
    return (*schedule_of(task), task.enabled, task.one_off, task.expires)


def due(task: Any, after: datetime, until: datetime) -> list[datetime]:
    """Return the calendar's instants. Those of an interval depend on its position."""
    if not task.enabled:
        return []
    if task.clocked is not None:
        instant = max(task.clocked.clocked_time, task.start_time or START)
    elif task.crontab is not None and not task.one_off:
        step = timedelta(minutes=2 if task.crontab.minute == "*/2" else 1)
        instant = HOUR + (until - HOUR) // step * step
    else:
        return []
    started = task.start_time is None or instant >= task.start_time
    return [instant] if after < instant <= until and started and (not task.expires or instant < task.expires) else []


class Simulation:
    """One row and its leaders, with the instants that must have a verdict."""

    def __init__(self) -> None:
        self.world = World()
        self.replica: Replica | None = None
        #: Row as the leader last read it.
        self.known: Any = None
        self.expected: list[datetime] = []
        #: Instants that fell due between an edit and the next read of a leader. They must be sent.
        self.due_after_edit: list[datetime] = []
        self.edits_on_send: list[str] = []
        #: Number of verdicts before the last edit, if that gave the row another schedule.
        self.last_edit: int | None = None
        self.enabled_at_last_edit = True
        self._read: tuple[int, Any] = (-1, None)
        with frozen(self.world):
            self.pk = row("task", crontab=cron("*")).pk

    @property
    def task(self) -> Any:
        return PeriodicTask.objects.select_related("interval", "crontab", "clocked").get(pk=self.pk)

    def task_as_marked(self) -> Any:
        """Return the row as of the last mark, without a query if there was no other one."""
        if self._read[0] != self.world.changes.count:
            self._read = (self.world.changes.count, self.task)
        return self._read[1]

    def on_send(self) -> None:
        """Edit the row as its own task does, before the leader writes anything."""
        edits, self.edits_on_send = self.edits_on_send, []
        for name in edits:
            self.edit(name)

    def edit(self, name: str) -> None:
        with frozen(self.world):
            task = self.task
            before = schedule_of(task)
            for field_name, value in EDITS[name](self.world.now).items():
                setattr(task, field_name, value)
            task.save()
        self.enabled_at_last_edit = task.enabled
        self.last_edit = len(self.world.verdicts) if schedule_of(task) != before else None
        self.world.changes.update_changed()

    def wait(self, seconds: int, *, reads_first: bool = True) -> None:
        until = self.world.now + timedelta(seconds=seconds)
        while self.world.now < until:
            before, task = self.world.now, self.task_as_marked()
            self.world.now += TICK
            instants = due(task, before, self.world.now)
            if self.known is not None and definition_of(self.known) == definition_of(task):
                self.expected += instants
            elif self.known is not None and self.replica is not None and reads_first:
                self.due_after_edit += instants
            if self.replica is not None:
                with frozen(self.world):
                    self.replica.tick(reads_first=reads_first)
                self.known = self.task_as_marked()

    def act(self, action: tuple[str, Any]) -> None:
        kind, value = action
        match kind:
            case "edit":
                self.edit(value)
            case "edit on send":
                self.edits_on_send.append(value)
            case "wait":
                self.wait(value)
            case "wait, read late":
                self.wait(value, reads_first=False)
            case "kill":
                self.replica = None
            case "lead":
                self.replica = Replica(self.world, self.on_send)

    def assert_accounted_for(self) -> None:
        world = self.world
        instants = [instant for instant, _ in world.sent()]
        assert len(instants) == len(set(instants)), "an occurrence was sent twice"
        missing = [instant for instant in self.expected if not world.accounts_for(instant)]
        assert not missing, f"without a verdict: {missing}"
        unsent = set(self.due_after_edit) - set(instants)
        assert not unsent, f"not sent although due after the edit: {sorted(unsent)}"
        early = [(instant, when) for instant, when in world.sent() if instant > when]
        assert not early, f"sent early: {early}"

    def assert_last_edit_is_followed(self) -> None:
        """A clocked time that the last edit set has a verdict, also if it was past."""
        task, since = self.task, self.last_edit
        if since is None or task.clocked is None or not (task.expires is None or task.expires > self.world.now):
            return
        due = max(task.clocked.clocked_time, task.start_time or START)
        if due <= self.world.now and self.enabled_at_last_edit:
            assert self.world.verdicts[since:], "a clocked row was disabled without a run"

    def assert_goes_on(self) -> None:
        """A row that is enabled runs by its present schedule, and one that has ended is disabled."""
        task, world = self.task, self.world
        recent = [when for _, when in world.sent() if when > world.now - timedelta(seconds=130)]
        if task.expires is not None and task.expires <= world.now:
            assert not task.enabled
        elif task.enabled and task.clocked is not None:
            assert task.clocked.clocked_time > world.now or (task.start_time or START) > world.now
        elif task.enabled and not task.one_off and (task.start_time or START) < world.now - timedelta(seconds=130):
            assert recent, "a recurring row is silent"


ACTIONS = st.one_of(
    st.tuples(st.just("edit"), st.sampled_from(sorted(EDITS))),
    st.tuples(st.just("edit"), st.sampled_from(sorted(EDITS))),
    st.tuples(st.just("edit on send"), st.sampled_from(sorted(EDITS))),
    st.tuples(st.just("wait"), st.sampled_from([5, 15, 65, 130])),
    st.tuples(st.just("wait, read late"), st.sampled_from([5, 65])),
    st.tuples(st.just("kill"), st.none()),
    st.tuples(st.just("lead"), st.none()),
)


@pytest.fixture(scope="module")
def _database() -> Iterator[None]:
    """A database in memory for all examples. Nothing connects to the lease's Redis."""
    use(SQLITE)
    migrate()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HA_BEAT_REDIS_URL", "redis://127.0.0.1:1/0")
        yield
    use(SQLITE)


def check(actions: list[tuple[str, Any]]) -> None:
    PeriodicTask.objects.all().delete()
    simulation = Simulation()
    for action in [("lead", None), ("wait", 15), *actions]:
        simulation.act(action)
    simulation.edits_on_send = []
    for action in [("lead", None), ("wait", QUIET_END)]:
        simulation.act(action)
    simulation.assert_accounted_for()
    simulation.assert_last_edit_is_followed()
    simulation.assert_goes_on()


@pytest.mark.usefixtures("_database")
@pytest.mark.parametrize(
    "actions",
    [
        [("edit", "interval 10"), ("wait", 70), ("edit", "clocked -100"), ("wait", 15)],
        [("edit", "clocked +95"), ("wait", 15), ("edit", "clocked +8")],
        [("edit", "clocked +95"), ("wait", 15), ("edit", "interval 10")],
        [("edit", "clocked +8"), ("edit on send", "clocked +33"), ("wait", 65)],
        [("edit", "clocked +0"), ("edit", "start 40")],
        [("wait", 65), ("kill", None), ("wait", 65), ("edit", "clocked -7")],
        [("wait", 65), ("kill", None), ("wait", 65), ("edit", "disable")],
        [("edit", "expires 90"), ("wait", 65), ("kill", None), ("wait", 130)],
        [("kill", None), ("wait", 65), ("edit", "expires -30"), ("wait", 65)],
        [("wait", 65), ("wait", 15), ("wait", 15), ("wait", 5), ("edit", "crontab */2"), ("wait", 5)],
    ],
    ids=lambda actions: ", ".join(str(value or kind) for kind, value in actions),
)
def test_edit_without_or_beside_a_leader_loses_nothing(actions):
    check(actions)


@pytest.mark.slow
@pytest.mark.usefixtures("_database")
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.lists(ACTIONS, min_size=2, max_size=9))
def test_each_occurrence_is_sent_once_or_has_a_verdict(actions):
    check(actions)
