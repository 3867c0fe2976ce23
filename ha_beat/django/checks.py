"""System checks: ``manage.py check`` finds what would keep the cluster from working, and says what to do."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
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
    """Register them; called once Django's apps are ready."""
    for check in (check_apps, check_scheduler, check_time_zones):
        checks.register(check, TAG)
    checks.register(check_cluster, TAG)
    checks.register(check_database, TAG)
    checks.register(check_tables, Tags.database)


def check_apps(**_: Any) -> list[CheckMessage]:
    """The order of the apps, and that both are there."""
    if apps.is_installed("django_celery_beat"):
        return []
    return [
        Error(
            "django_celery_beat is not in INSTALLED_APPS",
            hint='Add "django_celery_beat" before "ha_beat.django", and run migrate.',
            id="ha_beat.E001",
        )
    ]


def check_scheduler(**_: Any) -> list[CheckMessage]:
    """``CELERY_BEAT_SCHEDULER``: set, and as a full path, since django-celery-beat's admin resolves it itself."""
    value = getattr(settings, "CELERY_BEAT_SCHEDULER", None)
    hint = f'Set CELERY_BEAT_SCHEDULER = "{SCHEDULER}".'
    if not value:
        return [
            Warning(
                "CELERY_BEAT_SCHEDULER is not set, so that each beat has to be told with -S, and django-celery-beat's "
                "admin warns that nothing will be dispatched",
                hint=hint,
                id="ha_beat.W001",
            )
        ]
    if not isinstance(value, str):
        return []
    if "." not in value or (":" not in value and value in {"ha_beat", "ha_beat.django"}):
        return [
            Error(
                f"CELERY_BEAT_SCHEDULER is {value!r}, a short name that Celery knows, but django-celery-beat's admin "
                f"does not",
                hint=hint,
                id="ha_beat.E002",
            )
        ]
    return list(_resolved(value, hint))


def _resolved(value: str, hint: str) -> Iterator[CheckMessage]:
    from ha_beat.django.schedulers import HADatabaseScheduler
    from ha_beat.scheduler import HAMixin

    try:
        scheduler = symbol_by_name(value)
    except Exception as exc:
        yield Error(f"CELERY_BEAT_SCHEDULER is {value!r}, which can't be imported: {exc}", hint=hint, id="ha_beat.E003")
        return
    if not (isinstance(scheduler, type) and issubclass(scheduler, HAMixin)):
        yield Warning(
            f"CELERY_BEAT_SCHEDULER is {value!r}, which is not highly available: two of these enqueue all twice",
            hint=hint,
            id="ha_beat.W002",
        )
    elif not issubclass(scheduler, HADatabaseScheduler):
        yield Info(
            f"CELERY_BEAT_SCHEDULER is {value!r}: the periodic tasks in the database are not scheduled",
            hint=f"That is right where the schedule is CELERY_BEAT_SCHEDULE alone. Else: {hint}",
            id="ha_beat.I001",
        )


def check_cluster(**_: Any) -> list[CheckMessage]:
    """The settings, and where lease and messages go. Asks no server."""
    from ha_beat.django.cluster_view import celery_app

    app = celery_app()
    try:
        found = load_settings(app)
    except ConfigurationError as exc:
        return [
            Error(line, hint="See the table of settings in ha_beat's README.", id="ha_beat.E004")
            for line in str(exc).splitlines()
        ]
    try:
        check_topology(app, found)
    except ConfigurationError as exc:
        return [Error(str(exc), hint="CELERY_HA_BEAT_REDIS_URL names the Redis for the lease.", id="ha_beat.E005")]
    driver = str(app.connection_for_write().transport.driver_type)
    if driver != "redis":
        return [
            Info(
                f"The broker is {driver}, the lease is in Redis: each occurrence is claimed, published and confirmed",
                hint="A message whose fate is unknown is then settled by CELERY_HA_BEAT_UNCERTAIN. With the lease's "
                "Redis as the broker, to enqueue and to record are one act.",
                id="ha_beat.I002",
            )
        ]
    if found.redis_url is not None and found.redis_url != app.conf.broker_url:
        return [
            Info(
                "CELERY_HA_BEAT_REDIS_URL is not the broker's URL: unless both are one Redis and one database, each "
                "occurrence is claimed, published and confirmed",
                hint="Leave CELERY_HA_BEAT_REDIS_URL out where the broker is Redis: to enqueue and to record are then "
                "one act.",
                id="ha_beat.I003",
            )
        ]
    return []


def check_time_zones(**_: Any) -> list[CheckMessage]:
    """Combinations in which rows can't be saved, or mean another hour than the admin shows."""
    found: list[CheckMessage] = []
    aware = getattr(settings, "DJANGO_CELERY_BEAT_TZ_AWARE", True)
    if not settings.USE_TZ and aware:
        found.append(
            Warning(
                "USE_TZ is off and DJANGO_CELERY_BEAT_TZ_AWARE is not: SQLite and MySQL refuse the instants that "
                "django-celery-beat wants to save",
                hint="Set USE_TZ = True, or DJANGO_CELERY_BEAT_TZ_AWARE = False.",
                id="ha_beat.W003",
            )
        )
    if not settings.USE_TZ and settings.TIME_ZONE != "UTC":
        found.append(
            Warning(
                f"USE_TZ is off and TIME_ZONE is {settings.TIME_ZONE}: what is entered in the admin as the time of a "
                f"clocked task, a start or an expiry is taken for UTC",
                hint="Set USE_TZ = True.",
                id="ha_beat.W004",
            )
        )
    if getattr(settings, "CELERY_TIMEZONE", None) is None and settings.USE_TZ and settings.TIME_ZONE != "UTC":
        found.append(
            Warning(
                f"CELERY_TIMEZONE is not set: new crontabs are in UTC, though TIME_ZONE is {settings.TIME_ZONE}",
                hint="Set CELERY_TIMEZONE = TIME_ZONE, or choose the time zone of each crontab.",
                id="ha_beat.W005",
            )
        )
    return found


def check_database(**_: Any) -> list[CheckMessage]:
    """A database that other processes can't see."""
    database = connections[_alias()].settings_dict
    name = str(database.get("NAME") or "")
    if "sqlite" in str(database.get("ENGINE")) and (":memory:" in name or "mode=memory" in name or not name):
        return [
            Warning(
                "the periodic tasks are in a database in this process' memory, which no beat can see",
                hint="Give DATABASES a server, or a file that all processes share.",
                id="ha_beat.W006",
            )
        ]
    return []


def check_tables(databases: Sequence[str] | None = None, **_: Any) -> Iterable[CheckMessage]:
    """The tables; with ``manage.py check --database default``, and before ``migrate``."""
    alias = _alias()
    if alias not in (databases or ()) or sys.argv[1:2] == ["migrate"]:
        # Whoever is about to make the tables need not be told.
        return []
    try:
        tables = set(connections[alias].introspection.table_names())
    except Exception as exc:
        hint = "Start it, or correct DATABASES: no beat leads before it has read the schedule once."
        return [Error(f"the database {alias!r} can't be asked: {exc}", hint=hint, id="ha_beat.E006")]
    if "django_celery_beat_periodictask" in tables:
        return []
    return [
        Warning(
            f"the database {alias!r} lacks django-celery-beat's tables",
            hint="Run manage.py migrate" + ("." if alias == DEFAULT_DB_ALIAS else f" --database {alias}."),
            id="ha_beat.W007",
        )
    ]


def _alias() -> str:
    from django_celery_beat.models import PeriodicTask

    return str(router.db_for_write(PeriodicTask))
