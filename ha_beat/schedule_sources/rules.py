"""Rules of entries: the options of each entry, completed by the cluster's settings."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from celery import Celery
from celery.schedules import crontab

from ha_beat.reasons import MisfirePolicy
from ha_beat.schedule.entry_options import KEY, EntryOptions
from ha_beat.schedule.misfire import MisfireRules
from ha_beat.schedule.recurrence import starting_deadline

_UNREAD = object()


class EntryRules:
    """Rules of the entries of one scheduler. Any thread may ask for them."""

    def __init__(self, scheduler: Any) -> None:
        #: Has its ``ha_settings`` only after it has created its schedule source.
        self._scheduler = scheduler
        #: Celery's time limit for crontabs, by their app: reading the setting takes ten microseconds.
        self._deadlines: dict[Celery, Any] = {}
        #: Rules of the entries without options for this package, by their time limit.
        self._without_options: dict[float | None, EntryOptions] = {}

    def of(self, entry: Any) -> EntryOptions:
        """Return the rules of an entry. Raises ConfigurationError."""
        options, deadline = entry.options or {}, self._deadline_of(entry)
        uncertain = self._scheduler.ha_settings.uncertain
        if options.get(KEY):
            return EntryOptions.of(entry.name, options, self._default_misfire, deadline, uncertain)
        rules = self._without_options.get(deadline)
        if rules is None:
            rules = EntryOptions.of("", {}, self._default_misfire, deadline, uncertain)
            self._without_options[deadline] = rules
        return rules

    def forget_deadlines(self) -> None:
        """Read the time limit of crontabs again."""
        self._deadlines.clear()

    def _deadline_of(self, entry: Any) -> float | None:
        if not isinstance(entry.schedule, crontab):
            return None
        app = entry.schedule.app
        deadline: Any = self._deadlines.get(app, _UNREAD)
        if deadline is _UNREAD:
            deadline = self._deadlines[app] = starting_deadline(entry)
        return deadline  # type: ignore[no-any-return]

    @cached_property
    def _default_misfire(self) -> MisfireRules:
        settings = self._scheduler.ha_settings
        return MisfireRules(
            MisfirePolicy(settings.misfire),
            settings.misfire_grace,
            settings.misfire_limit,
            usual_lateness=settings.lease_ttl + 1.0,
        )
