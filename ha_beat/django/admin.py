"""Admin page "Beat cluster", and the cluster's columns for periodic tasks.

This module replaces django-celery-beat's admin class for ``PeriodicTask`` by one with columns for the last verdict, the
next due instant and the replica. A project's own admin class is kept. It can use :class:`ClusterColumns`, which
has to be its first base.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.formats import date_format, localize
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_GET, require_POST
from django_celery_beat.admin import PeriodicTaskAdmin, PeriodicTaskForm
from django_celery_beat.models import PeriodicTask
from kombu.utils.json import dumps, loads

from ha_beat.django.cluster_view import TaskState, ask, cluster, page_data, project_app, states
from ha_beat.django.entries import RowEntry
from ha_beat.django.models import Cluster
from ha_beat.errors import ConfigurationError, HaBeatError
from ha_beat.monitoring.request_wording import pause_text, reply_text
from ha_beat.monitoring.wording import phrase_of
from ha_beat.reasons import ReplyCode, RequestKind, SkipReason, UncertainReason, Verdict, parse_code
from ha_beat.row_store.entry import misfire_headers
from ha_beat.schedule.entry_options import KEY, EntryOptions
from ha_beat.schedule.misfire import MisfireRules
from ha_beat.schedule.occurrence import FOREVER, NEVER
from ha_beat.store.cluster_pause import Pause

__all__ = ["ClusterColumns"]

CONTROL = "ha_beat.control_cluster"

_ACTIONS = {
    RequestKind.STEP_DOWN: gettext_lazy("Stepped the leader down"),
    RequestKind.PAUSE: gettext_lazy("Paused the cluster"),
    RequestKind.RESUME: gettext_lazy("Resumed the cluster"),
}


def _by(request: HttpRequest) -> str:
    return f"{request.user.get_username()} (admin)"


def _may_control(request: HttpRequest) -> bool:
    user: Any = request.user
    return bool(user.has_perm(CONTROL))


def _log(request: HttpRequest, model: type, object_id: str | None, name: str, message: str) -> None:
    LogEntry.objects.create(
        user_id=request.user.pk,
        content_type_id=ContentType.objects.get_for_model(model).pk,
        object_id=object_id,
        object_repr=name[:200],
        action_flag=CHANGE,
        change_message=message,
    )


@admin.register(Cluster)
class ClusterAdmin(admin.ModelAdmin):  # type: ignore[type-arg]  # generic only in the stubs
    """Page in place of a list. There is one cluster, and its state is in Redis."""

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_view_permission(request, obj) or self.has_control_permission(request)

    def has_control_permission(self, request: HttpRequest) -> bool:
        return _may_control(request)

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
            "may_control": self.has_control_permission(request),
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
        if not self.has_control_permission(request):
            raise PermissionDenied
        kind = parse_code(RequestKind, action)
        if kind not in _ACTIONS:
            return JsonResponse({"ok": False, "line": f"unknown action {action!r}"}, status=400)
        args = {"reason": request.POST.get("reason", "")[:500]} if kind == RequestKind.PAUSE else {}
        try:
            reply = ask(cluster(), kind, _by(request), **args)
        except HaBeatError as exc:
            return JsonResponse({"ok": False, "line": str(exc)}, status=503)
        line = reply_text(reply.code, reply.data)
        if reply.ok:
            # The list of recent actions shows only the name.
            _log(request, Cluster, None, f"{cluster().settings.cluster}: {_ACTIONS[kind]}", line)
        return JsonResponse({"ok": reply.ok, "line": line}, status=200 if reply.ok else 409)

    def _task_url(self, request: HttpRequest) -> str:
        """Return the URL of the list of periodic tasks; empty if the user may not view it."""
        tasks = self.admin_site._registry.get(PeriodicTask)  # noqa: SLF001 -- public only in newer Django
        if tasks is None or not tasks.has_view_permission(request):
            return ""
        return reverse(f"{self.admin_site.name}:django_celery_beat_periodictask_changelist")

    def _data(self) -> dict[str, Any]:
        try:
            return {"error": "", **page_data(cluster())}
        except HaBeatError as exc:
            return {"error": str(exc)}


_MISFIRE = gettext_lazy("If occurrences were missed")
_GRACE = gettext_lazy("Maximum lateness in seconds")
_OVERLAP = gettext_lazy("While the last message has not ended")
_TIMEOUT = gettext_lazy("Seconds until it counts as lost")
_OVERLAPS = {"": gettext_lazy("enqueue the next one"), "skip": gettext_lazy("skip the next one")}
_JITTER = gettext_lazy("Spread over seconds")
_RULES = ("misfire", "misfire_grace", "overlap", "overlap_timeout", "jitter")
_POLICIES = {
    "": gettext_lazy("use the cluster's setting"),
    "once": gettext_lazy("run the latest one"),
    "skip": gettext_lazy("run none of them"),
    "all": gettext_lazy("run all of them"),
}


class MisfireForm(PeriodicTaskForm):  # type: ignore[misc]  # django-celery-beat has no types
    """Form of a periodic task with fields for its own rules, which are stored in its headers."""

    misfire = forms.ChoiceField(label=_MISFIRE, required=False, choices=list(_POLICIES.items()))
    misfire_grace = forms.FloatField(
        label=_GRACE,
        required=False,
        min_value=0,
        help_text=gettext_lazy("Later occurrences are skipped. Leave empty to use the cluster's setting."),
    )

    overlap = forms.ChoiceField(
        label=_OVERLAP,
        required=False,
        choices=list(_OVERLAPS.items()),
        help_text=gettext_lazy("Skipping needs workers that load ha_beat.guard."),
    )
    overlap_timeout = forms.FloatField(
        label=_TIMEOUT, required=False, min_value=1, help_text=gettext_lazy("Leave empty for an hour.")
    )
    jitter = forms.FloatField(
        label=_JITTER,
        required=False,
        min_value=0,
        max_value=86_400,
        help_text=gettext_lazy("Each occurrence is enqueued up to this much after its time."),
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        own = _own_rules(getattr(self.instance, "headers", None))
        for name in _RULES:
            self.initial.setdefault(name, own.get(name, ""))

    def clean(self) -> dict[str, Any]:
        data: dict[str, Any] = super().clean()
        try:
            headers = loads(data.get("headers") or "{}")
        except ValueError:
            headers = None
        if not isinstance(headers, dict):
            self.add_error("headers", _("The headers must be a JSON object"))
            return data
        try:
            # Beat leaves out a task with invalid rules and only logs it.
            EntryOptions.of(str(data.get("name") or ""), headers, MisfireRules(), None)
        except ConfigurationError as exc:
            self.add_error("headers", str(exc))
            return data
        own = dict(headers.get(KEY) or {})
        for name in _RULES:
            if name not in self.changed_data:
                continue
            value = data.get(name)
            if value in {None, ""}:
                own.pop(name, None)
            else:
                own[name] = value
        data["headers"] = dumps(misfire_headers(headers, own))
        return data


def _own_rules(headers: str | None) -> dict[str, Any]:
    try:
        own = loads(headers or "{}").get(KEY)
    except (ValueError, AttributeError):
        return {}
    return own if isinstance(own, dict) else {}


def _rule_column(rule: str, label: Any, words: Mapping[str, Any] | None = None) -> Any:
    """Return a column with an entry's own rule, for users who may only view tasks and get no form."""

    @admin.display(description=label)
    def column(_: Any, task: Any) -> str:
        own = _own_rules(task.headers).get(rule, "" if words else "-")
        return str((words or {}).get(own, own))

    return column


