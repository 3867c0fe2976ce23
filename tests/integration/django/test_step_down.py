"""A leader that steps down and keeps running writes all its runs."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.faults.cluster import base_environment
from tests.integration.django.beats import beats
from tests.integration.django.conftest import Site
from tests.integration.django.rows import every, fresh, row
from tests.support.commands import ROOT
from tests.support.servers import wait_for

pytestmark = pytest.mark.slow


@contextmanager
def step_down(site: Site) -> Iterator[None]:
    """Run `celery ha-beat step-down`, which waits for the next leader."""
    command = [sys.executable, "-m", "celery", "-A", "tests.integration.django.project.app", "ha-beat", "step-down"]
    environment = base_environment(site.env())
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=-1, stderr=-2, text=True) as process:
        yield
        output, _ = process.communicate(timeout=60)
    assert process.returncode in {0, 1}, output  # 1: no next leader within its timeout


def test_last_runs_are_written_without_a_next_leader(any_site):
    """The only standby is frozen, so the old leader has to write its last runs."""
    task = row("task", interval=every(0.1))
    with beats(any_site, settings={"lease_ttl": 20}) as cluster:
        cluster.wait_for_leader()
        wait_for(lambda: fresh(task).total_run_count > 5, 40, "runs in the row", 0.1)
        cluster.wait_until_up()
        frozen = cluster.standbys()[0]
        frozen.wait_for_log("action=leader_seen")
        frozen.pause()

        def state() -> tuple[int, int]:
            return fresh(task).total_run_count, round(task.last_run_at.timestamp() * 1e6)

        with step_down(any_site):
            wait_for(lambda: cluster.lease()["state"] == "released", 20, "the lease to be released", 0.02)
            entry = cluster.ledger()[str(task.pk)]
            wait_for(lambda: state() == (entry["count"], entry["base"]), 6, "the last runs in the row", 0.05)
            assert cluster.leader() is None
            before = state()
            time.sleep(2)
            assert state() == before
            frozen.resume()
            cluster.wait_for_leader()
        wait_for(lambda: fresh(task).total_run_count > before[0] + 5, 20, "more runs in the row", 0.1)
        cluster.assert_all_alive()
        for replica in [*cluster.standbys(), cluster.wait_for_leader()]:
            replica.terminate()
    any_site.assert_none_twice("task")
    assert fresh(task).total_run_count == len(any_site.messages())
