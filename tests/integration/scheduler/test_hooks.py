"""Scheduler methods that a subclass overrides or a library patches are called, or refused at start."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import Mock

import pytest
from celery import Celery, group
from celery.beat import ScheduleEntry, Scheduler
from celery.schedules import schedstate
from celery.signals import after_task_publish, before_task_publish
from celery.utils.imports import symbol_by_name

from ha_beat.scheduler import HAMixin, HAScheduler
from ha_beat.store.keys import Keys
from tests.support.log_format import actions
from tests.support.schedulers import closing
from tests.support.servers import RedisServer, wait_for


def app_of(server: RedisServer, **entries: dict[str, Any]) -> Celery:
    app = Celery("hooks", broker=server.url, set_as_current=False)
    overdue = datetime.now(UTC) - timedelta(seconds=90)
    app.conf.beat_schedule = {
        name: {"task": "t", "schedule": 60.0, "last_run_at": overdue, **entry} for name, entry in entries.items()
    }
    return app


class Cluster:
    """Cluster of one replica, and what it left in Redis."""

    def __init__(self, server: RedisServer) -> None:
        self.admin: Any = server.admin

    def messages(self) -> list[dict[str, Any]]:
        """Return the headers of the messages, oldest first."""
        return [json.loads(raw)["headers"] for raw in reversed(self.admin.lrange("celery", 0, -1))]

    def row(self, entry: str) -> dict[str, Any]:
        return json.loads(self.admin.hget(Keys("hooks").ledger, f"e:{entry}") or "{}")

    @contextmanager
    def running(self, scheduler: HAMixin) -> Iterator[Callable[[Callable[[], Any]], None]]:
        """Yield a function that runs the scheduler until something is true."""

        def until(done: Callable[[], Any]) -> None:
            def turn() -> bool:
                scheduler.tick()
                return bool(done())

            wait_for(turn, what="the expected state")

        with closing(scheduler):
            yield until


@pytest.fixture
def cluster(shared_redis: RedisServer) -> Cluster:
    return Cluster(shared_redis)


class FanOut(HAScheduler):
    """Scheduler that sends a message for each tenant, as tenant-schemas-celery's does."""

    def apply_entry(self, entry: ScheduleEntry, producer: Any = None) -> None:
        for tenant in ("north", "south", "none"):
            entry.options.setdefault("headers", {})["tenant"] = tenant
            if tenant != "none":
                self.apply_async(entry, producer=producer, advance=False)


def test_one_occurrence_yields_several_messages(shared_redis: RedisServer, cluster: Cluster):
    """They go out together, and each has a task id, which another replica derives alike and tracers see at once."""
    scheduler = FanOut(app_of(shared_redis, e={}))
    seen: dict[Any, list[str]] = {before_task_publish: [], after_task_publish: []}
    for signal, ids in seen.items():
        signal.connect(lambda headers=None, ids=ids, **_: ids.append(headers["id"]), weak=False, dispatch_uid="ids")
    with cluster.running(scheduler) as until:
        until(cluster.messages)
    for signal in seen:
        signal.disconnect(dispatch_uid="ids")
    assert seen[before_task_publish] == seen[after_task_publish] == [each["id"] for each in cluster.messages()]
    found = cluster.messages()
    assert [headers["tenant"] for headers in found] == ["north", "south"]
    assert cluster.row("e")["id"] == found[0]["id"] != found[1]["id"]
    assert found[1]["root_id"] == found[1]["id"]
    assert "headers" not in scheduler.schedule["e"].options


