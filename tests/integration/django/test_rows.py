"""Life of rows with one leader: enqueued once, written back, edited, disabled, enabled, deleted."""

import time

import pytest
from django_celery_beat.models import PeriodicTask

from tests.integration.django.beats import beats, kill_leader
from tests.integration.django.rows import every, fresh, row, switch, wait_for_verdict
from tests.support.servers import wait_for


@pytest.mark.parametrize("any_site", [pytest.param("site", marks=pytest.mark.slow), "postgres_site"], indirect=True)
def test_rows_are_enqueued_and_their_runs_are_written(any_site):
    fast = row("fast", interval=every(0.5), kwargs='{"a": 1}', queue="other", headers='{"x": "y"}')
    with beats(any_site) as cluster:
        wait_for(lambda: len(any_site.messages("other")) >= 3, 40, "three messages", 0.1)
        count = wait_for(lambda: fresh(fast).total_run_count, 10, "a run in the row", 0.1)
        cluster.assert_all_alive()
    messages = any_site.messages("other")
    assert (messages[0]["periodic_task_name"], messages[0]["x"]) == ("fast", "y")
    assert messages[0]["ha_beat"]["entry"] == str(fast.pk)
    # The next leader would write the last runs.
    assert 0 < count <= len(messages)
    assert fresh(fast).last_run_at is not None
    instants = [headers["ha_beat"]["scheduled_at"] for headers in messages]
    assert len(instants) == len(set(instants))


@pytest.mark.slow
def test_edit_rename_and_deletion_take_effect(site):
    edited = row("edited", interval=every(3600))
    renamed = row("renamed", interval=every(0.3))
    deleted = row("deleted", interval=every(0.3))
    with beats(site) as cluster:
        site.wait_for("renamed", "deleted")
        edited.interval = every(0.3)
        edited.save()
        renamed.name = "new name"
        renamed.save()
        PeriodicTask.objects.get(pk=deleted.pk).delete()
        site.wait_for("edited", "new name")
        wait_for_verdict(cluster, deleted, "absent")
        site.clear()
        site.wait_for_more(5)
    assert {"edited", "new name"} == set(site.names())


@pytest.mark.slow
def test_row_that_was_disabled_owes_nothing_when_enabled(site):
    """This holds for another leader, too. Stock's toggle action keeps last_run_at."""
    task = row("task", interval=every(2))
    with beats(site) as cluster:
        site.wait_for()
        switch(task, on=False)
        wait_for_verdict(cluster, task, "absent", 10)
        kill_leader(cluster)
        time.sleep(3)
        enabled_at = time.time()
        switch(task, on=True)
        site.wait_for_more(1, within=15)
        waited = time.time() - enabled_at
    assert waited > 1.9, "an occurrence from before it was enabled was enqueued"
