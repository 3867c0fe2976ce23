"""Reading of changed rows at a cost that does not depend on the others, on a real database."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from unittest.mock import Mock

import pytest
from django.db import OperationalError, connection
from django_celery_beat.models import PeriodicTask, PeriodicTasks

from ha_beat import events
from ha_beat.django import queries
from ha_beat.django.entries import RowEntry
from ha_beat.django.queries import DjangoQueries
from ha_beat.row_store import differences, full_read, reader
from ha_beat.row_store.full_read import FULL_READ_INTERVAL
from tests.integration.django.project.app import app
from tests.integration.django.rows import cron, every, reader_of, row
from tests.support.clocks import SteppedClock

#: Rows per page in these tests, and rows in the table.
PAGE, ROWS = 4, 30


class Table:
    """Reader of a table with more rows than a page. It counts the rows that it reads from the database."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (full_read, reader):
            monkeypatch.setattr(module, "PAGE", PAGE)
        monkeypatch.setattr(differences, "_RANGE", PAGE)
        hourly = every(3600)
        self.tasks = PeriodicTask.objects.bulk_create(
            PeriodicTask(name=f"task {number}", task="tick", interval=hourly) for number in range(ROWS)
        )
        PeriodicTasks.update_changed()
        self.clock = SteppedClock()
        self.events: list[events.Event] = []
        self.reader = reader_of(self.clock, emit=self.events.append, progress=self._page_read)
        self.pages_read, self.page_seconds = 0, 0.0
        self.reader.turn()
        self.rows_read = 0
        read = queries._read

        def counted(rows: Any) -> Any:
            found = read(rows)
            self.rows_read += len(found)
            return found

        monkeypatch.setattr(queries, "_read", counted)
        # Rows that were saved a short time ago are read again by the first check.
        PeriodicTask.objects.update(date_changed=self.reader._now() - timedelta(hours=1))
        self.clock.ahead += 10

    def _page_read(self) -> None:
        self.pages_read += 1
        self.clock.ahead += self.page_seconds

    def turn(self, times: int = 1, *, seconds: float = 0.0) -> None:
        """Do turns, and let this time go by after each."""
        for _ in range(times):
            self.reader.turn()
            self.clock.ahead += seconds

    @property
    def names(self) -> set[str]:
        return {entry.name for entry in self.reader.table.entries.values()}

    def assert_up_to_date(self) -> None:
        """The entries are those that a reader without history finds."""
        rows = PeriodicTask.objects.filter(enabled=True)
        assert {pk: (entry.name, entry.signature) for pk, entry in self.reader.table.entries.items()} == {
            str(model.pk): (model.name, RowEntry(model, app).signature) for model in rows
        }


@pytest.fixture
def table(any_site: object, monkeypatch: pytest.MonkeyPatch) -> Table:
    return Table(monkeypatch)


def update(tasks: list[Any], **fields: Any) -> None:
    PeriodicTask.objects.filter(pk__in=[task.pk for task in tasks]).update(**fields)
    PeriodicTasks.update_changed()


def saved(tasks: list[Any]) -> None:
    tasks[3].crontab, tasks[3].interval = cron(), None
    tasks[3].save()


def disabled_by_saving(tasks: list[Any]) -> None:
    tasks[3].enabled = False
    tasks[3].save()


def toggled(tasks: list[Any]) -> None:
    """The number of enabled rows stays the same."""
    PeriodicTask.objects.filter(pk=tasks[20].pk).update(enabled=False)
    PeriodicTask.objects.filter(name="off").update(enabled=True)
    PeriodicTasks.update_changed()


def deleted_and_added(tasks: list[Any]) -> None:
    tasks[9].delete()
    row("new", crontab=cron())


CHEAP: dict[str, Callable[[list[Any]], Any]] = {
    "added": lambda tasks: row("new", interval=every(60)),
    "added in bulk": lambda tasks: (
        PeriodicTask.objects.bulk_create([PeriodicTask(name="new", task="tick", crontab=cron())]),
        PeriodicTasks.update_changed(),
    ),
    "saved": saved,
    "disabled by saving": disabled_by_saving,
    "deleted": lambda tasks: tasks[3].delete(),
    "deleted in bulk": lambda tasks: PeriodicTask.objects.filter(pk__in=[tasks[0].pk, tasks[-1].pk]).delete(),
    "disabled in bulk": lambda tasks: update([tasks[0], tasks[17], tasks[-1]], enabled=False),
    "toggled": toggled,
    "deleted and added": deleted_and_added,
}

