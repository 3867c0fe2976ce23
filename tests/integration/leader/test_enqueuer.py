"""The leader's work on a real Redis: one bad entry must not hold up the others, nor one bad hour fill the log."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, TypeVar

import pytest

from ha_beat import events
from ha_beat.clock import to_micros
from ha_beat.dispatch import Answer, Dispatcher, OpenClaim, Operation
from ha_beat.dispatch.batch import BatchScript
from ha_beat.election.cluster_clock import SchedulingTime
from ha_beat.election.leader_handle import Tenure
from ha_beat.errors import StoreRefused, StoreUnavailable
from ha_beat.leader import BrokerOutOfReach, Enqueuer, LeaderOptions
from ha_beat.leader.entry import ScheduledEntry
from ha_beat.leader.pause import PauseState
from ha_beat.leader.reconcile import Absence
from ha_beat.leader.results import Results
from ha_beat.reasons import LossKind
from ha_beat.schedule.misfire import MisfireRules
from ha_beat.schedule.occurrence import NEVER
from ha_beat.store.keys import Keys
from ha_beat.store.lease import RedisLeaseStore, Term, new_token
from ha_beat.store.ledger import Ledger, LedgerRow
from ha_beat.store.shadow import Shadow
from tests.support.clocks import AdvancedClock
from tests.support.dispatchers import push
from tests.support.leases import acquire, attempt
from tests.support.servers import RedisServer

KEYS = Keys("enqueuer")
E = TypeVar("E", bound=events.Event)


class Hourly:
    """Every hour, counted from the last."""

    def next_after(self, instant: datetime) -> datetime:
        return instant + timedelta(hours=1)

    def newest(self, known: datetime, now: datetime) -> tuple[datetime, int]:
        count = (now - known) // timedelta(hours=1)
        return known + count * timedelta(hours=1), count


class Entry:
    task = "task"


class Source:
    """Entries that were last run so many seconds ago."""

    def __init__(self, **last_run: float) -> None:
        self.last_run = dict(last_run)

    def load(self) -> Iterable[ScheduledEntry]:
        now = datetime.now(UTC)
        for name, ago in self.last_run.items():
            yield ScheduledEntry(name, Entry(), Hourly(), MisfireRules(), "s", now - timedelta(seconds=ago))

    def check(self, *_: Any) -> tuple[bool, float]:
        return False, 60.0

    def arguments(self, entry: ScheduledEntry) -> tuple[Sequence[Any], Mapping[str, Any], Mapping[str, Any]]:
        return [entry.id], {}, {}

    def recorded(self, entry: ScheduledEntry, row: LedgerRow) -> None: ...

    def absence(self, _: Term) -> Absence | None:
        return None

    def armed(self, entry_id: str) -> None: ...

    def finished(self, entry: ScheduledEntry, runs: int) -> None: ...


class Direct:
    """The script of a real dispatch, with messages that are the entry's name."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._batch = BatchScript(KEYS, 1000)
        self.ledger = Ledger(lambda: client, KEYS)
        self.fail: Callable[[Sequence[Operation]], None] = lambda _: None
        self.queue = "queue"
        self.claims: list[OpenClaim] = []
        self.on_give_up: Callable[[], None] = lambda: None

    def prepare(self, _: Any, args: Sequence[Any], __: Mapping[str, Any], ___: Mapping[str, Any]) -> Any:
        return push(str(args[0]), self.queue)

    def submit(self, term: Term, operations: Sequence[Operation]) -> list[Answer]:
        self.fail(operations)
        return self._batch.run(self._client, term, operations)

    def open_claims(self, _: Term) -> list[OpenClaim]:
        return self.claims

    def give_up(self, _: Term, __: Sequence[OpenClaim]) -> Mapping[str, LedgerRow]:
        self.on_give_up()
        return {}

    def confirm_late(self) -> None: ...


