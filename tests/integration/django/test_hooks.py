"""Methods that a subclass of the database scheduler overrides."""

import time
from pathlib import Path

import pytest
from celery import Celery

from tests.integration.django.beats import beats
from tests.integration.django.rows import at, every, row, soon
from tests.support.servers import wait_for

SCHEDULERS = "tests.integration.django.project.schedulers"


def test_overridden_methods_are_called(site, tmp_path: Path):
    """If the scheduler class overrides ``is_due``, a row still waits for its start."""
    row("loud", interval=every(1))
    row("muted", interval=every(1))
    row("late", interval=every(1), start_time=soon(3600))
    row("clocked", clocked=at(soon(2)), one_off=True)
    calls = tmp_path / "calls"
    with beats(site, replicas=1, scheduler=f"{SCHEDULERS}:Muting", env={"CALLS_FILE": str(calls)}):
        wait_for(lambda: site.names().count("loud") > 2 and "clocked" in site.names(), 40, "messages", 0.1)
        time.sleep(1.0)
    assert set(site.names()) == {"loud", "clocked"}
    assert site.names().count("clocked") == 1
    assert {"apply loud", "reserve loud", "apply clocked", "reserve clocked"} == set(calls.read_text().splitlines())


def test_method_that_is_never_called_is_refused(site):
    from tests.integration.django.project.schedulers import Reading

    with pytest.raises(SystemExit, match=r"Reading\.all_as_schedule "):
        Reading(app=Celery("site", broker=site.redis.url, set_as_current=False), lazy=True)
