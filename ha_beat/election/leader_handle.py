"""Handle of the election for the main loop."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from ha_beat.clock import Clock
from ha_beat.election.states import Fenced, StepDown
from ha_beat.reasons import TermEnd, TermStart
from ha_beat.store.lease import Acquired, Term


@dataclass(frozen=True, slots=True)
class TermOrigin:
    """Origin of a term: what its acquisition found, and the circumstances.

    ``acquired.term`` is the term before any renewal. ``lost_at`` is the scheduling time at which Redis was last found
    unreachable, ``None`` if it never was. If the server restarted, its earlier process did nothing after that.
    ``back_at`` is when Redis was reachable again, on ``Clock.elapsed``.
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

    Each attribute is written and read as a whole. What the main loop asks of the election lies in a box until it is
    taken out. No lock is needed, so the signal handler of the main thread may run at any point.
    """

    def __init__(self, clock: Clock, wake_election: Callable[[], None] = lambda: None) -> None:
        #: Origin of the newest term.
        self.origin: TermOrigin | None = None
        #: Election thread, from the attempt to start it.
        self.thread: threading.Thread | None = None
        self._clock = clock
        self._wake_election = wake_election
        self._term: Term | None = None
        self._progress_at = clock.elapsed()
        self._requests_pending = False
        self._changed = threading.Event()
        # Boxes for what the main loop asks of the election. The newest content replaces an older one.
        self._step_down: deque[StepDown] = deque(maxlen=1)
        self._fence: deque[Fenced] = deque(maxlen=1)

    # --- The main loop

    @property
    def term(self) -> Term | None:
        """Return the term in which this replica leads, while it is trusted."""
        term = self._term
        return term if term is not None and term.trusted(self._clock.elapsed()) else None

    @property
    def running(self) -> bool:
        """True if the election thread is alive."""
        return self.thread is not None and self.thread.is_alive()

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
        if not self._requests_pending:
            # Not cleared: the election thread may have set the flag since.
            return False
        self._requests_pending = False
        return True

    def step_down(self, reason: TermEnd, *, detail: str = "", preferred: str = "") -> None:
        """Release the lease soon and let other replicas go first, above all the one with the id ``preferred``."""
        self._step_down.append(StepDown(reason, detail, preferred))
        self._wake_election()

    def fenced(self, term: Term, reason: TermEnd, detail: str = "") -> None:
        """End the term under which work was refused. A newer term, begun since the work was sent, continues."""
        current = self._term
        if current is not None and current.nonce == term.nonce:
            self._term = None
        self._fence.append(Fenced(term.nonce, reason, detail))
        self._wake_election()

    # --- The election thread

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
        if requests:
            self._requests_pending = True
        self._changed.set()

    def take_step_down(self) -> StepDown | None:
        """Return the requested step-down, if there is one, and clear it."""
        return self._step_down.pop() if self._step_down else None

    def take_fence(self) -> Fenced | None:
        """Return the refusal that :meth:`fenced` reported, if there is one, and clear it."""
        return self._fence.pop() if self._fence else None
