"""Scheduler class for redbeat's entries."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from celery.beat import Scheduler

from ha_beat.redbeat.entries import StoredEntry
from ha_beat.redbeat.schedule_source import RedBeatSource
from ha_beat.scheduler import HAMixin

__all__ = ["HARedBeatScheduler"]


class HARedBeatScheduler(HAMixin, Scheduler):
    """Highly available scheduler for redbeat's entries: ``celery beat -S ha_beat.redbeat``.

    Programs save, reschedule and delete entries with ``redbeat.RedBeatSchedulerEntry``. One thread
    (:mod:`ha_beat.redbeat.schedule_source`) reads them and, on the leader, writes their run state.
    """

    Entry = StoredEntry
    schedule_source: RedBeatSource
    #: redbeat's signal handler takes its lock for a scheduler that has a key for it.
    lock_key: Any = None
    lock: Any = None

    def setup_schedule(self) -> None:
        """Do nothing: the leader writes the entries of the settings."""

    def sync(self) -> None:
        """Do nothing: a thread writes the run state soon after each dispatch."""

    @property
    def schedule(self) -> Any:
        """Return the enabled entries as last read, by name."""
        return self.schedule_source.entries

    @schedule.setter
    def schedule(self, schedule: Any) -> None:
        """Do nothing: redbeat's Redis has the entries."""

    def entry_id(self, entry: Any) -> str:
        return str(entry.id)

    def stored_last_run_at(self, entry: Any) -> datetime | None:
        last: datetime | None = entry.run_state[0]
        return last

    def update_from_dict(self, dict_: Mapping[str, Any]) -> None:
        """Do nothing: the leader writes the entries of the settings."""

    def _new_schedule_source(self) -> RedBeatSource:
        return RedBeatSource(self)
