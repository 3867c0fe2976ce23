"""The guard in workers: messages that run and messages that are dropped."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from celery import Celery, Task, shared_task
from celery.exceptions import Ignore

from ha_beat.guard import GuardedTask, guard, message_dropped
from ha_beat.store.keys import Keys
from tests.support.servers import RedisServer, free_port

KEYS = Keys("shop")


def work() -> int:
    return 1


def make_app(redis_url: str) -> Celery:
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.ha_beat_redis_url = redis_url
    return app


def header(publish: str = "first", **more: Any) -> dict[str, Any]:
    return {
        "cluster": "shop",
        "entry": "report",
        "scheduled_at": "2030-01-01T12:00:00+00:00",
        "publish": publish,
    } | more


def deliver(task: Any, header: dict[str, Any] | None, task_id: str = "id", *, spread: bool = True) -> bool:
    """True if the task runs for a message with this header, spread over the request or within `headers`."""
    headers = {} if header is None else {"ha_beat": header}
    task.push_request(id=task_id, **(headers if spread else {"headers": headers}))
    try:
        task.before_start(task_id, (), {})
    except Ignore:
        return False
    finally:
        task.pop_request()
    return True


@pytest.fixture
def task(shared_redis: RedisServer) -> Any:
    app = make_app(shared_redis.url)
    return app.task(base=GuardedTask, name="report", shared=False)(work)


@pytest.mark.parametrize("spread", [True, False])
def test_second_message_of_an_occurrence_is_dropped(
    task: Any, shared_redis: RedisServer, spread: bool, caplog: Any
) -> None:
    """The drop is logged, sent as a signal and counted for all workers."""
    told: list[Any] = []

    def tell(sender: Any = None, **about: Any) -> None:
        told.append((sender, about["task_id"], about["entry"]))

    message_dropped.connect(tell)
    with caplog.at_level(logging.WARNING, "ha_beat"):
        assert deliver(task, header("first"), spread=spread)
        assert not deliver(task, header("second"), spread=spread)
    assert [record.action for record in caplog.records] == ["message_dropped"]
    assert told == [(task, "id", "report")]
    assert shared_redis.admin.get(KEYS.dropped) == "1"


def test_redelivery_and_retry_run(task: Any) -> None:
    """They have the publish id of the first message."""
    assert all(deliver(task, header("first")) for _ in range(3))


def test_another_occurrence_runs(task: Any) -> None:
    """The other occurrence has another task id."""
    assert deliver(task, header("first"), "id of one")
    assert deliver(task, header("second"), "id of another")


@pytest.mark.parametrize("foreign", [None, header(""), {"entry": "report"}, "text"], ids=repr)
def test_what_bears_no_mark_runs(task: Any, foreign: Any, shared_redis: RedisServer) -> None:
    """It has no publish id and is not remembered."""
    assert deliver(task, foreign)
    assert deliver(task, foreign)
    assert shared_redis.admin.keys("*guard*") == []


def test_it_remembers_for_its_time_to_live(task: Any, shared_redis: RedisServer) -> None:
    """The default of the class attribute is a day."""
    deliver(task, header())
    day: Any = shared_redis.admin.pttl(KEYS.guard("id"))
    assert 86_000_000 < day <= 86_400_000
    short = task.app.task(base=GuardedTask, name="short", guard_ttl=5, shared=False)(work)
    deliver(short, header(), "short")
    seconds: Any = shared_redis.admin.pttl(KEYS.guard("short"))
    assert 0 < seconds <= 5000


def test_without_redis_it_runs_with_a_warning(caplog: Any) -> None:
    """Running twice is better than not running."""
    app = make_app(f"redis://127.0.0.1:{free_port()}/0")
    task = app.task(base=GuardedTask, name="report", shared=False)(work)
    with caplog.at_level(logging.WARNING, "ha_beat"):
        assert deliver(task, header("first"))
        assert deliver(task, header("second"))
    assert {record.action for record in caplog.records} == {"guard_failed"}


class OwnBase(Task):  # type: ignore[type-arg]
    """Base class with its own `before_start`."""

    abstract = True
    started: list[str] = []  # noqa: RUF012

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        self.started.append(task_id)


@pytest.mark.parametrize("when", ["before its tasks", "after its tasks", "after it was finalized"])
def test_a_whole_app_is_guarded(shared_redis: RedisServer, when: str) -> None:
    """Tasks with another base class are guarded too, and their `before_start` runs once."""
    app = make_app(shared_redis.url)

    if when == "before its tasks":
        guard(app)
    plain = app.task(name="plain", shared=False)(work)
    own = app.task(name="own", base=OwnBase, shared=False)(work)
    if when == "after its tasks":
        guard(app)
    app.finalize()
    if when == "after it was finalized":
        guard(app)
    late = app.task(name="late", shared=False)(work)
    OwnBase.started.clear()
    for task in (app.tasks["plain"], app.tasks["own"], app.tasks["late"], app.tasks["celery.backend_cleanup"]):
        assert deliver(task, header("first"), task.name)
        assert not deliver(task, header("second"), task.name)
    assert OwnBase.started == ["own"]
    assert (plain(), own(), late()) == (1, 1, 1)
    assert isinstance(app.tasks["own"], OwnBase)


def test_guarding_twice_is_guarding_once(shared_redis: RedisServer) -> None:
    """Each class is derived once."""
    app = make_app(shared_redis.url)
    app.task(name="own", base=OwnBase, shared=False)(work)
    app.finalize()
    guard(app)
    classes = [app.Task, type(app.tasks["own"])]
    guard(app)
    assert [app.Task, type(app.tasks["own"])] == classes


def test_a_shared_task_of_another_package_is_guarded(shared_redis: RedisServer) -> None:
    """Each app has its own instance of the task."""
    shared_task(name="tests.guard.shared")(work)
    app = make_app(shared_redis.url)
    guard(app)
    app.finalize()
    task = app.tasks["tests.guard.shared"]
    assert deliver(task, header("first"))
    assert not deliver(task, header("second"))
