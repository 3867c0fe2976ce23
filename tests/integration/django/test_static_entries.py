"""The leader writes changed entries of `CELERY_BEAT_SCHEDULE` to the database, and overwrites no edit."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from typing import Any

import pytest
from celery import Celery
from celery.schedules import crontab, schedstate, schedule
from django.db import connection
from django.db.utils import OperationalError
from django.test import Client
from django.utils import timezone
from django_celery_beat.clockedschedule import clocked
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from ha_beat.django.database import DjangoDatabase
from ha_beat.django.static_entries import DjangoStaticRows
from ha_beat.events import EntryFailed
from ha_beat.row_store import static_entries as static
from tests.integration.django.beats import beats, kill_leader
from tests.integration.django.conftest import create_staff
from tests.integration.django.project.app import app
from tests.integration.django.rows import every, fresh, row, wait_for_verdict

SPEC = {"static": {"every": 0.5}}


class Never(schedule):
    """Schedule of a project, which as a row would be a plain interval."""

    def is_due(self, last_run_at: object) -> schedstate:
        return schedstate(False, 3600.0)


def test_digest_distinguishes_definitions():
    definition = {"task": "t", "schedule": crontab(minute="5"), "options": {"queue": "q"}}
    assert static.digest(definition) == static.digest({**definition, "schedule": crontab(minute="5")})
    assert static.digest(definition) != static.digest({**definition, "schedule": crontab(minute="6")})
    assert static.digest(definition) != static.digest({**definition, "options": {"queue": "r"}})
    assert static.digest({"task": "t", "schedule": 5}) != static.digest({"task": "t", "schedule": 6})


def test_digest_of_a_crontab_depends_on_celerys_time_zone():
    """A crontab without a time zone is written to its row with that of ``CELERY_TIMEZONE``."""
    digests = []
    try:
        for zone in ("UTC", "UTC", "Europe/Berlin"):
            project = Celery()
            project.conf.timezone = zone
            digests.append(static.digest({"task": "t", "schedule": crontab(minute="0", hour="4")}))
    finally:
        app.set_current()
    assert digests[0] == digests[1] != digests[2]


def test_entry_is_written_if_new_or_changed_by_a_later_process():
    definition = {"task": "t", "schedule": 5.0}
    other = {"task": "t", "schedule": 6.0}
    mark = static.mark_of(definition, 1000, "db")

    def written(definition, mark, has_row=True, began_ms=2000, database="db"):
        return static.needs_write(definition, mark, has_row=has_row, began_ms=began_ms, database=database)

    for has_row in (True, False):
        assert written(definition, None, has_row)
        assert not written(definition, mark, has_row)
        assert written(other, mark, has_row)
        assert not written(other, mark, has_row, began_ms=999)
    assert not written(definition, mark, database="another")
    assert written(definition, mark, has_row=False, database="another")
    assert written(definition, mark, has_row=False, database="")


@pytest.mark.slow
def test_edit_of_a_static_entry_survives_a_restart_with_other_settings(site):
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


@pytest.mark.slow
def test_task_deleted_in_the_admin_stays_deleted_until_its_entry_changes(site):
    """Across a kill of the leader and a restart of all beats."""
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
def test_changed_settings_are_written(site):
    with beats(site, spec=SPEC, replicas=1):
        site.wait_for("static")
    changed = {"static": {"every": 0.5, "args": [1], "options": {"queue": "other", "ha_beat": {"misfire": "skip"}}}}
    with beats(site, spec=changed, replicas=1):
        site.wait_for(queue="other")
    task = PeriodicTask.objects.get(name="static")
    assert json.loads(task.args) == [1]
    assert json.loads(task.headers)["ha_beat"] == {"misfire": "skip"}
    assert "misfire" not in json.dumps(site.messages("other"))


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
def test_entry_that_no_row_can_hold_is_reported_and_left_out(any_site, bad, monkeypatch):
    """django-celery-beat, Django or the database refuses it. The other entries are written."""
    entries = {"before": {"schedule": 5.0}, "bad": bad, "after": {"schedule": 5.0}}
    entries = {name: {"task": "tick", **line} for name, line in entries.items()}
    monkeypatch.setattr(static, "static_entries", lambda _: entries)
    failures: list[EntryFailed] = []
    written = write({}, 1000, failures.append)
    assert {"before", "after"} <= set(PeriodicTask.objects.values_list("name", flat=True))
    if "bad" not in written:  # SQLite takes a text of any length
        assert [event.entry for event in failures] == ["bad"]
    assert ("bad" in written) == PeriodicTask.objects.filter(name="bad").exists()
    assert "bad" not in written or bad.get("task")


def write(*args: Any) -> dict[str, str]:
    """Write the changed entries."""
    return static.write(app, DjangoStaticRows(PeriodicTask), DjangoDatabase(list), *args)


def write_one(monkeypatch, **definition: Any) -> Any:
    """Write one entry of the settings; return its row."""
    monkeypatch.setattr(static, "static_entries", lambda _: {"entry": {"task": "tick", **definition}})
    assert write({}, 1000, lambda _: None)
    return PeriodicTask.objects.get(name="entry")


@pytest.mark.parametrize("seconds", [1.5, 90])
def test_first_of_several_equal_intervals_is_used(site, monkeypatch, seconds):
    """Nothing forbids them. Stock knows whole seconds only."""
    unit, period = (round(seconds * 1e6), "microseconds") if seconds % 1 else (round(seconds), "seconds")
    first, _ = [IntervalSchedule.objects.create(every=unit, period=period) for _ in range(2)]
    assert write_one(monkeypatch, schedule=seconds).interval == first
    if period == "seconds":
        assert IntervalSchedule.from_schedule(schedule(seconds)) == first


def test_options_that_no_row_can_hold_are_named(site, monkeypatch, caplog):
    at = timezone.now()
    kept = {"queue": "q", "priority": 3, "headers": {"a": 1}}
    task = write_one(monkeypatch, schedule=5.0, options={**kept, "expires": timedelta(seconds=2.5), "time_limit": 9})
    assert (task.queue, task.priority, task.expire_seconds, task.expires) == ("q", 3, 3, None)
    [dropped] = [record for record in caplog.records if record.action == "static_options_dropped"]
    assert dropped.options == ["time_limit"]
    caplog.clear()
    assert write_one(monkeypatch, schedule=5.0, options={**kept, "expires": at}).expires == at
    assert [record.action for record in caplog.records if record.levelname == "WARNING"] == []


def test_deleted_entry_is_not_written_again_until_it_changes(any_site, monkeypatch):
    """A new database lacks all entries, and gets them."""
    task = write_one(monkeypatch, schedule=5.0)
    monkeypatch.setattr(static, "static_entries", lambda _: {"entry": {"task": "tick", "schedule": 6.0}})
    marks = write({}, 1000, lambda _: None)
    task.delete()
    assert write(marks, 2000, lambda _: None) == {}
    assert not PeriodicTask.objects.exists()
    with monkeypatch.context() as new:
        new.setattr("ha_beat.django.static_entries.database_identity", lambda _: "new")
        assert write(marks, 2000, lambda _: None)
    PeriodicTask.objects.all().delete()
    monkeypatch.setattr(static, "static_entries", lambda _: {"entry": {"task": "tick", "schedule": 7.0}})
    assert write(marks, 2000, lambda _: None)
    assert PeriodicTask.objects.exists()


def test_entry_is_written_without_a_right_to_the_migrations(postgres_site, monkeypatch):
    """Only the tables of django-celery-beat are needed. An entry that was deleted is then restored."""
    role = f"beat_{time.time_ns()}"
    with connection.cursor() as cursor:
        cursor.execute(
            f"CREATE ROLE {role}; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}; "
            f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}; REVOKE ALL ON django_migrations FROM {role}; "
            f"SET ROLE {role}"
        )
    monkeypatch.setattr(static, "static_entries", lambda _: {"entry": {"task": "tick", "schedule": 5.0}})
    marks = write({}, 1000, lambda _: None)
    assert write(marks, 2000, lambda _: None) == {}
    PeriodicTask.objects.get(name="entry").delete()
    assert list(write(marks, 2000, lambda _: None)) == ["entry"]


def test_error_of_the_database_is_raised_for_a_retry(site, monkeypatch):
    monkeypatch.setattr(static, "static_entries", lambda _: {"good": {"task": "tick", "schedule": 5.0}})

    def locked(*_: object, **__: object) -> None:
        raise OperationalError("database is locked")

    monkeypatch.setattr(static, "_write_one", locked)
    with pytest.raises(OperationalError):
        write({}, 1000, lambda _: None)
