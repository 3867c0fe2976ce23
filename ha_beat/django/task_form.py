"""Form of a periodic task with fields for its own rules, which are stored in the key ``ha_beat`` of its headers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django import forms
from django.contrib import admin
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django_celery_beat.admin import PeriodicTaskForm
from kombu.utils.json import dumps, loads

from ha_beat.errors import ConfigurationError
from ha_beat.row_store.entry import misfire_headers
from ha_beat.schedule.entry_options import KEY, EntryOptions
from ha_beat.schedule.misfire import MisfireRules

_POLICIES = {
    "": gettext_lazy("use the cluster's setting"),
    "once": gettext_lazy("run the latest one"),
    "skip": gettext_lazy("run none of them"),
    "all": gettext_lazy("run all of them"),
}
_OVERLAPS = {"": gettext_lazy("enqueue the next one"), "skip": gettext_lazy("skip the next one")}

#: Label of each rule.
RULES = {
    "misfire": gettext_lazy("If occurrences were missed"),
    "misfire_grace": gettext_lazy("Maximum lateness in seconds"),
    "overlap": gettext_lazy("While the last message has not ended"),
    "overlap_timeout": gettext_lazy("Seconds until it counts as lost"),
    "jitter": gettext_lazy("Spread over seconds"),
}
_CHOICES: Mapping[str, Mapping[str, Any]] = {"misfire": _POLICIES, "overlap": _OVERLAPS}


class MisfireForm(PeriodicTaskForm):  # type: ignore[misc]  # django-celery-beat has no types
    """Form of a periodic task with its own rules."""

    misfire = forms.ChoiceField(label=RULES["misfire"], required=False, choices=list(_POLICIES.items()))
    misfire_grace = forms.FloatField(
        label=RULES["misfire_grace"],
        required=False,
        min_value=0,
        help_text=gettext_lazy("Later occurrences are skipped. Leave empty to use the cluster's setting."),
    )
    overlap = forms.ChoiceField(
        label=RULES["overlap"],
        required=False,
        choices=list(_OVERLAPS.items()),
        help_text=gettext_lazy("Skipping needs workers that load ha_beat.guard."),
    )
    overlap_timeout = forms.FloatField(
        label=RULES["overlap_timeout"], required=False, min_value=1, help_text=gettext_lazy("Leave empty for an hour.")
    )
    jitter = forms.FloatField(
        label=RULES["jitter"],
        required=False,
        min_value=0,
        max_value=86_400,
        help_text=gettext_lazy("Each occurrence is enqueued up to this much after its time."),
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        own = _own_rules(getattr(self.instance, "headers", None))
        for name in RULES:
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
            # Beat would leave out a task with invalid rules, and only log it.
            EntryOptions.of(str(data.get("name") or ""), headers, MisfireRules(), None)
        except ConfigurationError as exc:
            self.add_error("headers", str(exc))
            return data
        changed = {name: data.get(name) for name in RULES if name in self.changed_data}
        own = {**(headers.get(KEY) or {}), **changed}
        given = {name: value for name, value in own.items() if name not in changed or value not in {None, ""}}
        data["headers"] = dumps(misfire_headers(headers, given))
        return data


def _own_rules(headers: str | None) -> dict[str, Any]:
    try:
        own = loads(headers or "{}").get(KEY)
    except (ValueError, AttributeError):
        return {}
    return own if isinstance(own, dict) else {}


def rule_column(rule: str) -> Any:
    """Return a column with a task's own rule, for users who may only view tasks and get no form."""
    words = _CHOICES.get(rule)

    @admin.display(description=RULES[rule])
    def column(_: Any, task: Any) -> str:
        own = _own_rules(task.headers).get(rule, "" if words else "-")
        return str((words or {}).get(own, own))

    return column
