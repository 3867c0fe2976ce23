"""Base of the scheduler classes whose entries other programs edit in a store.

This is Celery's side. :mod:`ha_beat.schedule_sources.stored_source` provides the same entries to the leader.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from celery import Celery

from ha_beat.schedule_sources.stored_source import StoredSource
from ha_beat.scheduler import HAMixin


class StoredScheduler(HAMixin):
    """Scheduler class that leaves all access to the store to the threads of its schedule source.

    A subclass defines ``Entry``, the class of its entries, and :meth:`_new_schedule_source`.
    """

    Entry: Any
    schedule_source: StoredSource

    def __init__(self, app: Celery, *args: Any, **kwargs: Any) -> None:
        cls = type(self)
        own = (vars(each) for each in cls.__mro__ if each.__module__.startswith("ha_beat."))
        known = next(found["Entry"] for found in own if "Entry" in found)
        if not issubclass(self.Entry, known):
            raise SystemExit(
                f"ha_beat can't start: {cls.__name__}.Entry is {self.Entry.__name__}, which does not inherit from "
                f"{known.__module__}.{known.__name__}: each check of an entry would write to the store"
            )
        super().__init__(app, *args, **kwargs)

    # --- Overrides of the other class's access to the store

    def setup_schedule(self) -> None:
        """Do nothing: the leader writes the entries of the settings."""

    def sync(self) -> None:
        """Do nothing: a thread writes the run state soon after each dispatch."""

    def update_from_dict(self, dict_: Mapping[str, Any]) -> None:
        """Do nothing: the leader writes the entries of the settings."""

    @property
    def schedule(self) -> Any:
        """Return the enabled entries as last read, by name."""
        return self.schedule_source.entries

    @schedule.setter
    def schedule(self, schedule: Any) -> None:
        """Do nothing: the store has the entries."""

    # --- Hooks of HAMixin

    def entry_id(self, entry: Any) -> str:
        return str(entry.id)

    def stored_last_run_at(self, entry: Any) -> datetime | None:
        stored: datetime | None = entry.stored_last_run_at
        return stored
