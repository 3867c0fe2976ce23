"""Handlers of the requests to pause and to resume one entry."""

from __future__ import annotations

from collections.abc import Iterator

from ha_beat.clock import to_ms
from ha_beat.leader.pause import PauseState
from ha_beat.leader.request_outcome import Outcome, Refused, find_entry
from ha_beat.leader.requested_messages import Schedule
from ha_beat.reasons import ReplyCode
from ha_beat.store import entry_pauses
from ha_beat.store.entry_pauses import EntryPause
from ha_beat.store.lease import Term
from ha_beat.store.ledger import KEEP_ABSENT
from ha_beat.store.request_queue import MetaChange, Request
from ha_beat.store.shadow import Shadow


class EntryPauseControl:
    """Writer of the entries' pauses on the leader. A pause is kept when its entry is deleted or its schedule edited."""

    def __init__(self, state: PauseState, schedule: Schedule, shadow: Shadow) -> None:
        self._state = state
        self._schedule = schedule
        self._shadow = shadow

    def pause(self, term: Term, request: Request) -> Outcome:
        """Pause an entry: its occurrences are skipped until it is resumed."""
        entry = find_entry(self._schedule.due_queue, request)
        known = self._state.entries.get(entry.id)
        if known is not None and known.in_force:
            raise Refused(ReplyCode.ENTRY_ALREADY_PAUSED, entry=entry.id, **known.as_data())
        pause = EntryPause(entry.label, self._now_ms(), request.by, str(request.args.get("reason") or ""))
        return self._change(term, entry.id, pause, ReplyCode.ENTRY_PAUSED)

    def resume(self, term: Term, request: Request) -> Outcome:
        """End the pause of an entry, also of one that is not in the schedule any more."""
        name = str(request.args.get("entry") or "")
        named = [each for each, pause in self._state.entries.items() if pause.in_force and name in (each, pause.name)]
        entry = named[0] if len(named) == 1 else find_entry(self._schedule.due_queue, request).id
        pause = self._state.entries.get(entry)
        if pause is None or not pause.in_force:
            raise Refused(ReplyCode.ENTRY_NOT_PAUSED, entry=entry, name=name)
        # An instant that is due now has its verdict only later, perhaps under another leader.
        return self._change(term, entry, pause.ended(self._now_ms()), ReplyCode.ENTRY_RESUMED)

    def _change(self, term: Term, entry: str, pause: EntryPause, code: ReplyCode) -> Outcome:
        entries = {**dict(self._needed()), entry: pause}
        # If the reply is lost, Redis knows the outcome.
        self._state.invalidate()
        return Outcome(
            code,
            {"entry": entry, **pause.as_data()},
            record={"event": code, "entry": entry, "name": pause.name, "why": pause.reason},
            change=MetaChange(entry_pauses.FIELD, entry_pauses.encoded(entries)),
            then=lambda: self._state.set(term, self._state.current, entries, self._shadow),
        )

    def _needed(self) -> Iterator[tuple[str, EntryPause]]:
        """Yield the pauses that are in force or that instants without a verdict need."""
        queue, now = self._schedule.due_queue, self._schedule.now()
        for entry, pause in self._state.entries.items():
            state = queue.get(entry)
            if state is None:
                needed = pause.in_force or pause.until > now - KEEP_ABSENT
            else:
                needed = pause.in_force or state.due_at is None or state.due_at <= pause.until
            if needed:
                yield entry, pause

    def _now_ms(self) -> int:
        return to_ms(self._schedule.now())
