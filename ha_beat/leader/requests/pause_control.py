"""Pauses on the leader: reading them from Redis, and the handlers that pause and resume the cluster or one entry."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ha_beat import events
from ha_beat.clock import to_ms
from ha_beat.leader.enqueuer import Enqueuer
from ha_beat.leader.pause import PauseState
from ha_beat.leader.requests.outcome import RequestOutcome, RequestRefused, find_entry
from ha_beat.reasons import ReplyCode
from ha_beat.store import entry_pauses
from ha_beat.store.cluster_pause import Pause
from ha_beat.store.entry_pauses import EntryPause
from ha_beat.store.lease import Term
from ha_beat.store.ledger import KEEP_ABSENT
from ha_beat.store.request_queue import MetaChange, Request, Requests
from ha_beat.store.shadow import Shadow


class PauseControl:
    """Reader and writer of the pauses. An entry's pause is kept when the entry is deleted or its schedule edited."""

    def __init__(
        self,
        state: PauseState,
        requests: Requests,
        shadow: Shadow,
        enqueuer: Enqueuer,
        emit: Callable[[events.Event], None],
    ) -> None:
        self._state = state
        self._requests = requests
        self._shadow = shadow
        self._enqueuer = enqueuer
        self._emit = emit

    def refresh(self, term: Term, *, new_term: bool) -> None:
        """Read the pauses from Redis if this leader may have missed a change.

        Raises:
            StoreError: Redis failed.
        """
        state, shadow = self._state, self._shadow
        if not state.must_be_read(term):
            return
        found = self._requests.pauses()
        if shadow.paused_gen != term.gen:  # guard: pause-kept
            lost = {name: raw for name, raw in shadow.pauses.items() if raw and not found[name]}
            self._requests.keep_pauses(term, lost)
            found |= lost
        pause = Pause.parse(found[Pause.FIELD]) if found[Pause.FIELD] else None
        known, was_in_force = state.current, state.in_force
        state.set(term, pause, entry_pauses.parse(found[entry_pauses.FIELD]), shadow)
        if pause is not None and (new_term or known is None):
            self._emit(events.Paused(pause.since, pause.by, pause.reason, found=new_term))
        elif pause is None and was_in_force:
            self._enqueuer.reload()

    def pause(self, term: Term, request: Request) -> RequestOutcome:
        """Pause the cluster."""
        current = self._state.current
        if current is not None:
            raise RequestRefused(ReplyCode.ALREADY_PAUSED, **current.as_data())
        pause = Pause(self._now_ms(), request.by, str(request.args.get("reason") or ""))
        # If the reply is lost, Redis knows the outcome.
        self._state.invalidate()

        def then() -> None:
            self._state.set(term, pause, self._state.entries, self._shadow)
            self._emit(events.Paused(pause.since, pause.by, pause.reason, found=False))

        return RequestOutcome(
            ReplyCode.PAUSED,
            pause.as_data(),
            record={"event": ReplyCode.PAUSED, "why": pause.reason},
            change=MetaChange(Pause.FIELD, pause.encoded()),
            then=then,
        )

    def resume(self, term: Term, request: Request) -> RequestOutcome:
        """End the pause of the cluster. The ledger is read again, so that missed instants get their verdict."""
        pause = self._state.current
        if pause is None:
            raise RequestRefused(ReplyCode.NOT_PAUSED)
        self._state.invalidate()

        def then() -> None:
            self._state.set(term, None, self._state.entries, self._shadow)
            self._enqueuer.reload()
            self._emit(events.Resumed(request.by, (self._now_ms() - pause.since_ms) / 1000))

        return RequestOutcome(
            ReplyCode.RESUMED,
            {"was": pause.as_data()},
            record={"event": ReplyCode.RESUMED},
            change=MetaChange(Pause.FIELD, ""),
            then=then,
        )

    def pause_entry(self, term: Term, request: Request) -> RequestOutcome:
        """Pause an entry: its occurrences are skipped until it is resumed."""
        entry = find_entry(self._enqueuer.due_queue, request)
        known = self._state.entries.get(entry.id)
        if known is not None and known.in_force:
            raise RequestRefused(ReplyCode.ENTRY_ALREADY_PAUSED, entry=entry.id, **known.as_data())
        pause = EntryPause(entry.label, self._now_ms(), request.by, str(request.args.get("reason") or ""))
        return self._change_entry(term, entry.id, pause, ReplyCode.ENTRY_PAUSED)

    def resume_entry(self, term: Term, request: Request) -> RequestOutcome:
        """End the pause of an entry, even if the entry has left the schedule."""
        name = str(request.args.get("entry") or "")
        named = [each for each, pause in self._state.entries.items() if pause.in_force and name in (each, pause.name)]
        entry = named[0] if len(named) == 1 else find_entry(self._enqueuer.due_queue, request).id
        pause = self._state.entries.get(entry)
        if pause is None or not pause.in_force:
            raise RequestRefused(ReplyCode.ENTRY_NOT_PAUSED, entry=entry, name=name)
        # An instant that is due now has its verdict only later, perhaps under another leader.
        return self._change_entry(term, entry, pause.ended(self._now_ms()), ReplyCode.ENTRY_RESUMED)

    def _change_entry(self, term: Term, entry: str, pause: EntryPause, code: ReplyCode) -> RequestOutcome:
        entries: Mapping[str, EntryPause] = {
            **{each: known for each, known in self._state.entries.items() if self._is_needed(each, known)},
            entry: pause,
        }
        # If the reply is lost, Redis knows the outcome.
        self._state.invalidate()
        return RequestOutcome(
            code,
            {"entry": entry, **pause.as_data()},
            record={"event": code, "entry": entry, "name": pause.name, "why": pause.reason},
            change=MetaChange(entry_pauses.FIELD, entry_pauses.encoded(entries)),
            then=lambda: self._state.set(term, self._state.current, entries, self._shadow),
        )

    def _is_needed(self, entry: str, pause: EntryPause) -> bool:
        """True if a pause is in force, or has ended while an instant that it covers has no verdict yet."""
        if pause.in_force:
            return True
        state = self._enqueuer.due_queue.get(entry)
        if state is None:
            return pause.until > self._enqueuer.now() - KEEP_ABSENT
        return state.due_at is None or state.due_at <= pause.until

    def _now_ms(self) -> int:
        return to_ms(self._enqueuer.now())