class ClusterColumns(admin.ModelAdmin):  # type: ignore[type-arg]
    """Columns and form fields with the cluster's state of each task. Mix this into a ``PeriodicTaskAdmin``.

    It has more than 15 methods: Django's admin asks for one for each column, field and action.
    """

    form = MisfireForm

    def get_list_display(self, request: HttpRequest) -> Any:
        # After name and enabled: at the end of django-celery-beat's list the column would be out of sight. One column:
        # three would push the schedule out of sight.
        shown = tuple(super().get_list_display(request))
        return (*shown[:2], "cluster_state", *shown[2:])

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return (*super().get_readonly_fields(request, obj), "last_verdict", "next_due", "enqueued_by", "paused")

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        fields: list[str] = list(_RULES)
        if obj is not None:
            fields = ["last_verdict", "next_due", "enqueued_by", "paused", *fields]
        return (*super().get_fieldsets(request, obj), (_("Cluster"), {"fields": fields}))

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        listed = super().get_changelist_instance(request)
        self._look_up(request, listed.result_list)
        return listed

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        task = super().get_object(request, object_id, from_field)
        if task is not None:
            self._look_up(request, [task])
        return task

    def _look_up(self, request: HttpRequest, tasks: Iterable[Any]) -> None:
        tasks = list(tasks)
        try:
            known = states(cluster(), [str(task.pk) for task in tasks])
        except HaBeatError as exc:
            known = {}
            if request.method == "GET":
                messages.warning(request, _("The beat cluster is unreachable: %s") % exc)
        for task in tasks:
            task.ha_beat_state = known.get(str(task.pk), TaskState())

    misfire = _rule_column("misfire", _MISFIRE, _POLICIES)
    misfire_grace = _rule_column("misfire_grace", _GRACE)
    overlap = _rule_column("overlap", _OVERLAP, _OVERLAPS)
    overlap_timeout = _rule_column("overlap_timeout", _TIMEOUT)
    jitter = _rule_column("jitter", _JITTER)

    @admin.display(description=gettext_lazy("cluster"))
    def cluster_state(self, task: Any) -> str:
        state: TaskState = getattr(task, "ha_beat_state", TaskState())
        following = _("paused") if state.pause else format_html("{} {}", _("next"), self.next_due(task))
        return format_html("{}<br>{}", self.last_verdict(task), following)

    @admin.display(description=gettext_lazy("last verdict"))
    def last_verdict(self, task: Any) -> str:
        state: TaskState = getattr(task, "ha_beat_state", TaskState())
        if state.due is None:
            return "-"
        outcome = f"{state.verdict} ({state.reason})" if state.reason else state.verdict
        late = f", {_late(state.lateness)}" if state.verdict == Verdict.ENQUEUED else ""
        reasons = UncertainReason if state.verdict == Verdict.UNCERTAIN else SkipReason
        by = _("by %s") % state.by if state.by else ""
        title = " ".join(filter(None, [_shown(state.due), by, phrase_of(reasons, state.reason)]))
        return format_html('<span title="{}">{}{}</span>', title, outcome, late)

    @admin.display(description=gettext_lazy("next due"))
    def next_due(self, task: Any) -> str:
        row = getattr(task, "ha_beat_state", TaskState()).row
        if not task.enabled or row is None or row.verdict == Verdict.ABSENT:
            return "-"
        try:
            instant = RowEntry(task, project_app()).instants.next_after(max(row.base, NEVER))
        except Exception as exc:
            return str(exc)
        return "-" if instant >= FOREVER else _shown_briefly(instant)

    @admin.display(description=gettext_lazy("enqueued by"))
    def enqueued_by(self, task: Any) -> str:
        return getattr(task, "ha_beat_state", TaskState()).by or "-"

    @admin.display(description=gettext_lazy("paused"))
    def paused(self, task: Any) -> str:
        pause = getattr(task, "ha_beat_state", TaskState()).pause
        return pause_text(Pause.of(pause.as_data())) if pause else "-"

    def get_actions(self, request: HttpRequest) -> Any:
        actions = super().get_actions(request)
        if not _may_control(request):
            for name in ClusterColumns.actions:
                actions.pop(name, None)
        return actions

    @admin.action(description=gettext_lazy("Run selected tasks now through the beat cluster"))
    def run_now(self, request: HttpRequest, queryset: Any) -> None:
        """Ask the leader to enqueue each task once. Their schedules do not change."""
        self._ask_for_each(request, queryset, RequestKind.RUN)

    @admin.action(description=gettext_lazy("Pause selected tasks in the beat cluster"))
    def pause_tasks(self, request: HttpRequest, queryset: Any) -> None:
        """Ask the leader to skip the occurrences of each task until it is resumed."""
        self._ask_for_each(request, queryset, RequestKind.PAUSE_ENTRY)

    @admin.action(description=gettext_lazy("Resume selected tasks in the beat cluster"))
    def resume_tasks(self, request: HttpRequest, queryset: Any) -> None:
        """Ask the leader to end the pause of each task."""
        self._ask_for_each(request, queryset, RequestKind.RESUME_ENTRY)

    def _ask_for_each(self, request: HttpRequest, queryset: Any, kind: RequestKind) -> None:
        if not _may_control(request):
            raise PermissionDenied
        for task in queryset:
            if not task.enabled and kind is not RequestKind.RESUME_ENTRY:
                line = reply_text(ReplyCode.NO_SUCH_ENTRY, {"entry": task.name, "disabled": True})
                self.message_user(request, line, messages.ERROR)
                continue
            try:
                reply = ask(cluster(), kind, _by(request), entry=str(task.pk))
            except HaBeatError as exc:
                self.message_user(request, f"{task.name}: {exc}", messages.ERROR)
                return
            line = reply_text(reply.code, reply.data)
            self.message_user(request, line, messages.SUCCESS if reply.ok else messages.ERROR)
            if reply.ok:
                # As text: Django interprets a list as its own change message.
                _log(request, type(task), str(task.pk), task.name, line)

    actions = ("run_now", "pause_tasks", "resume_tasks")


