"""The time that occurrences are due by: the machine's, unless the other clocks outvote it.

A wall clock that steps must neither silence beat nor make it fire early. So the wall clock is believed only while it
agrees with what it said before (carried on by a clock that never steps); when it jumps, Redis' clock decides.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from ha_beat import events
from ha_beat.clock import Clock, from_micros

#: Two clocks agree when they differ by no more than so many seconds.
AGREEMENT = 2.0


def vote(mine: float, *others: float) -> float:
    """Of several opinions in seconds, the first that another one shares; mine where none is shared."""
    opinions = (mine, *others)
    for number, opinion in enumerate(opinions):
        if any(abs(opinion - other) <= AGREEMENT for other in opinions[number + 1 :]):
            return opinion
    return mine


class SchedulingTime:
    """Scheduling time, in UTC. Told of Redis' clock by the elector's thread, read by the main loop."""

    def __init__(self, clock: Clock, emit: Callable[[events.Event], None]) -> None:
        self._clock = clock
        self._emit = emit
        #: Scheduling time minus :meth:`Clock.elapsed`, as last believed.
        self._anchor = clock.wall() - clock.elapsed()
        #: Redis' clock minus elapsed.
        self._redis: float | None = None
        self._outvoted = False
        self._warned = False

    def now(self) -> datetime:
        return from_micros(round(self.seconds() * 1_000_000))

    def seconds(self) -> float:
        """Seconds since the Unix epoch."""
        elapsed, wall = self._clock.elapsed(), self._clock.wall()
        carried_on = self._anchor + elapsed
        jump = wall - carried_on
        if abs(jump) <= AGREEMENT:
            # Small corrections, as a time service makes them, are followed.
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
        """Scheduling time minus Redis' clock, in seconds; 0 while that is unknown."""
        return self._anchor - self._redis if self._redis is not None else 0.0

    def redis_said(self, server_ms: int, sent_at: float, received_at: float) -> None:
        """Redis' clock, read by a trip that took from ``sent_at`` to ``received_at``."""
        self._redis = server_ms / 1000 - (sent_at + received_at) / 2
        far = abs(self.offset) > AGREEMENT
        if far and not self._warned:
            self._emit(events.ClockOffset(self.offset))
        self._warned = far

    def join(self, leaders_offset: float | None) -> None:
        """At the start of a term: the last leader's offset from Redis is a third opinion."""
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
