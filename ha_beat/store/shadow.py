"""Shadow of the ledger: the positions that a replica knows, kept up to date from the journal."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Container, Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ha_beat.clock import Clock, from_micros
from ha_beat.store import entry_pauses
from ha_beat.store.cluster_pause import Pause
from ha_beat.store.keys import Keys
from ha_beat.store.ledger import KEEP_ABSENT, Ledger, LedgerRow, position_in
from ha_beat.store.scripts import Poll, text, whole
from ha_beat.store.stored_values import MALFORMED, instant_in, text_in

if TYPE_CHECKING:
    import redis

#: Most records that are read at one poll. If there are more, the ledger is read instead.
_RECORDS = 1000

#: Seconds after which the ledger is read even without a gap: the start of an entry has no record in the journal.
_REREAD = 300.0


class Shadow:
    """Newest known position of each entry.

    The election thread writes it on a standby, the main loop on a leader.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._positions: dict[str, datetime] = {}
        self.gen = ""
        self.counter = 0
        #: The pauses by field (JSON, ``""`` for none), and the incarnation of the ledger that has them all.
        self.pauses: dict[str, str] = {}
        self.paused_gen = ""
        self.last_id = "0-0"

    def position(self, entry: str) -> datetime | None:
        """Return the newest known position of an entry."""
        with self._lock:
            return self._positions.get(entry)

    def learn(self, entry: str, position: datetime) -> None:
        """Record a position. Positions never move back."""
        with self._lock:
            known = self._positions.get(entry)
            if known is None or known < position:  # guard: shadow-never-back
                self._positions[entry] = position

    def learn_rows(self, rows: Mapping[str, str]) -> None:
        """Record the positions of raw ledger rows."""
        for entry, raw in rows.items():
            position = position_in(raw)
            if position is not None:
                self.learn(entry, position)

    def lost(self, rows: Mapping[str, str], now: datetime, among: Iterable[str] | None = None) -> dict[str, datetime]:
        """Return the known positions that the ledger is behind or lacks, of all entries or only of those ``among``."""
        # The leader removes the rows of entries that were deleted long ago.
        forgettable = now - KEEP_ABSENT
        with self._lock:
            known = self._positions
            positions = dict(known) if among is None else {entry: known[entry] for entry in among if entry in known}
        found = {}
        for entry, position in positions.items():
            raw = rows.get(entry)
            row = LedgerRow.parse(raw) if raw is not None else None
            if (raw is None and position >= forgettable) or (row is not None and row.base < position):
                found[entry] = position
        return found

    def ahead_of(self, rows: Mapping[str, str], now: datetime) -> bool:
        """True if the ledger is behind a known position."""
        return bool(self.lost(rows, now))  # guard: loss-behind-shadow

    def drop(self, entry: str) -> None:
        """Drop an entry that was deleted long ago, and whose row the leader removes."""
        with self._lock:
            self._positions.pop(entry, None)

    @property
    def empty(self) -> bool:
        """True if no position is known."""
        return not self._positions

    def drop_missing(self, rows: Container[str], now: datetime) -> None:
        """Drop entries that were deleted long ago, and whose rows are missing from an intact ledger."""
        forgettable = now - KEEP_ABSENT
        with self._lock:
            gone = [entry for entry, at in self._positions.items() if at < forgettable and entry not in rows]
            for entry in gone:
                del self._positions[entry]


class ShadowFeed:
    """Updater of a shadow, which polls the journal. Used by the election thread."""

    def __init__(self, client: Callable[[], redis.Redis], keys: Keys, shadow: Shadow, clock: Clock) -> None:
        self._client = client
        self._keys = keys
        self._shadow = shadow
        self._clock = clock
        self._ledger = Ledger(client, keys)
        self._script = Poll("follow")
        self._reread_at = 0.0

    def poll(self) -> None:
        """Update the shadow with the records since the last poll.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        shadow = self._shadow
        reply = self._script(self._client(), [self._keys.ledger, self._keys.journal], [shadow.last_id, str(_RECORDS)])
        gen, counter, records, newest = text(reply[0]), whole(reply[1]), reply[3], text(reply[4])
        if not gen:
            # Without a ledger, the shadow keeps what it knows.
            return
        restored = bool(whole(reply[8]))
        if restored or not any(shadow.pauses.values()):  # guard: feed-pauses-restored
            shadow.pauses = {Pause.FIELD: text(reply[6]), entry_pauses.FIELD: text(reply[7])}
            shadow.paused_gen = gen if restored else ""
        now = self._clock.elapsed()
        # A record without a number counts as a gap.
        first = (whole(reply[2]) or sys.maxsize) if records else counter + 1
        # After a burst, one read of the ledger replaces the many records.
        gap = first > shadow.counter + 1 or bool(whole(reply[5]))  # guard: feed-gap
        replaced = gen != shadow.gen  # guard: feed-incarnation
        if replaced or gap or now >= self._reread_at or not self._learn_records(records):
            rows = self._ledger.read()
            shadow.learn_rows(rows)
            if gen == shadow.gen:
                shadow.drop_missing(rows, from_micros(round(self._clock.wall() * 1_000_000)))
            shadow.gen = gen
            self._reread_at = now + _REREAD
        shadow.counter = counter
        shadow.last_id = newest or shadow.last_id

    def _learn_records(self, records: list[Any]) -> bool:
        """Record the positions in these records. Return False if one is unreadable."""
        try:
            for raw in records:
                record = json.loads(text(raw) or "{}")
                if not isinstance(record, dict):
                    return False
                if "base" in record and "entry" in record:
                    self._shadow.learn(text_in(record["entry"]), instant_in(record["base"]))
        except MALFORMED:
            return False
        return True
