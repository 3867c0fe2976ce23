"""Scenarios of guards with real electors: each holds with every guard, and fails without the guard that it watches.

A scenario calls `promise` for the watched property, so that no other failure counts.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ha_beat import events
from ha_beat.clock import SystemClock
from ha_beat.election.elector import Elector
from ha_beat.election.states import Timing
from ha_beat.store.connections import link_to
from ha_beat.store.keys import Keys
from ha_beat.store.lease import Replica
from ha_beat.store.lease_store import RedisLeaseStore
from ha_beat.store.presence import Presence, PresenceError, RedisPresence
from tests.faults.proxy import TcpProxy, containing
from tests.faults.scenario import ClusterScenario
from tests.guards import GUARDS
from tests.support.servers import RedisServer, wait_for

KEYS = Keys("guards")

Scenario = Callable[[RedisServer], None]
SCENARIOS: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    """Register a scenario under its name, which `tests/guards.toml` uses."""
    SCENARIOS[function.__name__] = function
    return function


class PromiseBroken(AssertionError):
    """Violation of the property that a scenario watches."""


def promise(holds: object, otherwise: str) -> None:
    if not holds:
        raise PromiseBroken(otherwise)


class NoPresence(Presence):
    """Presence on a server that does not allow it."""

    channel = ""

    def open(self) -> None:
        raise PresenceError("not here")

    def wait(self, seconds: float) -> bool:
        raise PresenceError("not here")

    def close(self) -> None: ...


class RunningElector:
    """Elector of a replica with its thread, behind its own proxy. The scenario is the main loop."""

    def __init__(
        self,
        server: RedisServer,
        name: str,
        ttl: float,
        *,
        with_presence: bool = True,
        stall_timeout: float = 1000.0,
        command_timeout: float = 0.5,
    ) -> None:
        self.name = name
        self.proxy = TcpProxy(server.address)
        link = link_to(self.proxy.url(server.url), {"client_name": name}, command_timeout, "key")
        clock = SystemClock()
        presence: Presence = RedisPresence(link.client, KEYS, clock, ttl / 3) if with_presence else NoPresence()
        self.events: list[events.Event] = []
        self.elector = Elector(
            RedisLeaseStore(link.client, KEYS),
            presence,
            Replica(name, "host", 1, "0", "guards"),
            Timing(ttl, ttl / 4, 0.1, stall_timeout),
            clock,
            self.events.append,
        )
        self.elector.start()

    @property
    def leads(self) -> bool:
        return self.elector.handle.term is not None

    def close(self) -> None:
        self.elector.close(lambda _term: None)
        wait_for(lambda: not self.elector.handle.running, 20, "the end of the thread")
        self.proxy.close()


@contextlib.contextmanager
def two_electors(server: RedisServer, ttl: float, **options: Any) -> Iterator[tuple[RunningElector, RunningElector]]:
    """Start a leader, and a standby that has seen its lease. `stall_timeout` is the leader's."""
    with contextlib.ExitStack() as stack:
        leader = RunningElector(server, "first", ttl, **options)
        stack.callback(leader.close)
        wait_for(lambda: leader.leads, 10, "the first leader")
        if options.get("with_presence", True):
            wait_for(lambda: server.admin.hget(KEYS.lease, "presence"), 10, "the leader's presence")
        standby = RunningElector(server, "second", ttl, **{**options, "stall_timeout": 1000.0})
        stack.callback(standby.close)
        wait_for(lambda: any(isinstance(e, events.LeaderSeen) for e in standby.events), 10, "the standby")
        yield leader, standby


def never_both(leader: RunningElector, standby: RunningElector) -> None:
    """Watch until half a second after the takeover. By then the first leader's trust must have ended."""
    wait_for(lambda: standby.leads, 30, "the takeover", 0.005)
    watched_until = time.monotonic() + 0.5
    while time.monotonic() < watched_until:
        promise(not (standby.leads and leader.leads), "two replicas trusted their terms at the same time")
        time.sleep(0.005)


@scenario
def cut_off(server: RedisServer) -> None:
    with two_electors(server, 2.0, with_presence=False) as (leader, standby):
        leader.proxy.blackhole()
        never_both(leader, standby)


