"""Enqueuer on a real Redis: one bad entry does not affect the others, and an outage is reported sparingly."""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from ha_beat import events
from ha_beat.budget import Pace
from ha_beat.clock import Clock, SystemClock, to_micros
from ha_beat.dispatch import Answer, Dispatcher, OpenClaim, Operation
from ha_beat.dispatch.batch import BatchScript
from ha_beat.dispatch.message import Declined
from ha_beat.election.cluster_clock import SchedulingTime
from ha_beat.election.leader_handle import Tenure
from ha_beat.errors import StoreRefused, StoreUnavailable
from ha_beat.leader import BrokerOutOfReach, Enqueuer, LeaderOptions, LeaderParts
from ha_beat.leader.entry import EntryState, ScheduledEntry
from ha_beat.leader.pause import PauseState
from ha_beat.leader.planner import EVERYTHING, ScheduleChange
from ha_beat.leader.reconcile import Absence
from ha_beat.leader.results import Results
from ha_beat.reasons import EntryFault, LossKind, MisfirePolicy, SkipReason, Verdict
from ha_beat.schedule.misfire import MisfireRules
from ha_beat.schedule.occurrence import Occurrence
from ha_beat.store.entry_pauses import EntryPause
from ha_beat.store.keys import Keys
from ha_beat.store.lease import RedisLeaseStore, Term, new_token
from ha_beat.store.ledger import Ledger, LedgerRow
from ha_beat.store.shadow import Shadow
from tests.support.brokers import NoRecipes
from tests.support.clocks import HeldClock
from tests.support.dispatchers import PlainPush, TimedPush, push
from tests.support.entries import Every, scheduled
from tests.support.events import EventLog
from tests.support.leases import acquire, attempt
from tests.support.servers import RedisServer

KEYS = Keys("enqueuer")
Fail = Callable[[Sequence[Operation]], object]


class Source:
    """Schedule source with hourly entries. ``last_run`` is how many seconds ago each of them ran."""

    clock: Clock = SystemClock()

    def __init__(self, **last_run: float) -> None:
        self.last_run = dict(last_run)

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.clock.wall(), UTC)

    def load(self, ids: Set[str] | None = None) -> Iterable[ScheduledEntry]:
        now = self.now()
        for name, ago in list(self.last_run.items()):
            if ids is None or name in ids:
                yield scheduled(name, last_run=now - timedelta(seconds=ago))

    def check(self, *_: Any) -> tuple[bool, float]:
        return False, 60.0

    def arguments(self, entry: ScheduledEntry) -> tuple[Sequence[Any], Mapping[str, Any], Mapping[str, Any]]:
        return [entry.id], {}, {}

    def recorded(self, entry: ScheduledEntry, row: LedgerRow) -> None: ...

    def absence(self, _: Term) -> Absence | None:
        return None

    def armed(self, entry_id: str) -> None: ...

    def finished(self, entry: ScheduledEntry, runs: int) -> None: ...


class AlwaysDue(Source):
    """Source of entries without a recurrence that are always due, and asked once a minute."""

    asked = 0

    def load(self, ids: Set[str] | None = None) -> Iterable[ScheduledEntry]:
        return (replace(entry, recurrence=None) for entry in super().load(ids))

    def check(self, *_: Any) -> tuple[bool, float]:
        self.asked += 1
        return True, 60.0


