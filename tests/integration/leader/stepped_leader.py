"""Leader on a real Redis with an enqueuer of its own, whose turns are taken by the test."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from celery import Celery

from ha_beat import events
from ha_beat.budget import Pace
from ha_beat.clock import Clock, SystemClock
from ha_beat.dispatch import Answer, Operation
from ha_beat.dispatch.atomic import AtomicDispatcher
from ha_beat.dispatch.messages.build import Sender
from ha_beat.election.cluster_clock import SchedulingTime
from ha_beat.election.leader_handle import TermOrigin
from ha_beat.leader import Enqueuer, LeaderOptions, LeaderParts
from ha_beat.leader.entry import EntryState, ScheduledEntry
from ha_beat.leader.pause import PauseState
from ha_beat.leader.planner import Absence
from ha_beat.reasons import LossKind
from ha_beat.store.entry_pauses import EntryPause
from ha_beat.store.keys import Keys
from ha_beat.store.lease import Term, new_token
from ha_beat.store.lease_store import RedisLeaseStore
from ha_beat.store.ledger import LedgerRow
from ha_beat.store.shadow import Shadow
from tests.support.brokers import FixedLink, NoRecipes
from tests.support.clocks import HeldClock
from tests.support.dispatchers import no_marker, push
from tests.support.entries import scheduled
from tests.support.events import EventLog
from tests.support.leases import acquire, attempt
from tests.support.servers import RedisServer

KEYS = Keys("enqueuer")


class Source:
    """Schedule source with hourly entries, which ``alter`` may change.

    ``last_run`` is how many seconds ago each of them ran. ``on_arguments`` is called with an entry's id when its
    arguments are read.
    """

    clock: Clock = SystemClock()

    def __init__(self, alter: Callable[[ScheduledEntry], ScheduledEntry] = lambda entry: entry, **last_run: float):
        self.alter = alter
        self.last_run = dict(last_run)
        self.on_arguments: Callable[[str], object] = lambda _: None

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.clock.wall(), UTC)

    def load(self, ids: Set[str] | None = None) -> Iterable[ScheduledEntry]:
        now = self.now()
        for name, ago in list(self.last_run.items()):
            if ids is None or name in ids:
                yield self.alter(scheduled(name, last_run=now - timedelta(seconds=ago)))

    def ask_if_due(self, *_: Any) -> tuple[bool, float]:
        return False, 60.0

    def arguments(self, entry: ScheduledEntry) -> Any:
        self.on_arguments(entry.id)
        return [entry.id], {}, {}

    def recorded(self, entry: ScheduledEntry, row: LedgerRow) -> None: ...

    def absence(self, _: Term) -> Absence | None:
        return None

    def armed(self, entry_id: str) -> None: ...

    def finished(self, entry: ScheduledEntry, runs: int) -> None: ...


class CertainSource(Source):
    """Source whose missing entries count as deleted, as those of a database that was read under the term."""

    def absence(self, _: Term) -> Absence | None:
        return Absence(certain=True)


class ScriptDispatcher(AtomicDispatcher):
    """Dispatcher that runs the real script. The message of an entry is its id. ``fail`` may raise for a batch."""

    capacity = 1000

    def __init__(self, client: Any) -> None:
        super().__init__(Sender(Celery("none", set_as_current=False)), FixedLink(client), KEYS, 1000, no_marker())
        self.recipes = NoRecipes()
        self.fail: Callable[[Sequence[Operation]], object] = lambda _: None

    def prepare(self, _: Any, args: Sequence[Any], *__: Any) -> Any:
        return push(str(args[0]))

    prepare_ahead = prepare

    def submit(self, term: Term, operations: Sequence[Operation], _: object = None) -> list[Answer]:
        self.fail(operations)
        return super().submit(term, operations)


def enqueued(at: datetime, **fields: Any) -> LedgerRow:
    """Return a row that another leader wrote when it enqueued the occurrence."""
    return LedgerRow(at, "enqueued", at, signature="s", **fields)


class Leader:
    def __init__(self, server: RedisServer) -> None:
        self.client: Any = server.client()
        self.clock = HeldClock()
        self.events = EventLog()
        self.moves: list[float] = []
        #: The time to the next turn, in seconds.
        self.idle = 0.0
        self.on_event: Callable[[events.Event], object] = lambda _: None
        self.dispatcher: Any = ScriptDispatcher(server.client())
        self.pause = PauseState()
        self.lead()
        self.use(Source())

    def use(self, source: Source, **options: Any) -> Self:
        """Begin with an empty memory. Without a publish deadline by default."""
        self.source: Any = source
        source.clock = self.clock
        chosen, clock, rules = self.dispatcher, self.clock, LeaderOptions(**{"publish_deadline": None, **options})
        pace = Pace(clock, 0.5, lambda: self.moves.append(clock.elapsed()))
        time = SchedulingTime(clock, self.events.append)
        parts = source, lambda _: chosen, Shadow(), time, "enqueuer", clock, self.emit, rules, self.pause, pace
        self.enqueuer = Enqueuer(LeaderParts(*parts))
        return self

    def emit(self, event: events.Event) -> None:
        self.on_event(event)
        self.events.append(event)

    def lead(self, name: str = "one") -> Self:
        """Begin a term of a replica."""
        made = attempt(name, new_token(), sent_at=self.clock.elapsed(), ttl=1e6)
        self.origin = TermOrigin(acquire(RedisLeaseStore(lambda: self.client, KEYS), made), "")
        self.know_pauses({})
        return self

    def know_pauses(self, entries: Mapping[str, EntryPause]) -> None:
        """Set the pauses as read under this term."""
        self.pause.set(self.origin.acquired.term, None, entries, Shadow())

    def owe(self, *entries: str) -> Self:
        """Make entries of the schedule due a second ago."""
        self.source.last_run = dict.fromkeys(entries, 3601.0)
        return self

    @contextmanager
    def failing(self, error: Exception, entry: str = "") -> Iterator[None]:
        """Fail each batch, or each one with a message of an entry."""

        def fail(operations: Sequence[Operation]) -> None:
            if not entry or any(operation.entry == entry and operation.message for operation in operations):
                raise error

        self.dispatcher.fail = fail
        yield
        self.dispatcher.fail = lambda _: None

    def later(self, seconds: float) -> None:
        """Advance the clock, and Redis' view of it."""
        self.clock.ahead += seconds
        self.client.hset(KEYS.lease, "offset_ms", round(self.clock.ahead * 1000))

    def turn(self, times: int = 1, *, after: float = 0.0) -> Self:
        """Take turns after some seconds."""
        if after:
            self.later(after)
        for _ in range(times):
            self.idle = self.enqueuer.advance(self.origin, self.origin.acquired.term)
        return self

    def each_second(self, turns: int, *, seconds: float = 1.0) -> None:
        for _ in range(turns):
            self.turn(after=seconds)

    @property
    def messages(self) -> list[str]:
        return sorted(self.client.lrange("queue", 0, -1))

    def write(self, row: LedgerRow) -> str:
        """Change the row of the entry e, as another leader does."""
        self.client.hset(KEYS.ledger, "e:e", row.encoded())
        return row.encoded()

    def records(self, entry: str = "e") -> list[dict[str, Any]]:
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
