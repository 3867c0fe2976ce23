"""Pause of the cluster, kept in one field of the ledger."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, ClassVar

from ha_beat.clock import from_micros
from ha_beat.store.stored_values import MALFORMED, ms_in, text_in


@dataclass(frozen=True, slots=True)
class Pause:
    """Pause of the cluster. ``since_ms`` is in ms since the Unix epoch, and 0 if the record is malformed."""

    FIELD: ClassVar[str] = "m:paused"

    since_ms: int
    by: str = ""
    reason: str = ""

    @property
    def since(self) -> datetime:
        """Return the start, in UTC."""
        return from_micros(self.since_ms * 1000)

    def as_data(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        return asdict(self)

    def encoded(self) -> str:
        """Return the JSON form."""
        return json.dumps(self.as_data())

    @classmethod
    def parse(cls, raw: str) -> Pause:
        """Return the pause of the ledger. A malformed record is a pause, too."""
        try:
            return cls.of(json.loads(raw))
        except MALFORMED:
            return cls(0)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Pause:
        """Return the pause that :meth:`as_data` describes."""
        return cls(ms_in(data["since_ms"]), text_in(data.get("by")), text_in(data.get("reason")))
