"""Back-off after the failure of a whole batch, and the decision to leave the broker to another replica."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from tenacity import RetryCallState, Retrying, wait_random_exponential

from ha_beat import events
from ha_beat.clock import Clock
from ha_beat.errors import StoreError, StoreUnavailable
from ha_beat.reasons import TermEnd

#: Limit of the factor by which ``handover_after`` grows while the broker accepts nothing, term after term.
_MAX_FACTOR = 6

#: Seconds until a failed batch is retried. The main loop waits for them, not tenacity.
_PAUSES = wait_random_exponential(multiplier=0.1, min=0.02, max=1.0)


class BrokerOutOfReach(StoreUnavailable):
    """Failure of a broker that has not answered this replica for ``handover_after``: another replica should try."""

    reason: ClassVar[TermEnd] = TermEnd.BROKER_UNREACHABLE


class Backoff:
    """Exponential back-off with jitter. ``handover_after`` is in seconds."""

    def __init__(self, clock: Clock, emit: Callable[[events.Event], None], handover_after: float) -> None:
        self._clock = clock
        self._emit = emit
        self._handover_after = handover_after
        self._failures = 0
        self._failing_since: float | None = None
        #: Terms that ended because of the broker since it last accepted a message from this replica.
        self._handovers = 0
        #: Time of ``Clock.elapsed`` before which nothing is tried.
        self.try_at = 0.0

    @property
    def failures(self) -> int:
        """Return the number of failures in a row."""
        return self._failures

    def begin(self) -> None:
        """Start a term: forget the failures of the previous one."""
        self.succeeded()
        self.try_at = 0.0

    def succeeded(self) -> None:
        """Reset the count of failures."""
        self._failures, self._failing_since = 0, None

    def broker_accepted(self) -> None:
        """Note that the broker accepted a message."""
        self._handovers = 0

    def failed(self, error: StoreError, size: int) -> float:
        """Return for how many seconds to wait after the failure of a batch, or of reading the ledger (``size`` 0).

        Raises:
            BrokerOutOfReach: another replica should try.
        """
        now = self._clock.elapsed()
        self._failures += 1
        if error.same_for_all:
            # Another replica would meet the same error, and this one could not lead for a while.
            self._failing_since = None
        elif self._failing_since is None:
            self._failing_since = now
        if size:
            self._emit(events.DispatchFailed(size, str(error), self._failures))
        else:
            self._emit(events.LedgerReadFailed(str(error), self._failures))
        failing_for = 0.0 if self._failing_since is None else now - self._failing_since
        if failing_for > self._handover_after * min(2**self._handovers, _MAX_FACTOR):
            self._failing_since = None
            self._handovers = min(self._handovers + 1, _MAX_FACTOR)
            raise BrokerOutOfReach(str(error))
        seconds = _pause_after(self._failures)
        self.try_at = now + seconds
        return seconds


def _pause_after(failures: int) -> float:
    state = RetryCallState(Retrying(), None, (), {})
    state.attempt_number = failures
    return _PAUSES(state)
