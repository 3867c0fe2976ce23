"""How soon a batch that failed as a whole is tried again, and when that is left to another replica."""

from __future__ import annotations

from collections.abc import Callable

from tenacity import RetryCallState, Retrying, wait_random_exponential

from ha_beat import events
from ha_beat.clock import Clock
from ha_beat.errors import StoreError, StoreUnavailable

#: A broker that takes nothing from this replica, term after term, is left to others less and less often: by this much.
_MOST_PATIENCE = 6

#: Seconds until a batch that failed as a whole is tried again. The main loop waits for them, not a loop of tenacity's.
_PAUSES = wait_random_exponential(multiplier=0.1, min=0.02, max=1.0)


class BrokerOutOfReach(StoreUnavailable):
    """The broker has not answered this replica for so long that another one should try."""


class Backoff:
    """Exponential, with jitter. ``handover_after`` is in seconds."""

    def __init__(self, clock: Clock, emit: Callable[[events.Event], None], handover_after: float) -> None:
        self._clock = clock
        self._emit = emit
        self._handover_after = handover_after
        self._failures = 0
        self._failing_since: float | None = None
        #: Terms that ended for the broker's sake since it last took a message from this replica.
        self._handovers = 0
        #: Nothing is tried before this instant, on ``Clock.elapsed``.
        self.try_at = 0.0

    @property
    def failures(self) -> int:
        """How often in a row it has failed."""
        return self._failures

    def begin(self) -> None:
        """A new term: what failed under another one says little."""
        self.succeeded()
        self.try_at = 0.0

    def succeeded(self) -> None:
        self._failures, self._failing_since = 0, None

    def broker_took_a_message(self) -> None:
        self._handovers = 0

    def failed(self, error: StoreError, size: int) -> float:
        """After the failure of a whole batch of this size: for how many seconds to wait.

        Raises:
            BrokerOutOfReach: another replica should try.
        """
        now = self._clock.elapsed()
        self._failures += 1
        self._failing_since = now if self._failing_since is None else self._failing_since
        self._emit(events.DispatchFailed(size, str(error), self._failures))
        if now - self._failing_since > self._handover_after * min(2**self._handovers, _MOST_PATIENCE):
            self._failing_since = None
            self._handovers = min(self._handovers + 1, _MOST_PATIENCE)
            raise BrokerOutOfReach(str(error))
        seconds = _pause_after(self._failures)
        self.try_at = now + seconds
        return seconds


def _pause_after(failures: int) -> float:
    state = RetryCallState(Retrying(), None, (), {})
    state.attempt_number = failures
    return _PAUSES(state)
