"""Model without a table, which gives the admin an item for the cluster and the permissions for it."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _


class Cluster(models.Model):
    """Beat cluster, whose state is in Redis."""

    class Meta:  # noqa: D106
        managed = False
        default_permissions = ("view",)
        permissions = (("control_cluster", _("Can step down, pause and resume the beat cluster, and run tasks now")),)
        verbose_name = _("beat cluster")
        verbose_name_plural = _("beat cluster")
