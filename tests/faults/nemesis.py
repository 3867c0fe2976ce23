"""Faults of the replicas, the network paths and the servers of a run, each recorded in its history.

A fault with a duration blocks for that time: `pause_leader(3)` returns when the leader runs again.
`Storm` draws a schedule of faults from a seed, runs it and heals everything.
"""

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, TypeVar

from tests.faults.clock import SteppedClock
from tests.faults.cluster import BeatCluster, Replica
from tests.faults.history import History
from tests.faults.proxy import TcpProxy
from tests.support.servers import RedisServer, Server

T = TypeVar("T")
PathName: TypeAlias = Literal["lease", "broker"]

#: What happens to the bytes of a path, or to its connections.
DISTURBANCES: Mapping[str, Callable[[TcpProxy], object]] = {
    "refuse": TcpProxy.refuse,
    "blackhole": TcpProxy.blackhole,
    "stall": TcpProxy.pause,
    "slow": lambda proxy: proxy.delay(0.3),
}


@dataclass
class Nemesis:
    """Injector of faults, with a method for each.

    `broker` is None if it is the lease's Redis; then both paths share their proxies. There is one proxy of each path
    and one clock per replica, in their order, or none.

    A fault of the leader strikes a random running replica if there is no leader or the lease can't be read.
    """

    cluster: BeatCluster
    history: History
    redis: RedisServer
    broker: Server | None = None
    lease_proxies: Sequence[TcpProxy] = ()
    broker_proxies: Sequence[TcpProxy] = ()
    clocks: Sequence[SteppedClock] = ()
    chance: random.Random = field(default_factory=random.Random)

    @property
    def durable_redis(self) -> bool:
        """True if the lease's Redis keeps its data over a stop."""
        return self.redis.appendonly

    # -- targets

    def leader(self) -> Replica:
        """Return the leader, or a random running replica."""
        with contextlib.suppress(Exception):
            leader = self.cluster.leader()
            if leader is not None:
                return leader
        return self.any_replica()

    def any_replica(self) -> Replica:
        """Return a random running, unpaused replica. Raises RuntimeError if there is none."""
        living = [replica for replica in self.cluster if replica.alive and not replica.paused]
        if not living:
            raise RuntimeError("no replica is alive")
        return self.chance.choice(living)

    def standby(self) -> Replica:
        """Return a random running replica that does not lead; the leader if it is alone."""
        leader = self.leader()
        others = [replica for replica in self.cluster if replica.alive and replica is not leader]
        return self.chance.choice(others) if others else leader

    def lease_proxy(self, replica: Replica | None = None) -> TcpProxy:
        """Return the proxy between a replica (default: the leader) and the lease."""
        return self._of(self.lease_proxies, replica or self.leader(), "lease proxy")

    def broker_proxy(self, replica: Replica | None = None) -> TcpProxy:
        """Return the proxy between a replica (default: the leader) and the broker."""
        return self._of(self.broker_proxies, replica or self.leader(), "broker proxy")

    def _of(self, each: Sequence[T], replica: Replica, what: str) -> T:
        if not each:
            raise RuntimeError(f"this run has no {what}")
        return each[self.cluster.replicas.index(replica)]

    @contextlib.contextmanager
    def during(self, fault: str, **details: object) -> Iterator[None]:
        """Record a fault that the test causes itself."""
        self.history.fault(fault, "start", **details)
        try:
            yield
        finally:
            self.history.fault(fault, "end", **details)

    def _for(
        self, seconds: float, fault: str, begin: Callable[[], object], end: Callable[[], object], **details: object
    ) -> None:
        with self.during(fault, seconds=seconds, **details):
            begin()
            try:
                time.sleep(seconds)
            finally:
                end()

    # -- processes

    def kill_leader(self, down: float | None = None) -> Replica:
        """Send SIGKILL; start it again after `down` seconds, or never."""
        return self.kill(self.leader(), down, "kill_leader")

    def term_leader(self, down: float | None = None) -> Replica:
        """Send SIGTERM; start it again after `down` seconds, or never."""
        victim = self.leader()
        self.history.fault("term_leader", replica=victim.name)
        victim.terminate()
        self._again(victim, down)
        return victim

    def kill(self, replica: Replica, down: float | None = None, fault: str = "kill") -> Replica:
        self.history.fault(fault, replica=replica.name)
        replica.kill()
        self._again(replica, down)
        return replica

    def _again(self, replica: Replica, down: float | None) -> None:
        if down is not None:
            time.sleep(down)
            replica.start()

    def pause_leader(self, seconds: float) -> Replica:
        """Send SIGSTOP, and SIGCONT after `seconds`."""
        return self.pause(self.leader(), seconds, "pause_leader")

    def pause(self, replica: Replica, seconds: float, fault: str = "pause") -> Replica:
        self._for(seconds, fault, replica.pause, replica.resume, replica=replica.name)
        return replica

    def clock_jump(self, seconds: float, replica: Replica | None = None) -> Replica:
        """Step the wall clock of a replica (default: the leader) until it is healed."""
        victim = replica or self.leader()
        clock = self._of(self.clocks, victim, "clock")
        self.history.fault("clock_jump", replica=victim.name, seconds=seconds)
        clock.jump(seconds)
        return victim

    # -- paths between a replica (default: the leader) and a server

    def cut_path(self, path: PathName, replica: Replica | None = None) -> int:
        """Reset the connections, and return their number; the replica may connect again."""
        proxy = self._proxy(path, replica)
        self.history.fault(f"cut_{path}_path", proxy=proxy.port)
        return proxy.cut()

    def disturb_path(self, how: str, path: PathName, seconds: float, replica: Replica | None = None) -> None:
        """Disturb a path for a time. `how` is a key of DISTURBANCES."""
        proxy = self._proxy(path, replica)
        self._for(seconds, f"{how}_{path}_path", lambda: DISTURBANCES[how](proxy), proxy.heal, proxy=proxy.port)

    def _proxy(self, path: PathName, replica: Replica | None) -> TcpProxy:
        return self.lease_proxy(replica) if path == "lease" else self.broker_proxy(replica)

    def lose_reply(self) -> None:
        """Lose the reply to the leader's next script, after the lease's Redis has run it."""
        proxy = self.lease_proxy()
        self.history.fault("lose_reply", proxy=proxy.port)
        proxy.cut_reply_after(b"EVALSHA")

    # -- servers

    def redis_stop(self, seconds: float | None = None) -> None:
        """Send SIGTERM; start it again with its persisted data after `seconds`, or when healed."""
        self._down("redis_stop", self.redis, self.redis.stop, seconds)

    def redis_kill(self, seconds: float) -> None:
        """Send SIGKILL; start it again with its persisted data after `seconds`."""
        self._down("redis_kill", self.redis, self.redis.kill, seconds)

    def redis_restart(self, *, persist: bool) -> None:
        """Stop it and start it with all its data or none."""
        with self.during("redis_restart", persist=persist):
            self.redis.restart(persist=persist)

    def redis_pause(self, seconds: float) -> None:
        """Send SIGSTOP, and SIGCONT after `seconds`."""
        self._for(seconds, "redis_pause", self.redis.pause, self.redis.resume)

    def redis_flush(self) -> None:
        """Delete all data."""
        self.history.fault("redis_flush")
        self.redis.admin.flushall()

    def broker_stop(self, seconds: float | None = None) -> None:
        """Stop it cleanly; start it again after `seconds`, or when healed."""
        broker = self._own_broker()
        self._down("broker_stop", broker, broker.stop, seconds)

    def broker_pause(self, seconds: float) -> None:
        """Send SIGSTOP, and SIGCONT after `seconds`."""
        broker = self._own_broker()
        self._for(seconds, "broker_pause", broker.pause, broker.resume)

    def _own_broker(self) -> Server:
        if self.broker is None:
            raise RuntimeError("the broker of this run is the lease's Redis")
        return self.broker

    def _down(self, fault: str, server: Server, end: Callable[[], None], seconds: float | None) -> None:
        if seconds is None:
            self.history.fault(fault)
            end()
        else:
            self._for(seconds, fault, end, server.start)

    # -- healing

    def heal(self) -> None:
        """Restart servers and replicas, restore paths and clocks."""
        self.redis.revive()
        if self.broker is not None:
            self.broker.revive()
        for proxy in {*self.lease_proxies, *self.broker_proxies}:
            proxy.heal()
        for clock in self.clocks:
            clock.offset = 0.0
        self.cluster.heal()
        self.history.fault("heal")


