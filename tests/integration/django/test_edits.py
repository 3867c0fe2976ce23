"""Rows that are edited, disabled, enabled and reused while leaders change."""

import json
import time
from datetime import datetime, timedelta

import pytest
from django.db import transaction
from django_celery_beat.models import PeriodicTask, PeriodicTasks
from kombu import Connection, Exchange, Queue

from tests.faults.clock import SteppedClock
from tests.faults.cluster import BeatCluster
from tests.integration.django.beats import HA, STOCK, beats, kill_leader
from tests.integration.django.rows import (
    at,
    cron,
    every,
    fresh,
    row,
    sleep_until,
    soon,
    switch,
    verdict,
    wait_for_verdict,
    wait_until_disabled,
)
from tests.support.servers import need, wait_for

pytestmark = pytest.mark.slow


def off_and_on(cluster: BeatCluster, task: PeriodicTask) -> None:
    """Disable and enable the row so that all replicas see both."""
    for on, expected in ((False, "absent"), (True, "armed")):
        switch(task, on=on)
        wait_for_verdict(cluster, task, expected, 10)
        time.sleep(1.5)


def save(task: PeriodicTask, **fields: object) -> None:
    fresh(task)
    for name, value in fields.items():
        setattr(task, name, value)
    task.save()


def test_row_disabled_earlier_keeps_its_grid_after_a_takeover(site):
    """The old leader had handled both edits, and the standby has seen them."""
    task = row("task", interval=every(2))
    with beats(site) as cluster:
        cluster.wait_until_up()
        site.wait_for()
        off_and_on(cluster, task)
        site.clear()
        site.wait_for_more(2)
        time.sleep(1.2)
        kill_leader(cluster)
        site.wait_for_more(2)
    site.assert_each_once("task", 2)


def test_one_off_row_disabled_earlier_does_not_run_again_after_a_takeover(site):
    """The leader dies after it recorded the run and before it disabled the row."""
    with beats(site) as cluster:
        cluster.wait_until_up()
        task = row("task", interval=every(6), one_off=True)
        wait_for_verdict(cluster, task, "armed")
        off_and_on(cluster, task)
        site.wait_for_count(1)
        kill_leader(cluster)
        wait_until_disabled(task, 15)
        time.sleep(7)
    assert site.names() == ["task"]


def test_one_off_row_that_is_enabled_again_runs_again(any_site):
    task = row("task", interval=every(1), one_off=True)
    with beats(any_site) as cluster:
        for runs in (1, 2):
            any_site.wait_for_count(runs)
            wait_for_verdict(cluster, task, "absent", 10)
            assert not fresh(task).enabled
            if runs == 1:
                save(task, enabled=True)
        time.sleep(2)
    assert any_site.names() == ["task", "task"]


def test_row_disabled_while_no_beat_runs_owes_nothing_for_that_time(site):
    """The only trace of the admin's actions in the row is the cleared last run."""
    task = row("task", interval=every(6))
    with beats(site, replicas=1) as cluster:
        wait_for(lambda: fresh(task).last_run_at, 40, "its run in the row", 0.05)
        ran_at = site.instants("task")[-1]
        assert cluster.ledger()[str(task.pk)]["count"] == fresh(task).total_run_count
    PeriodicTask.objects.update(enabled=False, last_run_at=None)
    PeriodicTask.objects.update(enabled=True)
    PeriodicTasks.update_changed()
    sleep_until(ran_at + timedelta(seconds=10))
    with beats(site, replicas=1, settings={"lease_ttl": 2}):
        wait_for(lambda: len(site.names()) > 1, 40, "the next message", 0.05)
    found = site.instants("task")
    assert ran_at + timedelta(seconds=6) not in found
    assert (found[1] - ran_at) % timedelta(seconds=6) == timedelta(0)


def test_clocked_row_runs_again_at_another_time(site):
    """The new time may be past when the form is saved, such as the admin's "now". Stock runs such a row, too."""
    task = row("task", clocked=at(soon(3)), one_off=True)
    with beats(site) as cluster:
        for runs, seconds in ((1, 0), (2, 3), (3, -3)):
            if runs > 1:
                time.sleep(4)
                save(task, clocked=at(soon(seconds)), enabled=True)
            site.wait_for_count(runs)
            wait_for_verdict(cluster, task, "absent", 10)
        time.sleep(2)
    assert site.names() == ["task"] * 3


EDITED = ("earlier", "past", "interval")


def clocked_rows() -> list[PeriodicTask]:
    return [row(name, clocked=at(soon(600)), one_off=True) for name in EDITED]


def edit_clocked_rows(earlier: PeriodicTask, past: PeriodicTask, interval: PeriodicTask) -> None:
    """Move the rows to an earlier time and to the past, and make one an interval."""
    save(earlier, clocked=at(soon(6)))
    save(past, clocked=at(soon(-300)))
    save(interval, clocked=None, interval=every(2))


