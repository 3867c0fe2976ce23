"""Rows that are edited, switched off and on, and used again, by hand and from code, while leaders come and go."""

from __future__ import annotations

import json
import time
from collections import Counter
from datetime import timedelta

import pytest
from django.db import transaction
from django_celery_beat.models import CrontabSchedule, PeriodicTask, PeriodicTasks
from kombu import Connection, Exchange, Queue

from tests.faults.clock import SteppedClock
from tests.faults.cluster import BeatCluster
from tests.integration.django.beats import at, beats, cron, every, fresh, row, soon
from tests.integration.django.test_crash import assert_each_once, instants
from tests.support.servers import need, wait_for

pytestmark = pytest.mark.slow


def switch(task: PeriodicTask, *, on: bool) -> None:
    """As dcb's admin actions do: not by saving the row."""
    with transaction.atomic():
        # SQLite refuses a transaction that reads first and writes after another one has.
        PeriodicTask.objects.filter(pk=task.pk).update(enabled=on)
        PeriodicTasks.update_changed()


def verdict(cluster: BeatCluster, task: PeriodicTask) -> str:
    return cluster.ledger().get(str(task.pk), {}).get("verdict", "")


def off_and_on(cluster: BeatCluster, task: PeriodicTask) -> None:
    """Seen by all replicas."""
    switch(task, on=False)
    wait_for(lambda task=task: verdict(cluster, task) == "absent", 10, "it to be off", 0.05)
    time.sleep(1.5)
    switch(task, on=True)
    wait_for(lambda: verdict(cluster, task) == "armed", 10, "it to be on", 0.05)
    time.sleep(1.5)


def kill_leader(cluster: BeatCluster) -> None:
    leader = cluster.wait_for_leader()
    leader.kill()
    cluster.wait_for_leader(other_than=leader)


def test_a_row_that_was_off_long_ago_keeps_its_grid_when_another_takes_over(site):
    """The standby has seen it go and come back: the leader of that time has long dealt with it."""
    task = row("task", interval=every(2))
    with beats(site) as cluster:
        cluster.wait_until_up()
        wait_for(site.names, 40, "the first message", 0.05)
        off_and_on(cluster, task)
        site.redis.client().delete("celery")
        wait_for(lambda: len(site.names()) >= 2, 20, "two messages", 0.02)
        time.sleep(1.2)
        kill_leader(cluster)
        count = len(site.names())
        wait_for(lambda: len(site.names()) >= count + 2, 20, "two more", 0.02)

    assert_each_once(instants(site, "task"), timedelta(seconds=2))


def test_a_one_off_row_that_was_off_before_it_ran_does_not_run_again_after_a_takeover(site):
    """The leader dies with the run recorded and the row still on."""
    with beats(site) as cluster:
        cluster.wait_until_up()
        task = row("task", interval=every(6), one_off=True)
        wait_for(lambda: verdict(cluster, task) == "armed", 40, "it to be armed", 0.05)
        off_and_on(cluster, task)
        wait_for(site.names, 20, "its run", 0.001)
        leader = cluster.wait_for_leader()
        leader.kill()
        cluster.wait_for_leader(other_than=leader)
        wait_for(lambda: not fresh(task).enabled, 15, "it to be disabled", 0.1)
        time.sleep(7)

    assert site.names() == ["task"]


def test_a_one_off_row_that_is_switched_on_again_runs_again(any_site):
    task = row("task", interval=every(1), one_off=True)
    with beats(any_site) as cluster:
        for runs in (1, 2):
            wait_for(lambda runs=runs: len(any_site.names()) == runs, 40, "its run", 0.05)
            wait_for(lambda task=task: verdict(cluster, task) == "absent", 10, "it to be off", 0.05)
            assert not fresh(task).enabled
            if runs == 1:
                task = fresh(task)
                task.enabled = True
                task.save()
        time.sleep(2)

    assert any_site.names() == ["task", "task"]


def test_a_row_that_was_off_while_no_beat_ran_owes_nothing_of_that_time(site):
    """By the admin's actions, which leave no other trace in the row than that its last run is not known any more."""
    task = row("task", interval=every(6))
    with beats(site, replicas=1) as cluster:
        wait_for(lambda: fresh(task).last_run_at, 40, "its run in the row", 0.05)
        ran_at = instants(site, "task")[-1]
        assert cluster.ledger()[str(task.pk)]["count"] == fresh(task).total_run_count
    PeriodicTask.objects.update(enabled=False, last_run_at=None)
    PeriodicTask.objects.update(enabled=True)
    PeriodicTasks.update_changed()
    time.sleep(max((ran_at + timedelta(seconds=10) - soon(0)).total_seconds(), 0))
    with beats(site, replicas=1, settings={"lease_ttl": 2}):
        wait_for(lambda: len(site.names()) > 1, 40, "the next message", 0.05)

    missed = ran_at + timedelta(seconds=6)
    found = instants(site, "task")
    assert missed not in found
    assert (found[1] - ran_at) % timedelta(seconds=6) == timedelta(0)


