"""Settings among the keys of a Celery app, and facts of the project that documents repeat."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from celery import Celery

from ha_beat.settings import Settings, ha_beat_keys

ROOT = Path(__file__).parents[3]
TEST_COMMAND = "python3 -m venv .venv && .venv/bin/pip install -q -e '.[test]' && .venv/bin/pytest"


def output_of(*arguments: str) -> str:
    """Return the output of a Python process."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=200).stdout


def app_with(namespace: str | None = None, **values: object) -> Celery:
    """Return an app with a configuration module of these values."""
    app = Celery("shop")
    app.config_from_object(type("celeryconfig", (), values)(), namespace=namespace)
    return app


def test_keys_are_found_before_celery_has_read_its_configuration():
    """Celery reads its configuration when a key is read. Listing the keys alone would find nothing."""
    app = app_with(ha_beat_lease_ttl=5, HA_BEAT_MISFIRE="all", broker_url="redis://")
    app.conf.ha_beat_batch_size = 7
    assert not app.configured
    assert ha_beat_keys(app.conf) == {"ha_beat_lease_ttl": 5, "HA_BEAT_MISFIRE": "all", "ha_beat_batch_size": 7}


@pytest.mark.parametrize("namespace", ["CELERY", "MYAPP", "celery"])
def test_keys_of_an_app_with_a_namespace_are_found(namespace):
    key = f"{namespace}_HA_BEAT_LEASE_TTL" if namespace.isupper() else f"{namespace}_ha_beat_lease_ttl"
    app = app_with(namespace, **{key: 5, "MY_HA_BEAT_FLAG": 1})
    assert ha_beat_keys(app.conf) == {key: 5}
    settings = Settings.load(ha_beat_keys(app.conf), {}, "shop")
    assert (settings.lease_ttl, settings.sources) == (5.0, {"lease_ttl": key})


def test_setting_on_the_app_wins_over_the_configuration_module():
    app = app_with("CELERY", CELERY_HA_BEAT_LEASE_TTL=5)
    assert ha_beat_keys(app.conf) == {"CELERY_HA_BEAT_LEASE_TTL": 5}
    app.conf.ha_beat_lease_ttl = 6
    assert ha_beat_keys(app.conf) == {"ha_beat_lease_ttl": 6}
    app.conf.update(ha_beat_lease_ttl=7)
    assert ha_beat_keys(app.conf) == {"ha_beat_lease_ttl": 7}


def test_other_keys_are_not_read():
    """Reading the value of a deprecated Django setting warns, and reading others can fail."""
    app = app_with("CELERY", CELERY_HA_BEAT_LEASE_TTL=5, trap=property(lambda _: pytest.fail("read")))
    assert ha_beat_keys(app.conf) == {"CELERY_HA_BEAT_LEASE_TTL": 5}


def test_plain_dict_is_accepted():
    conf = {"ha_beat_lease_ttl": 5, "CELERY_HA_BEAT_BATCH_SIZE": 7, "ha_beats": 1, "timezone": "UTC"}
    assert ha_beat_keys(conf) == {"ha_beat_lease_ttl": 5, "CELERY_HA_BEAT_BATCH_SIZE": 7}


def test_keys_of_a_django_project_are_found():
    pytest.importorskip("django")
    program = """
import django.conf, celery, json
from ha_beat.settings import ha_beat_keys
django.conf.settings.configure(CELERY_HA_BEAT_LEASE_TTL=5, CELERY_HA_BEAT_REDIS_URL="redis://h")
app = celery.Celery("shop")
app.config_from_object("django.conf:settings", namespace="CELERY")
print(json.dumps(ha_beat_keys(app.conf)))
"""
    found = output_of("-W", "error::DeprecationWarning:django", "-c", program)
    assert json.loads(found) == {"CELERY_HA_BEAT_LEASE_TTL": 5, "CELERY_HA_BEAT_REDIS_URL": "redis://h"}


# --- Documents


def test_readme_and_ci_run_the_same_test_command():
    assert TEST_COMMAND in (ROOT / "README.md").read_text()
    assert TEST_COMMAND in (ROOT / ".ci" / "run").read_text()


def test_oldest_tested_versions_are_the_oldest_allowed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["django"]]
    floors = dict(re.fullmatch(r"([\w-]+)(?:\[.*\])?>=([\d.]+).*", line).groups() for line in wanted)
    oldest = dict(re.findall(r"(\S+)==(\S+)", (ROOT / "tests" / "constraints-oldest.txt").read_text()))
    for package in ("celery", "redis", "django-celery-beat", "Django"):
        assert (oldest[package] + ".0").startswith(floors[package] + "."), package
