"""Measured speed of a broker, and how many messages may be sent in a given time."""

from __future__ import annotations

#: Most messages that are claimed and sent before the first of them is confirmed in the store. If the process dies, the
#: outcome of at most this many is unknown.
CHUNK = 20

#: Most messages of one batch.
_MOST = 10_000

#: Part of the difference by which a faster measurement lowers a time. A slower measurement replaces the time.
_DECAY = 0.5


class SendRate:
    """Time that a chunk of messages takes: one round trip, and a time per message.

    If the broker answers each message before the next is sent, all of the time counts per message.
    """

    def __init__(self) -> None:
        #: Seconds; ``None`` before the first measurement.
        self._per_message: float | None = None
        self._round_trip = 0.0

    def measured(self, per_message: float, round_trip: float) -> None:
        """Include the times of one chunk, in seconds."""
        self._per_message = _smoothed(self._per_message, per_message)
        self._round_trip = _smoothed(self._round_trip, round_trip)

    def in_batch(self, seconds: float) -> int:
        """Return how many messages can be sent in this time, and at least the size of the next chunk."""
        if self._per_message is None:
            return _MOST
        # A round trip alone may take longer, however few messages share it.
        return max(self.in_chunk(seconds), _quotient(seconds, self._per_message + self._round_trip / CHUNK, _MOST))

    def in_chunk(self, seconds: float) -> int:
        """Return the size of the next chunk, at least 1. Apart from the round trip, it takes this time at most."""
        if self._per_message is None:
            return 1
        return _quotient(seconds, self._per_message, CHUNK)


def _smoothed(before: float | None, now: float) -> float:
    return now if before is None else max(now, before + _DECAY * (now - before))


def _quotient(seconds: float, each: float, most: int) -> int:
    return most if seconds >= each * most else max(1, int(seconds / each) if each else 1)