class ScriptDispatcher:
    """Dispatcher that runs the real script. The message of an entry is its id."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._batch = BatchScript(KEYS, 1000)
        self.ledger = Ledger(lambda: client, KEYS)
        self.capacity = 1000
        self.recipes = NoRecipes()
        self.obstacle = None
        self.fail: Fail = lambda _: None
        self.claims: list[OpenClaim] = []
        self.on_record_uncertain: Callable[[], object] = lambda: None

    def prepare(self, _: Any, args: Sequence[Any], __: Mapping[str, Any], ___: Mapping[str, Any]) -> Any:
        return push(str(args[0]))

    prepare_ahead = prepare

    def pack(self, _: Operation) -> bytes:
        return b""

    def submit(self, term: Term, operations: Sequence[Operation]) -> list[Answer]:
        self.fail(operations)
        return self._batch.run(self._client, term, operations)

    def drop_refused(self, _: Sequence[Operation]) -> bool:
        return True

    def open_claims(self, _: Term) -> list[OpenClaim]:
        return self.claims

    def take_back(self, _: Term) -> frozenset[str]:
        return frozenset()

    def record_uncertain(self, _: Term, __: Sequence[OpenClaim]) -> Mapping[str, LedgerRow]:
        self.on_record_uncertain()
        return {}

    def confirm_late(self) -> None: ...


def failing(error: Exception, entry: str = "") -> Fail:
    """Return a failure of each batch, or of each one with a message of an entry."""

    def fail(operations: Sequence[Operation]) -> None:
        if not entry or any(operation.entry == entry and operation.message for operation in operations):
            raise error

    return fail


def enqueued(at: datetime, **fields: Any) -> LedgerRow:
    """Return a row that another leader wrote when it enqueued the occurrence."""
    return LedgerRow(at, "enqueued", at, signature="s", **fields)


class Leader:
    """Leader whose turns are taken by the test."""

    def __init__(self, server: RedisServer) -> None:
        self.client: Any = server.client()
        self.clock = HeldClock()
        self.events = EventLog()
        self.moves: list[float] = []
        self.idle = 0.0
        self.on_event: Callable[[events.Event], object] = lambda _: None
        self.dispatcher = ScriptDispatcher(server.client())
        self.pause = PauseState()
        self.lead()
        self.use(Source())

    def use(self, source: Source, options: LeaderOptions | None = None) -> None:
        """Begin with an empty memory."""
        self.source = source
        source.clock = self.clock
        chosen: Dispatcher = self.dispatcher
        parts = LeaderParts(
            source,
            lambda _: chosen,
            Shadow(),
            SchedulingTime(self.clock, self.events.append),
            "enqueuer",
            self.clock,
            self.emit,
            options or LeaderOptions(publish_deadline=None),
            self.pause,
            Pace(self.clock, 0.5, lambda: self.moves.append(self.clock.elapsed())),
        )
        self.enqueuer = Enqueuer(parts)

    def emit(self, event: events.Event) -> None:
        self.on_event(event)
        self.events.append(event)

    def lead(self, name: str = "one") -> None:
        """Begin a term of a replica."""
        made = attempt(name, new_token(), sent_at=self.clock.elapsed(), ttl=1e6)
        self.tenure = Tenure(acquire(RedisLeaseStore(lambda: self.client, KEYS), made), "")
        self.know_pauses({})

    def know_pauses(self, entries: Mapping[str, EntryPause]) -> None:
        """Set the pauses as read under this term."""
        self.pause.set(self.tenure.acquired.term, None, entries, Shadow())

    def owe(self, *entries: str) -> None:
        """Make entries of the schedule due a second ago."""
        self.source.last_run = dict.fromkeys(entries, 3601.0)

    def later(self, seconds: float) -> None:
        """Advance the clock, and Redis' view of it."""
        self.clock.ahead += seconds
        self.client.hset(KEYS.lease, "offset_ms", round(self.clock.ahead * 1000))

    def turn(self, times: int = 1, *, after: float = 0.0) -> Leader:
        """Take turns after some seconds. ``idle`` is the time to the next one."""
        if after:
            self.later(after)
        for _ in range(times):
            self.idle = self.enqueuer.advance(self.tenure, self.tenure.acquired.term)
        return self

    @property
    def messages(self) -> list[str]:
        return sorted(self.client.lrange("queue", 0, -1))

    def write(self, row: LedgerRow) -> str:
        """Change the row of the entry e, as another leader does."""
        self.client.hset(KEYS.ledger, "e:e", row.encoded())
        return row.encoded()

    def records(self, entry: str) -> list[dict[str, Any]]:
        """Return the journal's records of an entry."""
        found = [json.loads(fields["d"]) for _, fields in self.client.xrange(KEYS.journal)]
        return [record for record in found if record.get("entry") == entry]

    def state(self) -> EntryState:
        found = self.enqueuer.due_queue.get("e")
        assert found is not None
        return found

    def failed(self) -> list[str]:
        return [event.entry for event in self.events.of(events.EntryFailed)]

    def held(self) -> list[float]:
        """Return the waits before a dispatch on another server, in seconds."""
        return [event.seconds for event in self.events.of(events.DispatchHeld)]

    def losses(self) -> list[LossKind]:
        return [event.reason for event in self.events.of(events.StateLost)]


@pytest.fixture
def leader(shared_redis: RedisServer) -> Leader:
    return Leader(shared_redis)


def test_entry_with_an_unencodable_name_does_not_affect_others(leader: Leader):
    """A lone surrogate comes from a file with a broken escape."""
    leader.owe("one", "bad \ud800 name", "two")
    assert leader.turn(20).messages == ["one", "two"]
    assert set(leader.failed()) == {"bad \ud800 name"}


def test_pause_that_was_not_read_under_the_term_skips_nothing(leader: Leader):
    leader.owe("e")
    leader.know_pauses({"e": EntryPause("e", 1)})
    leader.pause.invalidate()
    leader.turn(3)
    assert (leader.idle, leader.messages) == (float("inf"), [])
    assert "skipped" not in [record.get("verdict") for record in leader.records("e")]
    leader.know_pauses({})
    assert leader.turn(2).messages == ["e"]


def test_loading_many_entries_reports_progress(leader: Leader):
    """On a slow machine 50,000 entries take longer than the stall timeout, on each leader."""

    class SlowHourly(Every):
        def next_after(self, instant: datetime) -> datetime:
            leader.clock.ahead += 5.0
            return super().next_after(instant)

    class Slow(Source):
        def load(self, ids: Set[str] | None = None) -> Iterable[ScheduledEntry]:
            for entry in super().load(ids):
                leader.clock.ahead += 5.0
                yield replace(entry, recurrence=SlowHourly(3600))

    leader.use(Slow(**{f"e{number}": 60.0 for number in range(10)}))
    began = leader.clock.elapsed()
    leader.turn()
    moves = [began, *leader.moves, leader.clock.elapsed()]
    assert moves[-1] - began > 90
    assert max(after - before for before, after in pairwise(moves)) < 15


def test_slow_entries_are_sent_in_pieces_while_others_run(leader: Leader):
    """Thirty entries take 0.3 s each to build, longer than a stall timeout together; another is due each second."""

    class Slow(Source):
        def load(self, ids: Set[str] | None = None) -> Iterable[ScheduledEntry]:
            quick = scheduled("quick", every=1.0, last_run=self.now())
            return [*super().load(ids), quick]

        def arguments(self, entry: ScheduledEntry) -> Any:
            if entry.id != "quick":
                leader.later(0.3)
            return super().arguments(entry)

    leader.use(Slow(**{f"e{number}": 3601.0 for number in range(30)}))
    ran_at, runs = [leader.clock.elapsed()], 0
    for _ in range(100):
        leader.turn(after=0.01)
        if leader.messages.count("quick") > runs:
            runs += 1
            ran_at.append(leader.clock.elapsed())
    assert set(leader.messages) == {"quick", *leader.source.last_run}
    assert max(after - before for before, after in pairwise(ran_at)) < 2.5
    assert max(after - before for before, after in pairwise(leader.moves)) < 1.0


