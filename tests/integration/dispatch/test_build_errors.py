"""Errors while a message is built, with a real broker: which entries wait, and what is recorded."""

import logging
from datetime import UTC, datetime
from typing import Any

import pytest
import redis
from celery import Celery, Task
from celery.beat import BeatLazyFunc, ScheduleEntry
from celery.signals import before_task_publish
from kombu import Exchange, Queue
from redis.backoff import NoBackoff
from redis.retry import Retry

from ha_beat.dispatch import MessageFailed, judged_build_errors
from ha_beat.dispatch.atomic import AtomicDispatcher
from ha_beat.errors import StoreUnavailable
from ha_beat.reasons import BuildFault, EntryFault, SkipReason
from ha_beat.store.keys import Keys
from tests.integration.dispatch.conftest import MakeComparison, RedisComparison
from tests.support.dispatchers import app_dispatcher
from tests.support.servers import RedisServer, free_port

GOOD = {f"good-{n}": {"task": "good"} for n in range(3)}


def nothing() -> None: ...


def ask_lock_server() -> None:
    """Raise redis-py's ConnectionError: no server listens on this port."""
    redis.Redis(port=free_port(), retry=Retry(NoBackoff(), 0)).ping()


class Locked(Task):  # type: ignore[type-arg]
    """Task that asks its own lock server, which is unreachable for the first calls."""

    abstract = True
    away_for = 0
    calls = 0

    def apply_async(self, *args: Any, **options: Any) -> Any:
        type(self).calls += 1
        if type(self).calls <= self.away_for:
            ask_lock_server()
        return super().apply_async(*args, **options)


def comparison_with(make: MakeComparison, *, away_for: int, deadline: float = 60) -> RedisComparison:
    made = make({"ha_beat_publish_deadline": deadline})
    base = type("Base", (Locked,), {"abstract": True, "away_for": away_for})
    made.app.task(name="locked", base=base, shared=False)(nothing)
    return made


def failures(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if vars(record).get("action") == "entry_failed"]


def test_entry_whose_own_server_is_unreachable_for_a_moment_is_late(make_comparison: MakeComparison, caplog):
    """The other entries do not wait, the leader continues, and the error is logged once."""
    comparison = comparison_with(make_comparison, away_for=2)
    caplog.set_level(logging.INFO)
    comparison.run_scheduler({"a-locked": {"task": "locked"}, **GOOD})
    assert comparison.queued() == [*GOOD, "a-locked"]
    assert [(each["entry"], each["reason"]) for each in failures(caplog)] == [
        ("a-locked", EntryFault.MESSAGE_NOT_BUILT)
    ]
    assert {"dispatch_failed", "term_ended"}.isdisjoint(vars(record).get("action") for record in caplog.records[:-1])


@pytest.mark.parametrize(
    "late", [{}, {"schedule": 1.0, "last_run_at": datetime(2020, 1, 1, tzinfo=UTC)}], ids=["daily", "frequent"]
)
def test_entry_whose_own_server_stays_unreachable_is_skipped(make_comparison: MakeComparison, late: Any):
    """An entry that is due more often than the deadline has a newer instant at each attempt."""
    comparison = comparison_with(make_comparison, away_for=1000, deadline=1)
    comparison.run_scheduler({"a-locked": {"task": "locked", **late}, **GOOD})
    row = comparison.ledger()["a-locked"]
    assert (row["verdict"], row["why"]) == ("skipped", SkipReason.NO_MESSAGE)
    assert row["detail"].startswith("ConnectionError")
    assert sorted(comparison.queued()) == sorted(GOOD)


def entry(app: Celery, **fields: Any) -> ScheduleEntry:
    return ScheduleEntry(name="e", app=app, schedule=60, **{"task": "good", **fields})


def build(dispatcher: AtomicDispatcher, built: ScheduleEntry) -> None:
    with judged_build_errors(dispatcher):
        dispatcher.prepare(built, built.args or (), built.kwargs or {}, built.options or {})


def fault_of(dispatcher: AtomicDispatcher, built: ScheduleEntry) -> BuildFault:
    with pytest.raises(MessageFailed) as failed:
        build(dispatcher, built)
    return failed.value.fault


class IoWhenEncoded:
    """Argument that does I/O while it is encoded, as a lazy query does."""

    def __json__(self) -> str:
        raise ConnectionError("the database is unreachable")


