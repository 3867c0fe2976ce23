"""`CELERY_BEAT_SCHEDULE` in a database schedule: written by the leader, when it has changed, and not over an edit."""

from __future__ import annotations

import json

import pytest
from celery import Celery
from celery.schedules import crontab
from django.db.utils import OperationalError
from django.utils import timezone
from django_celery_beat.clockedschedule import clocked
from django_celery_beat.models import PeriodicTask

from ha_beat.django import static_entries as static
from ha_beat.events import EntryFailed
from tests.integration.django.beats import beats, every, fresh, row
from tests.integration.django.project.app import app
from tests.support.servers import wait_for

SPEC = {"static": {"every": 0.5}}


def test_a_definition_has_one_digest_and_another_has_another():
    definition = {"task": "t", "schedule": crontab(minute="5"), "options": {"queue": "q"}}

    assert static.digest(definition) == static.digest({**definition, "schedule": crontab(minute="5")})
    assert static.digest(definition) != static.digest({**definition, "schedule": crontab(minute="6")})
    assert static.digest(definition) != static.digest({**definition, "options": {"queue": "r"}})
    assert static.digest({"task": "t", "schedule": 5}) != static.digest({"task": "t", "schedule": 6})


def test_a_crontab_in_another_time_zone_is_another_definition():
    """As stock writes it: ``CELERY_TIMEZONE`` has been changed, and the entry names none of its own."""
    digests = []
    try:
        for zone in ("UTC", "UTC", "Europe/Berlin"):
            project = Celery()
            project.conf.timezone = zone
            digests.append(static.digest({"task": "t", "schedule": crontab(minute="0", hour="4")}))
    finally:
        app.set_current()

    assert digests[0] == digests[1] != digests[2]


def test_an_entry_is_written_when_it_is_missing_or_another_by_one_who_started_later():
    definition = {"task": "t", "schedule": 5.0}
    other = {"task": "t", "schedule": 6.0}
    mark = static.mark_of(definition, 1000)

    def written(definition, mark, has_row=True, began_ms=2000):
        return static.needs_write(definition, mark, has_row=has_row, began_ms=began_ms)

    assert written(definition, None)
    assert written(definition, mark, has_row=False)
    assert not written(definition, mark)
    assert written(other, mark)
    assert not written(other, mark, began_ms=999)


@pytest.mark.slow
def test_an_edit_of_a_static_entry_outlives_restarts_and_other_settings(site):
    """A restart with the same settings, and one with another entry besides, leave the edited row as it is."""
    with beats(site, spec=SPEC) as cluster:
        wait_for(lambda: "static" in site.names(), 40, "a message", 0.1)
        task = PeriodicTask.objects.get(name="static")
        task.interval = every(3600)
        task.save()
        wait_for(lambda: cluster.ledger()[str(task.pk)]["verdict"] == "armed", 10, "the edit to take effect", 0.1)
    site.redis.client().delete("celery")
    with beats(site, spec={**SPEC, "more": {"every": 0.5}}):
        wait_for(lambda: "more" in site.names(), 40, "a message", 0.1)

    assert fresh(task).interval == every(3600)
    assert "static" not in site.names()


@pytest.mark.slow
def test_changed_settings_are_written(site):
    with beats(site, spec=SPEC, replicas=1):
        wait_for(lambda: "static" in site.names(), 40, "a message", 0.1)
    changed = {"static": {"every": 0.5, "args": [1], "options": {"queue": "other", "ha_beat": {"misfire": "skip"}}}}
    with beats(site, spec=changed, replicas=1):
        wait_for(lambda: site.names("other"), 40, "a message in the other queue", 0.1)

    task = PeriodicTask.objects.get(name="static")
    assert json.loads(task.args) == [1]
    assert json.loads(task.headers)["ha_beat"] == {"misfire": "skip"}
    assert "misfire" not in json.dumps(site.messages("other"))


@pytest.mark.slow
def test_a_standby_writes_no_row(site):
    """Neither the settings' entries nor runs; here it has other settings than the leader."""
    row("task", interval=every(0.5))
    with beats(site, spec=SPEC, replicas=1):
        wait_for(lambda: "static" in site.names(), 40, "a message", 0.1)
        with beats(site, spec={"other": {"every": 0.5}}, replicas=1) as standby:
            standby[0].wait_for_log("action=leader_seen")
            before = len(site.names())
            wait_for(lambda: len(site.names()) > before + 4, 20, "more messages", 0.1)
            standby[0].terminate()

    assert set(PeriodicTask.objects.values_list("name", flat=True)) == {"task", "static"}


@pytest.mark.parametrize(
    "bad",
    [
        {"schedule": clocked(timezone.now())},
        {"schedule": 5.0, "colour": "green"},
        {"schedule": 5.0, "expires": timezone.now(), "options": {"expire_seconds": 5}},
        {"schedule": 5.0, "args": [object()]},
        {"schedule": 5.0, "options": {"priority": "high"}},
        {"schedule": 5.0, "task": "t" * 201},
    ],
    ids=["clocked, not one-off", "unknown key", "two expiries", "no JSON", "no number", "too long"],
)
def test_an_entry_that_no_row_can_hold_hurts_nobody(any_site, bad, monkeypatch):
    """It is named; the others are written. Refused by dcb, by Django or by the database."""
    entries = {"before": {"schedule": 5.0}, "bad": bad, "after": {"schedule": 5.0}}
    entries = {name: {"task": "tick", **line} for name, line in entries.items()}
    monkeypatch.setattr(static, "static_entries", lambda _: entries)
    told: list[EntryFailed] = []
    written = static.write(app, PeriodicTask, {}, 1000, told.append)

    assert {"before", "after"} <= set(PeriodicTask.objects.values_list("name", flat=True))
    if "bad" not in written:  # SQLite takes a text of any length
        assert [event.entry for event in told] == ["bad"]
    assert ("bad" in written) == PeriodicTask.objects.filter(name="bad").exists()
    assert "bad" not in written or bad.get("task")


def test_a_database_that_is_away_is_no_fault_of_an_entry(site, monkeypatch):
    """All of it is tried again."""
    monkeypatch.setattr(static, "static_entries", lambda _: {"good": {"task": "tick", "schedule": 5.0}})

    def locked(*_: object, **__: object) -> None:
        raise OperationalError("database is locked")

    monkeypatch.setattr(static, "_write_one", locked)
    with pytest.raises(OperationalError):
        static.write(app, PeriodicTask, {}, 1000, lambda _: None)
