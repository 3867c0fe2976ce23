"""Admin page "Beat cluster"."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_GET, require_POST
from django_celery_beat.models import PeriodicTask

from ha_beat.django import cluster_view
from ha_beat.django.models import Cluster
from ha_beat.django.user_requests import ask, log_change, may_control
from ha_beat.errors import HaBeatError
from ha_beat.monitoring.request_wording import reply_text
from ha_beat.reasons import RequestKind, parse_code

_ACTIONS = {
    RequestKind.STEP_DOWN: gettext_lazy("Stepped the leader down"),
    RequestKind.PAUSE: gettext_lazy("Paused the cluster"),
    RequestKind.RESUME: gettext_lazy("Resumed the cluster"),
}


@admin.register(Cluster)
class ClusterAdmin(admin.ModelAdmin):  # type: ignore[type-arg]  # generic only in the stubs
    """Page of the cluster in place of a list of objects, because the state of the one cluster is in Redis."""

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_view_permission(request, obj) or may_control(request)

    def has_add_permission(self, request: HttpRequest) -> bool:  # noqa: ARG002
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    def get_urls(self) -> list[URLPattern]:
        wrap = self.admin_site.admin_view
        return [
            path("", wrap(require_GET(self.changelist_view)), name="ha_beat_cluster_changelist"),
            path("data/", wrap(require_GET(self.data_view)), name="ha_beat_cluster_data"),
            path("control/", wrap(require_POST(self.control_view)), name="ha_beat_cluster_control"),
        ]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        context = {
            **self.admin_site.each_context(request),
            "title": _("Beat cluster"),
            "opts": self.opts,
            "data": self._data(),
            "data_url": reverse(f"{self.admin_site.name}:ha_beat_cluster_data"),
            "control_url": reverse(f"{self.admin_site.name}:ha_beat_cluster_control"),
            "may_control": may_control(request),
            "task_url": self._task_url(request),
            **(extra_context or {}),
        }
        request.current_app = self.admin_site.name
        return TemplateResponse(request, "admin/ha_beat/cluster.html", context)

    def data_view(self, request: HttpRequest) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        return JsonResponse(self._data(), headers={"Cache-Control": "no-store"})

    def control_view(self, request: HttpRequest) -> HttpResponse:
        """Send a request to the leader. Django has checked the CSRF token."""
        action = request.POST.get("action", "")
        if not may_control(request):
            raise PermissionDenied
        kind = parse_code(RequestKind, action)
        if kind not in _ACTIONS:
            return JsonResponse({"ok": False, "line": f"unknown action {action!r}"}, status=400)
        args = {"reason": request.POST.get("reason", "")[:500]} if kind == RequestKind.PAUSE else {}
        try:
            reply = ask(request, kind, **args)
        except HaBeatError as exc:
            return JsonResponse({"ok": False, "line": str(exc)}, status=503)
        line = reply_text(reply.code, reply.data)
        if reply.ok:
            # The list of recent actions shows only the name.
            name = cluster_view.cluster().settings.cluster
            log_change(request, Cluster, None, f"{name}: {_ACTIONS[kind]}", line)
        return JsonResponse({"ok": reply.ok, "line": line}, status=200 if reply.ok else 409)

    def _task_url(self, request: HttpRequest) -> str:
        """Return the URL of the list of periodic tasks; empty if the user may not view it."""
        tasks = self.admin_site._registry.get(PeriodicTask)  # noqa: SLF001 -- public only in newer Django
        if tasks is None or not tasks.has_view_permission(request):
            return ""
        return reverse(f"{self.admin_site.name}:django_celery_beat_periodictask_changelist")

    def _data(self) -> dict[str, Any]:
        try:
            return {"error": "", **cluster_view.page_data(cluster_view.cluster())}
        except HaBeatError as exc:
            return {"error": str(exc)}
