"""Back-off after the failure of a whole batch, and the decision to leave the broker to another replica."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import ClassVar

from ha_beat import events
from ha_beat.clock import Clock
from ha_beat.errors import StoreError, StoreUnavailable
from ha_beat.reasons import TermEnd

#: Limit of the factor by which ``handover_after`` grows while the broker accepts nothing, term after term.
_MAX_FACTOR = 6

#: Least and most seconds until a failed batch is retried, and the most after the first failure.
_SHORTEST, _LONGEST, _FIRST = 0.02, 1.0, 0.1


class BrokerOutOfReach(StoreUnavailable):
    """Failure of a broker that has not answered this replica for ``handover_after``: another replica should try."""

    reason: ClassVar[TermEnd] = TermEnd.BROKER_UNREACHABLE


class Backoff:
    """Exponential back-off with jitter. ``handover_after`` is in seconds."""

    def __init__(self, clock: Clock, emit: Callable[[events.Event], None], handover_after: float) -> None:
        self._clock = clock
        self._emit = emit
        self._handover_after = handover_after
        #: Number of failures in a row.
        self.failures = 0
        self._failing_since: float | None = None
        #: Terms that ended because of the broker since it last accepted a message from this replica.
        self._handovers = 0
        #: Time of ``Clock.elapsed`` before which nothing is tried.
        self.try_at = 0.0

    def begin(self) -> None:
        """Start a term: forget the failures of the previous one."""
        self.succeeded()
        self.try_at = 0.0

    def succeeded(self) -> None:
        """Reset the count of failures."""
        self.failures, self._failing_since = 0, None

    def broker_accepted(self) -> None:
        """Note that the broker accepted a message."""
        self._handovers = 0

    def failed(self, error: StoreError, size: int) -> float:
        """Return for how many seconds to wait after the failure of a batch, or of reading the ledger (``size`` 0).

        Raises:
            BrokerOutOfReach: another replica should try.
        """
        now = self._clock.elapsed()
        self.failures += 1
        if error.same_for_all:
            # Another replica would meet the same error, and this one could not lead for a while.
            self._failing_since = None
        elif self._failing_since is None:
            self._failing_since = now
        if size:
            self._emit(events.DispatchFailed(size, str(error), self.failures))
        else:
            self._emit(events.LedgerReadFailed(str(error), self.failures))
        failing_for = 0.0 if self._failing_since is None else now - self._failing_since
        if failing_for > self._handover_after * min(2**self._handovers, _MAX_FACTOR):
            self._failing_since = None
            self._handovers = min(self._handovers + 1, _MAX_FACTOR)
            raise BrokerOutOfReach(str(error))
        longest = min(_FIRST * 2 ** min(self.failures - 1, 9), _LONGEST)
        seconds = max(random.uniform(0.0, longest), _SHORTEST)
        self.try_at = now + seconds
        return seconds
