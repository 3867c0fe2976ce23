"""django-celery-beat's tables are in a database of their own, behind a router; the default one has none of them."""

from __future__ import annotations

import os
from typing import Any

import pytest
from django_celery_beat.models import PeriodicTask

from tests.integration.django.beats import beats, every, fresh, row
from tests.integration.django.conftest import Site
from tests.integration.django.test_checks import run_check
from tests.support.servers import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
def databases(any_site: Site, tmp_path: Any) -> dict[str, Any]:
    """Django's settings. This process knows the one of the periodic tasks as its default: it needs no router."""
    empty = {"ENGINE": "django.db.backends.sqlite3", "NAME": os.fspath(tmp_path / "default.sqlite3")}
    return {
        "DATABASES": {"default": empty, "beat": any_site.database},
        "DATABASE_ROUTERS": ["tests.integration.django.project.routers.BeatElsewhere"],
    }


def test_rows_are_read_and_written_where_they_are(any_site, databases):
    task, once = row("task", interval=every(0.5)), row("once", interval=every(1), one_off=True)
    with beats(any_site, django=databases, spec={"static": {"every": 0.5}}) as cluster:
        wait_for(lambda: {"task", "once", "static"} <= set(any_site.names()), 40, "messages of all", 0.1)
        wait_for(lambda: fresh(task).total_run_count and not fresh(once).enabled, 10, "the rows to say so", 0.1)
        task.delete()
        wait_for(lambda: cluster.ledger()[str(once.pk)]["verdict"] == "absent", 10, "it to be seen", 0.1)
        cluster.assert_all_alive()

    assert any_site.names().count("once") == 1
    assert [task.name for task in PeriodicTask.objects.filter(enabled=True)] == ["static"]


def test_the_checks_look_there(any_site, databases, tmp_path):
    both = ("--database", "default", "--database", "beat")
    assert "no issues" in run_check(any_site, *both, **databases)
    assert "No changes detected" in run_check(any_site, "--check", command="makemigrations", **databases)
    databases["DATABASES"]["beat"] = {**databases["DATABASES"]["default"], "NAME": os.fspath(tmp_path / "beat.sqlite3")}
    found = run_check(any_site, *both, **databases)
    assert "the database 'beat' lacks" in found
    assert "migrate --database beat" in found
