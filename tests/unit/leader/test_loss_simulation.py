"""Simulation of leaders of two releases on a Redis that crashes and restarts with some or none of its data.

The rules of a change of leader are the real ones; time is simulated. One seed is one run. The test keeps each message
and each verdict: no occurrence runs twice, and none is left without a verdict.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest

from ha_beat.leader.entry import EntryState, ScheduledEntry
from ha_beat.leader.ledger_writer import EntryOperation, LedgerWriter
from ha_beat.leader.loading.reconcile import reconcile
from ha_beat.leader.loading.state_loss import assess
from ha_beat.reasons import MisfirePolicy, SkipReason, Verdict
from ha_beat.schedule.misfire import MisfireRules, Skipped
from ha_beat.schedule.occurrence import NEVER
from ha_beat.store.lease import Term
from ha_beat.store.server_facts import ServerFacts
from ha_beat.store.shadow import Shadow

START = datetime(2030, 1, 1, tzinfo=UTC)
STEP = timedelta(milliseconds=100)

#: Seconds between two reads of the journal by a standby.
FOLLOW = 1.0

#: Largest error of a replica's clock, in seconds.
SKEW = 0.9

LENGTH = timedelta(seconds=90)

#: Time at the end without faults.
QUIET_END = timedelta(seconds=12)


@dataclass(frozen=True)
class Grid:
    """Recurrence at multiples of some seconds of the calendar, as a crontab."""

    seconds: int

    def next_after(self, instant: datetime) -> datetime:
        count = (instant - START) // timedelta(seconds=self.seconds) + 1
        return START + count * timedelta(seconds=self.seconds)

    def newest(self, known: datetime, now: datetime) -> tuple[datetime, int]:
        raise AssertionError("never so many")


#: Entries of each release, with their interval in seconds.
RELEASES: tuple[Mapping[str, int], ...] = (
    {"same": 1, "slow": 7, "edited": 2, "removed": 3},
    {"same": 1, "slow": 7, "edited": 3, "added": 2},
)


@dataclass
class Redis:
    """State of Redis that a crash may take back."""

    gen: str = ""
    written_on: str = ""
    rows: dict[str, str] = field(default_factory=dict)

    def copy(self) -> Redis:
        return replace(self, rows=dict(self.rows))


@dataclass
class Replica:
    name: str
    release: int
    skew: timedelta
    shadow: Shadow = field(default_factory=Shadow)
    lost_at: datetime | None = None
    cut_off: bool = False
    states: list[EntryState] = field(default_factory=list)
    term: Term | None = None


class Simulation:
    """Simulation. Without ``append_only`` a crash loses the writes since the last snapshot."""

    def __init__(self, seed: int, *, append_only: bool, policy: MisfirePolicy) -> None:
        self.random = random.Random(seed)
        self.now = START + timedelta(seconds=100)
        self.until = self.now + LENGTH
        self.append_only = append_only
        self.misfire = MisfireRules(policy)
        self.state = Redis()
        self.snapshot = self.state.copy()
        self.run, self.started_at = "run-0", self.now
        self.epoch = 0
        self.messages: Counter[tuple[str, datetime]] = Counter()
        self.skips: list[tuple[str, Skipped]] = []
        self.began: dict[str, datetime] = {}
        self.replicas = [self._new_replica(f"r{number}") for number in range(3)]
        self.leader: Replica | None = None
        self.log: list[str] = []

    def _new_replica(self, name: str) -> Replica:
        skew = timedelta(seconds=self.random.uniform(-SKEW, SKEW))
        return Replica(name, self.random.randrange(len(RELEASES)), skew)

    # --- Replicas

    def lead(self, replica: Replica) -> None:
        state, now = self.state, self.now + replica.skew
        previous, changed = state.gen, state.written_on not in ("", self.run)
        self.epoch += 1
        state.gen = state.gen or f"gen-{self.epoch}"
        state.written_on = self.run
        term = Term(replica.name, self.epoch, f"nonce-{self.epoch}", state.gen, self.run, 0.0)
        facts = ServerFacts(self.append_only, self.started_at + replica.skew) if changed else None
        found = {"gen": state.gen, "previous_gens": (previous, previous), "rows": state.rows, "facts": facts}
        loss = assess(**found, shadow=replica.shadow, lost_at=replica.lost_at, now=now)
        self._note(f"{replica.name} leads, release {replica.release}: {loss}")
        entries = [
            ScheduledEntry(name, object(), Grid(every), self.misfire, str(every), NEVER)
            for name, every in RELEASES[replica.release].items()
        ]
        writer = LedgerWriter(term, now)
        done = reconcile(entries, dict(state.rows), replica.shadow, loss, writer=writer, catch_up=False)
        replica.shadow.gen = state.gen
        replica.shadow.learn_rows(state.rows)
        replica.states, replica.term, replica.lost_at = done.states, term, None
        self.leader = replica
        for operation in done.operations:
            self._write(replica, operation)
        for each in done.states:
            self.began.setdefault(each.id, each.position)

    def dispatch(self, replica: Replica, *, answered: bool = True) -> None:
        now = self.now + replica.skew
        writer = LedgerWriter(replica.term, now)
        for state in replica.states:
            due_at = state.entry.recurrence.next_after(state.position)
            if due_at > now:
                continue
            state.due_at = due_at
            due = state.decide(now)
            if due.send is None:
                self._write(replica, writer.skip(state, due.skipped, due.position), answered=answered)
                continue
            task_id = f"{state.id} {due.send}"
            row = writer.row(state, due.position, Verdict.ENQUEUED, scheduled_at=due.send, task_id=task_id)
            operation = replace(writer.arm(state), row=row, decision=due)
            self._write(replica, operation, answered=answered)

    def _write(self, replica: Replica, done: EntryOperation, *, answered: bool = True) -> None:
        state = done.state
        assert self.state.rows.get(state.id, "") == state.expected, "two leaders"
        self.state.rows[state.id] = done.row.raw
        if done.decision is not None:
            if done.decision.skipped is not None:
                self.skips.append((state.id, done.decision.skipped))
            if done.decision.send is not None:
                self.messages[state.id, done.decision.send] += 1
                self._note(f"{replica.name} enqueued {state.id} {done.decision.send:%H:%M:%S}")
        if answered:
            state.record_row(done.row)
            replica.shadow.learn(state.id, done.row.base)

    def follow(self, replica: Replica) -> None:
        replica.shadow.learn_rows(self.state.rows)
        replica.shadow.gen = self.state.gen or replica.shadow.gen

    # --- Faults

    def crash(self) -> None:
        """Crash Redis and restart it. It may have executed a batch whose reply is lost."""
        leader = self.leader
        if leader is not None:
            self.dispatch(leader, answered=self.random.random() < 0.5)
        for replica in self.replicas:
            if not replica.cut_off:
                replica.lost_at = self.now + replica.skew
        if self.random.random() < 0.3:
            self._replace(self.random.choice(self.replicas))
        self.leader = None
        down = timedelta(seconds=self.random.choice((0.1, 1.0, 6.0)))
        if not self.append_only:
            self.state = self.random.choice((self.snapshot, self.snapshot, Redis())).copy()
        self._note(f"Redis crashes, for {down}")
        self.now += down
        self.run, self.started_at = f"run-{self.now}", self.now
        self.snapshot = self.state.copy()

    def _replace(self, replica: Replica) -> None:
        if self.leader is replica:
            self.leader = None
        self._note(f"{replica.name} is replaced")
        self.replicas[self.replicas.index(replica)] = self._new_replica(f"{replica.name}'")

    def fault(self) -> None:
        match self.random.randrange(7):
            case 0:
                self.crash()
            case 1:
                self.snapshot = self.state.copy()
            case 2:
                self._replace(self.random.choice(self.replicas))
            case 3:
                self.leader = None
            case 4:
                replica = self.random.choice(self.replicas)
                replica.cut_off, replica.lost_at = True, self.now + replica.skew
                if self.leader is replica:
                    self.leader = None
                self._note(f"{replica.name} is cut off")
            case 5:
                for replica in self.replicas:
                    replica.cut_off = False
            case 6:
                self.now += timedelta(seconds=self.random.uniform(0, 8))
                self.leader = None
                self._note("no leader for a while")

    def play(self) -> Simulation:
        follow_at = self.now
        while self.now < self.until:
            if self.leader is None:
                self._elect()
            else:
                self.dispatch(self.leader)
            if self.now >= follow_at:
                follow_at = self.now + timedelta(seconds=FOLLOW)
                for replica in self.replicas:
                    if not replica.cut_off and replica is not self.leader:
                        self.follow(replica)
            if self.now > self.until - QUIET_END:
                for replica in self.replicas:
                    replica.cut_off = False
            elif self.random.random() < 0.05:
                self.fault()
            self.now += STEP
        return self

    def _elect(self) -> None:
        reach = [replica for replica in self.replicas if not replica.cut_off]
        if not self.state.gen:
            # All was lost. A replica that is new cannot distinguish that from a first start.
            if not any(replica.shadow.gen for replica in self.replicas):
                self.messages.clear()
                self.skips.clear()
                self.began.clear()
            else:
                reach = [replica for replica in reach if replica.shadow.gen]
        if reach:
            self.lead(self.random.choice(reach))

    def _note(self, what: str) -> None:
        self.log.append(f"{self.now:%H:%M:%S.%f} {what}")

    # --- Promises

    def duplicates(self) -> list[str]:
        return [f"{entry} {at}" for (entry, at), count in self.messages.items() if count > 1]

    def without_verdict(self, entry: str, every: int) -> list[str]:
        """Return instants of an unedited entry that have neither a message nor a verdict."""
        found = []
        at = Grid(every).next_after(self.began[entry])
        while at < self.until - timedelta(seconds=5):
            covered = any(name == entry and skip.first <= at < skip.until for name, skip in self.skips)
            if not self.messages[entry, at] and not covered:
                found.append(f"{entry} {at}")
            at = Grid(every).next_after(at)
        return found

    def contradictions(self) -> list[str]:
        """Return skips of instants that were sent. A skip after a loss does not say that nothing was sent."""
        return [
            f"{entry} {at}: {skip.reason}"
            for entry, skip in self.skips
            if skip.reason is not SkipReason.STATE_LOSS
            for name, at in self.messages
            if name == entry and skip.first <= at < skip.until and self.messages[name, at]
        ]


@pytest.mark.parametrize("policy", MisfirePolicy)
@pytest.mark.parametrize("append_only", [True, False])
@pytest.mark.parametrize("seeds", [range(8), pytest.param(range(8, 150), marks=pytest.mark.slow)], ids=["few", "many"])
def test_loss_causes_no_duplicate_and_no_missing_verdict(append_only, policy, seeds):
    for seed in seeds:
        simulation = Simulation(seed, append_only=append_only, policy=policy).play()
        log = f"seed {seed}\n" + "\n".join(simulation.log)
        assert simulation.duplicates() == [], log
        assert simulation.without_verdict("same", 1) + simulation.without_verdict("slow", 7) == [], log
        if append_only:
            assert simulation.contradictions() == [], log
