"""Retries of entries whose message could not be built, and the deadline that ends them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from ha_beat import events
from ha_beat.dispatch import MessageFailed
from ha_beat.leader.due_queue import DueQueue
from ha_beat.leader.entry import EntryState, Failure
from ha_beat.reasons import BuildFault, EntryFault, SkipReason
from ha_beat.schedule.misfire import Skipped, newest_due

#: Seconds until a message that could not be built is built again, doubled with each failure.
_BUILD_RETRY = 0.5
_LONGEST_BUILD_RETRY = 8.0

#: Shortest pause, as a multiple of the time that the attempt took. It leaves the main loop to the other entries.
_REST = 9.0

#: Time until the leader asks again for arguments that a thread computes.
_ASK_AGAIN = timedelta(seconds=0.1)


class BuildRetries:
    """Rules for the entries of one term. ``deadline`` is the setting ``publish_deadline``, in seconds."""

    def __init__(self, deadline: float | None, emit: Callable[[events.Event], None]) -> None:
        self._deadline = deadline
        self._emit = emit

    def retry(self, state: EntryState, failed: MessageFailed, queue: DueQueue, now: datetime, took: float) -> None:
        """Build the message again after a pause, which grows with each failure and with the time that it ``took``."""
        refused = failed.fault is BuildFault.DESTINATION
        reason = SkipReason.NOT_PUBLISHED if refused else SkipReason.NO_MESSAGE
        failure = state.record_failure(now, failed.detail, reason)
        if not failure.builds:
            fault = EntryFault.REFUSED if refused else EntryFault.MESSAGE_NOT_BUILT
            self._emit(events.EntryFailed(state.label, fault, failed.detail, failed.cause))
        pause = max(min(_BUILD_RETRY * 2 ** min(failure.builds, 9), _LONGEST_BUILD_RETRY), _REST * took)
        failure.builds += 1
        queue.put(state, state.due_at or now, now + timedelta(seconds=pause))

    def await_arguments(self, state: EntryState, queue: DueQueue, now: datetime, *, hung: bool) -> None:
        """Try an entry again soon. If its arguments are ``hung``, it fails, and the deadline ends its occurrence."""
        if hung:
            failure = state.record_failure(now, "its arguments have not been computed", SkipReason.NO_MESSAGE)
            if not failure.builds:
                self._emit(events.EntryFailed(state.label, EntryFault.HUNG_ARGUMENTS))
                failure.builds = 1
        queue.put(state, state.due_at or now, now + _ASK_AGAIN)

    def past_deadline(self, state: EntryState, send: datetime, now: datetime) -> Failure | None:
        """Return the failure of an occurrence that could not be enqueued within ``publish_deadline``.

        The deadline counts from the due time. If the occurrence was overdue by more than the deadline at the first
        attempt, as a late catch-up is, the deadline counts from that attempt.
        """
        failure, deadline = state.failure, self._deadline
        if failure is None or deadline is None:
            return None
        late, tried = (now - send).total_seconds(), (now - failure.since).total_seconds()
        overdue_before = late - tried > deadline
        return failure if (tried if overdue_before else late) > deadline else None

    def expired(self, state: EntryState, now: datetime) -> tuple[Skipped, datetime] | None:
        """Return the instants past the deadline of an entry whose own code fails, and the last of them.

        Otherwise an entry that is due more often than the deadline would always try its newest instant, and none of its
        instants would have a verdict.
        """
        recurrence, first, deadline = state.entry.recurrence, state.due_at, self._deadline
        if state.resend or recurrence is None or first is None or deadline is None:
            return None
        failure = self.past_deadline(state, first, now)
        if failure is None or not failure.builds:
            return None
        due = newest_due(recurrence, first, now - timedelta(seconds=deadline), keep=1)
        until = recurrence.next_after(due.newest)
        return Skipped(first, until, due.count, failure.skip_reason, failure.error), due.newest