@pytest.fixture
def app(redis_server: RedisServer) -> Celery:
    app = Celery("build", broker=redis_server.url, set_as_current=False)
    app.finalize()
    return app


@pytest.fixture
def dispatcher(app: Celery) -> AtomicDispatcher:
    return app_dispatcher(app, Keys("build"))


def raise_unreachable(*_: Any, **__: Any) -> Any:
    raise ConnectionError("unreachable")


def test_error_is_the_entrys_if_the_broker_answers(app: Celery, dispatcher: AtomicDispatcher):
    app.task(name="locked", base=type("Base", (Locked,), {"abstract": True, "away_for": 10}), shared=False)(nothing)
    assert fault_of(dispatcher, entry(app, task="locked")) is BuildFault.TASK
    assert fault_of(dispatcher, entry(app, args=(IoWhenEncoded(),))) is BuildFault.TASK
    assert fault_of(dispatcher, entry(app, args=(object(),))) is BuildFault.MESSAGE
    app.backend.on_task_call = raise_unreachable  # type: ignore[method-assign]
    assert fault_of(dispatcher, entry(app)) is BuildFault.TASK
    app.conf.task_routes = [raise_unreachable]
    assert fault_of(dispatcher, entry(app, task="routed")) is BuildFault.TASK


def test_exception_of_a_signal_receiver_does_not_stop_the_message(app: Celery, dispatcher: AtomicDispatcher):
    before_task_publish.connect(raise_unreachable, weak=False)
    try:
        build(dispatcher, entry(app))
    finally:
        before_task_publish.disconnect(raise_unreachable)


def test_error_is_the_brokers_if_the_broker_is_unreachable(
    redis_server: RedisServer, app: Celery, dispatcher: AtomicDispatcher
):
    """A declaration fails first, or the entry's own connection to the same server."""
    build(dispatcher, entry(app))
    redis_server.stop()
    with pytest.raises(StoreUnavailable):
        build(dispatcher, entry(app, options={"queue": "another"}))
    app.task(name="locked", base=type("Base", (Locked,), {"abstract": True, "away_for": 10}), shared=False)(nothing)
    with pytest.raises(StoreUnavailable):
        build(dispatcher, entry(app, task="locked"))


@pytest.mark.parametrize(
    ("rule", "options", "needed"),
    [
        ("resetkeys ~{ha-beat:* ~celery*", {}, "~_kombu.binding.celery"),
        ("-sadd", {}, "+sadd"),
        ("-smembers", {"queue": Queue("jobs", Exchange("shop", "topic"), "a.b")}, "+smembers"),
    ],
)
def test_key_that_kombu_may_not_use_is_named_with_the_rule(
    redis_server: RedisServer, rule: str, options: dict[str, Any], needed: str
):
    admin: Any = redis_server.admin
    admin.execute_command("ACL", "SETUSER", "beat", "on", ">pw", "~*", "&*", "+@all", *rule.split())
    app = Celery("build", broker=f"redis://beat:pw@127.0.0.1:{redis_server.port}/0", set_as_current=False)
    dispatcher = app_dispatcher(app, Keys("build"))
    with pytest.raises(MessageFailed) as failed:
        build(dispatcher, entry(app, options=options))
    assert failed.value.fault is BuildFault.DESTINATION
    assert needed in failed.value.detail


def test_occurrence_waits_for_a_missing_right(make_comparison: MakeComparison, shared_redis: RedisServer):
    """The right is given while the entry is retried."""
    comparison = make_comparison({"ha_beat_publish_deadline": 60, "ha_beat_redis_url": shared_redis.url})
    admin: Any = shared_redis.admin
    admin.execute_command("ACL", "SETUSER", "beat", "on", ">pw", "~*", "&*", "+@all", "-sadd")
    comparison.app.conf.broker_url = f"redis://beat:pw@127.0.0.1:{shared_redis.port}/0"
    calls = iter(range(1000))

    def granted_later() -> int:
        if next(calls) == 2:
            admin.execute_command("ACL", "SETUSER", "beat", "+sadd")
        return 1

    comparison.run_scheduler({"late": {"task": "good", "args": (BeatLazyFunc(granted_later),)}})
    assert comparison.queued() == ["late"]