@scenario
def slow_reply(server: RedisServer) -> None:
    with two_electors(server, 2.0, with_presence=False, command_timeout=1.9) as (leader, standby):

        def seq() -> int:
            return int(server.admin.hget(KEYS.lease, "seq") or 0)

        # The first renewal also loads the script, which would be another reply to wait for.
        wait_for(lambda: seq() > 1, 10, "the first renewal", 0.005)
        before = seq()
        leader.proxy.pause("reply")
        wait_for(lambda: seq() > before, 10, "a renewal whose reply is under way", 0.005)
        time.sleep(1.3)
        leader.proxy.blackhole("request")
        leader.proxy.resume("reply")
        never_both(leader, standby)


def taken_over_early(leader: RunningElector, standby: RunningElector) -> bool:
    """Assert that the lease of 30 s is taken over in a fraction of that time."""
    with contextlib.suppress(AssertionError):
        wait_for(lambda: standby.leads, 10, "the takeover")
    return standby.leads and not leader.leads


@scenario
def dead_leader(server: RedisServer) -> None:
    with two_electors(server, 30.0) as (leader, standby):
        leader.elector.close(lambda _term: None)
        leader.proxy.refuse()
        promise(taken_over_early(leader, standby), "the standby waited for the lease of a dead process")


@scenario
def hung_main_loop(server: RedisServer) -> None:
    with two_electors(server, 30.0, stall_timeout=1.0) as (leader, standby):
        promise(taken_over_early(leader, standby), "a hung leader kept the lease")


@scenario
def flapping(server: RedisServer) -> None:
    """Cut the leader's presence connection six times: this may cause one change of leader, not six."""
    with two_electors(server, 8.0):
        epochs = set()
        for _ in range(6):
            epochs.add(server.admin.hget(KEYS.lease, "epoch"))
            holder = server.admin.hget(KEYS.lease, "holder")
            for client in server.admin.client_list():
                if client["name"] == holder and client["sub"] != "0":
                    server.admin.client_kill_filter(_id=client["id"])
            time.sleep(0.5)
        epochs.add(server.admin.hget(KEYS.lease, "epoch"))
        promise(len(epochs) <= 2, f"{len(epochs) - 1} changes of leader, of six lost connections")


each_scenario = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "slow_reply")) for name in SCENARIOS]
)


@each_scenario
def test_the_promise_holds_with_every_guard(name: str, redis_server: RedisServer):
    SCENARIOS[name](redis_server)


@pytest.mark.slow
@each_scenario
def test_the_promise_breaks_without_the_guard(name: str, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch):
    guard = next(guard for guard in GUARDS if guard.scenario == name)
    guard.mutant.apply(monkeypatch.setattr)
    with pytest.raises(PromiseBroken):
        SCENARIOS[name](redis_server)


def test_every_scenario_has_its_guard():
    assert {guard.scenario for guard in GUARDS} - {""} == set(SCENARIOS)


def cluster_without(guard: str, **options: Any) -> ClusterScenario:
    return ClusterScenario(replicas=2, app="tests.support.apps.mutated_app", env={"APP_MUTANT": guard}, **options)


@pytest.mark.slow
def test_lost_reply_doubles_a_message_without_the_ledger_check():
    """`test_lost_reply.py` has the same fault with every guard."""
    with cluster_without(
        "dispatch: a row changes only from the expected one", spec={"fast": {"every": 0.5}}
    ) as scenario:
        leader = scenario.begin()
        cut = scenario.nemesis.lease_proxy(leader).cut_reply_after(containing(b"EVALSHA", b'"verdict":"enqueued"'))
        cut.wait()
        scenario.more(4)
        assert scenario.report(scenario.intervals).duplicates == 1


@pytest.mark.slow
def test_killed_leader_costs_its_whole_lease_without_presence():
    """`test_takeover.py` has the same fault with every guard."""
    ttl = 8.0
    options: dict[str, Any] = {"spec": {"fast": {"every": 0.2}}, "settings": {"lease_ttl": ttl}, "proxied": False}
    with cluster_without("presence: an absent leader is replaced", **options) as scenario:
        leader = scenario.begin()
        scenario.cluster.wait_for_presence()
        scenario.nemesis.kill_leader()
        scenario.cluster.wait_for_leader(other_than=leader)
        scenario.more(2)
        assert scenario.report().silence_by_fault["kill_leader"].longest > ttl / 2
