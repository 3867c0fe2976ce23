"""Selector of a term's dispatcher."""

from __future__ import annotations

from collections.abc import Callable

from ha_beat import events
from ha_beat.dispatch.atomic import AtomicDispatcher
from ha_beat.dispatch.lease_marker import LeaseMarker
from ha_beat.dispatch.protocol import Dispatcher
from ha_beat.dispatch.two_phase import ClaimDispatcher
from ha_beat.reasons import DispatchPath, PathReason
from ha_beat.store.lease import Term


class DispatcherSelector:
    """Selector of a term's dispatcher: atomic if one Redis holds lease and queues, else claim, publish, confirm.

    ``marker`` is the lease marker that both dispatchers need, and that the main loop keeps.
    """

    def __init__(
        self,
        atomic: AtomicDispatcher | None,
        claim: ClaimDispatcher,
        marker: LeaseMarker,
        emit: Callable[[events.Event], None],
    ) -> None:
        """``atomic`` is ``None`` if the broker is not Redis."""
        self._atomic = atomic
        self._claim = claim
        self.marker = marker
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
