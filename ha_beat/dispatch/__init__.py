"""How an occurrence is enqueued and recorded exactly once.

A :class:`Dispatcher` builds an entry's message (:meth:`Dispatcher.prepare`) and hands over batches of operations under
a term (:meth:`Dispatcher.submit`). :mod:`ha_beat.dispatch.selector` selects one of two paths for a term:

- :mod:`ha_beat.dispatch.atomic`, if the broker is the lease's Redis: one script enqueues and records a batch.
- :mod:`ha_beat.dispatch.two_phase` for every other broker: claim, publish, confirm.
"""

from ha_beat.dispatch.messages.build_errors import MessageFailed, ReplicaExhausted, judged_build_errors
from ha_beat.dispatch.protocol import Answer, Dispatcher, FencedOff, OpenClaim, Operation, PreparedMessage

__all__ = [
    "Answer",
    "Dispatcher",
    "FencedOff",
    "MessageFailed",
    "OpenClaim",
    "Operation",
    "PreparedMessage",
    "ReplicaExhausted",
    "judged_build_errors",
]
