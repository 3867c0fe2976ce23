"""Handle of the election for the main loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from ha_beat.clock import Clock
from ha_beat.election.states import Fenced, StepDown
from ha_beat.reasons import TermEnd, TermStart
from ha_beat.store.lease import Acquired, Term


@dataclass(frozen=True, slots=True)
class Tenure:
    """Term and the circumstances of its beginning.

    ``lost_at`` is when Redis was last found unreachable, or ``None`` if it never was: an earlier server did
    nothing after that. ``back_at`` is when it was reachable again, on ``Clock.elapsed``.
    """

    acquired: Acquired
    reason: TermStart
    lost_at: datetime | None = None
    back_at: float | None = None

    @property
    def nonce(self) -> str:
        return self.acquired.term.nonce


class LeaderHandle:
    """State shared by the main loop and the election thread.

    Each attribute is written by one thread and read by the other as a whole. No lock is needed, so that the signal
    handler of the main thread may run at any point. It has more than 15 methods because it has two sides.
    """

    def __init__(self, clock: Clock, wake_election: Callable[[], None] = lambda: None) -> None:
        self.tenure: Tenure | None = None
        self._clock = clock
        self._wake_election = wake_election
        self._term: Term | None = None
        self._progress_at = clock.elapsed()
        self._step_down: StepDown | None = None
        self._fenced: Fenced | None = None
        self._requests_pending = False
        self._changed = threading.Event()
        self._thread: threading.Thread | None = None

    # --- The main loop

    @property
    def term(self) -> Term | None:
        """Return the term in which this replica leads, while it is trusted."""
        term = self._term
        return term if term is not None and term.trusted(self._clock.elapsed()) else None

    @property
    def running(self) -> bool:
        """True if the election thread is alive."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def started(self) -> bool:
        """True if the election thread was started, even if it failed to."""
        return self._thread is not None

    @property
    def idle(self) -> float:
        """Return the seconds since the main loop last made progress."""
        return self._clock.elapsed() - self._progress_at

    def progress(self) -> None:
        """Report progress of the main loop. Without it for ``stall_timeout``, the lease is released."""
        self._progress_at = self._clock.elapsed()

    def wait(self, seconds: float) -> None:
        """Wait, at most until this replica's role changes or requests arrive."""
        if self._changed.wait(max(seconds, 0.0)):
            self._changed.clear()

    def take_requests_pending(self) -> bool:
        """True if requests may be pending. Clears the flag."""
        pending, self._requests_pending = self._requests_pending, False
        return pending

    def step_down(self, reason: TermEnd, *, detail: str = "", preferred: str = "") -> None:
        """Release the lease soon and let other replicas go first, above all the one with the id ``preferred``."""
        self._step_down = StepDown(reason, detail, preferred)
        self._wake_election()

    def fenced(self, term: Term, reason: TermEnd, detail: str = "") -> None:
        """End the term under which work was refused."""
        current = self._term
        if current is not None and current.nonce == term.nonce:
            # A newer term may have begun since the work was sent. It goes on.
            self._term = None
        self._fenced = Fenced(term.nonce, reason, detail)
        self._wake_election()

    # --- The election thread

    def run(self, thread: threading.Thread) -> None:
        """Start the election thread. The time before its start counts as progress."""
        self.progress()
        self._thread = thread
        thread.start()

    def begin(self, term: Term) -> None:
        """Begin a term. Requests may be pending from the start."""
        self._term = term
        self._requests_pending = True

    def extend(self, term: Term) -> None:
        """Replace the term by the same one with a later end of trust, unless it was fenced."""
        if self._term is not None:
            self._term = term

    def end(self) -> None:
        """End the term."""
        self._term = None

    def wake(self, *, requests: bool = False) -> None:
        """Wake the main loop, because its role has changed or because ``requests`` may be pending."""
        self._requests_pending = self._requests_pending or requests
        self._changed.set()

    def take_step_down(self) -> StepDown | None:
        """Return the requested step-down, if there is one, and clear it."""
        step_down = self._step_down
        if step_down is not None:
            # Cleared only if one was read: the main loop may set it at any moment.
            self._step_down = None
        return step_down

    def take_fence(self) -> Fenced | None:
        """Return the refusal that :meth:`fenced` reported, if there is one, and clear it."""
        fenced = self._fenced
        if fenced is not None:
            # Cleared only if one was read: the main loop may set it at any moment.
            self._fenced = None
        return fenced
