"""Pauses of the cluster and of its entries, as the leader knows them."""

from __future__ import annotations

from collections.abc import Mapping

from ha_beat.store import entry_pauses
from ha_beat.store.cluster_pause import Pause
from ha_beat.store.entry_pauses import EntryPause
from ha_beat.store.lease import Term
from ha_beat.store.shadow import Shadow


class PauseState:
    """Pauses of the cluster and of entries as this leader knows them.

    The request handler keeps them up to date; the enqueuer reads them before each batch. The ledger decides: the
    dispatch script refuses a message during a pause that this leader has not read yet.
    """

    def __init__(self) -> None:
        #: The pause as last read or written.
        self.current: Pause | None = None
        #: Pauses of entries by id, also those that have ended and whose instants have no verdict yet.
        self.entries: Mapping[str, EntryPause] = {}
        #: True if Redis refused a message, because the cluster is paused, since the pause was last read.
        self.refused = False
        #: Nonce of the term under which the pause was last read; empty if it may have changed since.
        self._read_under = ""

    @property
    def in_force(self) -> bool:
        """True if nothing may be enqueued by schedule."""
        return self.current is not None or self.refused

    def must_be_read(self, term: Term) -> bool:
        """True if this leader may have missed a change."""
        return self.refused or self._read_under != term.nonce

    def invalidate(self) -> None:
        """Read the pause from Redis before the next batch."""
        self._read_under = ""

    def set(self, term: Term, pause: Pause | None, entries: Mapping[str, EntryPause], shadow: Shadow) -> None:
        """Store the pauses as read or written, and remember them in case the ledger is lost."""
        self.current, self.entries, self.refused, self._read_under = pause, entries, False, term.nonce
        shadow.pauses = {
            Pause.FIELD: pause.encoded() if pause else "",
            entry_pauses.FIELD: entry_pauses.encoded(entries),
        }
        shadow.paused_gen = term.gen