COSTLY: dict[str, Callable[[list[Any]], Any]] = {
    "schedule of all rows edited": lambda tasks: (setattr(tasks[0].interval, "every", 9), tasks[0].interval.save()),
    "updated in bulk": lambda tasks: update(tasks[10:20], interval=every(60)),
    "emptied": lambda tasks: PeriodicTask.objects.all().delete(),
}


@pytest.mark.parametrize("change", [*CHEAP.values(), *COSTLY.values()], ids=[*CHEAP, *COSTLY])
def test_marked_change_is_found_by_the_next_check(table, change):
    """Rows that were saved, deleted, enabled or disabled are found with few reads."""
    row("off", enabled=False, interval=every(60))
    PeriodicTask.objects.filter(name="off").update(date_changed=table.reader._now() - timedelta(hours=1))
    table.turn(2, seconds=10)  # the pause after a complete read
    before, table.rows_read = table.reader.table.number, 0
    change(table.tasks)
    table.turn()
    table.assert_up_to_date()
    assert table.reader.table.number > before
    if change in CHEAP.values():
        assert table.rows_read <= 2 * PAGE
    table.turn()
    table.assert_up_to_date()


def test_edits_in_each_second_read_their_rows_and_count_now_and_then(table, monkeypatch):
    """A deletion in the same second as another edit takes effect within five seconds."""
    table.turn(seconds=10)
    counted: list[float] = []
    totals = DjangoQueries.totals

    def counting(query: DjangoQueries, first: Any, until: Any) -> Any:
        if first is until is None:
            counted.append(table.clock.ahead)
        return totals(query, first, until)

    monkeypatch.setattr(DjangoQueries, "totals", counting)
    table.rows_read = 0
    for second in range(20):
        if second == 12:
            table.tasks[9].delete()
        saved(table.tasks)
        table.turn()
        assert "task 9" in table.names or second >= 12
        last = table.clock.ahead
        table.clock.ahead += 1
    assert "task 9" not in table.names
    assert table.rows_read == 20
    assert len(counted) == 4
    table.turn(20, seconds=1)
    assert last + 3 <= counted[-1] <= last + 3 + 5


def test_many_rows_enabled_in_bulk_beside_a_saved_one_are_found(table):
    update(table.tasks[10:20], enabled=False)
    table.turn(2, seconds=70)
    saved(table.tasks)
    update(table.tasks[10:20], enabled=True)
    table.turn(3, seconds=5)
    table.assert_up_to_date()


def test_differences_are_found_again_after_the_database_failed(table, monkeypatch):
    update(table.tasks[10:12], enabled=False)
    table.turn()
    saved(table.tasks)
    update(table.tasks[10:12], enabled=True)
    found = DjangoQueries.of
    failures = iter([True])

    def fail_once(query: DjangoQueries, ids: Any) -> Any:
        table.clock.ahead += 0.1
        if table.tasks[10].pk in ids and next(failures, False):
            raise OperationalError
        return found(query, ids)

    monkeypatch.setattr(DjangoQueries, "of", fail_once)
    with pytest.raises(OperationalError):
        table.turn(8, seconds=1)
    table.turn(8, seconds=1)
    table.assert_up_to_date()


def test_bulk_update_during_a_complete_read_is_found_a_minute_later(table):
    """The page was read before the update, and a row that was saved in the same second explains the mark."""
    table.turn()
    table.clock.ahead += FULL_READ_INTERVAL
    table.pages_read, table.page_seconds = 0, 0.1
    table.turn()
    assert table.pages_read == 1
    saved(table.tasks)
    update(table.tasks[:2], interval=every(60))
    table.turn(80, seconds=1)
    table.assert_up_to_date()


def test_many_rows_that_were_saved_at_once_are_read_completely_once(table):
    PeriodicTask.objects.update(date_changed=table.reader._now())
    PeriodicTasks.update_changed()
    complete = table.reader.complete_reads
    for _ in range(5):
        saved(table.tasks)
        table.turn(seconds=1)
    assert table.reader.complete_reads == complete + 1
    table.assert_up_to_date()


