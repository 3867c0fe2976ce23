"""`CELERY_BEAT_SCHEDULE` in a database schedule: written by the leader, when it has changed, and not over an edit."""

from __future__ import annotations

import json

import pytest
from celery.schedules import crontab
from django_celery_beat.models import PeriodicTask

from ha_beat.django import static
from tests.django.beats import beats, every, fresh, row
from tests.servers import wait_for

pytestmark = pytest.mark.slow

SPEC = {"static": {"every": 0.5}}


def test_a_definition_has_one_digest_and_another_has_another():
    definition = {"task": "t", "schedule": crontab(minute="5"), "options": {"queue": "q"}}

    assert static.digest(definition) == static.digest({**definition, "schedule": crontab(minute="5")})
    assert static.digest(definition) != static.digest({**definition, "schedule": crontab(minute="6")})
    assert static.digest(definition) != static.digest({**definition, "options": {"queue": "r"}})
    assert static.digest({"task": "t", "schedule": 5}) != static.digest({"task": "t", "schedule": 6})


def test_an_entry_is_written_when_it_is_missing_or_another_by_one_who_started_later():
    definition = {"task": "t", "schedule": 5.0}
    other = {"task": "t", "schedule": 6.0}
    mark = static.mark_of(definition, 1000)

    def written(definition, mark, has_row=True, began_ms=2000):
        return static.to_be_written(definition, mark, has_row=has_row, began_ms=began_ms)

    assert written(definition, None)
    assert written(definition, mark, has_row=False)
    assert not written(definition, mark)
    assert written(other, mark)
    assert not written(other, mark, began_ms=999)


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


def test_a_standby_writes_no_row(site):
    """Neither the settings' entries nor runs; here it has other settings than the leader."""
    row("task", interval=every(0.5))
    with beats(site, spec=SPEC, replicas=1):
        wait_for(lambda: "static" in site.names(), 40, "a message", 0.1)
        with beats(site, spec={"other": {"every": 0.5}}, replicas=1) as standby:
            standby[0].wait_for_log("Standing by")
            before = len(site.names())
            wait_for(lambda: len(site.names()) > before + 4, 20, "more messages", 0.1)
            standby[0].terminate()

    assert set(PeriodicTask.objects.values_list("name", flat=True)) == {"task", "static"}
