"""For tests of your own schedules, and of what you build on this package.

:func:`occurrences` tells when an entry would be due, without waiting for it; :func:`occurrence_headers` is what a task
finds in its message; :class:`SettableClock` is a clock that stands still until it is told; :class:`MemoryLeaseStore`
and :class:`MemoryPresence` are a lease without a server, which can lose and delay what is sent to it.
"""

from ha_beat.testing.clock import SettableClock
from ha_beat.testing.memory import MemoryLeaseStore, MemoryPresence
from ha_beat.testing.messages import occurrence_headers
from ha_beat.testing.schedules import occurrences

__all__ = ["MemoryLeaseStore", "MemoryPresence", "SettableClock", "occurrence_headers", "occurrences"]
