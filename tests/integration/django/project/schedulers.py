"""Scheduler class of the project, with methods that it overrides."""

import os
from pathlib import Path
from typing import Any

from celery.schedules import schedstate

from ha_beat.django.schedulers import HADatabaseScheduler


class Muting(HADatabaseScheduler):
    """Scheduler that prevents the runs of one row, and notes the calls of its methods in a file."""

    def _note(self, call: str, entry: Any) -> None:
        with Path(os.environ["CALLS_FILE"]).open("a") as file:
            file.write(f"{call} {entry.name}\n")

    def is_due(self, entry: Any) -> schedstate:
        return schedstate(False, 5.0) if entry.name == "muted" else super().is_due(entry)

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        self._note("apply", entry)
        super().apply_entry(entry, producer=producer)

    def reserve(self, entry: Any) -> Any:
        self._note("reserve", entry)
        return super().reserve(entry)


class Reading(HADatabaseScheduler):
    """Scheduler that selects the rows in a method that is never called."""

    def all_as_schedule(self) -> Any:
        return {}