class Records(HAScheduler):
    """Scheduler that records the calls of its methods."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.calls: list[str] = []
        super().__init__(*args, **kwargs)

    def apply_async(self, entry: ScheduleEntry, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
        self.calls.append("apply_async")
        return super().apply_async(entry, producer=producer, advance=advance, **kwargs)

    def send_task(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append("send_task")
        return super().send_task(*args, **kwargs)

    def is_due(self, entry: ScheduleEntry) -> schedstate:
        return schedstate(False, 5.0) if entry.name == "muted" else super().is_due(entry)


def test_overridden_methods_are_called(shared_redis: RedisServer, cluster: Cluster):
    scheduler = Records(app_of(shared_redis, on={}, muted={}))
    with cluster.running(scheduler) as until:
        until(cluster.messages)
    assert [headers["ha_beat"]["entry"] for headers in cluster.messages()] == ["on"]
    assert scheduler.calls == ["apply_async", "send_task"]
    assert cluster.row("muted")["verdict"] == "armed"


class Muted(ScheduleEntry):
    """Entry that is never due."""

    def is_due(self) -> schedstate:
        return schedstate(False, 5.0)


class MutedScheduler(HAScheduler):
    Entry = Muted


@pytest.mark.parametrize("how", ["subclass", "patch"])
def test_is_due_of_the_entry_is_asked(shared_redis: RedisServer, cluster: Cluster, monkeypatch, how):
    app = app_of(shared_redis, e={})
    if how == "patch":
        monkeypatch.setattr(ScheduleEntry, "is_due", lambda _: schedstate(False, 5.0))
    scheduler = HAScheduler(app) if how == "patch" else MutedScheduler(app)
    with cluster.running(scheduler) as until:
        until(lambda: cluster.row("e"))
        scheduler.tick()
    assert cluster.messages() == []


@pytest.mark.parametrize("how", ["function", "wrapt"])
def test_patch_made_after_the_start_is_called(shared_redis: RedisServer, cluster: Cluster, monkeypatch, how: str):
    """A library may patch the class in a handler of ``beat_init``, after the scheduler was created.

    A tracer's wrapper of ``tick`` is called, too, and sends nothing.
    """
    scheduler = HAScheduler(app_of(shared_redis, e={}))
    seen: list[str] = []

    def noting(name: str) -> Any:
        original = getattr(Scheduler, name)

        def patched(self: Scheduler, *args: Any, **kwargs: Any) -> Any:
            seen.append(name)
            return original(self, *args, **kwargs)

        def wrapper(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
            seen.append(name)
            return wrapped(*args, **kwargs)

        if how == "function":
            return patched
        return pytest.importorskip("wrapt").FunctionWrapper(original, wrapper)

    for name in ("apply_entry", "tick"):
        monkeypatch.setattr(Scheduler, name, noting(name))
    with cluster.running(scheduler) as until:
        until(cluster.messages)
        before = seen.count("tick")
        scheduler.tick()
    assert seen.count("apply_entry") == len(cluster.messages()) == 1
    assert seen.count("tick") == before + 1
    assert scheduler._heap is None


def test_patched_tick_that_raises_is_logged_once(shared_redis: RedisServer, monkeypatch, caplog):
    scheduler = HAScheduler(app_of(shared_redis, e={}))
    monkeypatch.setattr(Scheduler, "tick", Mock(side_effect=RuntimeError("the tracer's server is away")))
    with closing(scheduler):
        for _ in range(3):
            scheduler.tick()
    assert actions(caplog).count("patched_tick_failed") == 1


class Hidden(HAScheduler):
    def apply_entry(self, entry: ScheduleEntry, producer: Any = None) -> None:
        super().apply_entry(entry, producer=producer)


def test_error_that_apply_entry_hides_is_recorded(shared_redis: RedisServer, cluster: Cluster):
    """Celery's own ``apply_entry`` logs an exception and goes on."""
    scheduler = Hidden(app_of(shared_redis, e={"args": (object(),)}))
    with cluster.running(scheduler) as until:
        until(lambda: cluster.row("e").get("verdict") == "skipped")
    assert "EncodeError" in cluster.row("e")["detail"]


class Changes:
    """Scheduler that leaves out what its own rule forbids, and changes the other entries before they are sent."""

    def apply_entry(self: Any, entry: ScheduleEntry, producer: Any = None) -> None:
        if entry.name != "off":
            super().apply_entry(entry, producer)  # type: ignore[misc]

    def apply_async(self: Any, entry: ScheduleEntry, producer: Any = None, **options: Any) -> Any:
        entry.kwargs = {**(entry.kwargs or {}), "entry": entry.name}
        entry.options["queue"] = "changed"
        return super().apply_async(entry, producer=producer, **options)  # type: ignore[misc]


class DropsProducer:
    """Scheduler that sends another task, and through no producer in particular."""

    def send_task(self: Any, name: str, *args: Any, **options: Any) -> Any:
        return self.app.send_task(f"wrapped.{name}", *args, queue="wrapped")


class Groups:
    """Scheduler that makes a group of tasks of each entry."""

    def apply_entry(self: Any, entry: ScheduleEntry, producer: Any = None) -> None:
        group(self.app.signature(entry.task, args=(number,)) for number in range(3)).apply_async()


class TenantEntry(ScheduleEntry):
    """Entry with another field, which it sends along."""

    def __init__(self, *args: Any, tenant: str = "none", **fields: Any) -> None:
        super().__init__(*args, **fields)
        self.kwargs = {**self.kwargs, "tenant": tenant}


class Adds:
    """Scheduler that adds an entry, and has another class of entries."""

    Entry = TenantEntry

    def setup_schedule(self: Any) -> None:
        super().setup_schedule()  # type: ignore[misc]
        self.add(name="more", task="more", schedule=60.0, last_run_at=datetime(2020, 1, 1, tzinfo=UTC), tenant="north")