def _late(seconds: float) -> str:
    return str(_("on time")) if seconds < 0.1 else str(_("%.1f s late") % seconds)


def _shown(instant: datetime) -> str:
    return str(localize(timezone.localtime(instant) if timezone.is_aware(instant) else instant.replace(tzinfo=UTC)))


def _shown_briefly(instant: datetime) -> str:
    """Return the time, with the date unless it is today, and the whole as a tooltip."""
    at = timezone.localtime(instant)
    today = at.date() == timezone.localtime().date()
    brief = date_format(at, "TIME_FORMAT" if today else "SHORT_DATETIME_FORMAT")
    return format_html('<span title="{}">{}</span>', _shown(instant), brief)


class ClusterPeriodicTaskAdmin(ClusterColumns, PeriodicTaskAdmin):  # type: ignore[misc]
    """django-celery-beat's admin class for periodic tasks, with the cluster's columns."""

    actions = (*PeriodicTaskAdmin.actions, *ClusterColumns.actions)


def register(site: admin.AdminSite) -> None:
    """Replace django-celery-beat's admin class for periodic tasks, unless the site has another one."""
    if type(site._registry.get(PeriodicTask)) is PeriodicTaskAdmin:  # noqa: SLF001 -- public only in newer Django
        site.unregister(PeriodicTask)
        site.register(PeriodicTask, ClusterPeriodicTaskAdmin)


register(admin.site)
