"""What django-celery-beat's rows say of their last runs."""

from __future__ import annotations

from datetime import datetime

from django_celery_beat.models import PeriodicTask

from ha_beat.django.instants import utc


def last_runs() -> dict[str, tuple[datetime, int]]:
    """By name: when the enabled tasks last ran, in UTC, and how often they did."""
    rows = PeriodicTask.objects.filter(enabled=True, last_run_at__isnull=False)
    return {
        name: (utc(at), int(count)) for name, at, count in rows.values_list("name", "last_run_at", "total_run_count")
    }
