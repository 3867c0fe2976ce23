"""What django-celery-beat's README shows works with the scheduler swapped; what its queries leave out is not lost."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import datetime, timedelta
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from click.testing import CliRunner
from django.utils import timezone
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask, PeriodicTasks

from ha_beat.cli.celery_command import ha_beat as command
from tests.faults.cluster import REPOSITORY, base_environment
from tests.integration.django.beats import at, beats, cron, every, fresh, row, soon
from tests.support.servers import wait_for

pytestmark = pytest.mark.slow


def test_tasks_made_in_code_as_the_readme_does(site):
    """An interval with arguments and an expiry, and a crontab in a time zone of its own."""
    schedule, _ = IntervalSchedule.objects.get_or_create(every=1, period=IntervalSchedule.SECONDS)
    with beats(site) as cluster:
        cluster.wait_for_leader()
        PeriodicTask.objects.create(
            interval=schedule,
            name="Importing contacts",
            task="tick",
            args=json.dumps(["arg1", "arg2"]),
            kwargs=json.dumps({"be_careful": True}),
            expires=timezone.now() + timedelta(days=1),
        )
        crontab, _ = CrontabSchedule.objects.get_or_create(
            minute="30",
            hour="*",
            day_of_week="*",
            day_of_month="*",
            month_of_year="*",
            timezone=ZoneInfo("Canada/Pacific"),
        )
        hourly = PeriodicTask.objects.create(crontab=crontab, name="Hourly", task="tick")
        wait_for(site.names, 20, "a message", 0.1)
        wait_for(lambda: str(hourly.pk) in cluster.ledger(), 10, "the crontab to be known", 0.1)
        periodic_task = PeriodicTask.objects.get(name="Importing contacts")
        periodic_task.enabled = False
        periodic_task.save()
        wait_for(lambda: cluster.ledger()[str(periodic_task.pk)]["verdict"] == "absent", 10, "it to be off", 0.1)
        count = len(site.names())
        time.sleep(2)

    first = site.messages()[0]
    assert first["argsrepr"] == "['arg1', 'arg2']"
    assert first["kwargsrepr"] == "{'be_careful': True}"
    assert datetime.fromisoformat(first["expires"]) > timezone.now()
    assert len(site.names()) == count


def test_the_reset_after_a_change_of_time_zone_runs_nothing_again(site):
    """The README: set last_run_at of all to None, and say that they changed."""
    task = row("task", interval=every(1))
    row("hourly", interval=every(3600))
    with beats(site) as cluster:
        wait_for(lambda: fresh(task).total_run_count > 1, 40, "two runs", 0.1)
        PeriodicTask.objects.all().update(last_run_at=None)
        PeriodicTasks.update_changed()
        wait_for(lambda: fresh(task).last_run_at, 10, "the next run", 0.1)
        cluster.assert_all_alive()

    instants = [h["ha_beat"]["scheduled_at"] for h in site.messages() if h["periodic_task_name"] == "task"]
    assert len(instants) == len(set(instants))
    assert "hourly" not in site.names()


def test_a_daily_crontab_missed_during_an_outage_is_caught_up_though_its_hour_is_far(site):
    """django-celery-beat's own query does not even read a crontab whose hour is more than two hours away."""
    hour = (timezone.now() + timedelta(hours=12)).hour
    missed = timezone.now() - timedelta(days=3)
    row("daily", crontab=cron(minute="7", hour=str(hour)), last_run_at=missed, total_run_count=5)
    with beats(site):
        wait_for(site.names, 40, "the catch-up", 0.1)
        time.sleep(1.5)

    assert site.names() == ["daily"]


def test_rows_that_are_made_while_no_beat_runs(site):
    """A clocked time that has passed meanwhile is owed, by the misfire policy; nothing of the rest is."""
    skip = '{"ha_beat": {"misfire": "skip"}}'
    with beats(site, replicas=1) as cluster:
        old = row("again", interval=every(0.3))
        wait_for(lambda: "again" in site.names(), 40, "a message", 0.1)
        cluster[0].terminate()
        old.delete()
        site.redis.client().delete("celery")
        clocked = [
            row("clocked", clocked=at(soon(-60)), one_off=True),
            row("clocked, skips", clocked=at(soon(-60)), one_off=True, headers=skip),
        ]
        row("again", interval=every(3600))
        row("hourly", interval=every(3600), one_off=True, headers=skip)
        cluster[0].start()
        wait_for(lambda: not any(fresh(task).enabled for task in clocked), 40, "them to be disabled", 0.1)
        time.sleep(1)
        skipped = cluster.ledger()[str(clocked[1].pk)]

    assert site.names() == ["clocked"]
    assert skipped["count"] == 0


