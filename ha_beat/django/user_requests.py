"""Requests of the admin's users to the leader, and their permission."""

from __future__ import annotations

from typing import Any

from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.http import HttpRequest

from ha_beat.django import cluster_view
from ha_beat.reasons import RequestKind
from ha_beat.store.request_queue import Reply

#: Seconds that a request of a browser waits for the leader's reply.
REPLY_TIMEOUT = 10.0

_PERMISSION = "ha_beat.control_cluster"


def may_control(request: HttpRequest) -> bool:
    user: Any = request.user
    return bool(user.has_perm(_PERMISSION))


def ask(request: HttpRequest, kind: RequestKind, **args: Any) -> Reply:
    """Send the user's request to the leader and return the reply.

    Raises:
        HaBeatError: no leader replied in time, or Redis failed.
    """
    by = f"{request.user.get_username()} (admin)"
    return cluster_view.cluster().ask(kind, by=by, timeout=REPLY_TIMEOUT, **args)


def log_change(request: HttpRequest, model: type, object_id: str | None, name: str, message: str) -> None:
    """Add an entry to Django's list of recent actions."""
    LogEntry.objects.create(
        user_id=request.user.pk,
        content_type_id=ContentType.objects.get_for_model(model).pk,
        object_id=object_id,
        object_repr=name[:200],
        action_flag=CHANGE,
        change_message=message,
    )
