"""Configuration of the Django app."""

from __future__ import annotations

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class HaBeatConfig(AppConfig):
    """App that adds system checks and the admin page "Beat cluster"."""

    name = "ha_beat.django"
    label = "ha_beat"
    verbose_name = _("ha_beat")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the system checks."""
        from ha_beat.django import checks

        checks.register()
