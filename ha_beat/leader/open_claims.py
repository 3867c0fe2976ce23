"""Open claims: occurrences whose delivery is unknown. They are sent again or recorded as uncertain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta

from ha_beat import events
from ha_beat.clock import Clock
from ha_beat.dispatch import Dispatcher, OpenClaim
from ha_beat.leader.due_queue import DueQueue
from ha_beat.leader.entry import EntryState
from ha_beat.reasons import UncertainPolicy, UncertainReason
from ha_beat.store.lease import Term


class OpenClaims:
    """Claims that earlier attempts left open. After ``in_flight_for`` seconds, none of their messages is in flight."""

    def __init__(self, clock: Clock, emit: Callable[[events.Event], None], in_flight_for: float) -> None:
        self._clock = clock
        self._emit = emit
        self._in_flight_for = in_flight_for
        self._open: list[OpenClaim] = []
        #: Entries whose claims were taken back, and whose rows must be read again.
        self._taken_back: frozenset[str] = frozenset()
        #: When this term first saw each open claim, on ``Clock.elapsed``, by key.
        self._seen_at: dict[str, float] = {}
        #: Journal records that are written again together with a resent occurrence, by entry.
        self._earlier_records: dict[str, tuple[str, ...]] = {}

    def load(self, dispatcher: Dispatcher, term: Term) -> None:
        """Read the open claims, when a term begins and after a reload of the schedule."""
        self._taken_back = frozenset()
        self._open = dispatcher.open_claims(term)
        now = self._clock.elapsed()
        self._seen_at = {claim.key: self._seen_at.get(claim.key, now) for claim in self._open}

    def to_be_resent(self, rows: Mapping[str, str]) -> set[str]:
        """Return the entries whose claimed occurrence must be sent again before another row is written for them."""
        return {claim.entry for claim in self._open if _resends(claim) and rows.get(claim.entry) == claim.row}

    def resend_republishable(self, queue: DueQueue, term: Term, now: datetime) -> None:
        """Queue the occurrences to republish, for the time at which their first attempt is certainly over."""
        self._earlier_records = {}
        for claim in list(self._open):
            state = queue.get(claim.entry)
            if not _resends(claim) or state is None or state.row is None or state.row.raw != claim.row:
                continue
            if state.row.scheduled_at is not None:
                self._open.remove(claim)
                wait = 0.0 if claim.nonce == term.nonce else self._in_flight_for_another(claim)
                self.resend(queue, state, claim.records, now + timedelta(seconds=max(wait, 0.0)))

    def _in_flight_for_another(self, claim: OpenClaim) -> float:
        """Return for how many seconds an earlier attempt may still be in flight; negative if it cannot be."""
        return self._seen_at[claim.key] + self._in_flight_for - self._clock.elapsed()  # guard: claim-not-in-flight

    def resend(self, queue: DueQueue, state: EntryState, records: Sequence[str], not_before: datetime) -> None:
        """Queue the occurrence of the entry's row again. The last of the records is built again with its message."""
        if state.row is not None and state.row.scheduled_at is not None:
            state.resend = True
            self._earlier_records[state.id] = tuple(records[:-1])
            queue.put(state, state.row.scheduled_at, not_before)

    def earlier_records(self, entry_id: str) -> tuple[str, ...]:
        """Return the records to write again with the entry's occurrence."""
        return self._earlier_records.get(entry_id, ())

    def forget(self, entry_id: str) -> None:
        """Forget an entry whose occurrence has its verdict."""
        self._earlier_records.pop(entry_id, None)

    def record_stale(self, dispatcher: Dispatcher, queue: DueQueue, term: Term, *, awaits_read: bool) -> frozenset[str]:
        """Record the claims of earlier attempts as uncertain, once these attempts cannot be in flight.

        With ``awaits_read``, an entry that is not in the queue may still be read and its message sent again.

        Returns:
            The entries whose rows must be read again, because their claims were marked as unsent and taken back.
        """
        stale = [
            claim
            for claim in self._open
            if self._in_flight_for_another(claim) <= 0.0
            and not (awaits_read and _resends(claim) and queue.get(claim.entry) is None)
        ]
        if stale:
            # A claim that its maker has marked as unsent by now is not recorded as uncertain.
            self._record_uncertain(dispatcher, queue, term, stale)
            self._open = [claim for claim in self._open if claim not in stale]
            self._taken_back |= dispatcher.take_back(term)
        taken_back, self._taken_back = self._taken_back, frozenset()
        return taken_back

    def record_resend_uncertain(self, dispatcher: Dispatcher, queue: DueQueue, term: Term, state: EntryState) -> None:
        """Record the occurrence of the entry's row as uncertain, because it is not sent again."""
        if state.row is None:
            return
        claimed = state.row.raw
        claims = [claim for claim in dispatcher.open_claims(term) if claim.row == claimed]
        self._record_uncertain(dispatcher, queue, term, claims)
        if any(claim.unsent for claim in claims):
            self._taken_back |= dispatcher.take_back(term)
        state.resend, state.failure = False, None
        self.forget(state.id)

    def _record_uncertain(
        self, dispatcher: Dispatcher, queue: DueQueue, term: Term, claims: Sequence[OpenClaim]
    ) -> None:
        for entry, row in dispatcher.record_uncertain(term, claims).items():
            state = queue.get(entry)
            if state is not None and state.row is not None and state.row.task_id == row.task_id:
                state.row = row
            label = entry if state is None else state.label
            reason = UncertainReason(row.reason)
            self._emit(events.OccurrenceUncertain(label, row.scheduled_at, row.task_id, reason, row.detail))


def _resends(claim: OpenClaim) -> bool:
    return claim.policy is UncertainPolicy.REPUBLISH and not claim.unsent
