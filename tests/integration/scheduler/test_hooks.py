"""Scheduler methods that a subclass overrides or a library patches are called."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
from celery import Celery, group
from celery.beat import ScheduleEntry, Scheduler
from celery.schedules import schedstate
from celery.signals import after_task_publish, before_task_publish

from ha_beat.scheduler import HAMixin, HAScheduler
from ha_beat.store.keys import Keys
from tests.support.log_format import actions
from tests.support.schedulers import closing
from tests.support.servers import RedisServer, wait_for


class Cluster:
    """Cluster of one replica, and what it left in Redis."""

    def __init__(self, server: RedisServer) -> None:
        self.admin: Any = server.admin
        self.url = server.url

    def app(self, **entries: dict[str, Any]) -> Celery:
        """Return an app whose entries are overdue."""
        app = Celery("hooks", broker=self.url, set_as_current=False)
        overdue = datetime.now(UTC) - timedelta(seconds=90)
        app.conf.beat_schedule = {
            name: {"task": "t", "schedule": 60.0, "last_run_at": overdue, **entry} for name, entry in entries.items()
        }
        return app

    def messages(self) -> list[dict[str, Any]]:
        """Return the headers of the messages, oldest first."""
        return [json.loads(raw)["headers"] for raw in reversed(self.admin.lrange("celery", 0, -1))]

    def row(self, entry: str) -> dict[str, Any]:
        return json.loads(self.admin.hget(Keys("hooks").ledger, f"e:{entry}") or "{}")

    def run(self, scheduler: HAMixin, *stages: Callable[[], Any], ticks: int = 0) -> None:
        """Run the scheduler until each stage in turn is true, then for some more ticks, and close it."""

        def reached(stage: Callable[[], Any]) -> bool:
            scheduler.tick()
            return bool(stage())

        with closing(scheduler):
            for stage in stages:
                wait_for(partial(reached, stage), what="the expected state")
            for _ in range(ticks):
                scheduler.tick()


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


def test_one_occurrence_yields_several_messages(cluster: Cluster):
    """They go out together. Each has a task id, which another replica derives alike and which tracers see."""
    scheduler = FanOut(cluster.app(e={}))
    seen: dict[Any, list[str]] = {before_task_publish: [], after_task_publish: []}
    for signal, ids in seen.items():
        signal.connect(lambda headers=None, ids=ids, **_: ids.append(headers["id"]), weak=False, dispatch_uid="ids")
    cluster.run(scheduler, cluster.messages)
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


def test_overridden_methods_are_called(cluster: Cluster):
    scheduler = Records(cluster.app(on={}, muted={}))
    cluster.run(scheduler, cluster.messages)
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
def test_is_due_of_the_entry_is_asked(cluster: Cluster, monkeypatch, how):
    app = cluster.app(e={})
    if how == "patch":
        monkeypatch.setattr(ScheduleEntry, "is_due", lambda _: schedstate(False, 5.0))
    scheduler = HAScheduler(app) if how == "patch" else MutedScheduler(app)
    cluster.run(scheduler, lambda: cluster.row("e"), ticks=1)
    assert cluster.messages() == []


@pytest.mark.parametrize("how", ["function", "wrapt"])
def test_patch_made_after_the_start_is_called(cluster: Cluster, monkeypatch, how: str):
    """A library may patch the class in a handler of ``beat_init``. A patched ``tick`` is called and sends nothing."""
    scheduler = HAScheduler(cluster.app(e={}))
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
    at_message: list[int] = []
    cluster.run(scheduler, cluster.messages, lambda: at_message.append(seen.count("tick")) or True, ticks=1)
    assert seen.count("apply_entry") == len(cluster.messages()) == 1
    assert seen.count("tick") == at_message[0] + 1
    assert scheduler._heap is None


def test_patched_tick_that_raises_is_logged_once(cluster: Cluster, monkeypatch, caplog):
    scheduler = HAScheduler(cluster.app(e={}))
    monkeypatch.setattr(Scheduler, "tick", Mock(side_effect=RuntimeError("the tracer's server is away")))
    cluster.run(scheduler, ticks=3)
    assert actions(caplog).count("patched_tick_failed") == 1


class Hidden(HAScheduler):
    def apply_entry(self, entry: ScheduleEntry, producer: Any = None) -> None:
        super().apply_entry(entry, producer=producer)


def test_error_that_apply_entry_hides_is_recorded(cluster: Cluster):
    """Celery's own ``apply_entry`` logs an exception and goes on."""
    scheduler = Hidden(cluster.app(e={"args": (object(),)}))
    cluster.run(scheduler, lambda: cluster.row("e").get("verdict") == "skipped")
    assert "EncodeError" in cluster.row("e")["detail"]


