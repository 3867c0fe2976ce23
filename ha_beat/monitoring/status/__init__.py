"""What can be seen of a replica and of its cluster.

The :class:`Board` listens to events; the :class:`Watcher`, a slow thread, registers the replica as a member and looks
at the cluster. Health, status and metrics are read off the board, and never ask Redis.
"""

from ha_beat.monitoring.status.document import cluster_document, document, encoded
from ha_beat.monitoring.status.poller import Watcher
from ha_beat.monitoring.status.replica import Board, Health, Vitals
from ha_beat.monitoring.status.snapshot import Look, TermSpan, spans
from ha_beat.monitoring.status.warnings import Warn

__all__ = [
    "Board",
    "Health",
    "Vitals",
    "cluster_document",
    "document",
    "encoded",
    "Look",
    "TermSpan",
    "spans",
    "Warn",
    "Watcher",
]
