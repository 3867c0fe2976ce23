"""Record of the messages that keep entries with ``overlap = "skip"`` busy. The dispatch script and workers write it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from ha_beat.store.keys import Keys
from ha_beat.store.scripts import text, whole

_ENTRY = "e:"


@dataclass(frozen=True, slots=True)
class BusyEntries:
    """Entries with unfinished messages. Times are in ms since the Unix epoch.

    ``reported_ms`` is when a worker last reported, 0 for never. ``sent_ms`` is when the newest unfinished message of
    each entry was enqueued.
    """

    reported_ms: int
    sent_ms: Mapping[str, int]

    @classmethod
    def read(cls, client: Any, keys: Keys) -> Self:
        """Read the record. Raises redis-py's errors."""
        found = {text(field): text(value) for field, value in client.hgetall(keys.busy).items()}
        sent = {
            field.removeprefix(_ENTRY): max((whole(line.partition(" ")[0]) for line in value.splitlines()), default=0)
            for field, value in found.items()
            if field.startswith(_ENTRY)
        }
        return cls(whole(found.get("m:reported")), sent)

    def unreported(self, before_ms: int) -> dict[str, int]:
        """Return the entries whose newest message was enqueued before that time and after a worker's last report."""
        return {entry: at for entry, at in self.sent_ms.items() if self.reported_ms < at < before_ms}
