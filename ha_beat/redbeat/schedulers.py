"""Scheduler class for redbeat's entries."""

from __future__ import annotations

from typing import Any

from celery.beat import Scheduler

from ha_beat.redbeat.entries import StoredEntry
from ha_beat.redbeat.schedule_source import RedBeatSource
from ha_beat.stored_scheduler import StoredScheduler

__all__ = ["HARedBeatScheduler"]


class HARedBeatScheduler(StoredScheduler, Scheduler):
    """Highly available scheduler for redbeat's entries: ``celery beat -S ha_beat.redbeat``.

    Programs save, reschedule and delete entries with ``redbeat.RedBeatSchedulerEntry``. One thread
    (:mod:`ha_beat.redbeat.schedule_source`) reads them and, on the leader, writes their run state.
    """

    Entry = StoredEntry
    #: redbeat's signal handler takes its lock for a scheduler that has a key for it.
    lock_key: Any = None
    lock: Any = None

    def _new_schedule_source(self) -> RedBeatSource:
        return RedBeatSource(self)
