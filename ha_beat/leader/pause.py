"""Pauses of the cluster and of entries: the leader's knowledge of them, and the requests about the cluster's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

from ha_beat import events
from ha_beat.clock import to_ms
from ha_beat.leader.request_outcome import Outcome, Refused
from ha_beat.reasons import ReplyCode
from ha_beat.store import entry_pauses
from ha_beat.store.entry_pauses import EntryPause
from ha_beat.store.lease import Term
from ha_beat.store.request_queue import MetaChange, Pause, Request, Requests
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
        #: True if Redis refused a batch since the pause was last read.
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


class PauseControl:
    """Reader of all pauses, and writer of the cluster's, on the leader."""

    def __init__(
        self,
        state: PauseState,
        requests: Requests,
        shadow: Shadow,
        now: Callable[[], datetime],
        reload: Callable[[], None],
        emit: Callable[[events.Event], None],
    ) -> None:
        """``reload`` makes the enqueuer read the ledger again, so that missed instants get their verdict."""
        self._state = state
        self._requests = requests
        self._shadow = shadow
        self._now = now
        self._reload = reload
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
            self._reload()

    def pause(self, term: Term, request: Request) -> Outcome:
        """Pause the cluster."""
        current = self._state.current
        if current is not None:
            raise Refused(ReplyCode.ALREADY_PAUSED, **current.as_data())
        pause = Pause(self._now_ms(), request.by, str(request.args.get("reason") or ""))
        # If the reply is lost, Redis knows the outcome.
        self._state.invalidate()

        def then() -> None:
            self._state.set(term, pause, self._state.entries, self._shadow)
            self._emit(events.Paused(pause.since, pause.by, pause.reason, found=False))

        return Outcome(
            ReplyCode.PAUSED,
            pause.as_data(),
            record={"event": ReplyCode.PAUSED, "why": pause.reason},
            change=MetaChange(Pause.FIELD, pause.encoded()),
            then=then,
        )

    def resume(self, term: Term, request: Request) -> Outcome:
        """End the pause."""
        pause = self._state.current
        if pause is None:
            raise Refused(ReplyCode.NOT_PAUSED)
        self._state.invalidate()

        def then() -> None:
            self._state.set(term, None, self._state.entries, self._shadow)
            self._reload()
            self._emit(events.Resumed(request.by, (self._now_ms() - pause.since_ms) / 1000))

        return Outcome(
            ReplyCode.RESUMED,
            {"was": pause.as_data()},
            record={"event": ReplyCode.RESUMED},
            change=MetaChange(Pause.FIELD, ""),
            then=then,
        )

    def _now_ms(self) -> int:
        return to_ms(self._now())
