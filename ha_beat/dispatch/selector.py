"""Finds the way by which occurrences reach the broker."""

from __future__ import annotations

from collections.abc import Callable

from ha_beat import events
from ha_beat.dispatch.atomic import AtomicDispatcher
from ha_beat.dispatch.protocol import Dispatcher
from ha_beat.dispatch.two_phase import ClaimDispatcher
from ha_beat.store.lease import Term


class PathFinder:
    """Enqueue and record as one act where lease and queues are one Redis, else claim, publish and confirm."""

    def __init__(
        self, atomic: AtomicDispatcher | None, claim: ClaimDispatcher, emit: Callable[[events.Event], None]
    ) -> None:
        """``atomic`` is ``None`` where the broker is not Redis."""
        self._atomic = atomic
        self._claim = claim
        self._emit = emit
        self._said = ""

    def __call__(self, term: Term) -> Dispatcher:
        """The dispatcher for this term.

        Raises:
            StoreUnavailable: the broker can't be asked now.
        """
        if self._atomic is None:
            return self._say("claim", "the broker is not Redis", self._claim)
        if self._atomic.holds_lease(term):
            return self._say("atomic", "the broker is the Redis that holds the lease", self._atomic)
        return self._say("claim", "the broker is another Redis, or another database, than the lease's", self._claim)

    def _say(self, path: str, why: str, dispatcher: Dispatcher) -> Dispatcher:
        if path != self._said:
            self._said = path
            self._emit(events.PathChosen(path, why))
        return dispatcher
