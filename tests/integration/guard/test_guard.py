"""Messages that the guard lets run, and messages that it drops."""

import gc
import logging
from typing import Any

import pytest
from celery import Celery, Task, shared_task
from celery.exceptions import Ignore

from ha_beat.guard import GuardedTask, guard, message_dropped
from ha_beat.store.keys import Keys
from ha_beat.worker.link import link_of
from tests.support.servers import RedisServer, free_port

KEYS = Keys("shop")


def work() -> int:
    return 1


def make_app(redis_url: str) -> Celery:
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.ha_beat_redis_url = redis_url
    return app


def header(publish: str) -> dict[str, Any]:
    return {"cluster": "shop", "entry": "report", "scheduled_at": "2030-01-01T12:00:00+00:00", "publish": publish}


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
def app(shared_redis: RedisServer) -> Celery:
    return make_app(shared_redis.url)


@pytest.fixture
def task(app: Celery) -> Any:
    return app.task(base=GuardedTask, name="report", shared=False)(work)


@pytest.mark.parametrize("spread", [True, False])
def test_second_message_of_an_occurrence_is_dropped(task: Any, shared_redis: RedisServer, spread: bool, caplog: Any):
    """The drop is logged, sent as a signal and counted for all workers."""
    received = []

    def receive(sender: Any = None, **about: Any) -> None:
        received.append((sender, about["task_id"], about["entry"]))

    message_dropped.connect(receive)
    with caplog.at_level(logging.WARNING, "ha_beat"):
        assert deliver(task, header("first"), spread=spread)
        assert not deliver(task, header("second"), spread=spread)
    assert [record.action for record in caplog.records] == ["message_dropped"]
    assert received == [(task, "id", "report")]
    assert shared_redis.admin.get(KEYS.dropped) == "1"


def test_redelivery_and_retry_run(task: Any):
    """Both have the publish id of the first message."""
    assert all(deliver(task, header("first")) for _ in range(3))


def test_another_occurrence_runs(task: Any):
    assert deliver(task, header("first"), "id of one")
    assert deliver(task, header("second"), "id of another")


@pytest.mark.parametrize("foreign", [None, header(""), {"entry": "report"}, "text"], ids=repr)
def test_message_without_a_publish_id_runs_and_is_not_remembered(task: Any, foreign: Any, shared_redis: RedisServer):
    assert deliver(task, foreign)
    assert deliver(task, foreign)
    assert shared_redis.admin.keys("*guard*") == []


@pytest.mark.parametrize(
    ("attributes", "shortest", "longest"), [({}, 86_000_000, 86_400_000), ({"guard_ttl": 5}, 0, 5000)]
)
def test_occurrence_is_remembered_for_guard_ttl(
    app: Celery, shared_redis: RedisServer, attributes: dict[str, Any], shortest: int, longest: int
):
    """The default is a day."""
    deliver(app.task(base=GuardedTask, name="report", shared=False, **attributes)(work), header("first"))
    assert shortest < shared_redis.admin.pttl(KEYS.guard("id")) <= longest


def test_task_without_redis_runs_with_a_warning(caplog: Any):
    task = make_app(f"redis://127.0.0.1:{free_port()}/0").task(base=GuardedTask, name="report", shared=False)(work)
    with caplog.at_level(logging.WARNING, "ha_beat"):
        assert deliver(task, header("first"))
        assert deliver(task, header("second"))
    assert {record.action for record in caplog.records} == {"guard_failed"}


def test_app_that_replaces_a_collected_one_uses_its_own_redis():
    """Python gives the new app the address of the old one."""
    gc.freeze()  # otherwise each collection visits all objects of the other tests
    try:
        for port in range(1, 20):
            app = make_app(f"redis://127.0.0.1:{port}/0")
            client: Any = link_of(app).client()
            assert client.connection_pool.connection_kwargs["port"] == port
            del app
            gc.collect()
    finally:
        gc.unfreeze()


class OwnBase(Task):  # type: ignore[type-arg]
    """Base class with its own `before_start`."""

    abstract = True
    started: list[str] = []  # noqa: RUF012

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        self.started.append(task_id)


@pytest.mark.parametrize("when", ["before its tasks", "after its tasks", "after it was finalized"])
def test_every_task_of_an_app_is_guarded(app: Celery, when: str):
    """Tasks with another base class are guarded too, and their `before_start` runs once."""
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


def test_second_guard_of_an_app_derives_no_class(app: Celery):
    app.task(name="own", base=OwnBase, shared=False)(work)
    app.finalize()
    guard(app)
    classes = [app.Task, type(app.tasks["own"])]
    guard(app)
    assert [app.Task, type(app.tasks["own"])] == classes


def test_shared_task_of_another_package_is_guarded(app: Celery):
    """Each app has its own instance of the task."""
    shared_task(name="tests.guard.shared")(work)
    guard(app)
    app.finalize()
    task = app.tasks["tests.guard.shared"]
    assert deliver(task, header("first"))
    assert not deliver(task, header("second"))