# ------------------------------------------------------------------------------------------------------ storm


@dataclass(frozen=True)
class FaultKind:
    """Kind of fault for a storm: shortest and longest duration in seconds, weight, and the required part."""

    strike: Callable[[Nemesis, float], object]
    shortest: float
    longest: float
    weight: int = 1
    needs: str = "cluster"

    def possible(self, nemesis: Nemesis) -> bool:
        return bool(getattr(nemesis, self.needs))


def _disturb(how: str, path: PathName) -> Callable[[Nemesis, float], object]:
    return lambda nemesis, seconds: nemesis.disturb_path(how, path, seconds)


FAULTS: Mapping[str, FaultKind] = {
    "kill_leader": FaultKind(lambda n, s: n.kill_leader(down=s), 0.0, 2.0, 4),
    "term_leader": FaultKind(lambda n, s: n.term_leader(down=s), 0.0, 2.0, 3),
    "pause_leader": FaultKind(lambda n, s: n.pause_leader(s), 0.2, 8.0, 4),
    "kill_standby": FaultKind(lambda n, s: n.kill(n.standby(), s, "kill_standby"), 0.0, 2.0, 1),
    "pause_standby": FaultKind(lambda n, s: n.pause(n.standby(), s, "pause_standby"), 0.2, 6.0, 1),
    "cut_lease_path": FaultKind(lambda n, _: n.cut_path("lease"), 0.0, 0.0, 3, "lease_proxies"),
    "refuse_lease_path": FaultKind(_disturb("refuse", "lease"), 0.2, 6.0, 2, "lease_proxies"),
    "blackhole_lease_path": FaultKind(_disturb("blackhole", "lease"), 0.2, 8.0, 3, "lease_proxies"),
    "stall_lease_path": FaultKind(_disturb("stall", "lease"), 0.2, 8.0, 3, "lease_proxies"),
    "slow_lease_path": FaultKind(_disturb("slow", "lease"), 1.0, 5.0, 1, "lease_proxies"),
    "lose_reply": FaultKind(lambda n, _: n.lose_reply(), 0.0, 0.0, 3, "lease_proxies"),
    "cut_broker_path": FaultKind(lambda n, _: n.cut_path("broker"), 0.0, 0.0, 2, "broker_proxies"),
    "blackhole_broker_path": FaultKind(_disturb("blackhole", "broker"), 0.2, 6.0, 2, "broker_proxies"),
    "redis_pause": FaultKind(lambda n, s: n.redis_pause(s), 0.2, 6.0, 2),
    "redis_stop": FaultKind(lambda n, s: n.redis_stop(s), 0.2, 6.0, 2, "durable_redis"),
    "broker_pause": FaultKind(lambda n, s: n.broker_pause(s), 0.2, 6.0, 2, "broker"),
}


