"""Occurrences: one due instant of one entry, and its identity."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://pypi.org/project/ha-beat/occurrence")

#: The position of an entry that has not run yet.
NEVER = datetime(1970, 1, 1, tzinfo=UTC)

#: Later than any due instant. An entry whose next instant is this one has no further instant.
FOREVER = datetime(9000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One due instant of one entry. ``scheduled_at`` is in UTC."""

    entry: str
    scheduled_at: datetime

    @property
    def instant(self) -> str:
        """Return the instant as ISO 8601, always with microseconds, so that each instant has one spelling."""
        return self.scheduled_at.isoformat(timespec="microseconds")  # guard: instant-spelling

    @property
    def fraction(self) -> float:
        """Return a number from 0 up to 1, the same on each replica. It spreads the occurrences of many entries."""
        identity = f"{self.entry}\n{self.instant}".encode("utf-8", "backslashreplace")
        return int.from_bytes(hashlib.blake2b(identity, digest_size=6).digest(), "big") / 2**48

    def task_id(self, cluster: str) -> str:
        """Return the occurrence's task id. It is the same on each replica."""
        return str(uuid.uuid5(_NAMESPACE, f"{cluster}\n{self.entry}\n{self.instant}"))  # guard: occurrence-task-id
