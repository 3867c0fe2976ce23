"""Leader with a claim dispatcher on a real Redis and a fake publisher, and the state that it leaves."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import pytest
from redis import exceptions as redis_errors

from ha_beat.budget import Pace
from ha_beat.clock import SystemClock, to_micros
from ha_beat.dispatch import Answer, Operation
from ha_beat.dispatch.brokers.adapter import Sent
from ha_beat.dispatch.two_phase import ClaimDispatcher
from ha_beat.reasons import AnswerKind, PublishOutcome, UncertainPolicy
from ha_beat.store.keys import Keys
from ha_beat.store.lease import Term
from ha_beat.store.lease_store import RedisLeaseStore
from ha_beat.store.ledger import LedgerRow
from tests.support.brokers import FakePublisher, FixedLink
from tests.support.dispatchers import no_marker, push
from tests.support.events import EventLog
from tests.support.leases import acquire, attempt
from tests.support.servers import RedisServer

KEYS = Keys("claims")
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
SKIP, REPUBLISH = UncertainPolicy.SKIP, UncertainPolicy.REPUBLISH
ACCEPTED = Sent(PublishOutcome.ACCEPTED)
UNANSWERED = Sent(PublishOutcome.UNKNOWN, "cut", broken=True)
NACK = Sent(PublishOutcome.UNKNOWN, "nacked")
NO_EXCHANGE = Sent(PublishOutcome.REFUSED, "no such exchange")
DONE = Answer(AnswerKind.DONE)
OPEN = {"id of entry": "open"}
PACE = Pace(SystemClock())
ARMED = Operation("other", "", LedgerRow(base=NOON, verdict="armed").encoded())


class Killed(BaseException):
    """End of a process in the middle of a send."""


class Unreliable:
    """Client that loses prepared script calls, or their replies."""

    def __init__(self, client: Any, keys: Keys = KEYS) -> None:
        self._client = client
        self._keys = keys
        #: Faults in order, each for the next call of its script: (script, "lost reply" or "cut").
        self.faults: list[tuple[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def evalsha(self, sha: str, numkeys: int, *args: Any) -> Any:
        script = "resolve" if len(args) > 3 and str(args[3]) == self._keys.claims else "claim"
        if not self.faults or self.faults[0][0] != script:
            return self._client.evalsha(sha, numkeys, *args)
        if self.faults[0][1] == "lost reply":
            self._client.evalsha(sha, numkeys, *args)  # may raise NoScriptError first
        raise redis_errors.ConnectionError(self.faults.pop(0)[1])


class Leader:
    """Leader with a claim dispatcher, and the state that it leaves."""

    def __init__(self, server: RedisServer, name: str = "one") -> None:
        self.server = server
        self.admin: Any = server.client()
        self.client = Unreliable(server.client(decode_responses=False))
        self.store = RedisLeaseStore(lambda: self.admin, KEYS)
        self.publisher = FakePublisher()
        self.trusted, self.events = True, EventLog()
        link = FixedLink(self.client)
        self.dispatcher = ClaimDispatcher(
            self.publisher, link, KEYS, 1000, 0.05, lambda _: self.trusted, no_marker(), PACE, self.events.append
        )
        self.term = self.lead(name)

    def lead(self, name: str) -> Term:
        return acquire(self.store, attempt(name)).term

    def successor(self) -> Self:
        return type(self)(self.server, "two")

    def operation(
        self, entry: str = "entry", policy: UncertainPolicy = SKIP, expected: str = "", rev: int = 1
    ) -> Operation:
        at = NOON + timedelta(minutes=rev)
        row = LedgerRow(base=at, verdict="enqueued", scheduled_at=at, rev=rev, run_count=rev, task_id=f"id of {entry}")
        row = replace(row, epoch=self.term.epoch, nonce=self.term.nonce).encoded()
        record = json.dumps(
            {"verdict": "enqueued", "entry": entry, "at": at.isoformat(), "base": to_micros(at), "ms": 1}
        )
        message = push(f"message of {entry}")
        return Operation(entry, expected, row, (record,), message, task_id=f"id of {entry}", uncertain=policy)

    def batch(self, count: int) -> list[Operation]:
        return [self.operation(f"entry {number:02}") for number in range(count)]

    def request_step(self) -> Operation:
        self.admin.hset(KEYS.requests, "request", "x")
        return replace(self.operation(), row="", request="request", step=1)

    def submit(self, *operations: Operation) -> list[Answer]:
        return self.dispatcher.submit(self.term, operations)

    def submit_kinds(self, *operations: Operation) -> list[str]:
        return [answer.kind for answer in self.submit(*operations)]

    def record_open_claims_as_uncertain(self) -> Any:
        return self.dispatcher.record_uncertain(self.term, self.dispatcher.open_claims(self.term))

    def raw(self, entry: str = "entry") -> str:
        return self.admin.hget(KEYS.ledger, f"e:{entry}") or ""

    def row(self, entry: str = "entry") -> dict[str, Any]:
        return json.loads(self.raw(entry) or "{}")

    def verdict(self, entry: str = "entry") -> str | None:
        """Return the verdict in the ledger."""
        return self.row(entry).get("verdict")

    def claims(self) -> dict[str, str]:
        """Return the state of each claim by its key."""
        return {key: value.split(" ")[0] for key, value in self.admin.hgetall(KEYS.claims).items()}

    def journal(self) -> list[str]:
        """Return the verdicts in the journal, in order."""
        records = [json.loads(fields["d"]) for _, fields in self.admin.xrange(KEYS.journal)]
        return [record["verdict"] for record in records if "verdict" in record]


def die() -> None:
    raise Killed


def leave_claimed(leader: Leader, operation: Operation | None = None) -> None:
    """Leave a claim open, as a process that is killed after its claim does."""
    leader.publisher.before_send = lambda _: die()
    with pytest.raises(Killed):
        leader.submit(operation or leader.operation())
    assert "open" in leader.claims().values()
