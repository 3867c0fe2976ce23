"""Claims over a change of leader, with the real enqueuer and store and a broker in memory."""

import contextlib
import json
from collections.abc import Iterable, Set
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from ha_beat.budget import Pace
from ha_beat.dispatch import FencedOff
from ha_beat.dispatch.two_phase import ClaimDispatcher
from ha_beat.leader import BrokerOutOfReach
from ha_beat.leader.entry import ScheduledEntry
from ha_beat.reasons import UncertainPolicy, Verdict
from ha_beat.store.entry_pauses import FIELD, EntryPause, encoded
from tests.integration.leader.stepped_leader import KEYS, Leader, Source
from tests.support.brokers import FakePublisher, FixedLink
from tests.support.claim_leader import Killed, Unreliable
from tests.support.dispatchers import no_marker, push
from tests.support.entries import scheduled
from tests.support.servers import RedisServer

SKIP, REPUBLISH = UncertainPolicy.SKIP, UncertainPolicy.REPUBLISH
NAMES = [f"e{number:02}" for number in range(30)]

#: Seconds after which no message of an earlier term can be on its way.
SETTLED = 6.5


class Broker(FakePublisher):
    def prepare(self, *args: Any) -> Any:
        return push(f"{args[1][0]} {args[3]['task_id']}")


class Release(Source):
    """Schedule of one release: entries every ``every`` seconds that fell due a second ago."""

    def __init__(self, policy: UncertainPolicy, due: datetime, every: float = 3600.0, **fields: Any) -> None:
        super().__init__()
        self.policy, self.every, self.due, self.fields = policy, every, due, fields

    def load(self, ids: Set[str] | None = None) -> Iterable[ScheduledEntry]:
        last_run = self.due - timedelta(seconds=self.every)
        for name in (name for name in NAMES if ids is None or name in ids):
            entry = scheduled(name, every=self.every, last_run=last_run, uncertain=self.policy, **self.fields)
            yield replace(entry, signature=f"every {self.every}")


class Replica(Leader):
    """Replica whose broker is in memory. Sending takes ``seconds`` on its clock."""

    def __init__(self, server: RedisServer, name: str, source: Source) -> None:
        super().__init__(server)
        self.publisher, self.seconds, self.die_at = Broker(), 0.001, 0
        self.store_client = Unreliable(server.client(decode_responses=False), KEYS)
        pace = Pace(self.clock, 0.5, lambda: self.moves.append(self.clock.elapsed()))
        parts = self.publisher, FixedLink(self.store_client), KEYS, 1000, 0.05, lambda _: True, no_marker(), pace
        self.dispatcher = ClaimDispatcher(*parts)
        self.publisher.before_send = self.sending
        self.lead(name)
        self.use(source)

    def sending(self, number: int) -> None:
        self.clock.ahead += self.seconds
        if number == self.die_at:
            raise Killed

    def run(self, turns: int, *, after: float = 0.01) -> None:
        for _ in range(turns):
            self.turn(after=after)

    def claims(self) -> list[str]:
        return sorted(value.split(" ")[0] for value in self.client.hvals(KEYS.claims))

    def verdicts(self) -> set[str]:
        return {row.verdict for row in self.dispatcher.ledger.of(NAMES).values()}

    def sent(self) -> list[str]:
        """Return the entries whose messages the broker accepted."""
        return sorted(message.split()[0] for message in self.publisher.accepted)

    def sent_ids(self) -> list[str]:
        return [message.split()[1] for message in self.publisher.accepted]


@pytest.fixture
def due() -> datetime:
    return datetime.now(UTC) - timedelta(seconds=1)


def killed_in_mid_publish(server: RedisServer, source: Source) -> Replica:
    """Return a leader that was killed after it claimed 20 occurrences, before the first of these was sent."""
    leader = Replica(server, "killed", source)
    leader.die_at = 2
    with pytest.raises(Killed):
        leader.run(10)
    assert leader.claims() == ["open"] * 20
    return leader