def test_slow_entries_that_fill_the_time_do_not_stop_the_others(leader: Leader):
    """Each takes a whole batch, and is due again before the others have had their turn."""

    class Slow(Source):
        def load(self, ids: Set[str] | None = None) -> Iterable[ScheduledEntry]:
            for entry in super().load(ids):
                yield replace(entry, recurrence=Every(1.0)) if entry.id.startswith("slow") else entry

        def arguments(self, entry: ScheduledEntry) -> Any:
            leader.later(0.6 if entry.id.startswith("slow") else 0.01)
            return super().arguments(entry)

    slow, others = ["slow1", "slow2"], [f"e{number}" for number in range(5)]
    leader.use(Slow(**dict.fromkeys(slow, 2.0), **dict.fromkeys(others, 3600.5)))
    leader.turn(40)
    assert set(leader.messages) == {*slow, *others}
    assert min(leader.messages.count(name) for name in slow) > 5


@pytest.mark.parametrize("change", [EVERYTHING, ScheduleChange(frozenset({"e"}))], ids=["all", "one"])
def test_reload_does_not_postpone_the_verdict_of_a_failing_entry(leader: Leader, change: ScheduleChange):
    due_now = scheduled("e", last_run=leader.source.now() - timedelta(seconds=3601))

    class Fixed(Source):
        def load(self, _: object = None) -> Iterable[ScheduledEntry]:
            return [due_now]

    leader.use(Fixed(), LeaderOptions(publish_deadline=30.0, handover_after=1000.0))
    leader.dispatcher.fail = failing(StoreUnavailable("away", acted=False), "e")
    for _ in range(20):
        leader.turn(2, after=2.0)
        leader.enqueuer.reload(change)
    (skipped,) = leader.events.of(events.OccurrenceSkipped)
    assert skipped.reason is SkipReason.NOT_PUBLISHED


def test_hung_arguments_end_with_a_verdict(leader: Leader):
    """They turn out to be slow on the main loop, and hang in the thread of the next occurrence."""
    hung = threading.Event()

    class Hung(Source):
        def arguments(self, entry: ScheduledEntry) -> Any:
            if entry.id == "hung":
                leader.later(5.0)
                if threading.current_thread() is not threading.main_thread():
                    hung.wait(30.0)
            return super().arguments(entry)

    leader.use(Hung(hung=3601.0, other=3601.0), LeaderOptions(publish_deadline=60.0))
    leader.turn(3)
    assert sorted(leader.messages) == ["hung", "other"]
    for _ in range(26):
        leader.later(150.0)
        leader.turn(3)
    hung.set()
    assert leader.messages.count("other") == 2
    assert [record.get("why") for record in leader.records("hung")] == [None, SkipReason.NO_MESSAGE]
    faults = [event.reason for event in leader.events.of(events.EntryFailed)]

    assert faults == [EntryFault.SLOW_ARGUMENTS, EntryFault.HUNG_ARGUMENTS]


def test_entry_with_a_backlog_goes_behind_the_others(leader: Leader):
    """Its instants are the oldest, and would take every batch until it has caught up."""

    class Backlogs(Source):
        def load(self, ids: Set[str] | None = None) -> Iterable[ScheduledEntry]:
            rules = MisfireRules(MisfirePolicy.ALL)
            for entry in super().load(ids):
                yield entry if entry.id == "other" else replace(entry, recurrence=Every(60.0), misfire=rules)

        def arguments(self, entry: ScheduledEntry) -> Any:
            leader.later(0.3)
            return super().arguments(entry)

    leader.use(Backlogs(one=3000.0, two=3000.0, three=3000.0, other=3599.0))
    leader.turn(2).later(2.0)
    sent_before = len(leader.messages)
    leader.turn(3)
    assert "other" in leader.messages
    assert sent_before < len(leader.messages) < 10


def test_batch_is_limited_by_the_size_of_its_messages(leader: Leader, monkeypatch):
    """A hundred large messages at once would block Redis for seconds or exceed its limit."""
    monkeypatch.setattr("ha_beat.leader.batch_builder.BATCH_CHARACTERS", 20)
    leader.source.last_run = {name: 3606.0 - age for age, name in enumerate(("one", "two", "three", "four", "five"))}
    batches: list[list[str]] = []
    leader.dispatcher.fail = lambda operations: batches.append([op.entry for op in operations if op.message])
    leader.turn(10)
    # LPUSH, queue and an id are 13 to 15 characters.
    assert [batch for batch in batches if batch] == [["one", "two"], ["three", "four"], ["five"]]
    assert leader.messages == ["five", "four", "one", "three", "two"]


def test_batch_that_raises_is_submitted_one_by_one(leader: Leader):
    """Only the entry at fault waits, and it is retried later."""
    leader.owe("one", "bad", "two")
    leader.turn(3)
    leader.client.delete("queue")
    leader.later(3600.0)
    leader.dispatcher.fail = failing(ValueError("a bug"), "bad")
    assert leader.turn(10).messages == ["one", "two"]
    assert leader.failed() == ["bad"]
    leader.dispatcher.fail = lambda _: None
    assert "bad" in leader.turn(3, after=61.0).messages


def test_redis_failure_during_one_by_one_submission_loses_nothing(leader: Leader):
    leader.owe("one", "two", "three")
    leader.turn()
    faults = [ValueError("a bug"), StoreUnavailable("cut"), StoreUnavailable("cut")]
    leader.dispatcher.fail = lambda operations: faults and failing(faults.pop(0))(operations)
    for _ in range(20):
        leader.turn(after=2.0)
    assert leader.messages == ["one", "three", "two"]


