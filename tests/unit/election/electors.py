"""Electors in one thread, on a clock that moves only as they wait, and a lease store that can fail."""

from ha_beat.duties import Duties
from ha_beat.election.cluster_clock import SchedulingTime
from ha_beat.election.elector import Elector, Eligibility
from ha_beat.election.states import Timing
from ha_beat.store.lease import Term
from ha_beat.store.presence import Presence
from ha_beat.testing import MemoryLeaseStore, MemoryPresence, SettableClock
from tests.support.events import EventLog
from tests.support.leases import replica

TIMING = Timing(ttl=10.0, renew_interval=2.5, poll_interval=0.1, stall_timeout=15.0)


class Electors:
    def __init__(self, timing: Timing = TIMING) -> None:
        self.timing = timing
        self.clock = SettableClock()
        self.store = MemoryLeaseStore(self.clock)
        self.events = EventLog()
        self.time = SchedulingTime(self.clock, self.events.append)
        self.duties = Duties(self.clock, self.events.append)
        self.all: list[Elector] = []

    def add(self, name: str = "one", *, remembers: bool = True, presence: Presence | None = None) -> Elector:
        presence = presence or MemoryPresence(self.store, self.clock)
        own = (presence, replica(name), self.timing, self.clock, self.events.append, self.time)
        self.all.append(Elector(self.store, *own, Eligibility(remembers=lambda: remembers), duties=self.duties))
        return self.all[-1]

    def run(self, seconds: float, *stalled: Elector) -> None:
        """Step all electors for some seconds. The main loops make progress, except those of ``stalled``."""
        until = self.clock.elapsed() + seconds
        while self.clock.elapsed() < until:
            self.clock.advance(0.01)
            for elector in self.all:
                if elector not in stalled:
                    elector.handle.progress()
                elector._step()

    @property
    def leader(self) -> Elector | None:
        return next((elector for elector in self.all if elector.handle.term is not None), None)

    @property
    def term(self) -> Term | None:
        return self.leader.handle.term if self.leader else None