class Desk:
    """A leader's enqueuer, turned by hand."""

    def __init__(self, server: RedisServer) -> None:
        self.client: Any = server.client()
        self.clock = AdvancedClock()
        self.told: list[events.Event] = []
        self.moves: list[float] = []
        self.on_event: Callable[[events.Event], object] = lambda _: None
        self.source = Source()
        self.dispatcher = Direct(server.client())
        self.tenure = self.lead()
        self.use(self.source)

    def use(self, source: Source) -> None:
        self.source = source
        chosen: Dispatcher = self.dispatcher
        self.enqueuer = Enqueuer(
            source,
            lambda _: chosen,
            Shadow(),
            SchedulingTime(self.clock, self.told.append),
            "enqueuer",
            self.clock,
            self.emit,
            LeaderOptions(publish_deadline=None),
            PauseState(),
            lambda: self.moves.append(self.clock.elapsed()),
        )

    def emit(self, event: events.Event) -> None:
        self.on_event(event)
        self.told.append(event)

    def lead(self, name: str = "one") -> Tenure:
        made = attempt(name, new_token(), sent_at=self.clock.elapsed(), ttl=1e6)
        return Tenure(acquire(RedisLeaseStore(lambda: self.client, KEYS), made), "")

    def later(self, seconds: float) -> None:
        """Time goes by, for Redis too."""
        self.clock.ahead += seconds
        self.client.hset(KEYS.lease, "offset_ms", round(self.clock.ahead * 1000))

    def turn(self, times: int = 1) -> float:
        """So many turns; seconds until the next, as it says."""
        idle = 0.0
        for _ in range(times):
            idle = self.enqueuer.advance(self.tenure, self.tenure.acquired.term)
        return idle

    def heard(self, kind: type[E]) -> list[E]:
        return [event for event in self.told if isinstance(event, kind)]

    def failed(self) -> list[str]:
        return [event.entry for event in self.told if isinstance(event, events.EntryFailed)]

    def messages(self) -> list[str]:
        return sorted(self.client.lrange("queue", 0, -1))


@pytest.fixture
def desk(shared_redis: RedisServer) -> Desk:
    return Desk(shared_redis)


def test_entry_with_an_unencodable_name_does_not_affect_others(desk: Desk) -> None:
    """It comes from a file with a broken escape; the others are armed and run, and it is named."""
    desk.source.last_run = {"one": 3601.0, "bad \ud800 name": 3601.0, "two": 3601.0}
    desk.turn(20)
    assert desk.messages() == ["one", "two"]
    assert set(desk.failed()) == {"bad \ud800 name"}


def test_loading_many_entries_reports_progress(desk: Desk) -> None:
    """On a slow machine 50,000 take longer than the stall timeout, and the next leader would fare no better."""

    class SlowHourly(Hourly):
        def next_after(self, instant: datetime) -> datetime:
            desk.clock.ahead += 5.0
            return super().next_after(instant)

    class Slow(Source):
        def load(self) -> Iterable[ScheduledEntry]:
            for entry in super().load():
                desk.clock.ahead += 5.0
                yield replace(entry, recurrence=SlowHourly())

    desk.use(Slow(**{f"e{number}": 60.0 for number in range(10)}))
    began = desk.clock.elapsed()
    desk.turn()
    moves = [began, *desk.moves, desk.clock.elapsed()]
    assert moves[-1] - began > 90
    assert max(after - before for before, after in pairwise(moves)) < 15