def test_entry_that_is_refused_repeatedly_is_reported_once(leader: Leader):
    """Its queue's key has another type, and it is retried each second."""
    leader.owe("e")
    leader.client.set("queue", "not a list")
    for _ in range(60):
        leader.turn(2, after=1.1)
    assert leader.failed() == ["e"]
    leader.client.delete("queue")
    assert leader.turn(3, after=1.1).messages == ["e"]


def outage(leader: Leader, seconds: float) -> int:
    """Return how often the leader steps down in an outage, when it gets the lease again each time."""
    changes, until = 0, leader.clock.ahead + seconds
    while leader.clock.ahead < until:
        leader.later(1.0)
        try:
            leader.turn()
        except BrokerOutOfReach:
            changes += 1
            leader.lead()
    return changes


def test_full_redis_keeps_its_leader(redis_server: RedisServer):
    """Another replica could do no better, and a lone one would be barred for a while after the memory is back."""
    leader = Leader(redis_server)
    leader.owe("e")
    leader.turn()
    redis_server.admin.config_set("maxmemory", "1")
    for _ in range(100):
        leader.clock.ahead += 1.0
        leader.turn()
    assert leader.messages == []
    redis_server.admin.config_set("maxmemory", "0")
    assert leader.turn(5, after=1.1).messages == ["e"]


def test_hour_without_a_broker_causes_few_changes_of_leader(leader: Leader):
    """A change of leader helps only if another replica can reach the broker."""
    leader.owe("e")
    leader.turn()
    away = failing(StoreUnavailable("no broker", acted=False))
    leader.dispatcher.fail = away
    assert outage(leader, 12.0) == 1
    assert 30 < outage(leader, 3600.0) < 100
    leader.dispatcher.fail = lambda _: None
    outage(leader, 60.0)
    assert leader.messages != []
    leader.owe("e", "another")
    leader.enqueuer.reload()
    leader.dispatcher.fail = away
    assert outage(leader, 13.0) == 1


# --- Edits


class Edited(Source):
    """Source whose missing entries count as deleted."""

    def absence(self, _: Term) -> Absence | None:
        return Absence(certain=True)


def edit(leader: Leader, *ids: str) -> None:
    leader.enqueuer.reload(ScheduleChange(frozenset(ids)))
    leader.turn(3)


def test_edit_reads_only_the_entries_that_changed(leader: Leader, monkeypatch: pytest.MonkeyPatch):
    leader.use(Edited(e=60.0, other=60.0, gone=60.0))
    leader.turn(3)
    queue = leader.enqueuer.due_queue
    before = {entry: queue.get(entry) for entry in ("e", "other")}
    monkeypatch.setattr(leader.dispatcher.ledger, "read", None)
    leader.source.last_run = {"e": 3601.0, "other": 3601.0, "new": 60.0}
    edit(leader, "e", "gone", "new")
    assert leader.enqueuer.due_queue is queue
    assert queue.get("e") is not before["e"]
    assert queue.get("other") is before["other"]
    assert queue.get("gone") is None
    rows = leader.dispatcher.ledger.of(["gone", "new"])
    assert {entry: row.verdict for entry, row in rows.items()} == {"gone": "absent", "new": "armed"}
    leader.later(3600.0)
    assert leader.turn(3).messages == ["e", "new", "other"]


def test_what_departed_entries_leave_is_dropped_within_a_term(leader: Leader, monkeypatch: pytest.MonkeyPatch):
    """Names come and go for months, and the schedule is never read as a whole again."""
    leader.use(Edited(e=60.0))
    leader.turn(3)
    monkeypatch.setattr(leader.dispatcher.ledger, "read", None)
    shadow, absent = leader.enqueuer._parts.shadow, leader.enqueuer._term.schedule._loader._absent
    kept = []
    for number in range(60):
        leader.source.last_run = {"e": 60.0, f"new{number}": 60.0}
        edit(leader, f"new{number}", f"new{number - 1}")
        leader.turn(3, after=6 * 3600.0)
        kept.append((leader.client.hlen(KEYS.ledger), len(shadow._positions), len(absent._noted)))
    # Nine names are younger than two days.
    assert max(kept) == max(kept[10:30])
    assert all(number <= 22 for numbers in kept for number in numbers)
    assert leader.enqueuer.due_queue.get("e") is not None
    assert leader.dispatcher.ledger.of(["new58"])["new58"].verdict is Verdict.ABSENT


def test_old_absent_row_of_an_entry_that_is_back_is_kept(leader: Leader):
    leader.use(Edited(e=60.0, other=60.0))
    leader.turn(3)
    leader.source.last_run = {"other": 60.0}
    edit(leader, "e")
    leader.later(24 * 3600.0)
    leader.source.last_run = {"e": 60.0, "other": 60.0}
    edit(leader, "e")
    leader.turn(3, after=26 * 3600.0)
    assert leader.dispatcher.ledger.of(["e"])["e"].verdict is not Verdict.ABSENT
    assert leader.state() is not None


@pytest.mark.parametrize("resent", [False, True])
def test_edit_of_an_entry_with_an_open_claim_reads_all(leader: Leader, resent):
    """It would lose the message that is to be sent again."""
    leader.use(Edited(e=60.0, other=60.0))
    leader.turn(3)
    queue = leader.enqueuer.due_queue
    if resent:
        leader.state().resend = True
    else:
        leader.write(replace(leader.state().row, verdict=Verdict.CLAIMED, raw=""))
    edit(leader, "other")
    assert leader.enqueuer.due_queue is queue
    edit(leader, "e")
    assert leader.enqueuer.due_queue is not queue


