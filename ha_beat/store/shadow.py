"""Keeps a standby's shadow of the ledger up to date from the journal, without reading the ledger each time."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ha_beat.clock import Clock, from_micros
from ha_beat.reasons import Verdict
from ha_beat.store.keys import Keys
from ha_beat.store.ledger import KEEP_ABSENT, Ledger, LedgerRow
from ha_beat.store.scripts import Script, text, whole

if TYPE_CHECKING:
    import redis

#: Records taken at one poll; with more to come the ledger itself is read.
_RECORDS = 1000

#: Seconds after which the ledger is read even where no gap shows: armed entries leave no record.
_REREAD = 300.0


class Shadow:
    """The newest position of each entry that this replica knows the cluster to have reached.

    Written by the elector's thread while this replica stands by, by the main loop while it leads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._positions: dict[str, datetime] = {}
        self.gen = ""
        self.counter = 0
        #: The pause as it stood in the ledger (JSON, empty for none) of the incarnation ``paused_gen``.
        self.paused = ""
        self.paused_gen = ""
        self.last_id = "0-0"

    def position(self, entry: str) -> datetime | None:
        with self._lock:
            return self._positions.get(entry)

    def learn(self, entry: str, position: datetime) -> None:
        """Positions never move back."""
        with self._lock:
            known = self._positions.get(entry)
            if known is None or known < position:  # guard: shadow-never-back
                self._positions[entry] = position

    def learn_rows(self, rows: Mapping[str, str]) -> None:
        for entry, raw in rows.items():
            row = LedgerRow.parse(raw)
            # A claim may be taken back, and the position with it.
            if row is not None and row.verdict is not Verdict.CLAIMED:
                self.learn(entry, row.base)

    def lost(self, rows: Mapping[str, str], now: datetime) -> dict[str, datetime]:
        """Positions acknowledged before that the ledger is behind, or knows nothing of."""
        # Rows of entries that are long gone are taken out.
        forgettable = now - KEEP_ABSENT
        with self._lock:
            positions = dict(self._positions)
        found = {}
        for entry, position in positions.items():
            raw = rows.get(entry)
            row = LedgerRow.parse(raw) if raw is not None else None
            if (raw is None and position >= forgettable) or (row is not None and row.base < position):
                found[entry] = position
        return found

    def ahead_of(self, rows: Mapping[str, str], now: datetime) -> bool:
        """Whether the ledger is behind what was acknowledged before."""
        return bool(self.lost(rows, now))  # guard: loss-behind-shadow

    def forget(self, rows: Mapping[str, str], now: datetime) -> None:
        """Drop what a ledger that stands has dropped: entries that are long gone."""
        forgettable = now - KEEP_ABSENT
        with self._lock:
            gone = [entry for entry, at in self._positions.items() if at < forgettable and entry not in rows]
            for entry in gone:
                del self._positions[entry]


class ShadowFeed:
    """Polls the journal into a shadow. Used by the elector's thread."""

    def __init__(self, client: Callable[[], redis.Redis], keys: Keys, shadow: Shadow, clock: Clock) -> None:
        self._client = client
        self._keys = keys
        self._shadow = shadow
        self._clock = clock
        self._ledger = Ledger(client, keys)
        self._script = Script("follow")
        self._reread_at = 0.0

    def poll(self) -> None:
        """Take in what has happened since the last poll.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        shadow = self._shadow
        reply = self._script(self._client(), [self._keys.ledger, self._keys.journal], [shadow.last_id, _RECORDS])
        gen, counter, records = text(reply[0]), whole(reply[1]), reply[2]
        if not gen:
            # The ledger is gone, or was never there: what is known stays known.
            return
        shadow.paused, shadow.paused_gen = text(reply[3]), gen
        now = self._clock.elapsed()
        first = _number(records[0][1]) if records else counter + 1
        gap = first > shadow.counter + 1 or len(records) == _RECORDS  # guard: feed-gap
        replaced = gen != shadow.gen  # guard: feed-incarnation
        if replaced or gap or now >= self._reread_at or not self._take_in(records):
            rows = self._ledger.read()
            shadow.learn_rows(rows)
            if gen == shadow.gen:
                shadow.forget(rows, from_micros(round(self._clock.wall() * 1_000_000)))
            shadow.gen = gen
            self._reread_at = now + _REREAD
        shadow.counter = counter
        if records:
            shadow.last_id = text(records[-1][0])

    def _take_in(self, records: list[Any]) -> bool:
        """False where one of them can't be read, so that it is not known what it tells of."""
        try:
            for _, fields in records:
                record = json.loads(_field(fields, "d") or "{}")
                if not isinstance(record, dict):
                    return False
                if "base" in record and "entry" in record:
                    self._shadow.learn(str(record["entry"]), from_micros(record["base"]))
        except (ValueError, TypeError, OverflowError, RecursionError):
            return False
        return True


def _number(fields: list[Any]) -> int:
    """The record's; as after a gap where it has none."""
    n = _field(fields, "n")
    return int(n) if n.isdecimal() else sys.maxsize


def _field(fields: list[Any], name: str) -> str:
    values = [text(field) for field in fields]
    return dict(zip(values[::2], values[1::2], strict=True)).get(name, "")