def test_batch_is_limited_by_the_size_of_its_messages(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred messages of some MB at once would hold up Redis for seconds, or be more than it takes."""
    monkeypatch.setattr("ha_beat.leader.batch_builder.BATCH_CHARACTERS", 20)
    desk.source.last_run = {name: 3606.0 - age for age, name in enumerate(("one", "two", "three", "four", "five"))}
    batches: list[list[str]] = []
    desk.dispatcher.fail = lambda operations: batches.append([op.entry for op in operations if op.message])
    desk.turn(10)
    # LPUSH, queue and a name: 13 to 15 characters.
    assert [batch for batch in batches if batch] == [["one", "two"], ["three", "four"], ["five"]]
    assert desk.messages() == ["five", "four", "one", "three", "two"]


def test_batch_that_raises_is_submitted_one_by_one(desk: Desk) -> None:
    """Only the one that it is about waits, and it is tried again later."""
    desk.source.last_run = {"one": 3601.0, "bad": 3601.0, "two": 3601.0}
    desk.turn(3)

    def fail(operations: Sequence[Operation]) -> None:
        if any(operation.entry == "bad" for operation in operations):
            raise ValueError("a bug")

    desk.client.delete("queue")
    desk.later(3600.0)
    desk.dispatcher.fail = fail
    desk.turn(10)
    assert desk.messages() == ["one", "two"]
    assert desk.failed() == ["bad"]
    desk.dispatcher.fail = lambda _: None
    desk.later(61.0)
    desk.turn(3)
    assert "bad" in desk.messages()


def test_redis_failure_during_one_by_one_submission_loses_nothing(desk: Desk) -> None:
    desk.source.last_run = {"one": 3601.0, "two": 3601.0, "three": 3601.0}
    faults: list[Exception] = [ValueError("a bug"), StoreUnavailable("cut"), StoreUnavailable("cut")]

    def fail(_: Sequence[Operation]) -> None:
        if faults:
            raise faults.pop(0)

    desk.turn()
    desk.dispatcher.fail = fail
    for _ in range(20):
        desk.later(2.0)
        desk.turn()
    assert desk.messages() == ["one", "three", "two"]


def test_entry_that_is_refused_repeatedly_is_reported_once(desk: Desk) -> None:
    """Its queue's key is of another type, for an hour: not a line each second."""
    desk.source.last_run = {"e": 3601.0}
    desk.client.set("queue", "not a list")
    for _ in range(60):
        desk.turn(2)
        desk.later(1.1)
    assert desk.failed() == ["e"]
    desk.client.delete("queue")
    desk.turn(3)
    assert desk.messages() == ["e"]


def outage(desk: Desk, seconds: float) -> int:
    """Changes of leader that this replica asks for while it can enqueue nothing and gets the lease again each time."""
    changes, until = 0, desk.clock.ahead + seconds
    while desk.clock.ahead < until:
        desk.later(1.0)
        try:
            desk.turn()
        except BrokerOutOfReach:
            changes += 1
            desk.tenure = desk.lead()
    return changes


def test_hour_without_a_broker_causes_few_changes_of_leader(desk: Desk) -> None:
    """Handing over helps where another replica has better luck; where none has, it only fills the log."""
    desk.source.last_run = {"e": 3601.0}
    desk.turn()

    def away(_: Sequence[Operation]) -> None:
        raise StoreUnavailable("no broker", acted=False)

    desk.dispatcher.fail = away
    assert outage(desk, 12.0) == 1
    changes = outage(desk, 3600.0)
    assert 30 < changes < 100
    desk.dispatcher.fail = lambda _: None
    outage(desk, 60.0)
    assert desk.messages() != []
    desk.source.last_run = {"e": 3601.0, "another": 3601.0}
    desk.enqueuer.reload()
    desk.dispatcher.fail = away
    assert outage(desk, 13.0) == 1


def test_dispatch_on_another_server_waits_for_the_previous_holder(desk: Desk) -> None:
    """A failover: the master before, cut off, may still take what the leader before enqueues there."""
    desk.source.last_run = {"e": 3601.0}
    acquired = replace(desk.tenure.acquired, previous_run_id="of the master before", previous_holder="another")
    desk.tenure = replace(desk.tenure, acquired=acquired)
    desk.turn(5)
    assert desk.messages() == []
    assert [event.seconds for event in desk.told if isinstance(event, events.DispatchHeld)] == [pytest.approx(10.0)]
    desk.later(9.0)
    desk.turn(5)
    assert desk.messages() == []
    desk.later(1.1)
    desk.turn(5)
    assert desk.messages() == ["e"]


def test_previous_holder_itself_does_not_wait_on_another_server(desk: Desk) -> None:
    desk.source.last_run = {"e": 3601.0}
    acquired = replace(desk.tenure.acquired, previous_run_id="of the run before", previous_holder="one")
    desk.tenure = replace(desk.tenure, acquired=acquired, contact_lost=datetime.now(UTC) - timedelta(hours=2))
    desk.turn(5)
    assert desk.messages() == ["e"]


def on_another_server(desk: Desk) -> None:
    """What the ledger tells of the server that it was written on is not this one's."""
    desk.client.hset(KEYS.ledger, "m:run_id", "of the master before")


def test_successor_of_a_leader_that_waited_waits_too(desk: Desk) -> None:
    """A failover in a rolling deploy: the leader is stopped while it waits, and has not looked for what was lost."""
    desk.source.last_run = {"e": 3601.0}
    on_another_server(desk)
    desk.tenure = desk.lead("two")
    desk.turn(5)
    desk.use(desk.source)
    desk.tenure = desk.lead("three")
    desk.turn(5)
    assert desk.messages() == []
    held = [event.seconds for event in desk.heard(events.DispatchHeld)]
    assert held == [pytest.approx(10.0)] * 2
    desk.later(10.1)
    desk.turn(5)
    assert [event.reason for event in desk.heard(events.StateLost)] == [LossKind.RESTARTED_WITHOUT_AOF]


@pytest.mark.parametrize("seen_to_stand_by", [True, False])
def test_entries_of_an_earlier_term_are_not_overdue_while_a_new_one_waits(desk: Desk, seen_to_stand_by: bool) -> None:
    """Another replica had enqueued it since; it was called late all the same, and an invariant broken."""
    desk.source.last_run = {"e": 3601.0}
    desk.turn(5)
    assert desk.messages() == ["e"]
    desk.later(7200.0)
    assert desk.enqueuer.due_queue.overdue(desk.enqueuer.now()) > 0
    on_another_server(desk)
    if seen_to_stand_by:
        desk.enqueuer.stand_by()
        assert len(desk.enqueuer.due_queue) == 0
    desk.tenure = desk.lead("two")
    desk.turn(5)
    assert len(desk.heard(events.DispatchHeld)) == 1
    assert len(desk.enqueuer.due_queue) == 0


def test_leader_that_waits_and_leads_again_continues_to_wait(desk: Desk) -> None:
    """That it was the last holder itself says nothing: it has not dispatched, and the one before it may."""
    desk.source.last_run = {"e": 3601.0}
    on_another_server(desk)
    desk.tenure = desk.lead("two")
    desk.turn(5)
    desk.later(4.0)
    desk.tenure = desk.lead("two")
    desk.turn(5)
    held = [event.seconds for event in desk.heard(events.DispatchHeld)]
    assert held == [pytest.approx(10.0, abs=0.5), pytest.approx(6.0, abs=0.5)]
    desk.later(6.1)
    desk.turn(5)
    assert len(desk.heard(events.StateLost)) == 1


def test_unfinished_recovery_is_continued_by_the_next_leader(desk: Desk) -> None:
    """It had found a loss of state, and written what follows for some of the entries; this one knows of none."""
    desk.source.last_run = {f"e{number}": 3601.0 for number in range(150)}
    desk.turn(5)
    assert len(desk.messages()) == 150
    desk.client.delete("queue")
    desk.client.delete(KEYS.ledger)
    desk.tenure = desk.lead()
    desk.turn(1)
    assert len(desk.enqueuer.due_queue) == 150
    desk.use(desk.source)
    desk.tenure = desk.lead("a newcomer")
    desk.turn(5)
    assert desk.messages() == []
    assert desk.heard(events.StateLost)[-1].reason is LossKind.UNFINISHED
    desk.tenure = desk.lead("another")
    desk.turn(3)
    assert len(desk.heard(events.StateLost)) == 2


@pytest.mark.parametrize(("noted", "fell_due"), [("{} 1", "after"), ("{} 1", "before"), ("garbage", "before")])
def test_unfinished_recovery_puts_in_doubt_what_its_leader_found(desk: Desk, noted: str, fell_due: str) -> None:
    """What has fallen due since then was never dispatched. What can't be read is the worst."""
    due = datetime.now(UTC) - timedelta(seconds=60)
    floor = due + timedelta(seconds=-5 if fell_due == "after" else 5)
    base = LedgerRow(due - timedelta(hours=1), "armed", signature="s").encoded()
    desk.client.hset(KEYS.ledger, "e:e", base)
    desk.client.hset(KEYS.ledger, "m:unfinished", noted.format(to_micros(floor)))
    desk.source.last_run = {"e": 1e6}
    desk.tenure = desk.lead("another")
    desk.turn(5)
    assert desk.heard(events.DispatchHeld) == []
    assert desk.messages() == (["e"] if fell_due == "after" else [])
    assert desk.client.hget(KEYS.ledger, "m:unfinished") is None


def test_leader_that_loses_the_ledger_keeps_entries_not_due_in_its_term(desk: Desk) -> None:
    """It never stood by, and has read the ledger once, when it took over: half an hour of an hourly entry is over."""
    base = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=30)
    desk.client.hset(KEYS.ledger, "e:e", LedgerRow(base, "enqueued", base, signature="s").encoded())
    desk.source.last_run = {"e": 1e6}
    desk.turn(3)
    desk.client.flushall()
    desk.tenure = desk.lead()
    desk.turn(3)
    row = LedgerRow.parse(str(desk.client.hget(KEYS.ledger, "e:e")))
    assert row is not None
    assert (row.base, row.verdict) == (base, "armed")
    slot = desk.enqueuer.due_queue.get("e")
    assert slot is not None
    assert slot.due_at == base + timedelta(hours=1)


