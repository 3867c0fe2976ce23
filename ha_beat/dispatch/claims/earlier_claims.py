"""Claims that earlier terms have left in the store, as the current term resolves them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ha_beat import events
from ha_beat.dispatch.claims.store import ClaimStore
from ha_beat.dispatch.claims.updates import take_back_updates, uncertain_update
from ha_beat.dispatch.protocol import OpenClaim
from ha_beat.reasons import SkipReason, Verdict
from ha_beat.store.journal import VerdictRecord, parse
from ha_beat.store.lease import Term
from ha_beat.store.ledger import Ledger, LedgerRow


class EarlierClaims:
    """Resolver of these claims. The methods are those of :class:`~ha_beat.dispatch.protocol.Dispatcher`."""

    def __init__(self, store: ClaimStore, ledger: Ledger, emit: Callable[[events.Event], None]) -> None:
        self._store = store
        self._ledger = ledger
        self._emit = emit

    def take_back(self, term: Term) -> frozenset[str]:
        unsent = [claim for claim in self._store.open_claims(term) if claim.unsent]
        if not unsent:
            return frozenset()
        # Only the leader replaces rows, so these stay the same until the claims are resolved.
        rows = self._ledger.read_some({claim.entry for claim in unsent})
        updates = take_back_updates(unsent, rows)
        were_open = self._store.resolve(updates, term)
        for update, was_open in zip(updates, were_open, strict=True):
            if was_open:
                self._report_skipped(update.records)
        return frozenset(claim.entry for claim in unsent)

    def record_uncertain(self, term: Term, claims: Sequence[OpenClaim]) -> Mapping[str, LedgerRow]:
        updates = [uncertain_update(claim) for claim in claims]
        were_open = self._store.resolve([update for update, _ in updates], term)
        return {
            update.entry: row
            for (update, row), was_open in zip(updates, were_open, strict=True)
            if row is not None and was_open
        }

    def _report_skipped(self, records: Sequence[str]) -> None:
        """Emit the verdicts of occurrences that are not sent any more."""
        for raw in records:
            found = parse("0-0", 0, raw)
            if isinstance(found, VerdictRecord) and found.verdict is Verdict.SKIPPED:
                reason = SkipReason(found.reason)
                self._emit(
                    events.OccurrenceSkipped(found.label, found.first, found.until, found.count, reason, found.detail)
                )
