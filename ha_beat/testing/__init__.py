"""Helpers for tests of your schedules and tasks, and of code that builds on this package.

:func:`occurrences` computes the due instants of an entry. :func:`occurrence_headers` returns the headers of an
occurrence's message. :class:`SettableClock` is a clock that only the test moves. :class:`MemoryLeaseStore` and
:class:`MemoryPresence` are a lease without a server, which can be unreachable or lose replies.
"""

from ha_beat.errors import StoreUnavailable
from ha_beat.store.lease import Attempt, Expected, Replica
from ha_beat.testing.clock import SettableClock
from ha_beat.testing.memory import MemoryLeaseStore, MemoryPresence
from ha_beat.testing.messages import occurrence_headers
from ha_beat.testing.schedules import occurrences

__all__ = [
    "occurrences",
    "occurrence_headers",
    "SettableClock",
    "MemoryLeaseStore",
    "MemoryPresence",
    "Attempt",
    "Expected",
    "Replica",
    "StoreUnavailable",
]
