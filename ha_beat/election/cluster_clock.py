"""Scheduling time: the machine's wall clock, unless other clocks outvote it.

A step or a drift of the wall clock must neither stop the schedule nor make entries run early. The wall clock counts
while it keeps pace with a clock that never steps. If it does not keep pace, Redis' clock decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from ha_beat import events
from ha_beat.clock import Clock, from_micros

#: Largest difference in seconds between two clocks that agree.
AGREEMENT = 2.0

#: Difference in seconds within which the wall clock and Redis' clock confirm each other. Their common time is then the
#: reference, so that small errors of the clock that never steps do not add up over months.
CONFIRMED = 0.5

#: Longest time in seconds between the readings of two clocks that are compared, and the largest number of attempts.
_APART, _READINGS = 0.1, 3

#: Seconds for which the offsets of the other replicas count. They report them every two seconds.
_FRESH = 10.0


def vote(mine: float, *others: float) -> float:
    """Return the first of these times in seconds with which another one agrees, or ``mine`` if none agree."""
    opinions = (mine, *others)
    for number, opinion in enumerate(opinions):
        if any(abs(opinion - other) <= AGREEMENT for other in opinions[number + 1 :]):
            return opinion
    return mine


class SchedulingTime:
    """Scheduling time in UTC. The election thread reports Redis' clock, and the main loop reads the time.

    Both threads may compute the time simultaneously: each attribute is written as a whole, and both threads get the
    same result.
    """

    def __init__(self, clock: Clock, emit: Callable[[events.Event], None]) -> None:
        self._clock = clock
        self._emit = emit
        #: Time on which the clocks agreed, minus :meth:`Clock.elapsed`. It does not follow the wall clock alone: many
        #: small corrections could lead it anywhere.
        self._reference = clock.wall() - clock.elapsed()
        #: Redis' clock minus :meth:`Clock.elapsed`.
        self._redis: float | None = None
        #: Value of :attr:`offset` while no clock drifts.
        self._usual = 0.0
        #: Offsets of the other replicas' clocks from Redis' clock, and when they were reported.
        self._others: tuple[Sequence[float], float] = ((), 0.0)
        self._outvoted = False
        self._warned = False

    def now(self) -> datetime:
        """Return the scheduling time."""
        return from_micros(round(self.seconds() * 1_000_000))

    def seconds(self) -> float:
        """Return the scheduling time in seconds since the Unix epoch."""
        elapsed, wall = self._read_clocks()
        redis = self._redis
        ahead = wall - elapsed - self._reference
        if redis is not None and abs(wall - elapsed - redis - self._usual) <= CONFIRMED:
            self._reference = redis + self._usual
        if abs(ahead) <= AGREEMENT:
            self._outvoted = False
            return wall
        if redis is not None and abs(wall - elapsed - redis) <= AGREEMENT:
            self._reference, self._usual = redis, 0.0
            self._outvoted = False
            self._emit(events.ClockJumped(ahead, followed=True))
            return wall
        if not self._outvoted:
            self._outvoted = True
            self._emit(events.ClockJumped(ahead, followed=False))
        return self._reference + elapsed  # guard: clock-step

    def _read_clocks(self) -> tuple[float, float]:
        """Return :meth:`Clock.elapsed` and the wall clock, read without a pause in between if possible."""
        for _ in range(_READINGS):
            began = self._clock.elapsed()
            wall = self._clock.wall()
            elapsed = self._clock.elapsed()
            if elapsed - began <= _APART:
                break
        return elapsed, wall

    @property
    def offset(self) -> float:
        """Return the reference minus Redis' clock, in seconds; 0 while it is unknown."""
        return self._reference - self._redis if self._redis is not None else 0.0

    def redis_said(self, server_ms: int, sent_at: float, received_at: float) -> None:
        """Record Redis' clock, read by a command that was sent and answered at these times."""
        unsure = (received_at - sent_at) / 2
        measured = server_ms / 1000 - (sent_at + received_at) / 2
        before = self._redis
        # A slow answer is imprecise: the known value stays if it is within the error.
        self._redis = min(max(measured if before is None else before, measured - unsure), measured + unsure)
        if before is None:
            self._accept_offset()
        elif abs(self._redis - before) > AGREEMENT / 2:
            # Redis' clock stepped. The clocks of this machine have not.
            self._usual -= self._redis - before
        self._ask_others()
        if abs(self.offset) <= AGREEMENT:
            self._warned = False
        elif abs(self.offset) > AGREEMENT + unsure and not self._warned:
            self._warned = True
            self._emit(events.ClockOffset(self.offset))

    def others_said(self, offsets: Sequence[float]) -> None:
        """Record by how many seconds the clocks of the other replicas are ahead of Redis' clock."""
        self._others = (offsets, self._clock.elapsed())

    def _ask_others(self) -> None:
        """Let the other replicas decide if this machine's clocks and Redis' clock drift apart.

        A machine cannot tell alone whether all its clocks run at a wrong rate or the clock of Redis does.
        """
        offsets, said_at = self._others
        elapsed, redis = self._clock.elapsed(), self._redis
        if redis is None or not offsets or elapsed - said_at > _FRESH:
            return
        mine = self.seconds() - elapsed
        if abs(mine - redis - self._usual) <= AGREEMENT:
            return
        agreed = vote(mine, redis + self._usual, *(redis + offset for offset in offsets))
        if agreed == mine:
            self._accept_offset()
        else:
            self._outvote(agreed)  # guard: clock-others-vote

    def _accept_offset(self) -> None:
        """Take the present offset for the usual one, or 0 if the clocks confirm each other."""
        self._usual = 0.0 if abs(self.offset) <= CONFIRMED else self.offset

    def _outvote(self, agreed: float) -> None:
        """Replace the reference by the one on which the other clocks agree."""
        wrong, self._reference = self._reference - agreed, agreed
        if not self._outvoted:
            self._outvoted = True
            self._emit(events.ClockJumped(wrong, followed=False))

    def offset_in_term(self, leaders_offset: float | None) -> float:
        """Return the value that :attr:`offset` will have after :meth:`vote_at_term_start`."""
        return self._agreed(leaders_offset) - self._redis if self._redis is not None else 0.0

    def vote_at_term_start(self, leaders_offset: float | None) -> None:
        """Vote at the start of a term. The last leader's clock, by its offset from Redis, has the third vote."""
        agreed = self._agreed(leaders_offset)
        if agreed != self._reference:
            self._outvote(agreed)
        self._accept_offset()

    def _agreed(self, leaders_offset: float | None) -> float:
        """Return the reference on which this replica, Redis and the last leader agree."""
        if self._redis is None or leaders_offset is None:
            return self._reference
        return vote(self._reference, self._redis, self._redis + leaders_offset)  # guard: clock-leader-votes