def test_second_term_starts_from_the_ledger(desk: Desk) -> None:
    """After a step-down another led: what this replica knew of the entries is of no use."""
    desk.source.last_run = {"e": 3601.0}
    desk.turn(5)
    assert desk.messages() == ["e"]
    at = datetime.now(UTC)
    by_another = LedgerRow(at, "enqueued", at, rev=9, signature="s").encoded()
    desk.client.hset(KEYS.ledger, "e:e", by_another)
    desk.tenure = desk.lead()
    desk.turn(5)
    slot = desk.enqueuer.due_queue.get("e")
    assert slot is not None
    assert slot.expected == by_another
    assert desk.failed() == []


def test_row_changed_by_another_writer_is_followed(desk: Desk) -> None:
    """Its instant was refused as not the expected one: the entry goes on from what stands there, and never spins."""
    desk.source.last_run = {"e": 3601.0}
    desk.turn(1)
    at = datetime.now(UTC) + timedelta(minutes=10)
    desk.client.hset(KEYS.ledger, "e:e", LedgerRow(at, "enqueued", at, rev=9, task_id="t", signature="s").encoded())
    desk.turn(5)
    assert desk.messages() == []
    assert desk.failed() == ["e"]
    slot = desk.enqueuer.due_queue.get("e")
    assert slot is not None
    assert slot.due_at == at + timedelta(hours=1)


