"""Columns, fields and actions that show and control the cluster's state of each periodic task."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest
from django.utils import timezone
from django.utils.formats import date_format, localize
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from ha_beat.django import cluster_view
from ha_beat.django.cluster_view import TaskState
from ha_beat.django.entries import RowEntry
from ha_beat.django.task_form import RULES, MisfireForm, rule_column
from ha_beat.django.user_requests import ask, log_change, may_control
from ha_beat.errors import HaBeatError
from ha_beat.monitoring.request_wording import pause_text, reply_text
from ha_beat.monitoring.wording import phrase_of
from ha_beat.reasons import ReplyCode, RequestKind, SkipReason, UncertainReason, Verdict
from ha_beat.schedule.occurrence import FOREVER, NEVER
from ha_beat.store.cluster_pause import Pause


class TaskActions(admin.ModelAdmin):  # type: ignore[type-arg]  # generic only in the stubs
    """Actions that send a request to the leader for each selected task."""

    actions = ("run_now", "pause_tasks", "resume_tasks")

    def get_actions(self, request: HttpRequest) -> Any:
        actions = super().get_actions(request)
        if not may_control(request):
            for name in TaskActions.actions:
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
        if not may_control(request):
            raise PermissionDenied
        for task in queryset:
            if not task.enabled and kind is not RequestKind.RESUME_ENTRY:
                line = reply_text(ReplyCode.NO_SUCH_ENTRY, {"entry": task.name, "disabled": True})
                self.message_user(request, line, messages.ERROR)
                continue
            try:
                reply = ask(request, kind, entry=str(task.pk))
            except HaBeatError as exc:
                self.message_user(request, f"{task.name}: {exc}", messages.ERROR)
                return
            line = reply_text(reply.code, reply.data)
            self.message_user(request, line, messages.SUCCESS if reply.ok else messages.ERROR)
            if reply.ok:
                # As text: Django interprets a list as its own change message.
                log_change(request, type(task), str(task.pk), task.name, line)


class ClusterColumns(TaskActions):
    """Columns and form fields with the cluster's state of each task. Mix this into a ``PeriodicTaskAdmin``."""

    form = MisfireForm

    def get_list_display(self, request: HttpRequest) -> Any:
        # One column after name and enabled: more would push the schedule out of sight.
        shown = tuple(super().get_list_display(request))
        return (*shown[:2], "cluster_state", *shown[2:])

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return (*super().get_readonly_fields(request, obj), "last_verdict", "next_due", "enqueued_by", "paused")

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        fields: list[str] = list(RULES)
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
            known = cluster_view.states(cluster_view.cluster(), [str(task.pk) for task in tasks])
        except HaBeatError as exc:
            known = {}
            if request.method == "GET":
                messages.warning(request, _("The beat cluster is unreachable: %s") % exc)
        for task in tasks:
            task.ha_beat_state = known.get(str(task.pk), TaskState())

    misfire = rule_column("misfire")
    misfire_grace = rule_column("misfire_grace")
    overlap = rule_column("overlap")
    overlap_timeout = rule_column("overlap_timeout")
    jitter = rule_column("jitter")

    @admin.display(description=gettext_lazy("cluster"))
    def cluster_state(self, task: Any) -> str:
        state = _state_of(task)
        following = _("paused") if state.pause else format_html("{} {}", _("next"), self.next_due(task))
        return format_html("{}<br>{}", self.last_verdict(task), following)

    @admin.display(description=gettext_lazy("last verdict"))
    def last_verdict(self, task: Any) -> str:
        state = _state_of(task)
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
        row = _state_of(task).row
        if not task.enabled or row is None or row.verdict == Verdict.ABSENT:
            return "-"
        try:
            instant = RowEntry(task, cluster_view.project_app()).instants.next_after(max(row.base, NEVER))
        except Exception as exc:
            return str(exc)
        return "-" if instant >= FOREVER else _shown_briefly(instant)

    @admin.display(description=gettext_lazy("enqueued by"))
    def enqueued_by(self, task: Any) -> str:
        return _state_of(task).by or "-"

    @admin.display(description=gettext_lazy("paused"))
    def paused(self, task: Any) -> str:
        pause = _state_of(task).pause
        return pause_text(Pause.of(pause.as_data())) if pause else "-"


def _state_of(task: Any) -> TaskState:
    return getattr(task, "ha_beat_state", TaskState())


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
