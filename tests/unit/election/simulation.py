"""Replicas that run the real election in simulated time, with a lease in memory and a faulty network.

Commands are lost or late; replicas crash, pause, and have inexact clocks. One seed is one run, and
:attr:`Simulation.violations` has the promises that it broke.
"""

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Self

from ha_beat.election import state_machine as election
from ha_beat.election.states import (
    Campaign,
    Campaigned,
    Fitness,
    Leader,
    Observe,
    PresenceBroke,
    PresenceReady,
    Release,
    Renew,
    Renewal,
    Standby,
    State,
    StepDown,
    Timing,
    Unknown,
    Wait,
    Woken,
)
from ha_beat.reasons import TermEnd
from ha_beat.store.lease import Acquired, Attempt, Refused, Replica, Term
from ha_beat.testing import MemoryLeaseStore

TIMING = Timing(ttl=5.0, renew_interval=1.25, poll_interval=0.5, stall_timeout=8.0)

#: Longest time on the way, in seconds, for a command that the network delays.
LONGEST_DELAY = 12.0
COMMAND_TIMEOUT = 1.0
FAULTS_UNTIL = 120.0

#: Clocks run this much fast or slow at most, which the margin of a tenth of the ttl has to bear.
CLOCK_ERROR = 0.04


class RealTime:
    """The simulation's time, which the server's clock shows."""

    def __init__(self) -> None:
        self.now = 0.0

    def wall(self) -> float:
        return datetime(2030, 1, 1, tzinfo=UTC).timestamp() + self.now

    def elapsed(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        raise AssertionError("the simulation does not wait")


@dataclass
class Node:
    """Replica. ``life`` grows with each crash: replies to an earlier life are dropped."""

    name: str
    rate: float
    offset: float
    state: State = field(default_factory=Standby)
    life: int = 0
    down: bool = False
    paused_until: float = 0.0
    cut_off_until: float = 0.0
    channel: str = ""
    broken: bool = False
    opened: bool = False
    woken: bool = False

    def clock(self, now: float) -> float:
        return self.offset + now * self.rate

    def trusted_term(self, now: float) -> Term | None:
        if self.down or not isinstance(self.state, Leader) or not self.state.term.trusted(self.clock(now)):
            return None
        return self.state.term


class Simulation:
    """``presence``: the server counts subscribers. ``trust_from_send``: False injects a fault."""

    def __init__(
        self,
        seed: int,
        *,
        presence: bool,
        replicas: int = 3,
        timing: Timing = TIMING,
        store: type[MemoryLeaseStore] = MemoryLeaseStore,
        trust_from_send: bool = True,
        faults: bool = True,
    ) -> None:
        self.random = random.Random(seed)
        self.time = RealTime()
        self.store = store(self.time)
        self.timing = timing
        self.with_presence = presence
        self.trust_from_send = trust_from_send
        self.faults = faults
        self.violations: list[str] = []
        self.leaders: list[tuple[float, str]] = []
        self.epochs: list[int] = []
        self.writes: list[int] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self.nodes = [
            Node(f"n{n}", 1 + self.random.uniform(-CLOCK_ERROR, CLOCK_ERROR), self.random.uniform(0, 1e6))
            for n in range(replicas)
        ]
        self.store.on_release.append(self._wake_all)
        for node in self.nodes:
            self._begin(node)
        if faults:
            self._at(self.random.uniform(1, 5), self._nemesis)

    # --- Running

    def run(self, until: float) -> Self:
        while self._events and self._events[0][0] <= until:
            self.time.now, _, event = heapq.heappop(self._events)
            event()
            self._check()
        self.time.now = until
        return self

    def leader(self) -> Node | None:
        """Return the replica that trusts its term and that the store would not refuse."""
        now = self.time.now
        for node in self.nodes:
            term = node.trusted_term(now)
            if term is not None and not self.store.refusal(term) and node.paused_until <= now:
                return node
        return None

    def _at(self, instant: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (instant, next(self._count), event))

    def _after(self, seconds: float, event: Callable[[], None]) -> None:
        self._at(self.time.now + seconds, event)

    def _for(self, node: Node, seconds: float, event: Callable[[], None]) -> None:
        """Schedule an event of a node. A crash drops the event, and a pause delays it."""
        life = node.life

        def happen() -> None:
            if node.life != life or node.down:
                return
            if node.paused_until > self.time.now:
                self._at(node.paused_until, happen)
            else:
                event()

        self._after(seconds, happen)

    # --- A replica

    def _begin(self, node: Node) -> None:
        node.state, node.down, node.broken, node.opened = Standby(unbroken=True), False, False, False
        if self.with_presence:
            self._open(node)
        self._for(node, self.random.uniform(0, 0.5), lambda: self._step(node))

    def _open(self, node: Node) -> None:
        self.store.subscribed.discard(node.channel)
        node.channel = f"{node.name}-{next(self._count)}"
        self.store.subscribed.add(node.channel)
        node.opened = True

    def _step(self, node: Node) -> None:
        """Take one turn of the elector's thread."""
        now = node.clock(self.time.now)
        if election.distrusted(node.state, now):
            self._take_in(node, Unknown(""))
        if node.broken:
            node.broken, node.channel = False, ""
            self._take_in(node, PresenceBroke())
            self._for(node, 0.3, lambda: self._open(node))
        if node.opened:
            node.opened = False
            self._take_in(node, PresenceReady())
        if node.woken:
            node.woken = False
            self._take_in(node, Woken())
        fitness = Fitness(
            stalled=self.faults and self._faulty() and self.random.random() < 0.001,
            step_down=StepDown(TermEnd.STEP_DOWN) if self._faulty() and self.random.random() < 0.001 else None,
        )
        action = election.decide(node.state, now, fitness)
        match action:
            case Wait(until=until):
                pause = min(max((until - now) / node.rate, 1e-3), 0.1)
                self._for(node, pause, lambda: self._step(node))
            case Observe():
                self._ask(node, self.store.observe, lambda answer: answer)
            case Campaign(expected=expected):
                self._campaign(node, expected, now)
            case Renew(term=term, seq=seq, presence=with_presence):
                channel = node.channel if with_presence else ""
                self._ask(
                    node,
                    lambda: self.store.renew(term, seq, channel),
                    lambda answer: answer if isinstance(answer, Unknown) else Renewal(answer, self._sent(node, now)),
                )
            case Release(term=term, reason=reason):
                assert isinstance(node.state, Leader)
                node.state = election.released(node.state, now, self.timing)
                self._ask(node, lambda: self.store.release(term, reason), lambda _: Woken())

    def _campaign(self, node: Node, expected: Any, now: float) -> None:
        seen = node.state.seen_epoch if isinstance(node.state, Standby) else 0
        nonce = f"{node.name}-{next(self._count)}"
        attempt = Attempt(
            Replica(node.name, "host", 1, "0", "app"), nonce, now, self.timing.ttl, self.timing.margin, node.channel
        )

        def outcome(answer: Any) -> Campaigned:
            if isinstance(answer, Acquired) and not self.trust_from_send:
                late = replace(attempt, sent_at=node.clock(self.time.now))
                answer = replace(answer, term=answer.term.until(late.trusted_until))
            return Campaigned(answer, nonce)

        def acquire() -> Acquired | Refused:
            answer = self.store.acquire(attempt, expected, seen)
            if isinstance(answer, Acquired):
                self.epochs.append(answer.term.epoch)
            return answer

        self._ask(node, acquire, outcome)

    def _sent(self, node: Node, sent_at: float) -> float:
        return sent_at if self.trust_from_send else node.clock(self.time.now)

    def _ask(self, node: Node, command: Callable[[], Any], outcome: Callable[[Any], Any]) -> None:
        """Send a command, and continue at its reply or its timeout."""
        there, back = self._delay(node), self._delay(node)
        answered = False

        def conclude(answer: Any) -> None:
            nonlocal answered
            if not answered:
                answered = True
                self._take_in(node, outcome(answer))
                self._for(node, 1e-3, lambda: self._step(node))

        def arrive() -> None:
            answer = command()
            if back is not None:
                self._for(node, back, lambda: conclude(answer))

        if there is not None:
            self._after(there, arrive)
        self._for(node, COMMAND_TIMEOUT, lambda: conclude(Unknown("timeout")))

    def _take_in(self, node: Node, outcome: Any) -> None:
        before = node.state
        node.state = election.absorb(before, outcome, node.clock(self.time.now), self.timing)
        if isinstance(node.state, Leader) and not isinstance(before, Leader):
            self.leaders.append((self.time.now, node.name))

    def _wake_all(self) -> None:
        for node in self.nodes:
            node.woken = self.with_presence and node.channel in self.store.subscribed

    # --- Faults

    def _faulty(self) -> bool:
        return self.faults and self.time.now < FAULTS_UNTIL

    def _delay(self, node: Node) -> float | None:
        """Return the seconds on the way, or None if the command is lost."""
        if self.time.now < node.cut_off_until:
            return None
        chance = self.random.random()
        if self._faulty():
            if chance < 0.05:
                return None
            if chance < 0.15:
                return self.random.uniform(0.0, LONGEST_DELAY)
            if chance < 0.4:
                return self.random.uniform(0.0, COMMAND_TIMEOUT)
        return self.random.uniform(0.0005, 0.005)

    def _nemesis(self) -> None:
        if not self._faulty():
            self._heal()
            return
        node = self.random.choice(self.nodes)
        match self.random.choice(("crash", "pause", "cut off", "cut presence", "nothing")):
            case "crash":
                self.store.subscribed.discard(node.channel)
                node.life, node.down, node.channel = node.life + 1, True, ""
                self._after(self.random.uniform(0.1, 10.0), lambda: self._begin(node) if node.down else None)
            case "pause":
                node.paused_until = self.time.now + self.random.uniform(0.1, 2 * self.timing.ttl)
            case "cut off":
                node.cut_off_until = self.time.now + self.random.uniform(0.1, 3 * self.timing.ttl)
            case "cut presence" if node.channel:
                self.store.subscribed.discard(node.channel)
                node.broken = True
        self._after(self.random.uniform(0.2, 6.0), self._nemesis)

    def _heal(self) -> None:
        for node in self.nodes:
            node.paused_until = min(node.paused_until, self.time.now)
            node.cut_off_until = 0.0
            if node.down:
                self._begin(node)

    # --- Promises

    def _check(self) -> None:
        now = self.time.now
        terms = [term for node in self.nodes if (term := node.trusted_term(now)) is not None]
        accepted = [term for term in terms if not self.store.refusal(term)]
        self.writes.extend(term.epoch for term in accepted)
        if len(accepted) > 1:
            self._violated(f"the store accepts work under several terms: {accepted}")
        if len(terms) > 1 and not self.with_presence:
            self._violated(f"several replicas trust their terms: {[term.holder for term in terms]}")
        if any(later <= earlier for earlier, later in itertools.pairwise(self.epochs[-2:])):
            self._violated(f"the epoch did not rise: {self.epochs[-2:]}")
        if any(later < earlier for earlier, later in itertools.pairwise(self.writes[-3:])):
            self._violated(f"work was accepted under an older epoch after a newer one: {self.writes[-3:]}")

    def _violated(self, what: str) -> None:
        self.violations.append(f"at {self.time.now:.3f} s: {what}")