def test_a_clocked_row_is_used_again_with_another_time(site):
    """Also one that is over when the form is saved: the admin's 'now' is the past by then, and stock runs it."""
    task = row("task", clocked=at(soon(3)), one_off=True)
    with beats(site) as cluster:
        for runs, seconds in ((1, 0), (2, 3), (3, -3)):
            if runs > 1:
                time.sleep(4)
                task = fresh(task)
                task.clocked, task.enabled = at(soon(seconds)), True
                task.save()
            wait_for(lambda runs=runs: len(site.names()) == runs, 40, f"run {runs}", 0.05)
            wait_for(lambda task=task: verdict(cluster, task) == "absent", 10, "it to be off", 0.05)
        time.sleep(2)

    assert site.names() == ["task"] * 3


def test_a_clocked_row_that_was_off_at_its_time_does_not_run_when_it_is_on_again(site):
    task = row("task", clocked=at(soon(8)), one_off=True)
    row("other", interval=every(0.5))
    with beats(site) as cluster:
        wait_for(lambda: verdict(cluster, task) == "armed", 40, "it to be armed", 0.05)
        switch(task, on=False)
        wait_for(lambda task=task: verdict(cluster, task) == "absent", 10, "it to be off", 0.05)
        time.sleep(8)
        switch(task, on=True)
        wait_for(lambda: not fresh(task).enabled, 10, "it to be off again", 0.05)
        time.sleep(1)

    assert "task" not in site.names()


def test_one_deleted_and_made_anew_with_its_name_is_another(site):
    """In one transaction, as a deployment script does it; nothing of the old one is owed to the new one."""
    old = row("task", interval=every(0.5))
    with beats(site) as cluster:
        wait_for(site.names, 40, "a message", 0.05)
        with transaction.atomic():
            old_pk = old.pk
            old.delete()
            new = row("task", interval=every(1))
        wait_for(lambda: verdict(cluster, new), 10, "it to be known", 0.05)
        site.redis.client().delete("celery")
        wait_for(lambda: len(site.names()) >= 3, 10, "messages", 0.05)
        kill_leader(cluster)
        count = len(site.names())
        wait_for(lambda: len(site.names()) >= count + 2, 10, "messages", 0.05)
        assert cluster.ledger()[str(old_pk)]["verdict"] == "absent"

    assert {headers["ha_beat"]["entry"] for headers in site.messages()} == {str(new.pk)}
    assert_each_once(instants(site, "task"), timedelta(seconds=1))


def test_what_a_transaction_took_back_never_was(site):
    task = row("task", interval=every(0.5))
    with beats(site):
        wait_for(site.names, 40, "a message", 0.05)
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            task.enabled = False
            task.save()
            row("other", interval=every(0.5))
            raise ZeroDivisionError
        count = len(site.names())
        wait_for(lambda: len(site.names()) >= count + 6, 10, "messages", 0.05)

    assert set(site.names()) == {"task"}
    assert_each_once(instants(site, "task"), timedelta(seconds=0.5))


def test_an_edit_of_a_shared_schedule_counts_for_all_its_rows_and_owes_nothing_of_the_past(site):
    """A crontab moved to another time zone: the hour that it names there is over today."""
    now = soon(0)
    crontab = cron(minute=str((now - timedelta(minutes=2)).minute), hour=str((now - timedelta(minutes=2)).hour))
    tasks = [row(f"task {number}", crontab=crontab) for number in range(2)]
    interval = every(3600)
    hourly = row("hourly", interval=interval)
    with beats(site) as cluster:
        wait_for(lambda: verdict(cluster, tasks[1]) == "armed", 40, "them to be armed", 0.05)
        CrontabSchedule.objects.get(pk=crontab.pk)
        crontab.minute, crontab.hour, crontab.timezone = "*", "*", "Asia/Kolkata"
        crontab.save()
        interval.every, interval.period = 500_000, "microseconds"
        interval.save()
        wait_for(lambda: site.names().count("hourly") >= 3, 10, "the interval to be another", 0.05)
        assert "task 0" not in site.names() or now.minute != soon(0).minute
        wait_for(lambda: {"task 0", "task 1"} <= set(site.names()), 65, "the crontabs", 0.1)

    assert_each_once(instants(site, "hourly"), timedelta(seconds=0.5))
    assert fresh(hourly).enabled
    assert all(at.second == 0 for at in instants(site, "task 0"))