@pytest.mark.parametrize("fields", [{}, {"once": True}, {"resumed": True}], ids=["plain", "one-off", "resumed"])
@pytest.mark.parametrize(("earlier", "every"), [(3600.0, 3600.0), (3600.0, 1800.0), (5.0, 3.0), (5.0, 7.0)])
def test_republished_claim_is_sent_whatever_else_is_written(
    shared_redis: RedisServer, due: datetime, earlier: float, every: float, fields: Any
):
    """The next leader runs a release with another interval, so its takeover writes each row."""
    killed_in_mid_publish(shared_redis, Release(REPUBLISH, due, earlier))
    claimed = shared_redis.admin.hkeys(KEYS.claims)
    heir = Replica(shared_redis, "heir", Release(REPUBLISH, due, every, **fields))
    heir.run(10)
    heir.run(30, after=SETTLED / 20)
    assert {*claimed} <= {*heir.sent_ids()}
    assert len(heir.sent_ids()) == len({*heir.sent_ids()})
    # An edit drops what was due and not claimed.
    assert (heir.claims(), heir.verdicts() <= {"enqueued", "armed", "skipped"}) == ([], True)
    rows = heir.dispatcher.ledger.of(NAMES).values()
    assert {row.signature for row in rows} == {f"every {every}"}


def test_claim_of_a_paused_entry_is_uncertain_and_not_sent_again(shared_redis: RedisServer, due: datetime):
    """The message is not sent after the pause either. Those of the other entries are sent again."""
    first = killed_in_mid_publish(shared_redis, Release(REPUBLISH, due))
    heir, paused = Replica(shared_redis, "heir", Release(REPUBLISH, due)), NAMES[5]
    heir.client.hset(KEYS.ledger, FIELD, encoded({paused: EntryPause(paused, 1)}))
    heir.know_pauses({paused: EntryPause(paused, 1)})
    heir.run(30, after=SETTLED / 20)
    heir.client.hdel(KEYS.ledger, FIELD)
    heir.know_pauses({})
    heir.run(10)
    assert sorted([*first.sent(), *heir.sent()]) == [name for name in NAMES if name != paused]
    assert heir.dispatcher.ledger.of(NAMES)[paused].verdict is Verdict.UNCERTAIN


def test_open_claim_is_settled_although_the_schedule_is_edited_each_second(shared_redis: RedisServer, due: datetime):
    killed_in_mid_publish(shared_redis, Release(SKIP, due))
    heir = Replica(shared_redis, "heir", Release(SKIP, due))
    for _ in range(10):
        heir.enqueuer.reload()
        heir.run(3, after=0.3)
    assert (heir.claims(), heir.verdicts()) == (["uncertain"] * 20, {"enqueued", "uncertain"})


@pytest.mark.parametrize("policy", [SKIP, REPUBLISH])
@pytest.mark.parametrize("way", ["fenced", "fenced without Redis", "after the takeover"])
def test_claim_that_was_certainly_not_sent_is_sent_by_the_next_term(
    shared_redis: RedisServer, due: datetime, way: str, policy: UncertainPolicy
):
    """The former leader marks it as unsent, although the lease has another holder. Nothing is uncertain."""
    first = Replica(shared_redis, "first", Release(policy, due))
    heirs: list[Replica] = []

    def lose(number: int) -> None:
        first.sending(number)
        if number == 5:
            assert len(first.claims()) > 5, "in the middle of a chunk"
            heirs.append(Replica(shared_redis, "heir", Release(policy, due)))
            first.dispatcher._sender._trusted = lambda _: False
            if way == "fenced without Redis":
                first.store_client.faults = [("resolve", "cut")] * 50
            if way == "after the takeover":
                heirs[0].run(10)

    first.publisher.before_send = lose
    with contextlib.suppress(FencedOff, BrokerOutOfReach):
        first.run(5)
    (heir,) = heirs
    first.store_client.faults = []
    first.enqueuer.stand_by()
    heir.run(10)
    if way == "fenced":
        assert sorted([*first.sent(), *heir.sent()]) == NAMES
    heir.run(30, after=SETTLED / 20)
    assert sorted([*first.sent(), *heir.sent()]) == NAMES
    assert (heir.claims(), heir.verdicts()) == ([], {"enqueued"})


