"""Scheduling time: the machine's clock, unless other clocks outvote it.

A step of the wall clock must neither stop the schedule nor make entries run early. The wall clock counts while it
agrees with its earlier time, carried forward by a clock that never steps. When it jumps, Redis' clock decides.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from ha_beat import events
from ha_beat.clock import Clock, from_micros

#: Largest difference in seconds between two clocks that agree.
AGREEMENT = 2.0


def vote(mine: float, *others: float) -> float:
    """Return the first of these times in seconds with which another one agrees, or ``mine`` if none agree."""
    opinions = (mine, *others)
    for number, opinion in enumerate(opinions):
        if any(abs(opinion - other) <= AGREEMENT for other in opinions[number + 1 :]):
            return opinion
    return mine


class SchedulingTime:
    """Scheduling time in UTC. The election thread reports Redis' clock, and the main loop reads the time."""

    def __init__(self, clock: Clock, emit: Callable[[events.Event], None]) -> None:
        self._clock = clock
        self._emit = emit
        #: Scheduling time minus :meth:`Clock.elapsed`.
        self._anchor = clock.wall() - clock.elapsed()
        #: Redis' clock minus :meth:`Clock.elapsed`.
        self._redis: float | None = None
        self._outvoted = False
        self._warned = False

    def now(self) -> datetime:
        """Return the scheduling time."""
        return from_micros(round(self.seconds() * 1_000_000))

    def seconds(self) -> float:
        """Return the scheduling time in seconds since the Unix epoch."""
        elapsed, wall = self._clock.elapsed(), self._clock.wall()
        carried_on = self._anchor + elapsed
        jump = wall - carried_on
        if abs(jump) <= AGREEMENT:
            # Small corrections by a time service are followed.
            self._anchor = wall - elapsed
            self._outvoted = False
            return wall
        if self._redis is not None and abs(self._redis + elapsed - wall) <= AGREEMENT:
            self._anchor = wall - elapsed
            self._emit(events.ClockJumped(jump, followed=True))
            return wall
        if not self._outvoted:
            self._outvoted = True
            self._emit(events.ClockJumped(jump, followed=False))
        return carried_on  # guard: clock-step

    @property
    def offset(self) -> float:
        """Return the scheduling time minus Redis' clock, in seconds; 0 while it is unknown."""
        return self._anchor - self._redis if self._redis is not None else 0.0

    def redis_said(self, server_ms: int, sent_at: float, received_at: float) -> None:
        """Record Redis' clock, read by a command that was sent and answered at these times."""
        self._redis = server_ms / 1000 - (sent_at + received_at) / 2
        far = abs(self.offset) > AGREEMENT
        if far and not self._warned:
            self._emit(events.ClockOffset(self.offset))
        self._warned = far

    def join(self, leaders_offset: float | None) -> None:
        """Vote at the start of a term. The last leader's offset from Redis gives a third clock."""
        if self._redis is None:
            return
        elapsed = self._clock.elapsed()
        mine = self._anchor + elapsed
        redis = self._redis + elapsed
        others = [redis] if leaders_offset is None else [redis, redis + leaders_offset]
        agreed = (
            vote(mine, *others)
            if leaders_offset is not None  # guard: clock-leader-votes
            else mine
        )
        if abs(agreed - mine) > AGREEMENT:
            self._anchor = agreed - elapsed
            self._outvoted = True
            self._emit(events.ClockJumped(mine - agreed, followed=False))
