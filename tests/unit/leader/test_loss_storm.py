"""Leaders that come and go, of two releases, on a Redis that crashes and comes back with more or less of what it knew:
the real rules of a takeover, in simulated time. One seed is one run.

What has run, and each verdict, is remembered outside: no occurrence runs twice, and none is passed over in silence.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest

from ha_beat.leader.due_queue import Slot
from ha_beat.leader.ledger_writer import Scribe, Work
from ha_beat.leader.reconcile import take_over
from ha_beat.leader.state_loss import assess
from ha_beat.reasons import MisfirePolicy
from ha_beat.schedule.misfire import MisfireRules, Skipped
from ha_beat.schedule.occurrence import NEVER
from ha_beat.store.lease import Term
from ha_beat.store.ledger import ServerFacts
from ha_beat.store.shadow import Shadow

START = datetime(2030, 1, 1, tzinfo=UTC)
STEP = timedelta(milliseconds=100)

#: Seconds between two looks of a standby at the journal.
FOLLOW = 1.0

#: Replicas' clocks are so many seconds away from the right time at most.
SKEW = 0.9

LENGTH = timedelta(seconds=90)

#: At the end of which nothing befalls anybody.
SETTLING = timedelta(seconds=12)


@dataclass(frozen=True)
class Grid:
    """Every so many seconds of the calendar, as a crontab."""

    seconds: int

    def next_after(self, instant: datetime) -> datetime:
        count = (instant - START) // timedelta(seconds=self.seconds) + 1
        return START + count * timedelta(seconds=self.seconds)

    def newest(self, known: datetime, now: datetime) -> tuple[datetime, int]:
        raise AssertionError("never so many")


#: By release: the entries, and how often each is due.
RELEASES: tuple[Mapping[str, int], ...] = (
    {"same": 1, "slow": 7, "edited": 2, "removed": 3},
    {"same": 1, "slow": 7, "edited": 3, "added": 2},
)


@dataclass
class Redis:
    """Of a state: what a crash may take back."""

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
    contact_lost: datetime | None = None
    cut_off: bool = False
    slots: list[Slot] = field(default_factory=list)
    term: Term | None = None


class Storm:
    """``append_only``: a crash takes nothing; else what was written since the last snapshot."""

    def __init__(
        self, seed: int, *, append_only: bool, policy: MisfirePolicy = MisfirePolicy.ONCE, releases: int = 2
    ) -> None:
        self.random = random.Random(seed)
        self.now = START + timedelta(seconds=100)
        self.until = self.now + LENGTH
        self.append_only = append_only
        self.misfire = MisfireRules(policy)
        self.releases = releases
        self.state = Redis()
        self.snapshot = self.state.copy()
        self.run, self.started_at = "run-0", self.now
        self.epoch = 0
        self.messages: Counter[tuple[str, datetime]] = Counter()
        self.skips: list[tuple[str, Skipped]] = []
        self.began: dict[str, datetime] = {}
        self.replicas = [self._born(f"r{number}") for number in range(3)]
        self.leader: Replica | None = None
        self.log: list[str] = []

    def _born(self, name: str) -> Replica:
        skew = timedelta(seconds=self.random.uniform(-SKEW, SKEW))
        return Replica(name, self.random.randrange(self.releases), skew)

    # --- What replicas do

    def lead(self, replica: Replica) -> None:
        state, now = self.state, self.now + replica.skew
        previous, changed = state.gen, state.written_on not in ("", self.run)
        self.epoch += 1
        state.gen = state.gen or f"gen-{self.epoch}"
        state.written_on = self.run
        term = Term(replica.name, self.epoch, f"nonce-{self.epoch}", state.gen, self.run, 0.0)
        facts = ServerFacts(self.append_only, self.started_at + replica.skew) if changed else None
        loss = assess(
            gen=state.gen,
            previous_gens=(previous, previous),
            shadow=replica.shadow,
            rows=state.rows,
            facts=facts,
            contact_lost=replica.contact_lost,
            now=now,
        )
        self._say(f"{replica.name} leads, release {replica.release}: {loss}")
        scribe = Scribe(term, now)
        slots = [
            Slot(name, object(), Grid(every), self.misfire, str(every), NEVER)
            for name, every in RELEASES[replica.release].items()
        ]
        taken = take_over(
            slots, dict(state.rows), replica.shadow, loss, scribe=scribe, catch_up=False, emit=lambda _: None
        )
        replica.shadow.gen = state.gen
        replica.shadow.learn_rows(state.rows)
        replica.slots, replica.term, replica.contact_lost = taken.slots, term, None
        self.leader = replica
        for work in taken.works:
            self._write(replica, work)
        for slot in taken.slots:
            self.began.setdefault(slot.id, slot.base)

    def dispatch(self, replica: Replica, *, answered: bool = True) -> None:
        assert replica.term is not None
        now = self.now + replica.skew
        scribe = Scribe(replica.term, now)
        for slot in replica.slots:
            assert slot.instants is not None
            due_at = slot.instants.next_after(slot.base)
            if due_at > now:
                continue
            slot.due_at = due_at
            due = slot.decide(now)
            if due.send is None:
                assert due.skipped is not None
                self._write(replica, scribe.skipped(slot, due.skipped, due.position), answered=answered)
                continue
            row = scribe.row(slot, due.position, "enqueued", scheduled_at=due.send, task_id=f"{slot.id} {due.send}")
            work = replace(scribe.armed(slot), row=row, due=due)
            self._write(replica, work, answered=answered)

    def _write(self, replica: Replica, work: Work, *, answered: bool = True) -> None:
        slot = work.slot
        assert self.state.rows.get(slot.id, "") == slot.expected, "two leaders"
        self.state.rows[slot.id] = work.row.raw
        if work.due is not None:
            if work.due.skipped is not None:
                self.skips.append((slot.id, work.due.skipped))
            if work.due.send is not None:
                self.messages[slot.id, work.due.send] += 1
                self._say(f"{replica.name} enqueued {slot.id} {work.due.send:%H:%M:%S}")
        if answered:
            slot.row, slot.base = work.row, work.row.base
            replica.shadow.learn(slot.id, work.row.base)

    def follow(self, replica: Replica) -> None:
        replica.shadow.learn_rows(self.state.rows)
        replica.shadow.gen = self.state.gen or replica.shadow.gen

    # --- What befalls them

    def crash(self) -> None:
        """Redis goes, and comes back a while later; at times it had acted on a batch, and nobody heard of it."""
        leader = self.leader
        if leader is not None:
            self.dispatch(leader, answered=self.random.random() < 0.5)
        for replica in self.replicas:
            if not replica.cut_off:
                replica.contact_lost = self.now + replica.skew
        if self.random.random() < 0.3:
            self._replace(self.random.choice(self.replicas))
        self.leader = None
        down = timedelta(seconds=self.random.choice((0.1, 1.0, 6.0)))
        if not self.append_only:
            self.state = self.random.choice((self.snapshot, self.snapshot, Redis())).copy()
        self._say(f"Redis crashes, for {down}")
        self.now += down
        self.run, self.started_at = f"run-{self.now}", self.now
        self.snapshot = self.state.copy()

    def _replace(self, replica: Replica) -> None:
        if self.leader is replica:
            self.leader = None
        self._say(f"{replica.name} is replaced")
        self.replicas[self.replicas.index(replica)] = self._born(f"{replica.name}'")

    def befall(self) -> None:
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
                replica.cut_off, replica.contact_lost = True, self.now + replica.skew
                if self.leader is replica:
                    self.leader = None
                self._say(f"{replica.name} is cut off")
            case 5:
                for replica in self.replicas:
                    replica.cut_off = False
            case 6:
                self.now += timedelta(seconds=self.random.uniform(0, 8))
                self.leader = None
                self._say("nobody led for a while")

    def go(self) -> Storm:
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
            if self.now > self.until - SETTLING:
                for replica in self.replicas:
                    replica.cut_off = False
            elif self.random.random() < 0.05:
                self.befall()
            self.now += STEP
        return self

    def _elect(self) -> None:
        reach = [replica for replica in self.replicas if not replica.cut_off]
        if not self.state.gen:
            # All was lost. Who was not there before can't tell that from a first start.
            if not any(replica.shadow.gen for replica in self.replicas):
                self.messages.clear()
                self.skips.clear()
                self.began.clear()
            else:
                reach = [replica for replica in reach if replica.shadow.gen]
        if reach:
            self.lead(self.random.choice(reach))

    def _say(self, what: str) -> None:
        self.log.append(f"{self.now:%H:%M:%S.%f} {what}")

    # --- What must hold

    def doubled(self) -> list[str]:
        return [f"{entry} {at}" for (entry, at), count in self.messages.items() if count > 1]

    def in_silence(self, entry: str, every: int) -> list[str]:
        """Instants of an entry that never changed without a message and without a verdict."""
        found = []
        at = Grid(every).next_after(self.began[entry])
        while at < self.until - timedelta(seconds=5):
            covered = any(name == entry and skip.first <= at < skip.until for name, skip in self.skips)
            if not self.messages[entry, at] and not covered:
                found.append(f"{entry} {at}")
            at = Grid(every).next_after(at)
        return found

    def both(self) -> list[str]:
        """Verdicts that contradict each other. After a loss of state none says that nothing was enqueued."""
        return [
            f"{entry} {at}: {skip.reason}"
            for entry, skip in self.skips
            if skip.reason != "state_loss"
            for name, at in self.messages
            if name == entry and skip.first <= at < skip.until and self.messages[name, at]
        ]


@pytest.mark.parametrize("policy", MisfirePolicy)
@pytest.mark.parametrize("append_only", [True, False])
@pytest.mark.parametrize(
    "seeds", [range(20), pytest.param(range(20, 150), marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_whatever_is_lost_nothing_runs_twice_or_is_dropped_in_silence(
    append_only: bool, policy: MisfirePolicy, seeds: range
) -> None:
    for seed in seeds:
        storm = Storm(seed, append_only=append_only, policy=policy).go()
        told = f"seed {seed}\n" + "\n".join(storm.log)
        assert storm.doubled() == [], told
        assert storm.in_silence("same", 1) + storm.in_silence("slow", 7) == [], told
        if append_only:
            assert storm.both() == [], told