def test_claim_that_is_unsent_before_its_deadline_is_not_uncertain(shared_redis: RedisServer, due: datetime):
    """The former leader marks it late, and the next leader cannot send it again without a broker."""
    killed_in_mid_publish(shared_redis, Release(REPUBLISH, due))
    client = shared_redis.client()
    for key, claim in client.hgetall(KEYS.claims).items():
        client.hset(KEYS.claims, key, claim.replace("open ", "unsent ", 1))
    heir = Replica(shared_redis, "heir", Release(REPUBLISH, due))
    heir.dispatcher.take_back = lambda _: frozenset()  # unsent only after the heir has read the ledger
    heir.run(1)
    del heir.dispatcher.take_back
    state = heir.enqueuer.due_queue.get(NAMES[1])
    lost = heir.dispatcher, heir.enqueuer.due_queue, heir.origin.acquired.term, state
    heir.enqueuer._work._claims.record_resend_uncertain(*lost)
    heir.run(30)
    assert (heir.claims(), heir.verdicts(), len(heir.sent())) == ([], {"enqueued"}, 29)


def test_claim_that_is_not_sent_again_until_its_deadline_is_uncertain(shared_redis: RedisServer, due: datetime):
    """The first message may have been enqueued. Occurrences without a claim are skipped."""
    killed_in_mid_publish(shared_redis, Release(REPUBLISH, due))
    claimed = {json.loads(claim.split(" ", 1)[1])["entry"] for claim in shared_redis.client().hvals(KEYS.claims)}
    heir = Replica(shared_redis, "heir", Release(REPUBLISH, due))
    heir.use(heir.source, publish_deadline=20.0, handover_after=1000.0).publisher.away = "no broker"
    heir.run(40, after=1.0)
    rows = heir.dispatcher.ledger.of(NAMES)
    assert {rows[name].verdict for name in claimed} == {Verdict.UNCERTAIN}
    assert {rows[name].verdict for name in {*NAMES} - claimed} == {Verdict.ENQUEUED, Verdict.SKIPPED}
    assert "open" not in heir.claims()


def test_slow_broker_gets_as_many_messages_as_the_time_allows(shared_redis: RedisServer, due: datetime):
    """Each message takes 0.2 s. Only messages that are sent soon are claimed, and each one counts as progress."""
    leader = Replica(shared_redis, "slow", Release(SKIP, due))
    leader.seconds = 0.2
    open_claims: list[int] = []
    leader.publisher.before_send = lambda number: (open_claims.append(len(leader.claims())), leader.sending(number))
    leader.run(60)
    assert leader.sent() == NAMES
    assert max(open_claims) <= 2
    assert max(after - before for before, after in pairwise(leader.moves)) < 1.0


def test_broker_that_becomes_slow_defers_the_rest_of_its_batch(shared_redis: RedisServer, due: datetime):
    leader = Replica(shared_redis, "slow", Release(SKIP, due))
    leader.publisher.before_send = lambda number: leader.later(0.4 if number > 3 else 0.001)
    leader.run(4)
    assert 3 < len(leader.sent()) < 30
    leader.publisher.before_send = leader.sending
    leader.run(60)
    assert (leader.sent(), leader.claims(), leader.failed()) == (NAMES, [], [])


def test_malformed_claim_does_not_stop_a_leader(shared_redis: RedisServer, due: datetime):
    """Each term begins by reading the open claims. Python's JSON parser fails with RecursionError."""
    leader, deep = Replica(shared_redis, "one", Release(SKIP, due)), "[" * 100_000
    good = {"entry": "e", "by": "n", "policy": "skip", "ms": 1, "row": "", "before": "", "records": []}
    for number, value in enumerate(["", "open", "open {", "open []", f"open {deep}", 'uncertain {"ms": "soon"}']):
        leader.client.hset(KEYS.claims, f"malformed {number}", value)
    leader.client.hset(KEYS.claims, "good", f"open {json.dumps(good)}")
    assert [claim.key for claim in leader.dispatcher.open_claims(leader.origin.acquired.term)] == ["good"]
