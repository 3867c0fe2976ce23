"""Keeps a standby's shadow of the ledger up to date from the journal, without reading the ledger each time."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ha_beat.clock import Clock
from ha_beat.lease import Keys
from ha_beat.ledger import Ledger, from_micros
from ha_beat.redis_scripts import Script, text, whole
from ha_beat.state_loss import Shadow

if TYPE_CHECKING:
    import redis

#: Records taken at one poll; with more to come the ledger itself is read.
_RECORDS = 1000

#: Seconds after which the ledger is read even where no gap shows: armed entries leave no record.
_REREAD = 300.0


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
        gap = first > shadow.counter + 1 or len(records) == _RECORDS
        if gen != shadow.gen or gap or now >= self._reread_at or not self._take_in(records):
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
