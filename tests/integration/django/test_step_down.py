"""A leader that steps down and lives on leaves no run unwritten."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.faults.cluster import REPOSITORY, BeatCluster, base_environment
from tests.integration.django.beats import beats, every, fresh, row
from tests.integration.django.conftest import Site
from tests.support.servers import wait_for

pytestmark = pytest.mark.slow


@contextmanager
def step_down(site: Site) -> Iterator[None]:
    """`celery ha-beat step-down`, which waits until another one leads."""
    command = [sys.executable, "-m", "celery", "-A", "tests.integration.django.project.app", "ha-beat", "step-down"]
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=base_environment(site.env()), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as asked:
        yield
        said, _ = asked.communicate(timeout=60)
    assert b"steps down" in said or b"leads" in said, said


def assert_row_is_up_to_date(cluster: BeatCluster, task: object, within: float) -> None:
    """It says what the ledger says."""
    entry = cluster.ledger()[str(task.pk)]
    wait_for(
        lambda: (
            (fresh(task).total_run_count, round(fresh(task).last_run_at.timestamp() * 1e6))
            == (entry["count"], entry["base"])
        ),
        within,
        "the last runs in the row",
        0.05,
    )


def test_the_last_runs_are_in_their_rows_though_nobody_leads(any_site):
    """The only other replica is frozen: what is written is written by the one that stepped down."""
    task = row("task", interval=every(0.1))
    with beats(any_site, settings={"lease_ttl": 20}) as cluster:
        cluster.wait_for_leader()
        wait_for(lambda: fresh(task).total_run_count > 5, 40, "runs in the row", 0.1)
        cluster.wait_until_up()
        frozen = cluster.standbys()[0]
        frozen.wait_for_log("action=leader_seen")
        frozen.pause()
        with step_down(any_site):
            wait_for(lambda: cluster.lease()["state"] == "released", 20, "the lease to be released", 0.02)
            assert_row_is_up_to_date(cluster, task, within=6)
            assert cluster.leader() is None
            state = (fresh(task).total_run_count, fresh(task).last_run_at)
            time.sleep(2)
            assert (fresh(task).total_run_count, fresh(task).last_run_at) == state
            frozen.resume()
            cluster.wait_for_leader()
        wait_for(lambda: fresh(task).total_run_count > state[0] + 5, 20, "more runs in the row", 0.1)
        cluster.assert_all_alive()
        for replica in [*cluster.standbys(), cluster.wait_for_leader()]:
            replica.terminate()

    instants = [headers["ha_beat"]["scheduled_at"] for headers in any_site.messages()]
    assert len(instants) == len(set(instants))
    assert fresh(task).total_run_count == len(instants)