def test_a_start_that_lies_ahead_and_is_moved(site):
    task = row("task", interval=every(1), start_time=soon(3600))
    with beats(site) as cluster:
        wait_for(lambda: verdict(cluster, task) == "armed", 40, "it to be armed", 0.05)
        task.start_time = soon(3)
        task.save()
        wait_for(lambda: len(site.names()) >= 2, 15, "messages", 0.05)
        kill_leader(cluster)
        count = len(site.names())
        wait_for(lambda: len(site.names()) >= count + 2, 15, "messages", 0.05)

    found = instants(site, "task")
    assert found[0] == task.start_time
    assert_each_once(found, timedelta(seconds=1))


def test_an_expiry_that_is_moved(site):
    """Before it is reached, to a later time and to the past: nothing is lost by it, or doubled.

    A row that was to run once stays on until it expires, though by then it has no time to run: it is given some.
    """
    end = soon(12)
    task = row("task", interval=every(1), expires=end)
    far = cron(minute=str((soon(0) - timedelta(minutes=5)).minute))
    once = row("once", crontab=far, one_off=True, expires=soon(600))
    with beats(site) as cluster:
        wait_for(lambda: site.names() and verdict(cluster, once) == "armed", 40, "messages", 0.05)
        for each in (task, once):
            fresh(each).expires = soon(3600)
            each.save()
        time.sleep(max((end - soon(0)).total_seconds(), 0) + 1.5)
        count = len(site.names())
        wait_for(lambda: len(site.names()) >= count + 2, 10, "more messages", 0.05)
        assert fresh(once).enabled
        past = soon(-60)
        fresh(task).expires = past
        task.save()
        wait_for(lambda: not fresh(task).enabled, 10, "it to be disabled", 0.05)
        fresh(once).crontab, once.interval = None, every(1)
        once.save()
        wait_for(lambda: not fresh(once).enabled, 10, "it to run", 0.05)

    assert site.names().count("once") == 1
    assert_each_once(instants(site, "task"), timedelta(seconds=1))


def test_many_switches_in_a_second_leave_it_as_it_is_in_the_end(any_site):
    stays, goes = row("stays", interval=every(1)), row("goes", interval=every(1))
    with beats(any_site) as cluster:
        wait_for(lambda: {"stays", "goes"} <= set(any_site.names()), 40, "messages", 0.05)
        for number in range(9):
            for task, on in ((stays, number % 2 == 0), (goes, number % 2 == 1)):
                fresh(task).enabled = on
                task.save()
        wait_for(lambda: verdict(cluster, goes) == "absent", 10, "the last switch to be seen", 0.05)
        any_site.redis.client().delete("celery")
        wait_for(lambda: len(any_site.names()) >= 3, 10, "messages", 0.05)

    assert Counter(any_site.names()).keys() == {"stays"}
    found = instants(any_site, "stays")
    assert len(found) == len(set(found))


def test_all_that_a_row_says_of_its_message_is_in_it(site):
    """Queue or exchange and routing key, priority, headers, arguments, and in how many seconds it expires."""
    row(
        "task",
        interval=every(0.5),
        args="[1]",
        kwargs='{"a": 2}',
        exchange="other",
        routing_key="there",
        priority=3,
        headers='{"x": "y"}',
        expire_seconds=90,
    )
    with Connection(site.redis.url) as connection:
        # As a worker of the queue does.
        Queue("far", Exchange("other"), routing_key="there")(connection.default_channel).declare()
    with beats(site):
        client = site.redis.client()
        raw = wait_for(
            lambda: next((client.lrange(key, 0, -1) for key in client.keys("far*")), None), 40, "a message", 0.1
        )
    message = json.loads(raw[0])
    assert message["headers"]["x"] == "y"
    assert message["headers"]["argsrepr"] == "[1]"
    assert message["headers"]["kwargsrepr"] == "{'a': 2}"
    assert message["headers"]["expires"] is not None
    assert message["properties"]["priority"] == 3
    assert message["properties"]["delivery_info"] == {"exchange": "other", "routing_key": "there"}


def test_the_step_of_a_clock_silences_no_new_row_and_ends_none_too_soon(site):
    """Both replicas' clocks jump an hour ahead, which is not believed; nor by what concerns the rows."""
    clock = need(SteppedClock)
    row("old", interval=every(1))
    ends = row("ends in half an hour", interval=every(1), expires=soon(1800))
    with beats(site, env=clock.env) as cluster:
        cluster.wait_until_up()
        wait_for(lambda: len(site.names()) >= 4, 40, "messages", 0.05)
        time.sleep(1.5)
        clock.offset = 3600
        time.sleep(2)
        row("new", interval=every(0.5))
        wait_for(lambda: site.names().count("new") >= 3, 15, "messages of the new row", 0.05)
        kill_leader(cluster)
        count = site.names().count("new")
        wait_for(lambda: site.names().count("new") >= count + 3, 15, "more of them", 0.05)
        assert fresh(ends).enabled
        site.redis.client().delete("celery")
        wait_for(lambda: {"old", "new", ends.name} <= set(site.names()), 10, "messages of all", 0.05)