def test_change_is_kept_until_the_ledger_answers(leader: Leader, monkeypatch: pytest.MonkeyPatch):
    leader.use(Edited(e=60.0))
    leader.turn(3)
    leader.source.last_run["new"] = 60.0
    with monkeypatch.context() as fault:
        error = StoreUnavailable("no answer", acted=False)
        fault.setattr(leader.dispatcher.ledger, "read_some", lambda _: (_ for _ in ()).throw(error))
        edit(leader, "new")
    leader.turn(3, after=10.0)
    assert leader.enqueuer.due_queue.get("new") is not None


# --- Another server


def test_dispatch_on_another_server_waits_for_the_previous_holder(leader: Leader):
    """After a failover, a partitioned old primary may still accept what the previous leader enqueues."""
    leader.owe("e")
    acquired = replace(leader.tenure.acquired, previous_run_id="of the master before", previous_holder="another")
    leader.tenure = replace(leader.tenure, acquired=acquired)
    leader.turn(5)
    assert leader.held() == [pytest.approx(10.0)]
    assert leader.turn(5, after=9.0).messages == []
    assert leader.turn(5, after=1.1).messages == ["e"]


def test_previous_holder_itself_does_not_wait_on_another_server(leader: Leader):
    leader.owe("e")
    acquired = replace(leader.tenure.acquired, previous_run_id="of the run before", previous_holder="one")
    leader.tenure = replace(leader.tenure, acquired=acquired, lost_at=leader.source.now() - timedelta(hours=2))
    assert leader.turn(5).messages == ["e"]


def on_another_server(leader: Leader) -> None:
    """Make the ledger name another server than this one."""
    leader.client.hset(KEYS.ledger, "m:run_id", "of the master before")


def test_successor_of_a_leader_that_waited_waits_too(leader: Leader):
    """In a rolling deploy the leader stops while it waits, and has not looked for a loss."""
    leader.owe("e")
    on_another_server(leader)
    leader.lead("two")
    leader.turn(5)
    leader.use(leader.source)
    leader.lead("three")
    assert leader.turn(5).messages == []
    assert leader.held() == [pytest.approx(10.0)] * 2
    leader.turn(5, after=10.1)
    assert leader.losses() == [LossKind.RESTARTED_WITHOUT_AOF]


@pytest.mark.parametrize("stood_by", [True, False])
def test_entries_of_an_earlier_term_are_not_overdue_while_a_new_one_waits(leader: Leader, stood_by):
    """Another replica may have enqueued them since."""
    leader.owe("e")
    assert leader.turn(5).messages == ["e"]
    leader.later(7200.0)
    assert leader.enqueuer.due_queue.overdue(leader.enqueuer.now()) > 0
    on_another_server(leader)
    if stood_by:
        leader.enqueuer.stand_by()
        assert len(leader.enqueuer.due_queue) == 0
    leader.lead("two")
    leader.turn(5)
    assert len(leader.held()) == 1
    assert len(leader.enqueuer.due_queue) == 0


def test_leader_that_waits_and_leads_again_continues_to_wait(leader: Leader):
    """It was the last holder itself, but has not dispatched. The holder before it still may."""
    leader.owe("e")
    on_another_server(leader)
    leader.lead("two")
    leader.turn(5)
    leader.later(4.0)
    leader.lead("two")
    leader.turn(5)
    assert leader.held() == [pytest.approx(10.0, abs=0.5), pytest.approx(6.0, abs=0.5)]
    leader.turn(5, after=6.1)
    assert len(leader.losses()) == 1


# --- Loss of state, and rows of other leaders


def test_unfinished_recovery_is_continued_by_the_next_leader(leader: Leader):
    """The first leader wrote only some of the rows, and the next one knows of no loss."""
    leader.owe(*(f"e{number}" for number in range(150)))
    leader.turn(5)
    assert len(leader.messages) == 150
    leader.client.delete("queue", KEYS.ledger)
    leader.lead()
    leader.turn(1)
    assert len(leader.enqueuer.due_queue) == 150
    leader.use(leader.source)
    leader.lead("a newcomer")
    assert leader.turn(5).messages == []
    assert leader.losses()[-1] is LossKind.UNFINISHED
    leader.lead("another")
    leader.turn(3)
    assert len(leader.losses()) == 2


@pytest.mark.parametrize(("noted", "fell_due"), [("{} 1", "after"), ("{} 1", "before"), ("garbage", "before")])
def test_unfinished_recovery_puts_in_doubt_what_its_leader_found(leader: Leader, noted, fell_due):
    """Nothing that fell due after that was dispatched. A note that cannot be read puts all in doubt."""
    due = leader.source.now() - timedelta(seconds=60)
    floor = due + timedelta(seconds=-5 if fell_due == "after" else 5)
    leader.write(LedgerRow(due - timedelta(hours=1), "armed", signature="s"))
    leader.client.hset(KEYS.ledger, "m:unfinished", noted.format(to_micros(floor)))
    leader.source.last_run = {"e": 1e6}
    leader.lead("another")
    leader.turn(5)
    assert leader.held() == []
    assert leader.messages == (["e"] if fell_due == "after" else [])
    assert leader.client.hget(KEYS.ledger, "m:unfinished") is None


def test_leader_that_loses_the_ledger_keeps_entries_not_due_in_its_term(leader: Leader):
    """It has read the ledger once, when its term began, and an hourly entry is half an hour into its interval."""
    base = leader.source.now().replace(microsecond=0) - timedelta(minutes=30)
    leader.write(enqueued(base))
    leader.source.last_run = {"e": 1e6}
    leader.turn(3)
    leader.client.flushall()
    leader.lead()
    leader.turn(3)
    row = LedgerRow.parse(str(leader.client.hget(KEYS.ledger, "e:e")))
    assert (row.base, row.verdict) == (base, "armed")
    assert leader.state().due_at == base + timedelta(hours=1)


