"""Leader's request handler on a real Redis, with an enqueuer of the test's own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import redis

from ha_beat.budget import Pace
from ha_beat.dispatch import Answer
from ha_beat.dispatch.batch import BatchScript
from ha_beat.errors import StoreUnavailable
from ha_beat.leader.due_queue import DueQueue
from ha_beat.leader.pause import PauseState
from ha_beat.leader.requests.handler import build_request_handler
from ha_beat.reasons import RequestKind
from ha_beat.store.cluster_pause import Pause
from ha_beat.store.journal import Journal
from ha_beat.store.keys import Keys
from ha_beat.store.lease import Term
from ha_beat.store.request_queue import Reply, Request, Requests
from ha_beat.store.scripts import text
from ha_beat.store.shadow import Shadow
from tests.support.clocks import AdvancedClock
from tests.support.dispatchers import TimedPush, push
from tests.support.entries import scheduled, state_of
from tests.support.events import EventLog
from tests.support.leases import begin_term
from tests.support.servers import RedisServer

KEYS = Keys("requests")


class UnreachableBroker:
    """Dispatcher whose broker is unreachable."""

    capacity = 1000
    tries = 0

    def prepare(self, *_: object) -> Any:
        self.tries += 1
        raise StoreUnavailable("the broker is unreachable", acted=False)

    def broker_error(self, _: object) -> None: ...


class Sender:
    """Dispatcher that sends through the script. A message takes 0.05 s to build. ``timed`` ones have an expiry."""

    capacity = 1000
    built = 0
    timed = False

    def __init__(self, leader: RequestLeader) -> None:
        self.leader = leader
        #: Called with the number of a message, from 1, before it is built.
        self.on_build: Callable[[int], object] = lambda _: None
        self.before_send: Callable[[], object] = lambda: None
        self.after_send: Callable[[], object] = lambda: None

    def prepare(self, *_: object) -> Any:
        self.leader.clock.ahead += 0.05
        self.built += 1
        self.on_build(self.built)
        return TimedPush((("LPUSH", "queue", str(self.built)),)) if self.timed else push()

    def broker_error(self, _: object) -> None: ...

    def submit(self, term: Term, operations: Any, _: object = None) -> list[Answer]:
        self.before_send()
        answers = BatchScript(KEYS, 1000).run(self.leader.client, term, operations)
        self.after_send()
        return answers


class Stub:
    """Enqueuer, elector and schedule source of the handler."""

    def __init__(self) -> None:
        self.due_queue = DueQueue()
        self.step_downs = 0
        self.compute: Callable[[], object] = lambda: None
        self.dispatcher: Any = UnreachableBroker()
        state = state_of(scheduled("e", every=None, last_run=self.now()))
        self.due_queue.put(state, self.now() + timedelta(hours=1))

    def serves(self, _: object) -> bool:
        return True

    def step_down(self, *_: object, **__: object) -> None:
        self.step_downs += 1

    def reload(self) -> None: ...

    def arguments(self, _: object) -> Any:
        self.compute()
        return [], {}, {}

    def now(self) -> datetime:
        return datetime.now(UTC)


class RequestLeader:
    """A leader's request handler, and the queue that it serves."""

    def __init__(self, server: RedisServer, shadow: Shadow | None = None) -> None:
        self.client: Any = redis.Redis.from_url(server.url)
        self.requests = Requests(lambda: self.client, KEYS, 1000)
        self.stub: Any = Stub()
        self.clock, self.pause, self.events = AdvancedClock(), PauseState(), EventLog()
        self.request_ids = (f"{number:032}" for number in itertools.count())
        stores = {"requests": self.requests, "journal": Journal(lambda: self.client, KEYS), "cluster": "requests"}
        parts = {**dict.fromkeys(("enqueuer", "source", "leader"), self.stub), "shadow": shadow or Shadow()}
        pace = Pace(self.clock, 0.5)
        self.handler, _ = build_request_handler(**stores, **parts, pause=self.pause, pace=pace, emit=self.events.append)
        self.lead()

    def lead(self, nonce: str = "nonce") -> None:
        self.term: Term = begin_term(self.client, KEYS, nonce=nonce)

    def post(self, kind: RequestKind, **args: Any) -> Request:
        # Requests of one millisecond are served in the order of their ids.
        request = Request(kind, args, by="tester", id=next(self.request_ids))
        self.requests.post(request, lifetime=60.0)
        return request

    def attend(self, *, requests_pending: bool = True) -> float:
        self.clock.ahead += 1.0
        return self.handler.attend(self.term, requests_pending=requests_pending)

    def reply_to(self, request: Request) -> Reply:
        return self.requests.answer_to(request.id)

    def carry_out(self, kind: RequestKind, **args: Any) -> Reply:
        request = self.post(kind, **args)
        self.attend()
        return self.reply_to(request)

    @property
    def sent(self) -> int:
        return int(self.client.llen("queue"))

    def stored_pause(self) -> str | None:
        found = self.client.hget(KEYS.ledger, Pause.FIELD)
        return None if found is None else text(found)
