"""Report of the leader: the handlers of ``report`` and ``next``."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from ha_beat import events
from ha_beat.clock import to_ms
from ha_beat.exception_text import printable
from ha_beat.leader.enqueuer import Enqueuer
from ha_beat.leader.pause import PauseState
from ha_beat.leader.requests.outcome import RequestOutcome, find_entry
from ha_beat.reasons import ReplyCode
from ha_beat.store.lease import Term
from ha_beat.store.request_queue import Request

#: Most failing entries that the report lists.
_FAILING = 50

#: Most entries that one answer lists.
_LISTED = 1000


class LeaderReport:
    """Report of the leader's schedule. Follows the events of this replica."""

    def __init__(self, enqueuer: Enqueuer, pause: PauseState) -> None:
        self._enqueuer = enqueuer
        self._pause = pause
        self._path = {"path": "", "why": ""}
        self._failing: dict[str, dict[str, str]] = {}

    def note(self, event: events.Event) -> None:
        """Follow an event."""
        match event:
            case events.PathChosen(path, reason):
                self._path = {"path": path, "why": reason}
            case events.EntryFailed(entry, reason, detail):
                self._failing.pop(entry, None)
                self._failing[entry] = {"reason": reason, "detail": detail}
                if len(self._failing) > _FAILING:
                    # The oldest is dropped, because a deleted entry would stay.
                    del self._failing[next(iter(self._failing))]
            case events.Enqueued(entry):
                self._failing.pop(entry, None)
            case events.TermStarted():
                self._failing.clear()
            case _:
                pass

    def report(self, _term: Term, _request: Request) -> RequestOutcome:
        """Return the state of the schedule. Ages are in seconds."""
        now, queue = self._enqueuer.now(), self._enqueuer.due_queue
        overdue = [
            (now - state.sends_at).total_seconds()
            for state in queue.entries()
            if state.entry.recurrence is not None and state.sends_at is not None and state.sends_at < now
        ]
        pause = self._pause.current
        return RequestOutcome(
            ReplyCode.REPORT,
            {
                "dispatch": self._path,
                "failing": dict(self._failing),
                "now_ms": to_ms(now),
                "entries": len(queue),
                "backlog": len(overdue),
                "longest_overdue": max(overdue, default=0.0),
                "paused": pause.as_data() if pause else None,
                "paused_entries": sorted(entry for entry, each in self._pause.entries.items() if each.in_force),
            },
        )

    def next(self, _term: Term, request: Request) -> RequestOutcome:
        """Return the upcoming entries, or the one that the request names."""
        return RequestOutcome(ReplyCode.ENTRIES, {"entries": list(self._upcoming(request))})

    def _upcoming(self, request: Request) -> Iterator[dict[str, Any]]:
        limit = min(int(request.args.get("limit") or 20), _LISTED)
        queue = self._enqueuer.due_queue
        states = [find_entry(queue, request)] if request.args.get("entry") else list(queue.entries())
        far = datetime.max.replace(tzinfo=UTC)
        for state in sorted(states, key=lambda state: (state.due_at or far, state.id))[:limit]:
            entry = state.entry.celery_entry
            known = state.entry.recurrence is not None and state.due_at is not None
            yield {
                "entry": state.id,
                "name": printable(entry.name),
                "task": state.entry.task,
                "schedule": " ".join(str(entry.schedule).split()),  # django-celery-beat's has line breaks
                "due": state.due_at.isoformat() if known and state.due_at else None,
                "last": state.row.scheduled_at.isoformat() if state.row and state.row.scheduled_at else None,
                "run_count": state.row.run_count if state.row else 0,
            }