def test_second_term_starts_from_the_ledger(leader: Leader):
    """Another replica led in between, so that the earlier state of the entries is stale."""
    leader.owe("e")
    assert leader.turn(5).messages == ["e"]
    row = leader.write(enqueued(leader.source.now(), rev=9))
    leader.lead()
    leader.turn(5)
    assert leader.state().expected == row
    assert leader.failed() == []


def test_row_changed_by_another_writer_is_followed(leader: Leader):
    """The operation is refused because the row is not the expected one, and the entry continues from that row."""
    leader.owe("e")
    leader.turn(1)
    at = leader.source.now() + timedelta(minutes=10)
    leader.write(enqueued(at, rev=9, task_id="t"))
    assert leader.turn(5).messages == []
    assert leader.failed() == ["e"]
    assert leader.state().due_at == at + timedelta(hours=1)


def test_row_that_is_changed_repeatedly_is_retried_once_a_second(leader: Leader):
    leader.owe("e")
    leader.turn()
    tries: list[str] = []

    def change(_: Sequence[Operation]) -> None:
        number = len(tries) + 1
        tries.append(leader.write(enqueued(leader.source.now() - timedelta(hours=2), rev=number, task_id=f"{number}")))

    leader.dispatcher.fail = change
    leader.turn(2)
    assert (leader.idle > 0.5, len(tries)) == (True, 1)
    leader.turn(5, after=1.1)
    assert len(tries) == 2
    leader.dispatcher.fail = lambda _: None
    assert leader.turn(5, after=1.1).messages == ["e"]


def test_claim_of_another_is_uncertain_only_when_it_cannot_be_in_flight(leader: Leader):
    uncertain: list[float] = []
    leader.dispatcher.claims = [
        OpenClaim("k", json="{}", entry="e", nonce="another", policy="skip", row="", records=())
    ]
    leader.dispatcher.on_record_uncertain = lambda: uncertain.append(leader.clock.ahead)
    leader.turn(2)
    leader.turn(2, after=5.0)
    assert uncertain == []
    leader.turn(2, after=1.5)
    assert uncertain == [6.5]


# --- Entries without a recurrence


def test_entry_without_recurrence_is_not_asked_before_its_position(leader: Leader):
    """After a loss of state its position is ahead, and occurrences before it may have been enqueued."""
    leader.write(LedgerRow(leader.source.now() + timedelta(seconds=5), "armed", signature="s"))
    leader.use(AlwaysDue(e=1e9))
    assert leader.turn(3).messages == []
    assert leader.turn(1, after=5.1).messages == ["e"]


def test_schedule_that_is_always_due_is_asked_at_its_interval(leader: Leader):
    """As in stock beat, a schedule may ignore the last run, and must not be sent in a tight loop."""
    source = AlwaysDue(e=3601.0)
    leader.use(source)
    assert leader.turn(4).messages == ["e"]
    assert (source.asked, leader.idle > 50.0) == (1, True)
    assert leader.turn(4, after=61.0).messages == ["e", "e"]
    assert source.asked == 2


# --- Faults of a source, a message and Redis


def test_loading_a_large_schedule_pauses_the_garbage_collector(leader: Leader):
    """Its longest run would come right before the first message."""
    leader.source.last_run = {f"entry {number}": 10.0 for number in range(1000)}
    runs: list[str] = []
    at_first_event: list[int] = []
    leader.on_event = lambda _: at_first_event.append(len(runs))

    def note(phase: str, _: Mapping[str, int]) -> None:
        runs.append(phase)

    gc.callbacks.append(note)
    try:
        leader.turn()
    finally:
        gc.callbacks.remove(note)
    assert at_first_event[0] == 0
    assert gc.isenabled()


def test_source_that_raises_on_a_verdict_does_not_affect_other_entries(leader: Leader, monkeypatch):
    """An example is an entry class without a setter. That entry continues, too."""
    leader.owe("one", "bad", "two")

    def recorded(entry: ScheduledEntry, _: LedgerRow) -> None:
        if entry.id == "bad":
            raise AttributeError("can't set attribute 'last_run_at'")

    monkeypatch.setattr(leader.source, "recorded", recorded)
    leader.turn(5)
    assert leader.turn(5, after=3600.0).messages == ["bad", "bad", "one", "one", "two", "two"]
    assert set(leader.failed()) == {"bad"}


def test_entries_popped_before_an_exception_are_loaded_again(leader: Leader, monkeypatch):
    leader.owe("one", "two")
    leader.turn(2)
    with monkeypatch.context() as patch:
        patch.delattr(Results, "apply")
        leader.later(3600.0)
        with pytest.raises(AttributeError):
            leader.turn(5)
    leader.turn(5)
    assert leader.turn(5, after=3600.0).messages == ["one"] * 3 + ["two"] * 3


@pytest.mark.parametrize("error", [StoreUnavailable("broken pipe"), StoreRefused("too large", unexplained=True)])
def test_message_that_redis_rejects_does_not_affect_others(leader: Leader, error):
    """It exceeds the server's limit, so that the connection is closed each time. Other commands succeed."""
    leader.owe("one", "large", "two")
    leader.turn()
    leader.dispatcher.fail = failing(error, "large")
    for _ in range(30):
        leader.turn(after=1.0)
    assert leader.messages == ["one", "two"]
    assert leader.failed() == ["large"]


def test_full_redis_keeps_the_batch_whole(leader: Leader):
    """Redis gives the reason, so that no message is suspected."""
    leader.owe("one", "two")
    leader.turn()
    sizes: list[int] = []

    def full(operations: Sequence[Operation]) -> None:
        sizes.append(len(operations))
        raise StoreRefused("Redis is out of memory")

    leader.dispatcher.fail = full
    for _ in range(8):
        leader.turn(after=1.0)
    assert set(sizes) == {2}
    assert leader.failed() == []


