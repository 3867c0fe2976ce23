"""Measured speed of a broker, and how many messages may be sent in a given time."""

from __future__ import annotations

#: Most messages that are claimed, and sent, before the first of them is confirmed in the store. So many may be in doubt
#: if the process dies.
CHUNK = 20

#: Most messages of one batch.
_MOST = 10_000

#: Part of a measured time that a faster measurement takes off. A slower one counts at once.
_DECAY = 0.5


class SendRate:
    """Time that a chunk of messages takes: one round trip in any case, and a time per message on top.

    A broker that answers each message alone has no round trip in this sense: all of its time is per message.
    """

    def __init__(self) -> None:
        #: Seconds; ``None`` before the first measurement.
        self._per_message: float | None = None
        self._round_trip = 0.0

    def measured(self, per_message: float, round_trip: float) -> None:
        """Take in the times of one chunk, in seconds."""
        self._per_message = _smoothed(self._per_message, per_message)
        self._round_trip = _smoothed(self._round_trip, round_trip)

    def in_batch(self, seconds: float) -> int:
        """Return how many messages can be sent in that time, in whole chunks; at least the next chunk."""
        if self._per_message is None:
            return _MOST
        # A round trip may take longer than that time, however few messages share it.
        return max(self.in_chunk(seconds), _quotient(seconds, self._per_message + self._round_trip / CHUNK, _MOST))

    def in_chunk(self, seconds: float) -> int:
        """Return how many messages the next chunk may have, at least 1, so that it ends a round trip later at most."""
        if self._per_message is None:
            return 1
        return _quotient(seconds, self._per_message, CHUNK)


def _smoothed(before: float | None, now: float) -> float:
    return now if before is None else max(now, before + _DECAY * (now - before))


def _quotient(seconds: float, each: float, most: int) -> int:
    return most if seconds >= each * most else max(1, int(seconds / each) if each else 1)
