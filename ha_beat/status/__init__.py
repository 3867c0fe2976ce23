"""What can be seen of a replica and of its cluster.

The :class:`Board` listens to events; the :class:`Watcher`, a slow thread, registers the replica as a member and looks
at the cluster. Health, status and metrics are read off the board, and never ask Redis.
"""

from ha_beat.status.board import Board, Health, Vitals
from ha_beat.status.document import document, encoded
from ha_beat.status.look import Look, TermSpan, spans
from ha_beat.status.redaction import redacted
from ha_beat.status.warnings import Warn
from ha_beat.status.watcher import Watcher

__all__ = [
    "Board",
    "Health",
    "Vitals",
    "document",
    "encoded",
    "Look",
    "TermSpan",
    "spans",
    "redacted",
    "Warn",
    "Watcher",
]
