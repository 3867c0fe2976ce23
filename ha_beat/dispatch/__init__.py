"""To enqueue occurrences and record them, so that neither happens without the other.

A *dispatcher* turns an entry into something ready to go (:meth:`Dispatcher.prepare`) and hands over batches of
operations under a term (:meth:`Dispatcher.submit`). Where the broker is the lease's Redis, a batch is one act
(:mod:`ha_beat.dispatch.atomic`).
"""

from ha_beat.dispatch.protocol import Answer, Dispatcher, FencedOff, OpenClaim, Operation, Prepared

__all__ = ["Answer", "Dispatcher", "FencedOff", "OpenClaim", "Operation", "Prepared"]