def test_clocked_row_edited_before_it_has_run_runs_as_edited(site):
    tasks, recurring = clocked_rows(), row("recurring", interval=every(1))
    with beats(site) as cluster:
        site.wait_for("recurring")
        wait_for_verdict(cluster, tasks[-1], "armed")
        edit_clocked_rows(*tasks)
        save(recurring, clocked=at(soon(-300)), interval=None, one_off=True)
        time.sleep(2)
        kill_leader(cluster)
        for task in (*tasks, recurring):
            wait_until_disabled(task, 15)
        time.sleep(1)
        assert "entry_failed" not in cluster.logs(200)
    assert [site.names().count(name) for name in EDITED] == [1, 1, 1]
    assert site.instants("earlier") == [tasks[0].clocked.clocked_time]
    site.assert_none_twice("recurring")


def test_edited_clocked_rows_send_what_they_send_with_stock(site):
    def sent(scheduler: str) -> list[int]:
        PeriodicTask.objects.all().delete()
        site.redis.admin.flushall()
        tasks = clocked_rows()
        row("recurring", interval=every(1))
        with beats(site, replicas=1, scheduler=scheduler):
            site.wait_for("recurring")
            edit_clocked_rows(*tasks)
            wait_for(lambda: set(EDITED) <= set(site.names()), 40, "a message of each row")
            time.sleep(3)
        return [site.names().count(name) for name in EDITED]

    assert sent(HA) == sent(STOCK) == [1, 1, 1]


def test_one_off_row_that_its_own_task_sets_again_runs_again(site):
    """The task runs before the leader has disabled the row for its last run."""
    task = row("task", clocked=at(soon(2)), one_off=True)
    with beats(site, replicas=1):
        for runs in range(1, 5):
            site.wait_for_count(runs)
            if runs < 4:
                PeriodicTask.objects.filter(pk=task.pk).update(clocked=at(soon(1.5)), enabled=True)
                PeriodicTasks.update_changed()
        wait_until_disabled(task, 10)
        time.sleep(1)
    assert site.names() == ["task"] * 4


def test_instants_due_without_a_leader_have_a_verdict_in_ended_rows(site):
    tasks = {name: row(name, interval=every(1)) for name in ("expired", "disabled", "deleted")}
    tasks["clocked"] = row("clocked", clocked=at(soon(600)), one_off=True)
    with beats(site, replicas=1) as cluster:
        site.wait_for("expired", "disabled", "deleted")
        end = soon(12)
        save(tasks["expired"], expires=end)
        save(tasks["clocked"], expires=end, clocked=at(soon(10)))
        time.sleep(2)
    sent = {name: site.instants(name) for name in tasks}
    switch(tasks["disabled"], on=False)
    ids = {str(task.pk): name for name, task in tasks.items()}
    tasks["deleted"].delete()
    sleep_until(end)
    with beats(site, replicas=1) as cluster:
        for name in ("expired", "clocked"):
            wait_until_disabled(tasks[name], 20)
        wait_for(lambda: {line["verdict"] for line in cluster.ledger().values()} == {"absent"}, 10, "absence", 0.05)
        records = [record for record in cluster.journal() if record.get("verdict") == "skipped"]
    assert {name: site.instants(name) for name in tasks} == sent
    found = {ids[record["entry"]]: (record["why"], datetime.fromisoformat(record["from"])) for record in records}
    assert {name: why for name, (why, _) in found.items()} == {
        **dict.fromkeys(("expired", "clocked"), "expired"),
        **dict.fromkeys(("disabled", "deleted"), "removed"),
    }
    for name in ("expired", "disabled", "deleted"):
        assert found[name][1] == sent[name][-1] + timedelta(seconds=1)


def test_clocked_row_disabled_at_its_time_does_not_run_later(site):
    row("other", interval=every(0.5))
    with beats(site) as cluster:
        site.wait_for("other")
        task = row("task", clocked=at(soon(8)), one_off=True)
        wait_for_verdict(cluster, task, "armed", 6)
        switch(task, on=False)
        wait_for_verdict(cluster, task, "absent", 10)
        time.sleep(8)
        switch(task, on=True)
        wait_until_disabled(task, 10)
        time.sleep(1)
    assert "task" not in site.names()


def test_row_recreated_with_the_same_name_is_another_entry(site):
    """A deployment script may do both in one transaction. Occurrences of the old row are not owed."""
    old = row("task", interval=every(0.5))
    with beats(site) as cluster:
        site.wait_for()
        with transaction.atomic():
            old_pk = old.pk
            old.delete()
            new = row("task", interval=every(1))
        wait_for(lambda: verdict(cluster, new), 10, "it to be known", 0.05)
        site.clear()
        site.wait_for_more(3, within=10)
        kill_leader(cluster)
        site.wait_for_more(2, within=10)
        assert cluster.ledger()[str(old_pk)]["verdict"] == "absent"
    assert {headers["ha_beat"]["entry"] for headers in site.messages()} == {str(new.pk)}
    site.assert_each_once("task", 1)


