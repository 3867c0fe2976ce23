"""The uses that django-celery-beat's README shows work, and rows that its queries omit are not lost."""

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
from tests.faults.cluster import base_environment
from tests.integration.django.beats import beats
from tests.integration.django.rows import at, cron, every, fresh, row, soon, wait_for_verdict, wait_until_disabled
from tests.support.commands import ROOT
from tests.support.servers import wait_for

pytestmark = pytest.mark.slow


def test_tasks_created_as_in_the_readme_run(site):
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
        crontab, _ = CrontabSchedule.objects.get_or_create(minute="30", hour="*", timezone=ZoneInfo("Canada/Pacific"))
        hourly = PeriodicTask.objects.create(crontab=crontab, name="Hourly", task="tick")
        site.wait_for(within=20)
        wait_for(lambda: str(hourly.pk) in cluster.ledger(), 10, "the crontab to be known", 0.1)
        periodic_task = PeriodicTask.objects.get(name="Importing contacts")
        periodic_task.enabled = False
        periodic_task.save()
        wait_for_verdict(cluster, periodic_task, "absent", 10)
        count = len(site.names())
        time.sleep(2)
    first = site.messages()[0]
    assert first["argsrepr"] == "['arg1', 'arg2']"
    assert first["kwargsrepr"] == "{'be_careful': True}"
    assert datetime.fromisoformat(first["expires"]) > timezone.now()
    assert len(site.names()) == count


def test_reset_of_all_last_runs_repeats_no_run(site):
    """The README asks for this reset after a change of the time zone."""
    task = row("task", interval=every(1))
    row("hourly", interval=every(3600))
    with beats(site) as cluster:
        wait_for(lambda: fresh(task).total_run_count > 1, 40, "two runs", 0.1)
        PeriodicTask.objects.all().update(last_run_at=None)
        PeriodicTasks.update_changed()
        wait_for(lambda: fresh(task).last_run_at, 10, "the next run", 0.1)
        cluster.assert_all_alive()
    site.assert_none_twice("task")
    assert "hourly" not in site.names()


def test_daily_crontab_missed_in_an_outage_is_caught_up(site):
    """django-celery-beat's query omits crontabs whose hour is more than two hours away."""
    hour = (timezone.now() + timedelta(hours=12)).hour
    missed = timezone.now() - timedelta(days=3)
    row("daily", crontab=cron(minute="7", hour=str(hour)), last_run_at=missed, total_run_count=5)
    with beats(site):
        site.wait_for()
        time.sleep(1.5)
    assert site.names() == ["daily"]


def test_rows_created_while_no_beat_runs_owe_only_clocked_times(site):
    """The misfire policy applies to a clocked time that has passed."""
    skip = '{"ha_beat": {"misfire": "skip"}}'
    with beats(site, replicas=1) as cluster:
        old = row("again", interval=every(0.3))
        site.wait_for("again")
        cluster[0].terminate()
        old.delete()
        site.clear()
        clocked = [
            row("clocked", clocked=at(soon(-60)), one_off=True),
            row("clocked, skips", clocked=at(soon(-60)), one_off=True, headers=skip),
        ]
        row("again", interval=every(3600))
        row("hourly", interval=every(3600), one_off=True, headers=skip)
        cluster[0].start()
        for task in clocked:
            wait_until_disabled(task)
        time.sleep(1)
        skipped = cluster.ledger()[str(clocked[1].pk)]
    assert site.names() == ["clocked"]
    assert skipped["count"] == 0


def test_rows_without_time_zones_are_in_utc_and_run_once(site):
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
from tests.integration.django.rows import at, every, row
now = datetime.now(UTC).replace(tzinfo=None)
row("interval", interval=every(2))
row("clocked", clocked=at(now + timedelta(seconds=5)), one_off=True)
row("starts", interval=every(3600), start_time=now + timedelta(seconds=5))
row("ends", interval=every(1), expires=now - timedelta(seconds=1))
"""
    env = base_environment(site.env(**settings))
    subprocess.run([sys.executable, "-c", made], cwd=ROOT, env=env, check=True, timeout=60)
    interval = PeriodicTask.objects.get(name="interval")
    with beats(site, replicas=1, django=settings) as cluster:
        site.wait_for("clocked", "starts", "interval")
        wait_for(lambda: fresh(interval).total_run_count, 10, "the run in the row", 0.1)
        assert abs(interval.last_run_at - soon(0)) < timedelta(seconds=60)
        cluster[0].terminate()
        cluster[0].start()
        site.wait_for_more(1, "interval", within=40)
    site.assert_none_twice("interval")
    assert (site.names().count("clocked"), site.names().count("starts"), site.names().count("ends")) == (1, 1, 0)


def test_row_with_a_last_run_in_the_future_runs(site):
    """A wrong clock may have written the last run."""
    task = row("ahead", interval=every(1), last_run_at=soon(3600), total_run_count=1)
    with beats(site, replicas=1):
        site.wait_for()
        wait_for(lambda: fresh(task).last_run_at < soon(60), 10, "the row to be corrected", 0.1)


def test_row_runs_from_its_start_until_its_expiry(site):
    start, end = soon(10), soon(15)
    task = row("task", interval=every(0.5), start_time=start, expires=end)
    with beats(site):
        wait_until_disabled(task, 60)
        time.sleep(1.5)
    found = site.instants("task")
    assert start == found[0] < found[-1] < end


def test_command_line_shows_entries_by_name(site):
    """The ledger has only the primary keys of rows."""
    row("every second", interval=every(1))
    row("nightly report", crontab=cron("0", "3"))
    app = Celery("site", broker=site.redis.url, set_as_current=False)
    app.conf.update(ha_beat_cluster="site", ha_beat_redis_url=site.redis.url)

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(command, arguments, obj=SimpleNamespace(app=app))
        return f"{done.exit_code} {done.output}"

    with beats(site) as cluster:
        site.wait_for(within=30)
        queries = (["every second"], [], ["nightly report"], ["nightly"])
        outputs = [run("history", *words) for words in queries]
        schedules = run("next")
        cluster.assert_all_alive()
    assert all(each.startswith("0 ") and "every second" in each for each in outputs[:2]), outputs
    assert outputs[2].startswith("0 ")
    assert "every second" not in outputs[2]
    assert outputs[3].startswith("1 ")
    assert "nightly report" in outputs[3]
    assert len(schedules.splitlines()) == 3 + schedules.count("celery.backend_cleanup  ")
