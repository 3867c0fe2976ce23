"""Registration in Django's admin: the page "Beat cluster", and the cluster's columns for periodic tasks.

This module replaces django-celery-beat's admin class for ``PeriodicTask``. A project's own admin class is kept: it can
have :class:`ClusterColumns` as its first base.
"""

from __future__ import annotations

from django.contrib import admin
from django_celery_beat.admin import PeriodicTaskAdmin
from django_celery_beat.models import PeriodicTask

from ha_beat.django import cluster_page  # noqa: F401 -- registers the page
from ha_beat.django.task_columns import ClusterColumns

__all__ = ["ClusterColumns"]


class ClusterPeriodicTaskAdmin(ClusterColumns, PeriodicTaskAdmin):  # type: ignore[misc]
    """django-celery-beat's admin class for periodic tasks, with the cluster's columns."""

    actions = (*PeriodicTaskAdmin.actions, *ClusterColumns.actions)


def register(site: admin.AdminSite) -> None:
    """Replace django-celery-beat's admin class for periodic tasks, unless the site has another one."""
    if type(site._registry.get(PeriodicTask)) is PeriodicTaskAdmin:  # noqa: SLF001 -- public only in newer Django
        site.unregister(PeriodicTask)
        site.register(PeriodicTask, ClusterPeriodicTaskAdmin)


register(admin.site)
