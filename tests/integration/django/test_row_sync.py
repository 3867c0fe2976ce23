"""Reading and writing of django-celery-beat's rows, as far as it differs from the other stores."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection, connections
from django.test.utils import CaptureQueriesContext
from django_celery_beat.models import CrontabSchedule, PeriodicTask, PeriodicTasks

from ha_beat.django.queries import DjangoQueries
from tests.integration.django.rows import at, cron, every, fresh, row, soon
from tests.integration.row_store.conftest import DjangoRows
from tests.integration.row_store.replica import Replica

NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def replica(any_site: object) -> Replica:
    """A leader that has read no row."""
    return Replica(DjangoRows())


def clocked_time_moved(task: Any) -> None:
    task.clocked.clocked_time = soon(60)
    task.clocked.save()


def update(task: Any, **fields: Any) -> None:
    PeriodicTask.objects.filter(pk=task.pk).update(**fields)


RESCHEDULED: dict[str, Any] = {
    "another clocked time": lambda task: update(task, clocked=at(soon(60))),
    "clocked time moved": clocked_time_moved,
    "made an interval": lambda task: update(task, clocked=None, interval=every(9)),
    "start": lambda task: update(task, start_time=soon(60)),
    "made recurring": lambda task: update(task, clocked=None, interval=every(9), one_off=False),
}


@pytest.mark.parametrize("reschedule", RESCHEDULED.values(), ids=list(RESCHEDULED))
def test_one_off_row_with_another_schedule_after_its_run_stays_enabled(replica, reschedule):
    """The row's own task may set its next run before the leader disables the row."""
    task = row("task", clocked=at(soon(0)), one_off=True)
    replica.turn()
    reschedule(task)
    replica.finished("task")
    replica.turn()
    assert fresh(task).enabled


def test_entries_with_one_schedule_share_it_until_it_is_edited(any_site):
    """An edit of the schedule changes all rows that share it."""
    crontab = cron(minute="5")
    for number in range(3):
        row(f"task {number}", crontab=crontab)
    row("other", crontab=cron(minute="6"))
    standby = Replica(DjangoRows(), leads=False)

    def schedules() -> set[int]:
        return {id(standby.entry(f"task {number}").schedule) for number in range(3)}

    assert len(schedules()) == 1
    assert id(standby.entry("other").schedule) not in schedules()
    before = standby.entry("task 0").signature
    crontab.minute = "7"
    crontab.save()
    standby.turn()
    assert len(schedules()) == 1
    assert standby.entry("task 0").signature != before
    assert standby.entry("task 0").instants.next_after(NOW).minute == 7


def test_schedule_that_is_replaced_while_its_row_is_read_is_no_error(replica):
    """Rows and schedules are read by separate queries."""
    task, old = row("task", crontab=cron(minute="5")), cron(minute="5")

    def replace(execute: Any, sql: str, *args: Any) -> Any:
        if "crontabschedule" in sql.split("WHERE", maxsplit=1)[0] and "JOIN" not in sql and old.pk:
            pk, old.pk = old.pk, None
            update(task, crontab=cron(minute="6"))
            CrontabSchedule.objects.filter(pk=pk).delete()
        return execute(sql, *args)

    with connection.execute_wrapper(replace):
        replica.turn()
    assert (old.pk, replica.events) == (None, [])
    assert replica.entry("task").instants.next_after(NOW).minute == 6


def test_joins_of_a_project_are_kept(any_site):
    """The project's entries may read another table, and the main loop must not wait for the database."""
    task = row("task", crontab=cron(minute="5"))
    rows = DjangoQueries(PeriodicTasks, lambda: PeriodicTask.objects.filter(enabled=True).select_related("crontab"))
    with CaptureQueriesContext(connection) as queries:
        [(pk, model)] = rows.models([task.pk])
    assert (pk, model.crontab) == (task.pk, task.crontab)
    assert len(queries) == 1


@pytest.mark.parametrize("committed", [False, True])
def test_connection_lost_in_a_bulk_write_counts_each_run_once(postgres_site, committed, monkeypatch):
    """The connection is lost before the commit, or after it: the outcome is unknown, and the retry is idempotent."""
    ages = {f"task {number}": timedelta(seconds=60 if number % 2 else number) for number in range(30)}
    for name in ages:
        row(name, interval=every(60))
    replica = Replica(DjangoRows())
    for name, age in ages.items():
        replica.ran(name, NOW - age, 1)
    connection = connections["default"]
    commit = connection._commit

    def cut() -> None:
        if committed:
            commit()
        with connection.wrap_database_errors:
            connection.connection.cursor().execute("SELECT pg_terminate_backend(pg_backend_pid())")

    with monkeypatch.context() as fault:
        fault.setattr(connection, "_commit", cut)
        with pytest.raises(OperationalError):
            replica.sync.writing.work()
    connections.close_all()
    assert replica.rows.state()["task 1"][2] == int(committed)
    replica.turn(2)
    assert replica.rows.state() == {name: (True, NOW - age, 1) for name, age in ages.items()}
