"""System checks: ``manage.py check`` reports settings with which the cluster can't work, and their correction."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core import checks
from django.core.checks import CheckMessage, Error, Info, Tags, Warning  # noqa: A004 -- Django's names
from django.db import DEFAULT_DB_ALIAS, connections, router
from kombu.utils.imports import symbol_by_name

from ha_beat.celery_app import check_topology, load_settings
from ha_beat.errors import ConfigurationError

SCHEDULER = "ha_beat.django.schedulers:HADatabaseScheduler"
TAG = "ha_beat"


def register() -> None:
    """Register the checks. Call this once Django's apps are ready."""
    for check in (check_apps, check_scheduler, check_time_zones, check_cluster, check_database):
        checks.register(check, TAG)
    checks.register(check_tables, Tags.database)


def check_apps(**_: Any) -> Iterator[CheckMessage]:
    """Check that django-celery-beat is installed."""
    if not apps.is_installed("django_celery_beat"):
        yield Error(
            "django_celery_beat is not in INSTALLED_APPS",
            hint='Add "django_celery_beat" before "ha_beat.django", and run migrate.',
            id="ha_beat.E001",
        )


def check_scheduler(**_: Any) -> Iterator[CheckMessage]:
    """Check that ``CELERY_BEAT_SCHEDULER`` is the full path of a class, which django-celery-beat's admin needs."""
    value = getattr(settings, "CELERY_BEAT_SCHEDULER", None)
    hint = f'Set CELERY_BEAT_SCHEDULER = "{SCHEDULER}".'
    if not value:
        yield Warning(
            "CELERY_BEAT_SCHEDULER is not set: each beat needs the option -S, and django-celery-beat's admin warns "
            "that no task will be dispatched",
            hint=hint,
            id="ha_beat.W001",
        )
    elif isinstance(value, str):
        if "." not in value or value == "ha_beat.django":
            yield Error(
                f"CELERY_BEAT_SCHEDULER is {value!r}, a short name that django-celery-beat's admin can't resolve",
                hint=hint,
                id="ha_beat.E002",
            )
        else:
            yield from _check_class(value, hint)


def _check_class(value: str, hint: str) -> Iterator[CheckMessage]:
    from ha_beat.django.schedulers import HADatabaseScheduler
    from ha_beat.scheduler import HAMixin

    try:
        scheduler = symbol_by_name(value)
    except Exception as exc:
        yield Error(f"CELERY_BEAT_SCHEDULER is {value!r}, which can't be imported: {exc}", hint=hint, id="ha_beat.E003")
        return
    if not (isinstance(scheduler, type) and issubclass(scheduler, HAMixin)):
        yield Warning(
            f"CELERY_BEAT_SCHEDULER is {value!r}, which is not highly available: two of these enqueue each task twice",
            hint=hint,
            id="ha_beat.W002",
        )
    elif not issubclass(scheduler, HADatabaseScheduler):
        yield Info(
            f"CELERY_BEAT_SCHEDULER is {value!r}: the periodic tasks in the database are not scheduled",
            hint=f"This is correct if CELERY_BEAT_SCHEDULE is the whole schedule. Otherwise: {hint}",
            id="ha_beat.I001",
        )


def check_cluster(**_: Any) -> Iterator[CheckMessage]:
    """Check ha_beat's settings, and the combination of lease and broker. Connects to no server."""
    from ha_beat.django.cluster_view import project_app

    app = project_app()
    try:
        found = load_settings(app)
    except ConfigurationError as exc:
        for line in str(exc).splitlines():
            yield Error(line, hint="See the settings page of ha_beat's documentation.", id="ha_beat.E004")
        return
    try:
        check_topology(app, found)
    except ConfigurationError as exc:
        yield Error(str(exc), hint="CELERY_HA_BEAT_REDIS_URL is the URL of the lease's Redis.", id="ha_beat.E005")
        return
    driver = str(app.connection_for_write().transport.driver_type)
    if driver != "redis":
        yield Info(
            f"The broker is {driver}, the lease is in Redis: each occurrence is claimed, published and confirmed",
            hint="CELERY_HA_BEAT_UNCERTAIN decides what happens to a message whose delivery is unknown. With the "
            "lease's Redis as the broker, an occurrence is enqueued and recorded in one step.",
            id="ha_beat.I002",
        )
    elif found.redis_url is not None and found.redis_url != app.conf.broker_url:
        yield Info(
            "CELERY_HA_BEAT_REDIS_URL differs from the broker's URL: unless both name one database of one Redis, each "
            "occurrence is claimed, published and confirmed",
            hint="Omit CELERY_HA_BEAT_REDIS_URL if the broker is Redis: an occurrence is then enqueued and recorded in "
            "one step.",
            id="ha_beat.I003",
        )


def check_time_zones(**_: Any) -> Iterator[CheckMessage]:
    """Check for time zone settings with which rows can't be saved or differ from the times that the admin shows."""
    if not settings.USE_TZ and getattr(settings, "DJANGO_CELERY_BEAT_TZ_AWARE", True):
        yield Warning(
            "USE_TZ is off and DJANGO_CELERY_BEAT_TZ_AWARE is on: SQLite and MySQL reject the aware times that "
            "django-celery-beat saves",
            hint="Set USE_TZ = True, or DJANGO_CELERY_BEAT_TZ_AWARE = False.",
            id="ha_beat.W003",
        )
    if settings.TIME_ZONE == "UTC":
        return
    if not settings.USE_TZ:
        yield Warning(
            f"USE_TZ is off and TIME_ZONE is {settings.TIME_ZONE}: times entered in the admin for clocked tasks, "
            "starts and expiries count as UTC",
            hint="Set USE_TZ = True.",
            id="ha_beat.W004",
        )
    elif getattr(settings, "CELERY_TIMEZONE", None) is None:
        yield Warning(
            f"CELERY_TIMEZONE is not set: new crontabs are in UTC, but TIME_ZONE is {settings.TIME_ZONE}",
            hint="Set CELERY_TIMEZONE = TIME_ZONE, or choose the time zone of each crontab.",
            id="ha_beat.W005",
        )


def check_database(**_: Any) -> Iterator[CheckMessage]:
    """Check that other processes can read the database."""
    database = connections[_alias()].settings_dict
    name = str(database.get("NAME") or "")
    if "sqlite" in str(database.get("ENGINE")) and (":memory:" in name or "mode=memory" in name or not name):
        yield Warning(
            "the periodic tasks are in an in-memory database, which other processes can't read",
            hint="Use a database server, or a file that all processes share.",
            id="ha_beat.W006",
        )


def check_tables(databases: Sequence[str] | None = None, **_: Any) -> Iterator[CheckMessage]:
    """Check that the tables exist. Runs only for named databases, as in ``manage.py check --database default``."""
    alias = _alias()
    if alias not in (databases or ()) or sys.argv[1:2] == ["migrate"]:
        # The command migrate creates the tables.
        return
    try:
        tables = set(connections[alias].introspection.table_names())
    except Exception as exc:
        hint = "Start the database or correct DATABASES. No beat leads before it has read the schedule once."
        yield Error(f"the database {alias!r} is unreachable: {exc}", hint=hint, id="ha_beat.E006")
        return
    if "django_celery_beat_periodictask" not in tables:
        yield Warning(
            f"the database {alias!r} lacks django-celery-beat's tables",
            hint="Run manage.py migrate" + ("." if alias == DEFAULT_DB_ALIAS else f" --database {alias}."),
            id="ha_beat.W007",
        )


def _alias() -> str:
    from django_celery_beat.models import PeriodicTask

    return str(router.db_for_write(PeriodicTask))
