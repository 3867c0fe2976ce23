"""The Django app."""

from __future__ import annotations

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class HaBeatConfig(AppConfig):
    """Adds the page 'Beat cluster' to the admin, and system checks."""

    name = "ha_beat.django"
    label = "ha_beat"
    verbose_name = _("ha_beat")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the system checks."""
        from ha_beat.django import checks

        checks.register()
