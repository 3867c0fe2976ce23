"""Faults of the replicas, the network paths and the servers of a run, each recorded in its history.

A fault with a duration blocks for that time: `pause_leader(3)` returns when the leader runs again.
`Storm` draws a schedule of faults from a seed, runs it and heals everything.
"""

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tests.faults.clock import SteppedClock
from tests.faults.cluster import BeatCluster, Replica
from tests.faults.history import History
from tests.faults.proxy import CutReply, TcpProxy
from tests.support.servers import RedisServer, Server

T = TypeVar("T")


class Nemesis:
    """Injector of faults. `lease_proxies` and `broker_proxies` hold one proxy per replica, in their
    order, or one for all; where lease and queue are one Redis they are the same proxies. `clocks` likewise,
    one per replica.

    A fault of the leader strikes a random running replica if there is no leader or the lease can't be read.
    """

    def __init__(
        self,
        cluster: BeatCluster,
        history: History,
        *,
        redis: RedisServer | None = None,
        broker: Server | None = None,
        lease_proxies: Sequence[TcpProxy] = (),
        broker_proxies: Sequence[TcpProxy] = (),
        clocks: Sequence[SteppedClock] = (),
        chance: random.Random | None = None,
    ) -> None:
        self.cluster = cluster
        self.history = history
        self.redis = redis
        self.broker = broker
        self.lease_proxies = tuple(lease_proxies)
        self.broker_proxies = tuple(broker_proxies)
        self.clocks = tuple(clocks)
        self.chance = chance or random.Random()

    @property
    def durable_redis(self) -> bool:
        """True if this run has a Redis that keeps its data over a stop."""
        return self.redis is not None and self.redis.appendonly

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
        return each[0] if len(each) == 1 else each[self.cluster.replicas.index(replica)]

    @contextlib.contextmanager
    def _during(self, fault: str, **details: object) -> Iterator[None]:
        self.history.fault(fault, "start", **details)
        try:
            yield
        finally:
            self.history.fault(fault, "end", **details)

    def _for(
        self, seconds: float, fault: str, begin: Callable[[], object], end: Callable[[], object], **details: object
    ) -> None:
        with self._during(fault, seconds=seconds, **details):
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
        """SIGSTOP, and SIGCONT after `seconds`."""
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

    # -- paths, each between a replica (default: the leader) and a server

    def cut_lease_path(self, replica: Replica | None = None) -> int:
        """Reset the connections to the lease; the replica may connect again."""
        return self._cut("cut_lease_path", self.lease_proxy(replica))

    def cut_broker_path(self, replica: Replica | None = None) -> int:
        """Reset the connections to the broker; the replica may connect again."""
        return self._cut("cut_broker_path", self.broker_proxy(replica))

    def _cut(self, fault: str, proxy: TcpProxy) -> int:
        self.history.fault(fault, proxy=proxy.port)
        return proxy.cut()

    def refuse_lease_path(self, seconds: float, replica: Replica | None = None) -> None:
        """Refuse every connection to the lease."""
        proxy = self.lease_proxy(replica)
        self._for(seconds, "refuse_lease_path", proxy.refuse, proxy.heal, proxy=proxy.port)

    def blackhole_lease_path(self, seconds: float, replica: Replica | None = None) -> None:
        """Swallow all bytes to and from the lease."""
        proxy = self.lease_proxy(replica)
        self._for(seconds, "blackhole_lease_path", proxy.blackhole, proxy.heal, proxy=proxy.port)

    def blackhole_broker_path(self, seconds: float, replica: Replica | None = None) -> None:
        """Swallow all bytes to and from the broker."""
        proxy = self.broker_proxy(replica)
        self._for(seconds, "blackhole_broker_path", proxy.blackhole, proxy.heal, proxy=proxy.port)

    def stall_lease_path(self, seconds: float, replica: Replica | None = None) -> None:
        """Hold back all bytes to and from the lease, and deliver them late."""
        proxy = self.lease_proxy(replica)
        self._for(seconds, "stall_lease_path", proxy.pause, proxy.heal, proxy=proxy.port)

    def slow_lease_path(self, seconds: float, delay: float = 0.3, replica: Replica | None = None) -> None:
        """Deliver every byte to and from the lease `delay` seconds late."""
        proxy = self.lease_proxy(replica)
        self._for(seconds, "slow_lease_path", lambda: proxy.delay(delay), proxy.heal, proxy=proxy.port)

    def lose_reply(self, containing: bytes = b"EVALSHA", replica: Replica | None = None) -> CutReply:
        """Lose the reply to the next matching request, after the server acted."""
        proxy = self.lease_proxy(replica)
        self.history.fault("lose_reply", proxy=proxy.port)
        return proxy.cut_reply_after(containing)

    # -- servers

    def _redis(self) -> RedisServer:
        if self.redis is None:
            raise RuntimeError("this run has no Redis of its own")
        return self.redis

    def _broker(self) -> Server:
        if self.broker is None:
            raise RuntimeError("this run has no broker of its own")
        return self.broker

    def redis_stop(self, seconds: float | None = None) -> None:
        """Send SIGTERM; start it again with its persisted data after `seconds`, or when healed."""
        self._down("redis_stop", self._redis(), self._redis().stop, seconds)

    def redis_kill(self, seconds: float | None = None) -> None:
        """Send SIGKILL; start it again with its persisted data after `seconds`, or when healed."""
        self._down("redis_kill", self._redis(), self._redis().kill, seconds)

    def redis_restart(self, *, persist: bool, down: float = 0.0) -> None:
        """Stop it, wait, and start it with all its data or none."""
        with self._during("redis_restart", persist=persist, seconds=down):
            self._redis().restart(persist=persist, down=down)

    def redis_pause(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after `seconds`."""
        self._for(seconds, "redis_pause", self._redis().pause, self._redis().resume)

    def redis_flush(self) -> None:
        """FLUSHALL."""
        self.history.fault("redis_flush")
        self._redis().admin.flushall()

    def broker_stop(self, seconds: float | None = None) -> None:
        """Stop it cleanly; start it again after `seconds`, or when healed."""
        self._down("broker_stop", self._broker(), self._broker().stop, seconds)

    def broker_pause(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after `seconds`."""
        self._for(seconds, "broker_pause", self._broker().pause, self._broker().resume)

    def _down(self, fault: str, server: Server, end: Callable[[], None], seconds: float | None) -> None:
        if seconds is None:
            self.history.fault(fault)
            end()
        else:
            self._for(seconds, fault, end, server.start)

    # -- healing

    def heal(self) -> None:
        """Restart servers and replicas, restore paths and clocks."""
        for server in {server for server in (self.redis, self.broker) if server is not None}:
            server.revive()
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


FAULTS: Mapping[str, FaultKind] = {
    "kill_leader": FaultKind(lambda n, s: n.kill_leader(down=s), 0.0, 2.0, 4),
    "term_leader": FaultKind(lambda n, s: n.term_leader(down=s), 0.0, 2.0, 3),
    "pause_leader": FaultKind(lambda n, s: n.pause_leader(s), 0.2, 8.0, 4),
    "kill_standby": FaultKind(lambda n, s: n.kill(n.standby(), s, "kill_standby"), 0.0, 2.0, 1),
    "pause_standby": FaultKind(lambda n, s: n.pause(n.standby(), s, "pause_standby"), 0.2, 6.0, 1),
    "cut_lease_path": FaultKind(lambda n, _: n.cut_lease_path(), 0.0, 0.0, 3, "lease_proxies"),
    "refuse_lease_path": FaultKind(lambda n, s: n.refuse_lease_path(s), 0.2, 6.0, 2, "lease_proxies"),
    "blackhole_lease_path": FaultKind(lambda n, s: n.blackhole_lease_path(s), 0.2, 8.0, 3, "lease_proxies"),
    "stall_lease_path": FaultKind(lambda n, s: n.stall_lease_path(s), 0.2, 8.0, 3, "lease_proxies"),
    "slow_lease_path": FaultKind(lambda n, s: n.slow_lease_path(s), 1.0, 5.0, 1, "lease_proxies"),
    "lose_reply": FaultKind(lambda n, _: n.lose_reply(), 0.0, 0.0, 3, "lease_proxies"),
    "cut_broker_path": FaultKind(lambda n, _: n.cut_broker_path(), 0.0, 0.0, 2, "broker_proxies"),
    "blackhole_broker_path": FaultKind(lambda n, s: n.blackhole_broker_path(s), 0.2, 6.0, 2, "broker_proxies"),
    "redis_pause": FaultKind(lambda n, s: n.redis_pause(s), 0.2, 6.0, 2, "redis"),
    "redis_stop": FaultKind(lambda n, s: n.redis_stop(s), 0.2, 6.0, 2, "durable_redis"),
    "broker_pause": FaultKind(lambda n, s: n.broker_pause(s), 0.2, 6.0, 2, "broker"),
    "clock_jump": FaultKind(lambda n, s: n.clock_jump(s * n.chance.choice((-1, 1))), 1.0, 3600.0, 1, "clocks"),
}


@dataclass(frozen=True)
class Step:
    """Wait of `calm` seconds, then a fault of `seconds`."""

    calm: float
    fault: str
    seconds: float


class Storm:
    """Schedule of faults drawn from a seed. The same seed and names give the same schedule.

    `duration` is the sum of the planned steps in seconds; clock jumps and cuts take no time. `names` are keys of
    FAULTS; None selects those that the run has the parts for, without clock jumps. `scale` multiplies each duration.
    """

    CALM_SECONDS = (0.3, 3.0)

    def __init__(self, seed: int, duration: float, names: Sequence[str] | None = None, *, scale: float = 1.0) -> None:
        self.seed = seed
        self.duration = duration
        self.names = None if names is None else tuple(names)
        self.scale = scale

    @staticmethod
    def possible(nemesis: Nemesis) -> tuple[str, ...]:
        """Return the faults that a run has the parts for, without clock jumps."""
        return tuple(name for name, kind in FAULTS.items() if name != "clock_jump" and kind.possible(nemesis))

    def plan(self, names: Sequence[str]) -> tuple[Step, ...]:
        """Draw the steps from these faults."""
        chance = random.Random(self.seed)
        weights = [FAULTS[name].weight for name in names]
        steps: list[Step] = []
        spent = 0.0
        while spent < self.duration:
            name = chance.choices(names, weights)[0]
            kind = FAULTS[name]
            step = Step(
                round(chance.uniform(*self.CALM_SECONDS), 2),
                name,
                round(chance.uniform(kind.shortest, kind.longest) * self.scale, 2),
            )
            steps.append(step)
            spent += step.calm + (0.0 if name == "clock_jump" else step.seconds)
        return tuple(steps)

    def run(self, nemesis: Nemesis) -> tuple[Step, ...]:
        """Run the plan, heal everything even after an error, and return the plan. Prints the seed and each step."""
        plan = self.plan(self.names or self.possible(nemesis))
        nemesis.chance = random.Random(self.seed)
        print(f"storm: seed {self.seed}, {len(plan)} faults in about {self.duration:g} s")
        nemesis.history.record(type="note", note="storm", seed=self.seed)
        try:
            for step in plan:
                time.sleep(step.calm)
                print(f"storm: {step.fault} {step.seconds:g}")
                FAULTS[step.fault].strike(nemesis, step.seconds)
        except BaseException:
            print(f"storm: seed {self.seed} broke off")
            raise
        finally:
            nemesis.heal()
        return plan