@pytest.mark.parametrize(
    ("rules", "deadline", "seconds", "reason"),
    [
        (MisfireRules(grace=2.0), None, 8.0, SkipReason.MISFIRE_GRACE),
        (MisfireRules(MisfirePolicy.SKIP), None, 25.0, SkipReason.MISSED),
        (MisfireRules(), 60.0, 70.0, SkipReason.NOT_PUBLISHED),
        (MisfireRules(grace=20.0), 60.0, 8.0, None),
    ],
)
def test_refused_batch_is_judged_again_by_the_time_it_is_accepted(rules, deadline, seconds, reason, leader: Leader):
    class Ruled(Source):
        def load(self, ids: Set[str] | None = None) -> Iterable[ScheduledEntry]:
            return [replace(entry, misfire=rules) for entry in super().load(ids)]

    leader.use(Ruled(e=3600.0 - 1.0), LeaderOptions(publish_deadline=deadline, handover_after=1000.0))
    leader.turn().later(1.5)
    leader.dispatcher.fail = failing(StoreRefused("Redis is out of memory"))
    for _ in range(round(seconds)):
        leader.turn(after=1.0)
    leader.dispatcher.fail = lambda _: None
    leader.turn(3, after=1.0)
    (record,) = leader.records("e")
    assert record.get("why") == reason
    assert leader.messages == ([] if reason else ["e"])
    assert record["ms"] / 1000 > leader.clock.wall() - 2.0


@pytest.mark.parametrize("unexplained", [False, True])
def test_partly_written_batch_is_submitted_unchanged_until_answered(leader: Leader, unexplained: bool):
    """A later attempt, of which nothing was written, does not show that the first one wrote nothing."""
    drops = [] if unexplained else [False]
    leader.dispatcher.drop_refused = lambda _: drops.pop() if drops else True  # type: ignore[method-assign]
    leader.use(Source(), LeaderOptions(publish_deadline=None, handover_after=1000.0))
    leader.owe("e")
    leader.turn()
    leader.dispatcher.fail = failing(StoreRefused("an error in the script", unexplained=unexplained), "e")
    leader.turn()
    leader.dispatcher.fail = failing(StoreRefused("full"), "e")
    for _ in range(5):
        leader.turn(after=2.0)
    term = leader.enqueuer._term
    assert term is not None
    assert (drops, term.pending) == ([], 1)


def test_record_shows_when_a_batch_without_an_answer_was_accepted(leader: Leader):
    """It is submitted unchanged, because the first attempt may have been carried out."""
    leader.owe("e")
    leader.turn()
    leader.dispatcher.fail = failing(StoreUnavailable("no answer"), "e")
    for _ in range(2):
        leader.turn(after=3.0)
    leader.dispatcher.fail = lambda _: None
    leader.turn(3, after=1.0)
    (record,) = leader.records("e")
    assert record["ms"] / 1000 > leader.clock.wall() - 2.0


class LockingTask(ScriptDispatcher):
    """Dispatcher for a task that takes a lock when its message is built, and declines while the lock is held."""

    lose_replies = False
    locked, timed = True, False

    def __init__(self, client: Any) -> None:
        super().__init__(client)
        self.built = 0

    def prepare(self, _: Any, args: Sequence[Any], __: Mapping[str, Any], ___: Mapping[str, Any]) -> Any:
        self.built += 1
        if self.built > 1 and self.locked:
            raise Declined("e")
        return TimedPush((("LPUSH", "queue", f"{args[0]} {self.built}"),)) if self.timed else push(str(args[0]))

    def submit(self, term: Term, operations: Sequence[Operation]) -> list[Answer]:
        answers = super().submit(term, operations)
        if self.lose_replies and any(operation.message for operation in operations):
            raise StoreUnavailable("the reply was lost")
        return answers


@pytest.fixture
def locking(leader: Leader) -> Leader:
    """A leader with one due entry whose task takes a lock."""
    leader.dispatcher = LockingTask(leader.client)
    leader.use(Source(), LeaderOptions(publish_deadline=30.0, handover_after=1000.0))
    leader.owe("e")
    return leader


@pytest.mark.parametrize("new_term", [False, True])
def test_message_is_built_once_although_its_send_fails(locking: Leader, new_term: bool):
    """Built again, a task with a lock would find its own lock, and never publish again."""
    locking.dispatcher.fail = failing(StoreUnavailable("away"), "e")
    locking.turn(5, after=1.0)
    locking.dispatcher.fail = lambda _: None
    if new_term:
        locking.lead()
    assert locking.turn(5, after=2.0).messages == ["e"]
    assert locking.records("e")[-1]["verdict"] == "enqueued"


def test_message_past_its_deadline_replaces_one_that_is_declined(locking: Leader):
    """It holds the lock. Without it the task would decline for as long as the lock exists."""
    locking.dispatcher.fail = failing(StoreRefused("full"), "e")
    locking.turn(5, after=1.0)
    locking.turn(5, after=60.0)
    locking.dispatcher.fail = lambda _: None
    assert locking.turn(5, after=2.0).messages == []
    assert locking.turn(5, after=3600.0).messages == ["e"]
    assert [record["verdict"] for record in locking.records("e")] == ["skipped", "enqueued"]


@pytest.mark.parametrize("locked", [False, True])
def test_message_with_an_expiry_is_built_again_if_it_can_be(locking: Leader, locked: bool):
    """Its expiry counts from when it was built: sent after an outage, it would not run."""
    locking.dispatcher.locked, locking.dispatcher.timed = locked, True  # type: ignore[attr-defined]
    locking.dispatcher.fail = failing(StoreRefused("full"), "e")
    locking.turn(5, after=1.0)
    locking.dispatcher.fail = lambda _: None
    (message,) = locking.turn(5, after=2.0).messages
    assert (message == "e 1") == locked


