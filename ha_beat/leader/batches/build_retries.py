"""Retries of entries whose message could not be built, and the deadline that ends them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from ha_beat import events
from ha_beat.dispatch import MessageFailed
from ha_beat.leader.due_queue import DueQueue
from ha_beat.leader.entry import EntryState
from ha_beat.reasons import BuildFault, EntryFault, SkipReason
from ha_beat.schedule.misfire import Skipped, newest_due

#: Seconds until a message that could not be built is built again, doubled with each failure.
_BUILD_RETRY = 0.5
_LONGEST_BUILD_RETRY = 8.0

#: Shortest pause, as a multiple of the time that the attempt took: the other entries have the main loop meanwhile.
_REST = 9.0

#: Time until an entry whose arguments a thread computes is looked at again.
_ASK_AGAIN = timedelta(seconds=0.1)


class BuildRetries:
    """Rules for the entries of one term. ``deadline`` is the setting ``publish_deadline``, in seconds."""

    def __init__(self, deadline: float | None, emit: Callable[[events.Event], None]) -> None:
        self._deadline = deadline
        self._emit = emit

    def retry(self, state: EntryState, failed: MessageFailed, queue: DueQueue, now: datetime, took: float) -> None:
        """Build the message again after a pause, which grows with each failure and with the time that it ``took``."""
        refused = failed.fault is BuildFault.DESTINATION
        if not state.build_failures:
            fault = EntryFault.REFUSED if refused else EntryFault.MESSAGE_NOT_BUILT
            self._emit(events.EntryFailed(state.label, fault, failed.detail, failed.cause))
        reason = SkipReason.NOT_PUBLISHED if refused else SkipReason.NO_MESSAGE
        state.record_failure(now, failed.detail, reason)
        pause = max(min(_BUILD_RETRY * 2 ** min(state.build_failures, 9), _LONGEST_BUILD_RETRY), _REST * took)
        state.build_failures += 1
        queue.put(state, state.due_at or now, now + timedelta(seconds=pause))

    def await_arguments(self, state: EntryState, queue: DueQueue, now: datetime, *, hung: bool) -> None:
        """Look at an entry again soon. A ``hung`` one fails, and its occurrence has a verdict by the deadline."""
        if hung:
            if not state.build_failures:
                self._emit(events.EntryFailed(state.label, EntryFault.HUNG_ARGUMENTS))
                state.build_failures = 1
            state.record_failure(now, "its arguments have not been computed", SkipReason.NO_MESSAGE)
        queue.put(state, state.due_at or now, now + _ASK_AGAIN)

    def past_deadline(self, state: EntryState, send: datetime, now: datetime) -> bool:
        """True if an occurrence could not be enqueued within ``publish_deadline``.

        The deadline counts from the due time. An occurrence that was overdue by more than that at the first attempt, as
        a late catch-up is, gets the whole time from the first attempt.
        """
        deadline = self._deadline
        if state.failing_since is None or deadline is None:
            return False
        late, tried = (now - send).total_seconds(), (now - state.failing_since).total_seconds()
        overdue_before = late - tried > deadline
        return tried > deadline if overdue_before else late > deadline

    def expired(self, state: EntryState, now: datetime) -> tuple[Skipped, datetime] | None:
        """Return the instants past the deadline of an entry whose own code fails, and the last of them.

        Without it an entry that is due more often than the deadline would always try its newest instant, and never give
        a verdict.
        """
        recurrence, first, deadline = state.entry.recurrence, state.due_at, self._deadline
        if not state.build_failures or state.resend or recurrence is None or first is None or deadline is None:
            return None
        if not self.past_deadline(state, first, now):
            return None
        due = newest_due(recurrence, first, now - timedelta(seconds=deadline), keep=1)
        until = recurrence.next_after(due.newest)
        return Skipped(first, until, due.count, state.skip_reason, state.error), due.newest
