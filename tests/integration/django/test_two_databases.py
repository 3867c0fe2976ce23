"""A router places django-celery-beat's tables in another database than the default one."""

import os
from typing import Any

import pytest
from django_celery_beat.models import PeriodicTask

from tests.integration.django.beats import beats
from tests.integration.django.conftest import Site
from tests.integration.django.rows import every, fresh, row, wait_for_verdict
from tests.integration.django.test_checks import run_check
from tests.support.servers import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
def databases(any_site: Site, tmp_path: Any) -> dict[str, Any]:
    """Django settings for the beats. In this process, the database of the periodic tasks is the default one."""
    empty = {"ENGINE": "django.db.backends.sqlite3", "NAME": os.fspath(tmp_path / "default.sqlite3")}
    return {
        "DATABASES": {"default": empty, "beat": any_site.database},
        "DATABASE_ROUTERS": ["tests.integration.django.project.routers.BeatElsewhere"],
    }


def test_rows_are_read_and_written_in_the_other_database(any_site, databases):
    task, once = row("task", interval=every(0.5)), row("once", interval=every(1), one_off=True)
    with beats(any_site, django=databases, spec={"static": {"every": 0.5}}) as cluster:
        any_site.wait_for("task", "once", "static")
        wait_for(lambda: fresh(task).total_run_count and not fresh(once).enabled, 10, "the rows to be written", 0.1)
        task.delete()
        wait_for_verdict(cluster, once, "absent", 10)
        cluster.assert_all_alive()
    assert any_site.names().count("once") == 1
    assert [task.name for task in PeriodicTask.objects.filter(enabled=True)] == ["static"]


def test_checks_inspect_the_other_database(any_site, databases, tmp_path):
    both = ("--database", "default", "--database", "beat")
    assert "no issues" in run_check(any_site, *both, **databases)
    assert "No changes detected" in run_check(any_site, "--check", command="makemigrations", **databases)
    databases["DATABASES"]["beat"] = {**databases["DATABASES"]["default"], "NAME": os.fspath(tmp_path / "beat.sqlite3")}
    found = run_check(any_site, *both, **databases)
    assert "ha_beat.W007" in found
    assert "migrate --database beat" in found
