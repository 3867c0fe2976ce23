"""Recovery from a loss of state in one term."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from ha_beat.dispatch import FencedOff
from ha_beat.election.leader_handle import TermOrigin
from ha_beat.leader.loading.state_loss import Loss, assess, with_unfinished
from ha_beat.store.lease import Term
from ha_beat.store.ledger import Ledger
from ha_beat.store.shadow import Shadow


class Recovery:
    """Recovery of one term. It looks for a loss once, and notes the loss in the ledger until the ledger is complete.

    If the term ends before, the next leader finds the note and continues the recovery.
    """

    def __init__(self, origin: TermOrigin, shadow: Shadow) -> None:
        self._origin = origin
        self._shadow = shadow
        self._assessed = self._began_gradually = False
        #: True if the next leader must look for a loss too, if this term ends early.
        self._unfinished = origin.acquired.server_changed
        #: The loss that was found, until the ledger is complete.
        self.loss: Loss | None = None

    def assess(
        self, rows: Mapping[str, str], ledger: Ledger, now: datetime, reached_at: datetime | None
    ) -> Loss | None:
        """Look for a loss of state and note it in the ledger. Return the loss if this call has found one.

        Args:
            rows: The ledger's raw rows by entry.
            ledger: Ledger in which the loss is noted.
            now: The scheduling time.
            reached_at: When this replica first reached the server.

        Raises:
            FencedOff: the term is over.
            StoreError: the loss could not be noted. The next call looks for it again.
        """
        if self._assessed:
            return None
        acquired = self._origin.acquired
        self.loss = assess(
            gen=acquired.term.gen,
            previous_gens=acquired.previous_gens,
            shadow=self._shadow,
            rows=rows,
            facts=ledger.server_facts(now) if acquired.server_changed else None,
            lost_at=self._origin.lost_at,
            now=now,
            reached_at=reached_at,
        )
        if acquired.unfinished:
            self.loss = with_unfinished(self.loss, acquired.unfinished, now)
        if self.loss is not None:
            self._unfinished = True
            _note(ledger, acquired.term, self.loss.encoded())  # guard: loss-noted
        self._assessed = True
        return self.loss

    def can_read_gradually(self, counter: int) -> bool:
        """True if only single rows may show a loss, because the server and the incarnation are the same as before.

        ``counter`` is the journal's; it shows whether the ledger was set back as a whole. The result is True once per
        term at most. Until :meth:`found_intact`, a load of all entries looks for a loss.
        """
        acquired, shadow = self._origin.acquired, self._shadow
        if self._assessed or self._began_gradually or acquired.server_changed or acquired.unfinished:
            return False
        self._began_gradually = True
        if not any(acquired.previous_gens) and not shadow.gen:
            # The state is new, and nothing of it can be lost in this term.
            self._assessed = shadow.empty
            return self._assessed
        if acquired.term.gen not in acquired.previous_gens:
            return False
        return shadow.empty or (
            shadow.gen == acquired.term.gen and counter >= shadow.counter  # guard: gradual-counter
        )

    @property
    def settled(self) -> bool:
        """True if a loss was looked for, and none is left to recover from."""
        return self._assessed and self.loss is None

    def found_intact(self) -> None:
        """Note that all rows were read and none was behind."""
        self._assessed = True

    def finish(self, ledger: Ledger, term: Term) -> None:
        """Mark the recovery complete, once every operation that it needs has been written.

        Raises:
            FencedOff: the term is over.
            StoreError: the mark may not be written. Calling it again is safe.
        """
        if self._unfinished:
            _note(ledger, term)
            self._unfinished = False
        self.loss = None


def _note(ledger: Ledger, term: Term, unfinished: str = "") -> None:
    reason = ledger.note_recovery(term, unfinished)
    if reason is not None:
        raise FencedOff(reason)