@pytest.mark.parametrize("hook", [Changes, DropsProducer, Groups, Adds])
def test_scheduler_class_sends_what_it_sends_in_plain_beat(shared_redis: RedisServer, cluster: Cluster, hook: type):
    def sent() -> list[Any]:
        queues = list(cluster.admin.scan_iter(_type="list"))
        raw = [(queue, json.loads(each)["headers"]) for queue in queues for each in cluster.admin.lrange(queue, 0, -1)]
        cluster.admin.delete(*queues)
        return sorted((queue, headers["task"], headers["argsrepr"], headers["kwargsrepr"]) for queue, headers in raw)

    entries = {"on": {}, "off": {"task": "u"}}
    plain = type("Plain", (hook, Scheduler), {})(app=app_of(shared_redis, **entries))
    for _ in range(6):
        plain.tick()
    expected = sent()
    scheduler = type("Ours", (hook, HAScheduler), {})(app=app_of(shared_redis, **entries))
    due = {*scheduler.schedule} - {"celery.backend_cleanup"}
    with cluster.running(scheduler) as until:
        until(lambda: all(cluster.row(name).get("verdict", "armed") != "armed" for name in due))
    assert sent() == expected != []


class RowEntry(ScheduleEntry):
    """Entry of a store, which counts its runs in a row."""

    def __init__(self, row: dict[str, Any], app: Celery) -> None:
        super().__init__(row["name"], "t", schedule=0.3, app=app)
        self.row = row

    def __next__(self) -> RowEntry:
        self.row["runs"] += 1
        return type(self)(self.row, self.app)

    def is_due(self) -> schedstate:
        return schedstate(False, 60.0) if self.row["runs"] else super().is_due()


class Store(Scheduler):
    """Scheduler that reads its app by keyword, and writes the rows that ``reserve`` has marked."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.conf = kwargs["app"].conf
        self.dirty: set[str] = set()
        self.written: list[str] = []
        self.equal = True
        super().__init__(*args, **kwargs)

    def setup_schedule(self) -> None:
        self.schedule.update(once=RowEntry({"name": "once", "runs": 0}, self.app))

    def reserve(self, entry: ScheduleEntry) -> Any:
        self.dirty.add(entry.name)
        return next(entry)

    def schedules_equal(self, *_: Any) -> bool:
        was, self.equal = self.equal, True
        return was

    def sync(self) -> None:
        self.written += sorted(self.dirty)
        self.dirty.clear()


class HAStore(HAMixin, Store):
    """Highly available scheduler over a store."""


def test_reserve_notes_a_run_of_a_store(shared_redis: RedisServer, cluster: Cluster):
    """Otherwise its row would not be written, and an entry that ends after one run would go on."""
    scheduler = HAStore(app_of(shared_redis))
    with cluster.running(scheduler) as until:
        until(lambda: scheduler.schedule["once"].row["runs"])
        scheduler.sync()
        assert scheduler.written == ["once"]
        for _ in range(3):
            scheduler.tick()
    assert len(cluster.messages()) == 1


def test_schedule_is_read_again_if_the_store_calls_it_unequal(shared_redis: RedisServer, cluster: Cluster):
    scheduler = HAStore(app_of(shared_redis))
    with cluster.running(scheduler) as until:
        until(cluster.messages)
        scheduler.schedule["new"] = ScheduleEntry("new", "t", schedule=60.0, app=scheduler.app)
        scheduler.equal = False
        until(lambda: cluster.row("new"))


def test_own_task_id_is_kept(shared_redis: RedisServer, cluster: Cluster):
    """The same one for each occurrence, as in Celery. The header names the occurrence's."""
    scheduler = HAScheduler(app_of(shared_redis, e={"schedule": 0.2, "options": {"task_id": "mine"}}))
    with cluster.running(scheduler) as until:
        until(lambda: len(cluster.messages()) > 1)
    found = cluster.messages()
    assert {headers["id"] for headers in found} == {"mine"}
    assert len({headers["ha_beat"]["task_id"] for headers in found}) == len(found)


class Beating(Scheduler):
    """Base class that does its work in its own ``tick``."""

    def tick(self, *_: Any, **__: Any) -> float:
        return 1.0


class Due(Scheduler):
    def maybe_due(self, entry: ScheduleEntry) -> float:
        return 1.0


class OtherBroker(Scheduler):
    @property
    def producer(self) -> Any:
        return None


@pytest.mark.parametrize(("base", "name"), [(Beating, "tick"), (Due, "maybe_due"), (OtherBroker, "producer")])
def test_method_that_is_never_called_is_refused(shared_redis: RedisServer, base: type, name: str):
    kind = type("Mine", (HAMixin, base), {})
    with pytest.raises(SystemExit, match=rf"{base.__name__}\.{name} "):
        kind(app=app_of(shared_redis), lazy=True)


@pytest.mark.parametrize(
    ("base", "named"),
    [
        ("redbeat.schedulers:RedBeatScheduler", "maybe_due"),
        ("django_celery_beat.schedulers:DatabaseScheduler", "HADatabaseScheduler"),
    ],
)
def test_scheduler_that_cannot_be_a_base_is_refused(shared_redis: RedisServer, base: str, named: str):
    module, _, name = base.partition(":")
    # django-celery-beat's can only be imported in a configured project.
    of_django = type(name, (Scheduler,), {"__module__": module})
    kind = type("Mine", (HAMixin, of_django if module.startswith("django") else symbol_by_name(base)), {})
    with pytest.raises(SystemExit, match=named):
        kind(app=app_of(shared_redis), lazy=True)