def test_claim_of_another_is_given_up_only_when_it_cannot_be_in_flight(desk: Desk) -> None:
    """Its publish may be on its way to the broker, and its maker about to confirm it."""
    claim = OpenClaim(key="k", json="{}", entry="e", nonce="another", policy="skip", row="", records=())
    given_up: list[float] = []
    desk.dispatcher.claims = [claim]
    desk.dispatcher.on_give_up = lambda: given_up.append(desk.clock.ahead)
    desk.turn(2)
    desk.later(5.0)
    desk.turn(2)
    assert given_up == []
    desk.later(1.5)
    desk.turn(2)
    assert given_up == [6.5]


def test_entry_without_recurrence_is_not_asked_before_its_position(desk: Desk) -> None:
    """After a loss of state its base lies ahead: what it would say until then may have been enqueued."""

    class AlwaysDue(Source):
        def load(self) -> Iterable[ScheduledEntry]:
            yield ScheduledEntry("e", Entry(), None, MisfireRules(), "s", NEVER)

        def check(self, *_: Any) -> tuple[bool, float]:
            return True, 60.0

    base = datetime.now(UTC) + timedelta(seconds=5)
    desk.client.hset(KEYS.ledger, "e:e", LedgerRow(base, "armed", signature="s").encoded())
    desk.use(AlwaysDue())
    desk.turn(3)
    assert desk.messages() == []
    desk.later(5.1)
    desk.turn(1)
    assert desk.messages() == ["e"]


def test_loading_a_large_schedule_pauses_the_garbage_collector(desk: Desk) -> None:
    """Its longest walk would come right before the first message. Afterwards it works as before."""
    desk.source.last_run = {f"entry {number}": 10.0 for number in range(5000)}
    walks = []

    def note(phase: str, info: Mapping[str, int]) -> None:
        walks.append((phase, info["generation"]))

    ready = []
    desk.on_event = lambda _: ready.append(list(walks))
    gc.callbacks.append(note)
    try:
        desk.turn()
    finally:
        gc.callbacks.remove(note)
    assert ready[0] == []
    assert gc.isenabled()


