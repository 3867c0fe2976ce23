"""The leader writes changed entries of `CELERY_BEAT_SCHEDULE` to the database, and overwrites no edit."""

import json
import time
from typing import Any

import pytest
from celery.schedules import schedstate, schedule
from django.db import connection
from django.test import Client
from django.utils import timezone
from django_celery_beat.clockedschedule import clocked
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from ha_beat.events import EntryFailed
from ha_beat.row_store.static_entries import Mark, write_changed
from tests.integration.django.beats import beats, kill_leader
from tests.integration.django.conftest import create_staff
from tests.integration.django.rows import every, fresh, row, wait_for_verdict
from tests.integration.row_store.conftest import DjangoRows

SPEC = {"static": {"every": 0.5}}


class Never(schedule):
    """Schedule of a project, which would be a plain interval in a row."""

    def is_due(self, last_run_at: object) -> schedstate:
        return schedstate(False, 3600.0)


@pytest.mark.slow
def test_edit_of_a_static_entry_is_kept_until_its_entry_changes(site):
    """Other settings, and a restart, do not overwrite it."""
    with beats(site, spec=SPEC) as cluster:
        site.wait_for("static")
        task = PeriodicTask.objects.get(name="static")
        task.interval = every(3600)
        task.save()
        wait_for_verdict(cluster, task, "armed", 10)
    site.clear()
    with beats(site, spec={**SPEC, "more": {"every": 0.5}}):
        site.wait_for("more")
    assert fresh(task).interval == every(3600)
    assert "static" not in site.names()
    changed = {"static": {"every": 0.5, "args": [1], "options": {"queue": "other", "ha_beat": {"misfire": "skip"}}}}
    with beats(site, spec=changed, replicas=1):
        site.wait_for(queue="other")
    assert json.loads(fresh(task).args) == [1]
    assert json.loads(task.headers)["ha_beat"] == {"misfire": "skip"}
    assert "misfire" not in json.dumps(site.messages("other"))


@pytest.mark.slow
def test_task_deleted_in_the_admin_stays_deleted_until_its_entry_changes(site):
    """A kill of the leader and a restart of all beats do not restore it."""
    client = Client()
    client.force_login(create_staff(superuser=True))
    spec = {**SPEC, "other": {"every": 0.5}}
    with beats(site, spec=spec) as cluster:
        site.wait_for("static", "other")
        page = f"/admin/django_celery_beat/periodictask/{PeriodicTask.objects.get(name='static').pk}/delete/"
        assert client.post(page, {"post": "yes"}).status_code == 302
        kill_leader(cluster).start()
        site.wait_for_more(3, "other")
        assert not PeriodicTask.objects.filter(name="static").exists()
    site.clear()
    with beats(site, spec=spec):
        site.wait_for_more(3, "other")
    assert "static" not in site.names()
    with beats(site, spec={**spec, "static": {"every": 1.0}}):
        site.wait_for("static")


@pytest.mark.slow
def test_standby_with_other_settings_writes_no_row(site):
    row("task", interval=every(0.5))
    with beats(site, spec=SPEC, replicas=1):
        site.wait_for("static")
        with beats(site, spec={"other": {"every": 0.5}}, replicas=1) as standby:
            standby[0].wait_for_log("action=leader_seen")
            site.wait_for_more(5, within=20)
            standby[0].terminate()
    assert set(PeriodicTask.objects.values_list("name", flat=True)) == {"task", "static"}


@pytest.mark.parametrize(
    "bad",
    [
        {"schedule": clocked(timezone.now())},
        {"schedule": Never(5.0)},
        {"schedule": 5.0, "colour": "green"},
        {"schedule": 5.0, "expires": timezone.now(), "options": {"expire_seconds": 5}},
        {"schedule": 5.0, "args": [object()]},
        {"schedule": 5.0, "options": {"priority": "high"}},
        {"schedule": 5.0, "task": "t" * 201},
    ],
    ids=["clocked, not one-off", "own class", "unknown key", "two expiries", "no JSON", "no number", "too long"],
)
def test_entry_that_no_row_can_hold_is_reported_and_left_out(any_site, bad):
    """django-celery-beat, Django or the database refuses the entry. The other entries are written."""
    failures: list[EntryFailed] = []
    written = write({}, failures.append, before={"schedule": 5.0}, bad=bad, after={"schedule": 5.0})
    assert {"before", "after"} <= set(PeriodicTask.objects.values_list("name", flat=True))
    if "bad" not in written:  # SQLite takes a text of any length
        assert [event.entry for event in failures] == ["bad"]
    assert ("bad" in written) == PeriodicTask.objects.filter(name="bad").exists()
    assert "bad" not in written or bad.get("task")


def write(marks: dict[str, Mark], emit: Any = lambda _: None, **entries: Any) -> dict[str, Mark]:
    """Write the changed entries and return their marks."""
    definitions = {name: {"task": "tick", **entry} for name, entry in entries.items()}
    return write_changed(definitions, marks, DjangoRows().store(), 1000, emit)


@pytest.mark.parametrize(("seconds", "every", "period"), [(1.5, 1_500_000, "microseconds"), (90, 90, "seconds")])
def test_first_of_several_equal_intervals_is_used(site, seconds, every, period):
    """The table may have equal intervals. Stock supports whole seconds only."""
    first, _ = [IntervalSchedule.objects.create(every=every, period=period) for _ in range(2)]
    assert write({}, entry={"schedule": seconds})
    assert PeriodicTask.objects.get(name="entry").interval == first
    if period == "seconds":
        assert IntervalSchedule.from_schedule(schedule(seconds)) == first


def test_entry_is_written_without_a_right_to_the_migrations(postgres_site):
    """Without it the database has no identity, so a deleted entry is restored."""
    role = f"beat_{time.time_ns()}"
    with connection.cursor() as cursor:
        cursor.execute(
            f"CREATE ROLE {role}; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}; "
            f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}; REVOKE ALL ON django_migrations FROM {role}; "
            f"SET ROLE {role}"
        )
    entry = {"schedule": 5.0}
    marks = write({}, entry=entry)
    assert write(marks, entry=entry) == {}
    PeriodicTask.objects.get(name="entry").delete()
    assert list(write(marks, entry=entry)) == ["entry"]
