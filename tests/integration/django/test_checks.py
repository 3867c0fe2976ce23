"""`manage.py check` reports settings with which the cluster can't work."""

import os
import subprocess
import sys
from typing import Any

import pytest
from celery import Celery
from django.test import override_settings

from ha_beat.django import checks
from tests.faults.cluster import base_environment
from tests.integration.django.conftest import SETTINGS, Site, use
from tests.support.commands import ROOT


def run_check(site: Site, *arguments: str, command: str = "check", **settings: Any) -> str:
    """Return the output of `manage.py check` on a project with these settings."""
    line = ["manage.py", command, *arguments]
    code = f"import sys; sys.argv = {line!r}; from django.core.management import execute_from_command_line as e; e()"
    env = base_environment(site.env(**settings))
    process = [sys.executable, "-c", code]
    done = subprocess.run(process, cwd=ROOT, env=env, capture_output=True, text=True, timeout=200, check=False)
    return done.stdout + done.stderr


def test_check_command_accepts_a_correct_project_and_reports_a_mistake(site):
    assert "no issues" in run_check(site, "--database", "default")
    output = run_check(site, CELERY_HA_BEAT_LEASE_TLT=5)
    assert "ha_beat.E004" in output
    assert "HINT" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("found", "settings"),
    [
        ("W001", {"CELERY_BEAT_SCHEDULER": None}),
        ("E002", {"CELERY_BEAT_SCHEDULER": "ha_beat.django"}),
        ("E002", {"CELERY_BEAT_SCHEDULER": "ha_beat"}),
        ("E003", {"CELERY_BEAT_SCHEDULER": "nowhere.to:BeFound"}),
        ("W002", {"CELERY_BEAT_SCHEDULER": "django_celery_beat.schedulers:DatabaseScheduler"}),
        ("I001", {"CELERY_BEAT_SCHEDULER": "ha_beat.scheduler:HAScheduler"}),
        ("W003", {"USE_TZ": False}),
        ("W004", {"USE_TZ": False, "TIME_ZONE": "Europe/Berlin", "DJANGO_CELERY_BEAT_TZ_AWARE": False}),
        ("W005", {"CELERY_TIMEZONE": None, "TIME_ZONE": "Europe/Berlin"}),
        ("W006", {}),
    ],
)
def test_check_reports_each_mistake_with_a_hint(found, settings):
    """The tests' database is in memory, which is always reported."""
    use({"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"})
    with override_settings(**settings):
        parts = (checks.check_apps, checks.check_scheduler, checks.check_time_zones, checks.check_database)
        messages = [message for check in parts for message in check()]
    named = {message.id: message for message in messages}
    assert set(named) == {f"ha_beat.{found}", "ha_beat.W006"}
    assert named[f"ha_beat.{found}"].hint


@pytest.mark.parametrize(
    ("found", "settings"),
    [
        ("E004", {"ha_beat_lease_tlt": 5}),
        ("E005", {"broker_url": "memory://"}),
        ("I002", {"broker_url": "memory://", "ha_beat_redis_url": "redis://127.0.0.1:1/0"}),
        ("I003", {"ha_beat_redis_url": "redis://127.0.0.1:1/0"}),
    ],
)
def test_check_reports_each_mistake_of_the_cluster(monkeypatch, found, settings):
    app = Celery("site", broker="redis://127.0.0.1:2/0", set_as_current=False)
    app.conf.update(settings)
    monkeypatch.setattr("ha_beat.django.cluster_view.project_app", lambda: app)
    (message,) = checks.check_cluster()
    assert message.id == f"ha_beat.{found}"
    assert message.hint


@pytest.mark.slow
def test_check_reports_missing_tables_and_an_unreachable_database(site, tmp_path):
    """The command `migrate` does not report them: it creates the tables."""
    for file, found in (("empty.sqlite3", "ha_beat.W007"), ("nowhere/x.sqlite3", "ha_beat.E006")):
        databases = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.fspath(tmp_path / file)}}
        output = run_check(site, "--database", "default", DATABASES=databases)
        assert found in output
        assert "HINT" in output
        if found == "ha_beat.W007":
            assert found not in run_check(site, command="migrate", DATABASES=databases)


def test_check_reports_a_missing_app(monkeypatch):
    monkeypatch.setattr(checks.apps, "is_installed", lambda _: False)
    (found,) = checks.check_apps()
    assert found.id == "ha_beat.E001"
    assert found.hint


def test_environment_of_the_tests_names_no_settings_module():
    """Processes of other tests would inherit it."""
    assert os.environ.get("DJANGO_SETTINGS_MODULE") != SETTINGS