def test_source_that_raises_on_a_verdict_does_not_affect_other_entries(desk: Desk) -> None:
    """An entry class without a setter, say: the rest of the batch keeps its place, and this entry too."""
    desk.source.last_run = {"one": 3601.0, "bad": 3601.0, "two": 3601.0}

    def recorded(entry: ScheduledEntry, _: LedgerRow) -> None:
        if entry.id == "bad":
            raise AttributeError("can't set attribute 'last_run_at'")

    desk.source.recorded = recorded  # type: ignore[method-assign]
    desk.turn(5)
    desk.later(3600.0)
    desk.turn(5)
    assert desk.messages() == ["bad", "bad", "one", "one", "two", "two"]
    assert set(desk.failed()) == {"bad"}


def test_entries_popped_before_an_exception_are_loaded_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that nobody foresaw, in the middle of a batch: its entries must not be silent from then on."""
    desk.source.last_run = {"one": 3601.0, "two": 3601.0}
    desk.turn(2)
    apply, faults = Results.apply, [KeyError("a bug")]

    def failing(*args: Any) -> None:
        if faults:
            raise faults.pop()
        apply(*args)

    monkeypatch.setattr(Results, "apply", failing)
    desk.later(3600.0)
    with pytest.raises(KeyError):
        desk.turn(5)
    desk.turn(5)
    desk.later(3600.0)
    desk.turn(5)
    assert desk.messages() == ["one"] * 3 + ["two"] * 3


def test_row_that_is_changed_repeatedly_is_retried_once_a_second(desk: Desk) -> None:
    """Whoever does that: it is looked at once a second."""
    desk.source.last_run = {"e": 3601.0}
    desk.turn()
    tries = 0

    def change(_: Sequence[Operation]) -> None:
        nonlocal tries
        tries += 1
        at = datetime.now(UTC) - timedelta(hours=2)
        row = LedgerRow(at, "enqueued", at, rev=tries, task_id=f"{tries}", signature="s")
        desk.client.hset(KEYS.ledger, "e:e", row.encoded())

    desk.dispatcher.fail = change
    assert desk.turn(2) > 0.5
    assert tries == 1
    desk.later(1.1)
    desk.turn(5)
    assert tries == 2
    desk.dispatcher.fail = lambda _: None
    desk.later(1.1)
    desk.turn(5)
    assert desk.messages() == ["e"]


@pytest.mark.parametrize("error", [StoreUnavailable("broken pipe"), StoreRefused("too large", unexplained=True)])
def test_message_that_redis_rejects_does_not_affect_others(desk: Desk, error: Exception) -> None:
    """It is larger than the server allows, and the connection is cut each time; the server answers otherwise."""
    desk.source.last_run = {"one": 3601.0, "large": 3601.0, "two": 3601.0}
    desk.turn()

    def fail(operations: Sequence[Operation]) -> None:
        if any(operation.entry == "large" and operation.message for operation in operations):
            raise error

    desk.dispatcher.fail = fail
    for _ in range(30):
        desk.turn()
        desk.later(1.0)
    assert desk.messages() == ["one", "two"]
    assert desk.failed() == ["large"]


def test_full_redis_keeps_the_batch_whole(desk: Desk) -> None:
    """It says what is wrong, and once that is mended the batch goes on as it is."""
    desk.source.last_run = {"one": 3601.0, "two": 3601.0}
    desk.turn()
    sizes: list[int] = []

    def full(operations: Sequence[Operation]) -> None:
        sizes.append(len(operations))
        raise StoreRefused("Redis is out of memory")

    desk.dispatcher.fail = full
    for _ in range(8):
        desk.turn()
        desk.later(1.0)
    assert set(sizes) == {2}
    assert desk.failed() == []


class Asked(Source):
    """Entries that only their own class knows of: due whenever they are asked, and not to be asked for a minute."""

    asked = 0

    def load(self) -> Iterable[ScheduledEntry]:
        for entry in super().load():
            yield replace(entry, recurrence=None)

    def check(self, *_: Any) -> tuple[bool, float]:
        self.asked += 1
        return True, 60.0


def test_schedule_that_is_always_due_is_asked_at_its_interval(desk: Desk) -> None:
    """As stock beat does: a schedule need not look at the last run, and must not be sent in a hot loop."""
    source = Asked(e=3601.0)
    desk.use(source)
    assert desk.turn(4) > 50.0
    assert (source.asked, desk.messages()) == (1, ["e"])
    desk.later(61.0)
    desk.turn(4)
    assert (source.asked, desk.messages()) == (2, ["e", "e"])