def test_without_time_zones_rows_are_in_utc_as_stock_has_them(site):
    """``USE_TZ = False`` and ``DJANGO_CELERY_BEAT_TZ_AWARE = False``, far from UTC: no run again at a restart."""
    settings = {
        "USE_TZ": False,
        "DJANGO_CELERY_BEAT_TZ_AWARE": False,
        "TIME_ZONE": "Asia/Tokyo",
        "CELERY_TIMEZONE": "Asia/Tokyo",
        "CELERY_ENABLE_UTC": False,
    }
    made = """
import django; django.setup()
from datetime import UTC, datetime, timedelta
from tests.integration.django.beats import at, every, row
now = datetime.now(UTC).replace(tzinfo=None)
row("interval", interval=every(2))
row("clocked", clocked=at(now + timedelta(seconds=5)), one_off=True)
row("starts", interval=every(3600), start_time=now + timedelta(seconds=5))
row("ends", interval=every(1), expires=now - timedelta(seconds=1))
"""
    env = base_environment(site.env(**settings))
    subprocess.run([sys.executable, "-c", made], cwd=REPOSITORY, env=env, check=True, timeout=60)
    interval = PeriodicTask.objects.get(name="interval")
    with beats(site, replicas=1, django=settings) as cluster:
        wait_for(lambda: {"clocked", "starts", "interval"} <= set(site.names()), 40, "messages", 0.1)
        wait_for(lambda: fresh(interval).total_run_count, 10, "the row to say so", 0.1)
        assert abs(interval.last_run_at - soon(0)) < timedelta(seconds=60)
        cluster[0].terminate()
        cluster[0].start()
        count = site.names().count("interval")
        wait_for(lambda: site.names().count("interval") > count, 40, "another", 0.1)

    found = [h["ha_beat"]["scheduled_at"] for h in site.messages() if h["periodic_task_name"] == "interval"]
    assert len(found) == len(set(found))
    assert (site.names().count("clocked"), site.names().count("starts"), site.names().count("ends")) == (1, 1, 0)


def test_a_row_that_says_that_it_will_have_run_is_not_believed(site):
    """Its last_run_at lies ahead, as a clock that was wrong leaves it: it runs all the same."""
    task = row("ahead", interval=every(1), last_run_at=soon(3600), total_run_count=1)
    with beats(site, replicas=1):
        wait_for(site.names, 40, "a message", 0.1)
        wait_for(lambda: fresh(task).last_run_at < soon(60), 10, "the row to be put right", 0.1)


def test_a_row_that_expires_is_disabled_and_runs_no_more(site):
    task = row("task", interval=every(0.5), expires=soon(12))
    with beats(site):
        wait_for(lambda: not fresh(task).enabled, 60, "it to be disabled", 0.1)
        time.sleep(1.5)

    last = max(datetime.fromisoformat(headers["ha_beat"]["scheduled_at"]) for headers in site.messages())
    assert last < task.expires


def test_a_row_with_a_start_runs_from_it_on(site):
    start = soon(10)
    row("task", interval=every(0.5), start_time=start)
    with beats(site):
        wait_for(lambda: len(site.names()) > 2, 60, "messages", 0.1)

    assert datetime.fromisoformat(site.messages()[0]["ha_beat"]["scheduled_at"]) == start


def test_the_command_line_calls_an_entry_by_its_name(site):
    """The ledger knows a row by its key, which nobody remembers."""
    row("every second", interval=every(1))
    row("nightly report", crontab=cron("0", "3"))
    app = Celery("site", broker=site.redis.url, set_as_current=False)
    app.conf.update(ha_beat_cluster="site", ha_beat_redis_url=site.redis.url)

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(command, arguments, obj=SimpleNamespace(app=app))
        return f"{done.exit_code} {done.output}"

    with beats(site) as cluster:
        wait_for(site.names, 30, "a message", 0.1)
        asked = (["every second"], [], ["nightly report"], ["nightly"])
        told = [run("history", *words) for words in asked]
        schedules = run("next")
        cluster.assert_all_alive()

    assert all(each.startswith("0 ") and "every second" in each for each in told[:2]), told
    assert told[2] == "0 The journal has no such record.\n"
    assert told[3].startswith("1 ")
    assert "nightly report" in told[3]
    assert len(schedules.splitlines()) == 3 + schedules.count("celery.backend_cleanup  ")
