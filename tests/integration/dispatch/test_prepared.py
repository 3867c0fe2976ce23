"""Occurrences that are prepared ahead equal, field by field, those that are built when due, and serve no others."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Task
from celery.beat import BeatLazyFunc, ScheduleEntry
from celery.signals import before_task_publish
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu import Exchange, Queue

from ha_beat.budget import Pace
from ha_beat.clock import SystemClock
from ha_beat.dispatch.atomic import AtomicDispatcher
from ha_beat.dispatch.batch import pack
from ha_beat.dispatch.brokers.publisher import Publisher
from ha_beat.dispatch.brokers.redis_link import BrokerLink
from ha_beat.dispatch.messages.deferred import DeferredMessage
from ha_beat.headers import with_header
from ha_beat.leader.batches.prepared import PreparedOccurrences
from ha_beat.leader.due_queue import DueQueue
from ha_beat.leader.entry import EntryState
from ha_beat.leader.kept_messages import KeptMessages
from ha_beat.leader.ledger_writer import EntryOperation, LedgerWriter
from ha_beat.reasons import Verdict
from ha_beat.schedule.misfire import Decision
from ha_beat.scheduler import HAScheduler
from ha_beat.store.entry_pauses import EntryPause
from ha_beat.store.keys import Keys
from ha_beat.store.lease import Term
from tests.integration.dispatch.conftest import BASIC, ENTRY, MakeComparison, RedisComparison, entry
from tests.integration.dispatch.test_equality import CASES, FAR, restock
from tests.support.clocks import SteppedClock
from tests.support.dispatchers import no_marker
from tests.support.schedulers import closing

TERM = Term("a host/1/x", 7, "nonce", "gen", "", 1e9)

#: Cases whose messages depend on the broker, on the time or on the project's code.
WHEN_DUE = {
    *("route by function", "topic exchange to two queues", "expires after seconds", "expires after a fraction"),
    *("expires at", "countdown", "eta", "local time", "serializer pickle", "datetime as json", "protocol 1"),
    *("protocol 2", "quorum queues", "exchange and routing key", "broadcast"),
}


class Ahead:
    """Entry whose next occurrence is due in five seconds: prepared ahead, and built when due."""

    def __init__(self, comparison: RedisComparison, line: Mapping[str, Any], claim: bool = False) -> None:
        app = comparison.app
        self.now = datetime.now(UTC)
        app.conf.beat_schedule = {ENTRY: {"schedule": timedelta(hours=1), **line}}
        scheduler = HAScheduler(app, lazy=True)
        scheduler.setup_schedule()
        source = scheduler.schedule_source
        self.source = source
        (self.entry,) = [found for found in source.load() if found.id == ENTRY]
        self.at = self.now + timedelta(seconds=5)
        self.state = EntryState(self.entry, self.at - timedelta(hours=1))
        if claim:
            publisher = Publisher(app, 5.0, SystemClock(), source.sender)
            self.dispatcher: Any = SimpleNamespace(
                recipes=publisher.recipes,
                prepare=publisher.prepare,
                prepare_ahead=publisher.prepare_ahead,
                pack=lambda _: b"",
            )
        else:
            link = BrokerLink(app, 5.0)
            self.dispatcher = AtomicDispatcher(source.sender, link, Keys("ahead"), 1000, no_marker())
        self.pauses: dict[str, EntryPause] = {}
        self.parts: Any = SimpleNamespace(
            source=source,
            cluster="ahead",
            clock=SteppedClock(),
            time=SimpleNamespace(now=lambda: self.now),
            pause=SimpleNamespace(entries=self.pauses),
            kept=KeptMessages(),
            pace=Pace(SteppedClock()),
        )
        self.queue = DueQueue()
        self.queue.put(self.state, self.at)
        self.prepared = PreparedOccurrences(self.parts)
        self.writer = LedgerWriter(TERM, self.at + timedelta(milliseconds=7))

    def prepare(self) -> int:
        """Prepare, and return the number of prepared occurrences."""
        self.prepared.prepare(TERM, self.queue, self.dispatcher, idle=5.0)
        return len(self.prepared)

    def take(self) -> EntryOperation | None:
        self.dispatcher.recipes.refresh()
        return self.prepared.take(self.writer, self.state, self.state.decide(self.writer.now), self.dispatcher)

    def built_when_due(self) -> EntryOperation:
        def build(header: Mapping[str, Any], task_id: str) -> Any:
            args, kwargs, options = self.source.arguments(self.entry)
            options = with_header(options, header, task_id)
            return self.dispatcher.prepare(self.entry.celery_entry, args, kwargs, options)

        return self.writer.enqueue(self.state, Decision(self.at, self.at), "ahead", build)


def without_tag(message: Any) -> Any:
    """Return a message without its random parts."""
    if isinstance(message, DeferredMessage):
        return [{**one.arguments, "declare": str(one.arguments.get("declare"))} for one in message.publishes]
    found = [[*command[:2], json.loads(command[2])] for command in message.commands]
    for _, _, value in found:
        if isinstance(value, dict):
            value["properties"].pop("delivery_tag")
    return found


def assert_equal(ahead: Ahead) -> None:
    taken, built = ahead.take(), ahead.built_when_due()
    assert taken is not None
    assert taken.operation.message is not None
    assert without_tag(taken.operation.message) == without_tag(built.operation.message)
    assert replace(taken.operation, message=None) == replace(built.operation, message=None)
    assert (taken.row, taken.decision, taken.state) == (built.row, built.decision, built.state)
    assert taken.operation.packed in {b"", pack(replace(taken.operation)) if taken.operation.packed else b""}
    # The records of a late batch have a later time, so it must not be sent as it was packed.
    late = taken.operation_at(ahead.writer.ms + 1000)
    assert not late.packed
    assert json.loads(late.records[-1])["ms"] == json.loads(taken.operation.records[-1])["ms"] + 1000


@pytest.mark.parametrize("registered", [False, True], ids=["by name", "by apply_async"])
@pytest.mark.parametrize("case", CASES)
def test_prepared_occurrence_equals_one_that_is_built_when_due(
    case: str, registered: bool, make_comparison: MakeComparison
):
    config, line = CASES[case]
    comparison = make_comparison(config)
    if registered:
        comparison.app.task(name=line["task"], shared=False)(restock)
    ahead = Ahead(comparison, line)
    assert ahead.prepare() == (case not in WHEN_DUE)
    if case not in WHEN_DUE:
        assert_equal(ahead)
        assert len(ahead.prepared) == 0


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=20) | st.just('"ms":1234567890123,'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "queue": st.sampled_from(["slow", "celery", "shop"]),
        "priority": st.integers(0, 9),
        "serializer": st.sampled_from(["json", "pickle", "yaml"]),
        "compression": st.sampled_from(["zlib", "gzip", "bzip2"]),
        "headers": st.dictionaries(st.text(max_size=8), PLAIN, max_size=2),
        "task_id": st.just("an id"),
        "time_limit": st.integers(1, 99),
        "shadow": st.text(max_size=9),
        "delivery_mode": st.sampled_from([1, 2]),
        "ignore_result": st.booleans(),
        "argsrepr": st.text(max_size=9),
        "ha_beat": st.fixed_dictionaries(
            {}, optional={"overlap": st.just("skip"), "misfire": st.sampled_from(["skip", "all"]), "jitter": st.just(0)}
        ),
    },
)
CONFIG = st.fixed_dictionaries(
    {},
    optional={
        "task_routes": st.sampled_from([{"shop.*": {"queue": "routed", "priority": 3}}, {"shop.restock": "direct"}]),
        "task_serializer": st.sampled_from(["json", "pickle"]),
        "task_compression": st.just("zlib"),
        "task_default_priority": st.integers(0, 9),
        "task_protocol": st.sampled_from([1, 2]),
        "task_ignore_result": st.booleans(),
    },
)


@pytest.mark.parametrize("claim", [False, True], ids=["atomic", "claim"])
def test_any_plain_entry_is_prepared_as_when_due(claim: bool, make_comparison: MakeComparison):
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.lists(PLAIN, max_size=3), st.dictionaries(st.text(max_size=8), PLAIN, max_size=3), OPTIONS, CONFIG, st.data()
    )
    def check(args: Any, kwargs: Any, options: Any, config: Any, data: st.DataObject) -> None:
        comparison = make_comparison(config)
        if data.draw(st.booleans()):
            comparison.app.task(name=BASIC["task"], shared=False, priority=data.draw(st.sampled_from([None, 4])))(
                restock
            )
        line = {"task": BASIC["task"], "args": args, "kwargs": kwargs, "options": options}
        ahead = Ahead(comparison, line, claim)
        assert ahead.prepare() == 1
        assert_equal(ahead)

    check()


def receiver(**_: Any) -> None:
    """Receiver of a signal."""


def changed_row(ahead: Ahead) -> None:
    ahead.state.row = LedgerWriter(TERM, ahead.now).row(ahead.state, ahead.state.position, Verdict.ARMED)


def app_of(ahead: Ahead) -> Any:
    return ahead.dispatcher.recipes._send.app


CHANGES: dict[str, Callable[[Ahead], object]] = {
    "routes": lambda ahead: app_of(ahead).conf.update(task_routes={"shop.*": "elsewhere"}),
    "queue": lambda ahead: app_of(ahead).amqp.queues.add(Queue("celery", Exchange("orders", type="topic"))),
    "task's method": lambda ahead: setattr(app_of(ahead).tasks[BASIC["task"]], "apply_async", receiver),
    "args": lambda ahead: ahead.entry.celery_entry.args.append(4),
    "a value in the args": lambda ahead: ahead.entry.celery_entry.args[0].update(b=2),
    "option": lambda ahead: ahead.entry.celery_entry.options.update(queue="other"),
    "task": lambda ahead: setattr(ahead.entry.celery_entry, "task", "another"),
    "entry": lambda ahead: setattr(ahead.state, "entry", replace(ahead.entry)),
    "interval": lambda ahead: setattr(ahead.entry.celery_entry.schedule, "run_every", timedelta(minutes=5)),
    "row": changed_row,
    "failure": lambda ahead: ahead.state.record_failure(ahead.now),
    "resend": lambda ahead: setattr(ahead.state, "resend", True),
    "lateness": lambda ahead: setattr(ahead, "writer", LedgerWriter(TERM, ahead.at + timedelta(hours=2))),
    "nonce": lambda ahead: setattr(ahead, "writer", LedgerWriter(replace(TERM, nonce="b"), ahead.writer.now)),
    "epoch": lambda ahead: setattr(ahead, "writer", LedgerWriter(replace(TERM, epoch=8), ahead.writer.now)),
    "dispatcher": lambda ahead: setattr(ahead, "dispatcher", SimpleNamespace(recipes=ahead.dispatcher.recipes)),
    "another state": lambda ahead: setattr(ahead, "state", replace(ahead.state)),
    "signal": lambda _: before_task_publish.connect(receiver),
}


@pytest.mark.parametrize("change", CHANGES)
def test_prepared_occurrence_is_dropped_after_a_change(change: str, make_comparison: MakeComparison):
    comparison = make_comparison()
    comparison.app.task(name=BASIC["task"], shared=False)(restock)
    ahead = Ahead(comparison, {**BASIC, "args": [{"a": 1}]})
    assert ahead.prepare() == 1
    try:
        CHANGES[change](ahead)
        assert ahead.take() is None
    finally:
        before_task_publish.disconnect(receiver)


class Tenanted(Task):  # type: ignore[type-arg]
    def apply_async(self, *args: Any, **options: Any) -> Any:
        return super().apply_async(*args, **options)


class Named(Task):  # type: ignore[type-arg]
    def shadow_name(self, *_: Any) -> str:
        return str(datetime.now(UTC))


class Computed(Task):  # type: ignore[type-arg]
    queue = property(lambda _: str(datetime.now(UTC).second))


@pytest.mark.parametrize("base", [Tenanted, Named, Computed])
def test_task_class_with_a_hook_is_not_prepared(base: Any, make_comparison: MakeComparison):
    comparison = make_comparison()
    comparison.app.task(name=BASIC["task"], base=base, shared=False)(restock)
    assert Ahead(comparison, BASIC).prepare() == 0


LINES = {
    "lazy": {**BASIC, "args": (BeatLazyFunc(int),)},
    "object": {**BASIC, "kwargs": {"at": FAR}},
    "callable": entry(link=[print]),
    "expiry": entry(expires=3),
    "serializer": entry(serializer=["json"]),
    "compression": entry(compression="none"),
    "task": {**BASIC, "task": ["a list"]},
    # To build 1 MB takes 0.2 s, by which an entry that falls due at that moment would be late.
    "many arguments": {**BASIC, "args": [[{"id": number} for number in range(50_000)]]},
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_entry_with_other_than_few_plain_values_is_not_prepared(line: Any, make_comparison: MakeComparison):
    assert Ahead(make_comparison(), line).prepare() == 0


class Broken(ScheduleEntry):
    task: Any = property(lambda _: 1 / 0)


def test_entry_whose_attribute_raises_is_not_prepared(make_comparison: MakeComparison):
    """The other entries are prepared."""
    ahead = Ahead(make_comparison(), BASIC)
    broken = EntryState(replace(ahead.entry, id="broken", celery_entry=Broken.__new__(Broken)), ahead.state.position)
    ahead.queue.put(broken, ahead.at - timedelta(seconds=1))
    assert ahead.prepare() == 1
    assert_equal(ahead)


def test_entry_with_a_long_text_is_prepared(make_comparison: MakeComparison):
    assert Ahead(make_comparison(), {**BASIC, "args": ["x" * 90_000]}).prepare() == 1


def test_paused_entry_is_not_prepared(make_comparison: MakeComparison):
    ahead = Ahead(make_comparison(), BASIC)
    ahead.pauses[ENTRY] = EntryPause(ENTRY, 1)
    assert ahead.prepare() == 0


def test_patched_celery_is_called_when_due(make_comparison: MakeComparison, monkeypatch: pytest.MonkeyPatch):
    """A tracer replaces the method and copies its attributes."""
    original = Task.apply_async

    def traced(*args: Any, **options: Any) -> Any:
        return original(*args, **options)

    traced.__module__, traced.__qualname__ = original.__module__, original.__qualname__
    monkeypatch.setattr(Task, "apply_async", traced)
    assert Ahead(make_comparison(), BASIC).prepare() == 0


def test_queues_of_a_topic_exchange_are_looked_up_when_due(make_comparison: MakeComparison):
    topic = Exchange("orders", type="topic")
    comparison = make_comparison({"task_queues": [Queue("all", topic, routing_key="#")], "task_default_queue": "all"})
    assert Ahead(comparison, BASIC).prepare() == 0


def test_leader_sends_what_it_prepared_and_builds_what_was_edited(
    make_comparison: MakeComparison, monkeypatch: pytest.MonkeyPatch
):
    """One entry is edited in place and one is replaced while their occurrences wait for the instant."""
    monkeypatch.setattr("ha_beat.leader.batches.prepared._SLOW", 60.0)
    comparison = make_comparison({"ha_beat_cluster": "ahead"})
    scheduler = HAScheduler(comparison.app, max_interval=0.02)
    with closing(scheduler):
        while not scheduler._loop.leads:
            scheduler.tick()
        runtime = scheduler._loop.runtime
        assert runtime is not None
        due = datetime.now(UTC) + timedelta(seconds=4)
        ran = {"schedule": timedelta(hours=1), "last_run_at": due - timedelta(hours=1), "task": "t"}
        names = ("kept", "edited", "replaced")
        schedule = {name: {**ran, "args": ["old"]} for name in names}
        scheduler.merge_inplace(schedule)
        prepared: list[str] = []
        while datetime.now(UTC) < due - timedelta(seconds=0.3) and len(prepared) < 3:
            scheduler.tick()
            if runtime.enqueuer._work is not None:
                prepared = list(runtime.enqueuer._work._builder.prepared._found)
        assert sorted(prepared) == sorted(names)
        built_late: list[str] = []
        dispatcher: Any = runtime.enqueuer.dispatcher
        prepare = dispatcher.prepare

        def noted(entry: Any, *rest: Any) -> Any:
            if datetime.now(UTC) >= due:
                built_late.append(entry.name)
            return prepare(entry, *rest)

        dispatcher.prepare = noted
        scheduler.schedule["edited"].args[0] = "new"
        scheduler.merge_inplace({**schedule, "replaced": {**ran, "args": ["new"]}})
        deadline = datetime.now(UTC) + timedelta(seconds=30)
        while len(comparison.queued()) < 3 and datetime.now(UTC) < deadline:
            scheduler.tick()
        raw = comparison.server.admin.lrange("celery", 0, -1)
        sent = {m["headers"]["ha_beat"]["entry"]: m["headers"]["argsrepr"] for m in map(json.loads, raw)}
        assert sent == {"kept": "['old']", "edited": "['new']", "replaced": "['new']"}
        assert "kept" not in built_late