def test_rolled_back_transaction_changes_nothing(site):
    task = row("task", interval=every(0.5))
    with beats(site):
        site.wait_for()
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            save(task, enabled=False)
            row("other", interval=every(0.5))
            raise ZeroDivisionError
        site.wait_for_more(6, within=10)
    assert set(site.names()) == {"task"}
    site.assert_each_once("task", 0.5)


def test_edit_of_a_shared_schedule_affects_its_rows_and_owes_no_past(site):
    """The crontab moves to a time zone in which its hour has passed today."""
    now = soon(0)
    past = now - timedelta(minutes=2)
    crontab = cron(minute=str(past.minute), hour=str(past.hour))
    tasks = [row(f"task {number}", crontab=crontab) for number in range(2)]
    interval = every(3600)
    hourly = row("hourly", interval=interval)
    with beats(site) as cluster:
        wait_for_verdict(cluster, tasks[1], "armed")
        crontab.minute, crontab.hour, crontab.timezone = "*", "*", "Asia/Kolkata"
        crontab.save()
        interval.every, interval.period = 500_000, "microseconds"
        interval.save()
        wait_for(lambda: site.names().count("hourly") >= 3, 10, "the interval to change", 0.05)
        assert "task 0" not in site.names() or now.minute != soon(0).minute
        site.wait_for("task 0", "task 1", within=65)
    site.assert_each_once("hourly", 0.5)
    assert fresh(hourly).enabled
    assert all(instant.second == 0 for instant in site.instants("task 0"))


def test_start_in_the_future_can_be_moved(site):
    task = row("task", interval=every(1), start_time=soon(3600))
    with beats(site) as cluster:
        wait_for_verdict(cluster, task, "armed")
        save(task, start_time=soon(3))
        site.wait_for_more(2, within=15)
        kill_leader(cluster)
        site.wait_for_more(2, within=15)
    assert site.instants("task")[0] == task.start_time
    site.assert_each_once("task", 1)


def test_expiry_can_be_moved_without_loss_or_repetition(site):
    """To a later time before it is reached, and to the past.

    A one-off row can be edited until it expires. Even without an earlier instant it stays enabled until then.
    """
    end = soon(12)
    task = row("task", interval=every(1), expires=end)
    far = cron(minute=str((soon(0) - timedelta(minutes=5)).minute))
    once = row("once", crontab=far, one_off=True, expires=soon(600))
    with beats(site) as cluster:
        wait_for(lambda: site.names() and verdict(cluster, once) == "armed", 40, "messages", 0.05)
        for each in (task, once):
            save(each, expires=soon(3600))
        sleep_until(end)
        time.sleep(1.5)
        site.wait_for_more(2, within=10)
        assert fresh(once).enabled
        save(task, expires=soon(-60))
        wait_until_disabled(task, 10)
        save(once, crontab=None, interval=every(1))
        wait_until_disabled(once, 10)
    assert site.names().count("once") == 1
    site.assert_each_once("task", 1)


def test_many_switches_in_a_second_end_in_the_last_state(any_site):
    stays, goes = row("stays", interval=every(1)), row("goes", interval=every(1))
    with beats(any_site) as cluster:
        any_site.wait_for("stays", "goes")
        for number in range(9):
            save(stays, enabled=number % 2 == 0)
            save(goes, enabled=number % 2 == 1)
        wait_for_verdict(cluster, goes, "absent", 10)
        any_site.clear()
        any_site.wait_for_more(3, within=10)
    assert set(any_site.names()) == {"stays"}
    any_site.assert_none_twice("stays")


def test_message_has_all_options_of_its_row(site):
    fields = {"args": "[1]", "kwargs": '{"a": 2}', "exchange": "other", "routing_key": "there", "priority": 3}
    row("task", interval=every(0.5), headers='{"x": "y"}', expire_seconds=90, **fields)
    with Connection(site.redis.url) as connection:
        # As a worker of this queue declares it.
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


def test_clock_step_neither_silences_a_new_row_nor_expires_a_row(site):
    """The clocks of both replicas step an hour ahead. The scheduling time does not."""
    clock = need(SteppedClock)
    row("old", interval=every(1))
    ends = row("ends in half an hour", interval=every(1), expires=soon(1800))
    with beats(site, env=clock.env) as cluster:
        cluster.wait_until_up()
        site.wait_for_more(4, within=40)
        time.sleep(1.5)
        clock.offset = 3600
        time.sleep(2)
        row("new", interval=every(0.5))
        site.wait_for_more(3, "new", within=15)
        kill_leader(cluster)
        site.wait_for_more(3, "new", within=15)
        assert fresh(ends).enabled
        site.clear()
        site.wait_for("old", "new", ends.name, within=10)
