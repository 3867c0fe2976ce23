"""Selection of the dispatch path."""

from __future__ import annotations

from collections.abc import Callable

from ha_beat import events
from ha_beat.dispatch.atomic import AtomicDispatcher
from ha_beat.dispatch.protocol import Dispatcher
from ha_beat.dispatch.two_phase import ClaimDispatcher
from ha_beat.reasons import DispatchPath, PathReason
from ha_beat.store.lease import Term


class DispatcherSelector:
    """Selection of the atomic path if one Redis holds both lease and queues, else of claim, publish and confirm."""

    def __init__(
        self, atomic: AtomicDispatcher | None, claim: ClaimDispatcher, emit: Callable[[events.Event], None]
    ) -> None:
        """``atomic`` is ``None`` if the broker is not Redis."""
        self._atomic = atomic
        self._claim = claim
        self._emit = emit
        self._path: DispatchPath | None = None

    def __call__(self, term: Term) -> Dispatcher:
        """Return the dispatcher for the term. Emits :class:`events.PathChosen` for the first path and each change.

        Raises:
            StoreUnavailable: the broker did not answer.
        """
        if self._atomic is None:
            self._choose(DispatchPath.CLAIM, PathReason.BROKER_NOT_REDIS)
            return self._claim
        if self._atomic.holds_lease(term):
            self._choose(DispatchPath.ATOMIC, PathReason.BROKER_HOLDS_LEASE)
            return self._atomic
        self._choose(DispatchPath.CLAIM, PathReason.BROKER_ON_OTHER_REDIS)
        return self._claim

    def _choose(self, path: DispatchPath, reason: PathReason) -> None:
        if path != self._path:
            self._path = path
            self._emit(events.PathChosen(path, reason))