@dataclass(frozen=True)
class Step:
    """Wait of `calm` seconds, then a fault of `seconds`."""

    calm: float
    fault: str
    seconds: float


class Storm:
    """Schedule of faults drawn from a seed, for about `duration` seconds."""

    CALM_SECONDS = (0.3, 3.0)

    def __init__(self, seed: int, duration: float) -> None:
        self.seed = seed
        self.duration = duration

    @staticmethod
    def possible(nemesis: Nemesis) -> tuple[str, ...]:
        """Return the faults that a run has the parts for."""
        return tuple(name for name, kind in FAULTS.items() if kind.possible(nemesis))

    def plan(self, names: Sequence[str]) -> tuple[Step, ...]:
        """Draw the steps from these faults. The same seed and names give the same steps."""
        chance = random.Random(self.seed)
        weights = [FAULTS[name].weight for name in names]
        steps: list[Step] = []
        while sum(step.calm + step.seconds for step in steps) < self.duration:
            name = chance.choices(names, weights)[0]
            kind = FAULTS[name]
            calm, seconds = chance.uniform(*self.CALM_SECONDS), chance.uniform(kind.shortest, kind.longest)
            steps.append(Step(round(calm, 2), name, round(seconds, 2)))
        return tuple(steps)

    def run(self, nemesis: Nemesis) -> tuple[Step, ...]:
        """Run the plan, heal everything even after an error, and return the plan. Prints the seed and each step."""
        plan = self.plan(self.possible(nemesis))
        nemesis.chance = random.Random(self.seed)
        print(f"storm: seed {self.seed}, {len(plan)} faults in about {self.duration:g} s")
        try:
            for step in plan:
                time.sleep(step.calm)
                print(f"storm: {step.fault} {step.seconds:g}")
                FAULTS[step.fault].strike(nemesis, step.seconds)
        finally:
            nemesis.heal()
        return plan