class Changes:
    """Scheduler that leaves out one entry, and changes the others before they are sent."""

    def apply_entry(self: Any, entry: ScheduleEntry, producer: Any = None) -> None:
        if entry.name != "off":
            super().apply_entry(entry, producer)  # type: ignore[misc]

    def apply_async(self: Any, entry: ScheduleEntry, producer: Any = None, **options: Any) -> Any:
        entry.kwargs = {**(entry.kwargs or {}), "entry": entry.name}
        entry.options["queue"] = "changed"
        return super().apply_async(entry, producer=producer, **options)  # type: ignore[misc]


class DropsProducer:
    """Scheduler that sends another task, and ignores the producer."""

    def send_task(self: Any, name: str, *args: Any, **options: Any) -> Any:
        return self.app.send_task(f"wrapped.{name}", *args, queue="wrapped")


class Groups:
    """Scheduler that makes a group of tasks of each entry."""

    def apply_entry(self: Any, entry: ScheduleEntry, producer: Any = None) -> None:
        group(self.app.signature(entry.task, args=(number,)) for number in range(3)).apply_async()


class TenantEntry(ScheduleEntry):
    """Entry with a further field, which it sends, too."""

    def __init__(self, *args: Any, tenant: str = "none", **fields: Any) -> None:
        super().__init__(*args, **fields)
        self.kwargs = {**self.kwargs, "tenant": tenant}


class Adds:
    """Scheduler that adds an entry, and has its own class of entries."""

    Entry = TenantEntry

    def setup_schedule(self: Any) -> None:
        super().setup_schedule()  # type: ignore[misc]
        self.add(name="more", task="more", schedule=60.0, last_run_at=datetime(2020, 1, 1, tzinfo=UTC), tenant="north")


@pytest.mark.parametrize("hook", [Changes, DropsProducer, Groups, Adds])
def test_scheduler_class_sends_what_it_sends_in_plain_beat(cluster: Cluster, hook: type):
    def sent() -> list[Any]:
        queues = list(cluster.admin.scan_iter(_type="list"))
        raw = [(queue, json.loads(each)["headers"]) for queue in queues for each in cluster.admin.lrange(queue, 0, -1)]
        cluster.admin.delete(*queues)
        return sorted((queue, headers["task"], headers["argsrepr"], headers["kwargsrepr"]) for queue, headers in raw)

    entries = {"on": {}, "off": {"task": "u"}}
    plain = type("Plain", (hook, Scheduler), {})(app=cluster.app(**entries))
    for _ in range(6):
        plain.tick()
    expected = sent()
    scheduler = type("Ours", (hook, HAScheduler), {})(app=cluster.app(**entries))
    due = {*scheduler.schedule} - {"celery.backend_cleanup"}
    cluster.run(scheduler, lambda: all(cluster.row(name).get("verdict", "armed") != "armed" for name in due))
    assert sent() == expected != []


class RowEntry(ScheduleEntry):
    """Entry of a store, which counts its runs in a row."""

    def __init__(self, row: dict[str, Any], app: Celery) -> None:
        super().__init__(row["name"], "t", schedule=0.3, app=app)
        self.row = row

    def __next__(self) -> Any:
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


def test_reserve_notes_a_run_of_a_store(cluster: Cluster):
    """Otherwise the row would not be written, and an entry that ends after one run would run again."""
    scheduler = HAStore(cluster.app())

    def written() -> bool:
        scheduler.sync()
        return scheduler.written == ["once"]

    cluster.run(scheduler, lambda: scheduler.schedule["once"].row["runs"], written, ticks=3)
    assert len(cluster.messages()) == 1


def test_schedule_is_read_again_if_the_store_calls_it_unequal(cluster: Cluster):
    scheduler = HAStore(cluster.app())

    def add() -> bool:
        scheduler.schedule["new"] = ScheduleEntry("new", "t", schedule=60.0, app=scheduler.app)
        scheduler.equal = False
        return True

    cluster.run(scheduler, cluster.messages, add, lambda: cluster.row("new"))


def test_own_task_id_is_kept(cluster: Cluster):
    """It is the same for each occurrence, as in Celery. The header has the occurrence's own id."""
    scheduler = HAScheduler(cluster.app(e={"schedule": 0.2, "options": {"task_id": "mine"}}))
    cluster.run(scheduler, lambda: len(cluster.messages()) > 1)
    found = cluster.messages()
    assert {headers["id"] for headers in found} == {"mine"}
    assert len({headers["ha_beat"]["task_id"] for headers in found}) == len(found)