@pytest.mark.parametrize("own", [False, True])
def test_message_that_replaces_another_names_its_own_occurrence(locking: Leader, monkeypatch, own: bool):
    """An entry with its own task id has the occurrence's id in the header, by which a worker drops a second message."""
    headers: list[Any] = []
    monkeypatch.setattr(PlainPush, "restamped", lambda message, header: headers.append(header) or message)
    source = Source()
    source.arguments = lambda _: (["e"], {}, {"task_id": "own"} if own else {})  # type: ignore[method-assign]
    locking.use(source, LeaderOptions(publish_deadline=30.0, handover_after=1000.0))
    locking.owe("e")
    locking.dispatcher.fail = failing(StoreRefused("full"), "e")
    locking.turn(5, after=1.0)
    locking.turn(5, after=60.0)
    locking.dispatcher.fail = lambda _: None
    locking.turn(10, after=3600.0)
    due = datetime.fromisoformat(locking.records("e")[-1]["at"])
    assert locking.messages == ["e"]
    assert headers[-1].get("task_id") == (Occurrence("e", due).task_id("enqueuer") if own else None)


def test_message_with_an_expiry_replaces_none(locking: Leader):
    locking.dispatcher.timed = True  # type: ignore[attr-defined]
    locking.dispatcher.fail = failing(StoreRefused("full"), "e")
    locking.turn(5, after=1.0)
    locking.turn(5, after=60.0)
    locking.dispatcher.fail = lambda _: None
    locking.turn(5, after=2.0)
    assert locking.turn(5, after=3600.0).messages == []
    assert locking.records("e")[-1]["why"] == SkipReason.DECLINED


def test_message_with_other_arguments_replaces_none(locking: Leader):
    """A message that cannot be built is not replaced by one with the arguments of an earlier time."""
    arguments, source = ["e"], Source()
    source.arguments = lambda _: (list(arguments), {}, {})  # type: ignore[method-assign]
    locking.use(source, LeaderOptions(publish_deadline=30.0, handover_after=1000.0))
    locking.owe("e")
    locking.dispatcher.fail = failing(StoreRefused("full"), "e")
    locking.turn(5, after=1.0)
    locking.turn(5, after=60.0)
    locking.dispatcher.fail = lambda _: None
    locking.turn(5, after=2.0)
    arguments[0] = "other"
    assert locking.turn(10, after=3600.0).messages == []
    assert locking.records("e")[-1]["why"] == SkipReason.DECLINED


@pytest.mark.parametrize("disabled", [False, True])
def test_message_that_may_have_been_enqueued_is_not_sent_again(locking: Leader, disabled: bool):
    """The reply was lost and the term ended. The next occurrence is declined, because the first one waits to run."""
    due = locking.turn().state().due_at
    assert due is not None
    locking.dispatcher.lose_replies = True  # type: ignore[attr-defined]
    locking.turn(3, after=1.0)
    locking.dispatcher.lose_replies = False  # type: ignore[attr-defined]
    if disabled:
        # And enabled again, after which the runs are counted from 0.
        locking.write(LedgerRow(due, "armed", signature="s"))
    locking.lead()
    for _ in range(2):
        assert locking.turn(5, after=3600.0).messages == ["e"]
    assert locking.records("e")[-1]["why"] == SkipReason.DECLINED


def test_message_that_another_leader_has_enqueued_replaces_none(locking: Leader):
    """The next occurrence is declined, because the first one waits to run. The old message has the same task id."""
    locking.dispatcher.fail = failing(StoreRefused("full"), "e")
    locking.turn(3, after=1.0)
    locking.dispatcher.fail = lambda _: None
    due = locking.state().due_at
    assert due is not None
    locking.write(enqueued(due, run_count=1))
    locking.lead()
    assert locking.turn(5, after=3600.0).messages == []
    assert locking.records("e")[-1]["why"] == SkipReason.DECLINED


def test_message_of_an_edited_entry_is_built_again(locking: Leader):
    locking.dispatcher.fail = failing(StoreUnavailable("away"), "e")
    locking.turn(3, after=1.0)
    locking.dispatcher.fail = lambda _: None
    edited = next(iter(locking.source.load()))
    edited.celery_entry.args = ("edited",)
    locking.source.load = lambda: [edited]  # type: ignore[method-assign]
    locking.lead()
    locking.turn(5, after=2.0)
    assert locking.dispatcher.built > 1  # type: ignore[attr-defined]


# --- Overlap


class Overlapping(Source):
    """Source whose entries wait for the end of their last message."""

    def load(self, ids: Set[str] | None = None) -> Iterable[ScheduledEntry]:
        return (replace(entry, busy_for=60.0) for entry in super().load(ids))


def test_occurrence_that_overlaps_is_skipped_and_the_next_one_asked_again(leader: Leader):
    leader.use(Overlapping())
    leader.owe("e")
    leader.client.hset(KEYS.busy, "e:e", f"{round(leader.clock.wall() * 1000)} earlier")
    leader.turn(4)
    assert leader.messages == []
    (skipped,) = leader.events.of(events.OccurrenceSkipped)
    assert (skipped.reason, skipped.count) == (SkipReason.OVERLAP, 1)
    assert [failed.reason for failed in leader.events.of(events.EntryFailed)] == [EntryFault.NO_REPORTS]
    leader.client.delete(KEYS.busy)
    leader.turn(2, after=3601)
    assert leader.messages == ["e"]
    assert leader.client.hexists(KEYS.busy, "e:e")
