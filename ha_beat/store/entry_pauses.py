"""Pauses of single entries, kept by entry id in one field of the ledger."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from ha_beat.clock import from_micros
from ha_beat.store.stored_values import MALFORMED, ms_in, text_in

#: Field of the ledger.
FIELD = "m:paused_entries"


@dataclass(frozen=True, slots=True)
class EntryPause:
    """Pause of one entry, with the ``name`` that the entry had.

    Times are in ms since the Unix epoch. ``until_ms`` is the end, and 0 during the pause. A pause that has ended is
    kept until the instants up to its end have their verdict.
    """

    name: str
    since_ms: int
    by: str = ""
    reason: str = ""
    until_ms: int = 0

    @property
    def in_force(self) -> bool:
        """True until the entry is resumed."""
        return not self.until_ms

    @property
    def until(self) -> datetime:
        """Return the end of a pause that has ended, in UTC."""
        return from_micros(self.until_ms * 1000)

    def covers(self, instant: datetime) -> bool:
        """True if the pause skips an occurrence that was due at this instant."""
        return self.in_force or instant <= self.until  # guard: pause-owes-nothing

    def ended(self, now_ms: int) -> EntryPause:
        """Return this pause with its end."""
        return replace(self, until_ms=now_ms)

    def as_data(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        return asdict(self)


def encoded(pauses: Mapping[str, EntryPause]) -> str:
    """Return the JSON form, empty for no pause. It has no lone surrogate, which the dispatch script could not read."""
    found = {text_in(entry): _pause_of(pause.as_data()).as_data() for entry, pause in pauses.items()}
    return json.dumps(found) if found else ""


def parse(raw: str) -> dict[str, EntryPause]:
    """Return the pauses by entry. A malformed pause is a pause too. A malformed field has no pauses."""
    try:
        return {text_in(entry): _pause_of(data) for entry, data in json.loads(raw or "{}").items()}
    except MALFORMED:
        return {}


def _pause_of(data: Any) -> EntryPause:
    try:
        name, by, reason = (text_in(data[key]) for key in ("name", "by", "reason"))
        return EntryPause(name, ms_in(data["since_ms"]), by, reason, ms_in(data["until_ms"]))
    except MALFORMED:
        return EntryPause("", 0)


def in_force(raw: str) -> dict[str, dict[str, Any]]:
    """Return the pauses that have not ended as JSON can hold them, by entry."""
    return {entry: pause.as_data() for entry, pause in parse(raw).items() if pause.in_force}