def test_check_without_a_change_reads_no_row(table):
    table.turn(seconds=10)
    table.rows_read = 0
    table.turn()
    assert table.rows_read == 0


def test_each_page_of_the_first_read_is_progress(table):
    assert table.pages_read == ROWS // PAGE + 1


def test_row_saved_just_after_its_mark_is_found(table):
    """Outside of a transaction a check may read the mark before the row is written."""
    PeriodicTasks.update_changed()
    table.turn()
    PeriodicTask.objects.bulk_create([PeriodicTask(name="late", task="tick", crontab=cron())])
    table.turn()
    assert "late" in table.names


@pytest.mark.parametrize("hours", [-0.5, 1], ids=["behind", "ahead"])
def test_row_of_a_process_with_another_clock_is_found(table, hours):
    """A transaction that commits an hour after it saved the row has the same effect."""
    at = table.reader._now() + timedelta(hours=hours)
    new = row("new", interval=every(60))
    PeriodicTask.objects.filter(pk=new.pk).update(date_changed=at)
    PeriodicTasks.objects.update(last_update=at)
    table.turn()
    assert "new" in table.names
    table.tasks[3].delete()
    table.turn()
    table.assert_up_to_date()


def test_bulk_update_that_a_later_change_hides_is_found_within_a_minute(table):
    update(table.tasks[10:20], interval=every(60))
    row("new", interval=every(60))
    table.turn(seconds=61)
    table.turn(ROWS)
    table.assert_up_to_date()


def test_marked_change_during_an_outage_is_found_after_it(table, monkeypatch):
    """The check had read the mark, and the outage lasts longer than the follow-up."""
    table.turn(seconds=10)
    table.turn()
    update(table.tasks[10:20], interval=every(60))
    with monkeypatch.context() as patched:
        patched.setattr(DjangoQueries, "saved_since", Mock(side_effect=OperationalError))
        with pytest.raises(OperationalError):
            table.turn(seconds=10)
    table.turn()
    table.assert_up_to_date()


def test_row_disabled_while_it_is_read_is_found_when_enabled(table, monkeypatch):
    """Another transaction may disable a row between the two queries that read it."""
    table.turn(seconds=10)
    table.turn()
    new = row("new", interval=every(60))
    saved(table.tasks)
    with monkeypatch.context() as patched:
        patched.setattr(DjangoQueries, "models", lambda *_: ())
        table.turn()
    assert not table.names & {"new", table.tasks[3].name}
    PeriodicTask.objects.filter(pk=new.pk).update(enabled=True)
    PeriodicTasks.update_changed()
    table.turn(3, seconds=1)
    table.assert_up_to_date()


def test_unmarked_change_is_found_within_minutes(table):
    """``QuerySet.update()`` sends no signal. Instants of the new schedule from before the read are not owed."""
    short = every(60)
    table.turn(seconds=10)
    table.turn()
    with connection.cursor() as cursor:
        cursor.execute(f"DELETE FROM django_celery_beat_periodictask WHERE id = {table.tasks[0].pk}")
    PeriodicTask.objects.filter(pk=table.tasks[5].pk).update(interval=short)
    table.turn()
    assert "task 0" in table.names
    table.clock.ahead += FULL_READ_INTERVAL
    checked_at = table.reader._checked_at
    table.turn(ROWS)
    table.assert_up_to_date()
    assert table.reader.table.entries[str(table.tasks[5].pk)].since >= checked_at


def test_changed_entries_are_those_since_a_number(table):
    memory = table.reader.table
    before, deleted = memory.number, str(table.tasks[3].pk)
    table.tasks[3].delete()
    new = row("new", interval=every(60))
    table.turn()
    assert memory.changed_since(before) == {deleted, str(new.pk)}
    assert memory.changed_since(memory.number) == frozenset()


def test_removed_rows_are_forgotten_once_they_are_deleted(table):
    """A disabled row may be enabled again, a deleted one may not. On a standby removals would accumulate."""
    disabled, deleted = (str(task.pk) for task in table.tasks[:2])
    update([table.tasks[0]], enabled=False)
    table.tasks[1].delete()
    table.turn()
    assert set(table.reader.table.removed()) == {disabled, deleted}
    table.reader.begin_full_read()
    table.turn()
    assert set(table.reader.table.removed()) == {disabled}
