"""What becomes of django-celery-beat's rows: enqueued once, written back, switched off and on, edited, deleted."""

from __future__ import annotations

import time

import pytest
from django_celery_beat.models import PeriodicTask

from tests.integration.django.beats import at, beats, every, fresh, row, soon
from tests.support.servers import wait_for


def test_rows_are_enqueued_and_their_runs_are_written(any_site):
    """last_run_at and total_run_count follow within a moment of the dispatch."""
    fast = row("fast", interval=every(0.5), kwargs='{"a": 1}', queue="other", headers='{"x": "y"}')
    with beats(any_site) as cluster:
        wait_for(lambda: len(any_site.messages("other")) >= 3, 40, "three messages", 0.1)
        count = wait_for(lambda: fresh(fast).total_run_count, 10, "a run in the row", 0.1)
        cluster.assert_all_alive()

    first = any_site.messages("other")[0]
    assert first["periodic_task_name"] == "fast"
    assert first["x"] == "y"
    assert first["ha_beat"]["entry"] == str(fast.pk)
    assert 0 < count <= len(any_site.messages("other"))
    assert fresh(fast).last_run_at is not None
    instants = [headers["ha_beat"]["scheduled_at"] for headers in any_site.messages("other")]
    assert len(instants) == len(set(instants))
    # The last runs are written at the end, or by the next leader.


def test_one_off_and_clocked_rows_run_once_and_are_switched_off(any_site):
    one_off = row("one off", interval=every(1), one_off=True)
    clocked = row("clocked", clocked=at(soon(2)), one_off=True)
    with beats(any_site):
        for task in (one_off, clocked):
            wait_for(lambda task=task: not fresh(task).enabled, 40, f"{task} to be disabled", 0.1)
        time.sleep(2.5)

    assert sorted(any_site.names()) == ["clocked", "one off"]


def test_an_edit_a_rename_and_a_deletion_take_effect(site):
    edited = row("edited", interval=every(3600))
    renamed = row("renamed", interval=every(0.3))
    deleted = row("deleted", interval=every(0.3))
    with beats(site) as cluster:
        wait_for(lambda: {"renamed", "deleted"} <= set(site.names()), 40, "messages", 0.1)
        edited.interval = every(0.3)
        edited.save()
        renamed.name = "new name"
        renamed.save()
        PeriodicTask.objects.get(pk=deleted.pk).delete()
        wait_for(lambda: {"edited", "new name"} <= set(site.names()), 5, "the edits to take effect", 0.1)
        wait_for(lambda: cluster.ledger()[str(deleted.pk)]["verdict"] == "absent", 5, "the deletion to be recorded")
        site.redis.client().delete("celery")
        wait_for(lambda: len(site.names()) > 4, 5, "more messages", 0.1)

    assert {"edited", "new name"} == set(site.names())


@pytest.mark.slow
def test_a_row_that_was_switched_off_owes_nothing_when_it_is_on_again(site):
    """Neither by the same leader nor by another; stock django-celery-beat's toggle action keeps last_run_at."""
    task = row("task", interval=every(2))
    with beats(site) as cluster:
        wait_for(site.names, 40, "the first message", 0.05)
        PeriodicTask.objects.filter(pk=task.pk).update(enabled=False)
        from django_celery_beat.models import PeriodicTasks

        PeriodicTasks.update_changed()
        wait_for(lambda: cluster.ledger()[str(task.pk)]["verdict"] == "absent", 10, "it to be recorded as absent")
        before = len(site.names())
        leader = cluster.wait_for_leader()
        leader.kill()
        cluster.wait_for_leader(other_than=leader)
        time.sleep(3)
        back_at = time.time()
        PeriodicTask.objects.filter(pk=task.pk).update(enabled=True)
        PeriodicTasks.update_changed()
        wait_for(lambda: len(site.names()) > before, 15, "it to run again", 0.02)
        waited = time.time() - back_at

    assert waited > 1.9, "what it missed while it was off was enqueued"


def test_a_row_whose_arguments_are_not_json_hurts_nobody(site):
    """It is left out and named in the log; its row is not touched."""
    bad = row("bad", interval=every(0.3), args="[")
    row("good", interval=every(0.3))
    with beats(site) as cluster:
        wait_for(lambda: "good" in site.names(), 40, "a message", 0.1)
        cluster.wait_for_leader().wait_for_log("action=entry_failed entry=bad")

    assert "bad" not in site.names()
    assert fresh(bad).enabled
