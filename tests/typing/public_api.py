"""Program that uses the whole public API. mypy checks it in strict mode, and a test runs it."""

from __future__ import annotations  # the oldest Celery's Task is not generic at run time

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from celery import Celery, Task
from celery.beat import ScheduleEntry, Scheduler

import ha_beat
from ha_beat.guard import GuardedTask, guard, message_dropped
from ha_beat.scheduler import HAMixin, HAScheduler
from ha_beat.signals import (
    leadership_gained,
    leadership_lost,
    occurrence_enqueued,
    occurrence_skipped,
    occurrence_uncertain,
    paused,
    resumed,
    state_lost,
)
from ha_beat.testing import (
    Attempt,
    Expected,
    MemoryLeaseStore,
    MemoryPresence,
    Replica,
    SettableClock,
    StoreUnavailable,
    occurrence_headers,
    occurrences,
)

START = datetime(2030, 1, 7, 9, tzinfo=UTC)
SIGNALS: tuple[Any, ...] = (
    leadership_gained,
    leadership_lost,
    occurrence_enqueued,
    occurrence_skipped,
    occurrence_uncertain,
    state_lost,
    paused,
    resumed,
    message_dropped,
)


class MyScheduler(HAMixin, Scheduler):
    """Scheduler class that overrides every hook."""

    def entry_id(self, entry: ScheduleEntry) -> str:
        return f"mine:{super().entry_id(entry)}"

    def stored_last_run_at(self, entry: ScheduleEntry) -> datetime | None:
        return super().stored_last_run_at(entry)

    def entry_recorded(self, entry: ScheduleEntry, row: Any) -> None:
        super().entry_recorded(entry, row)

    def schedule_digest(self) -> str:
        return "digest"


def scheduler_lines(app: Celery) -> list[str]:
    """Return the banner of each scheduler class."""
    schedulers: list[HAMixin] = [HAScheduler(app, lazy=True), MyScheduler(app, lazy=True)]
    return [scheduler.info for scheduler in schedulers]


def store_schedulers(app: Celery) -> list[HAMixin]:
    """Return the schedulers for entries in a database. Only checked, not run."""
    from ha_beat.django.admin import ClusterColumns
    from ha_beat.django.entries import RowEntry
    from ha_beat.django.schedulers import HADatabaseScheduler
    from ha_beat.redbeat.schedulers import HARedBeatScheduler
    from ha_beat.sqlalchemy.entries import RowEntry as SqlEntry
    from ha_beat.sqlalchemy.schedulers import HADatabaseScheduler as HASqlScheduler

    django, sql = HADatabaseScheduler(app, lazy=True), HASqlScheduler(app, lazy=True)
    assert issubclass(django.Entry, RowEntry)
    assert issubclass(sql.Entry, SqlEntry)
    assert issubclass(ClusterColumns, object)
    assert issubclass(HARedBeatScheduler, HAMixin)
    return [django, sql]


def scheduled_at(app: Celery) -> datetime | None:
    """Return the due instant that a task finds in its message."""
    found: list[ha_beat.TaskOccurrence | None] = []

    @app.task(bind=True, name="report", shared=False)
    def report(self: Task[Any, Any]) -> None:
        found.append(ha_beat.occurrence_of(self.request))

    headers = occurrence_headers("nightly", START, cluster="shop", epoch=2, run_count=3, manual=False, backfill=False)
    report.apply(headers=cast("Any", headers))  # celery-types knows only texts as values
    occurrence = found[0]
    return None if occurrence is None else occurrence.scheduled_at


def guarded_tasks(app: Celery) -> bool:
    """Guard every task of an app, and return whether a task is guarded."""
    guard(app)

    @app.task(base=GuardedTask, shared=False)
    def task() -> None:
        """Do nothing."""

    return isinstance(task, GuardedTask)


def connect_signals() -> list[str]:
    """Connect and disconnect a handler, and return the names of the signals."""

    def handler(signal: Any, **about: Any) -> Mapping[str, Any]:
        return {"signal": signal.name, **about}

    for signal in SIGNALS:
        signal.connect(handler)
        signal.disconnect(handler)
    return [signal.name for signal in SIGNALS]


def take_over_a_lease() -> tuple[int, int]:
    """Return the epochs of two leaders, of which the second takes over after the first one's lease expired."""
    clock = SettableClock(START, rate=1.0)
    store = MemoryLeaseStore(clock)
    presence = MemoryPresence(store, clock)
    presence.open()
    presence.close()

    def attempt(name: str) -> Attempt:
        replica = Replica(id=name, host="web", pid=1, version=ha_beat.__version__, fingerprint="shop")
        return Attempt(replica, nonce=name, sent_at=clock.elapsed(), ttl=10, margin=1, presence="")

    epochs = []
    for name in ("first", "second"):
        seen = store.observe().record
        expected = None if seen is None else Expected(seen.epoch, seen.seq)
        answer = store.acquire(attempt(name), expected, seen.epoch if seen else 0)
        epochs.append(getattr(answer, "term").epoch)  # noqa: B009 -- a refusal has no term
        clock.advance(11)
    store.reachable = False
    try:
        store.observe()
    except StoreUnavailable:
        return epochs[0], epochs[1]
    raise AssertionError("an unreachable store answered")


def due_instants() -> list[datetime]:
    """Return the due instants of a timedelta."""
    return occurrences(timedelta(minutes=30), START, START + timedelta(hours=1))
