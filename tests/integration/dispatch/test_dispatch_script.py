"""The dispatch script enqueues and records atomically, under one term, once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis

from ha_beat.dispatch import Answer, FencedOff, Operation
from ha_beat.dispatch.capture import RedisCommands
from ha_beat.errors import StoreRefused
from ha_beat.reasons import AnswerKind, TermEnd
from ha_beat.store.lease import Acquired, Expected, RedisLeaseStore, Renewed, Term
from ha_beat.store.ledger import Ledger, LedgerRow
from tests.integration.store.conftest import KEYS, RedisBench
from tests.support.dispatchers import atomic_dispatcher
from tests.support.leases import acquire, attempt
from tests.support.servers import RedisServer

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


class Leader:
    """A leader with an atomic dispatcher, and the state that it leaves."""

    def __init__(self, bench: RedisBench) -> None:
        self.client: Any = bench.client
        self.store = RedisLeaseStore(lambda: bench.client, KEYS)
        self.ledger = Ledger(lambda: bench.client, KEYS)
        self.dispatcher = atomic_dispatcher(bench.client, KEYS)
        self.term = self.lead()

    def lead(self, name: str = "one") -> Term:
        return acquire(self.store, attempt(name)).term

    def submit(self, *operations: Operation, term: Term | None = None) -> list[Answer]:
        return self.dispatcher.submit(term or self.term, operations)

    def messages(self, queue: str = "queue") -> list[str]:
        """Return the queue's messages, oldest first."""
        return [message.decode() for message in reversed(self.client.lrange(queue, 0, -1))]

    def journal(self) -> list[dict[str, Any]]:
        """Return the journal's records, except for the changes of leader."""
        records = [json.loads(fields[b"d"]) for _, fields in self.client.xrange(KEYS.journal)]
        return [record for record in records if record.get("kind") != "term"]


@pytest.fixture
def leader(bench: RedisBench) -> Leader:
    return Leader(bench)


def row(minutes: int = 0, **changes: Any) -> str:
    values: dict[str, Any] = {"base": NOON + timedelta(minutes=minutes), "verdict": "enqueued", "rev": minutes + 1}
    return LedgerRow(**{**values, **changes}).encoded()


def push(value: str = "message", queue: str = "queue") -> tuple[str, ...]:
    return ("LPUSH", queue, value)


def operation(
    entry: str = "a",
    expected: str = "",
    new: str | None = None,
    commands: Sequence[tuple[str, ...]] = (push(),),
) -> Operation:
    message = RedisCommands(tuple(commands)) if commands else None
    return Operation(entry, expected, new or row(), (json.dumps({"entry": entry}),), message)


def kinds(answers: Sequence[Answer]) -> list[str]:
    return [answer.kind for answer in answers]


def test_operation_enqueues_records_and_journals(leader: Leader):
    assert kinds(leader.submit(operation())) == ["done"]
    assert leader.messages() == ["message"]
    assert leader.ledger.read() == {"a": row()}
    assert leader.journal() == [{"entry": "a"}]


def test_repeated_batch_changes_nothing(leader: Leader):
    """The reply was lost, and the leader submits the batch again."""
    batch = [operation("a"), operation("b")]
    assert kinds(leader.submit(*batch)) == ["done", "done"]
    assert kinds(leader.submit(*batch)) == ["mine", "mine"]
    assert leader.messages() == ["message", "message"]
    assert len(leader.journal()) == 2


def test_partly_done_batch_is_completed(leader: Leader):
    leader.submit(operation("a"))
    assert kinds(leader.submit(operation("a"), operation("b"))) == ["mine", "done"]
    assert leader.messages() == ["message", "message"]


def test_unexpected_row_is_left_alone(leader: Leader):
    """Another leader has dispatched the entry: there is no message, and the answer has the row."""
    leader.submit(operation(new=row(1)))
    answers = leader.submit(operation(expected="", new=row(2)), operation("b"))
    assert answers[0] == Answer(AnswerKind.MOVED, row(1))
    assert answers[1].kind == "done"
    assert leader.ledger.read()["a"] == row(1)
    assert leader.messages() == ["message", "message"]


def test_missing_row_is_unexpected(leader: Leader):
    answers = leader.submit(operation(expected=row(1), new=row(2)))
    assert answers == [Answer(AnswerKind.MOVED, "")]
    assert leader.messages() == []


@pytest.mark.parametrize(
    "change",
    [{"epoch": 1}, {"nonce": "another"}, {"gen": "another"}, {"run_id": "another"}],
    ids=["epoch", "nonce", "gen", "run_id"],
)
def test_batch_under_another_term_is_refused_whole(server_bench: RedisBench, change: dict[str, Any]):
    leader = Leader(server_bench)
    with pytest.raises(FencedOff):
        leader.submit(operation("a"), operation("b"), term=replace(leader.term, **change))
    assert (leader.messages(), leader.ledger.read(), leader.journal()) == ([], {}, [])


def test_old_leader_enqueues_nothing_after_a_takeover(leader: Leader):
    old, new = leader.term, leader.lead("two")
    with pytest.raises(FencedOff) as caught:
        leader.submit(operation(), term=old)
    assert caught.value.reason is TermEnd.SUPERSEDED
    assert kinds(leader.submit(operation(), term=new)) == ["done"]


def test_leader_enqueues_nothing_after_its_own_release(leader: Leader):
    """A signal handler releases the lease while a batch is on its way."""
    leader.store.release(leader.term, TermEnd.SHUTDOWN)
    with pytest.raises(FencedOff) as caught:
        leader.submit(operation())
    assert caught.value.reason is TermEnd.SUPERSEDED
    assert leader.messages() == []


def test_clone_with_the_same_nonce_is_refused_by_epoch(leader: Leader):
    """Two clones of a machine may draw the same nonce."""
    record = leader.store.observe().record
    assert record is not None
    twin = leader.store.acquire(attempt("two", leader.term.nonce), Expected(record.epoch, record.seq), 0)
    assert isinstance(twin, Acquired)
    with pytest.raises(FencedOff):
        leader.submit(operation())
    assert leader.messages() == []
    assert kinds(leader.submit(operation(), term=twin.term)) == ["done"]


@pytest.mark.parametrize("lost", ["lease", "ledger", "both"])
def test_lost_lease_or_ledger_refuses_the_batch(leader: Leader, lost: str):
    """After FLUSHALL, or if one key was deleted."""
    for key, name in ((KEYS.lease, "lease"), (KEYS.ledger, "ledger")):
        if lost in (name, "both"):
            leader.client.delete(key)
    with pytest.raises(FencedOff):
        leader.submit(operation())
    assert leader.messages() == []
    assert leader.ledger.read() == {}


def test_queue_key_of_another_type_fails_only_its_own_entry(leader: Leader):
    """A script does not roll back: the row must not be written, and the other operations must go on."""
    leader.client.set("taken", "not a list")
    answers = leader.submit(operation("a"), operation("b", commands=[push(queue="taken")]), operation("c"))
    assert kinds(answers) == ["done", "error", "done"]
    assert "taken" in answers[1].detail
    assert sorted(leader.ledger.read()) == ["a", "c"]
    assert [record["entry"] for record in leader.journal()] == ["a", "c"]


def test_message_is_not_sent_if_one_of_its_queues_has_another_type(leader: Leader):
    """The type is checked before anything is written."""
    leader.client.set("taken", "not a list")
    answers = leader.submit(operation(commands=[push(), push(queue="taken")]))
    assert kinds(answers) == ["error"]
    assert (leader.messages(), leader.ledger.read()) == ([], {})


def test_message_to_several_queues_reaches_all(leader: Leader):
    leader.submit(operation(commands=[push("m", "left"), push("m", "right")]))
    assert (leader.messages("left"), leader.messages("right")) == (["m"], ["m"])


def test_verdict_without_a_message_is_recorded(leader: Leader):
    assert kinds(leader.submit(operation(commands=(), new=row(verdict="skipped")))) == ["done"]
    assert leader.ledger.read() == {"a": row(verdict="skipped")}


def test_messages_keep_the_order_of_the_batch(leader: Leader):
    leader.submit(*(operation(f"e{n}", commands=[push(f"m{n}")]) for n in range(50)))
    assert leader.messages() == [f"m{n}" for n in range(50)]


def test_large_batch_fits(leader: Leader):
    """Lua's unpack is limited to some thousand values."""
    answers = leader.submit(*(operation(f"e{n}") for n in range(1000)))
    assert set(kinds(answers)) == {"done"}
    assert len(leader.ledger.read()) == 1000


def test_names_and_contents_are_passed_unchanged(leader: Leader):
    """Unicode, quotes, line ends, empty strings, large numbers."""
    name, content = "entry 'ü' \"\n{}", 'body \x00\x06 " 1760000000000000'
    leader.submit(operation(name, commands=[push(content)]))
    assert leader.messages() == [content]
    assert leader.ledger.read() == {name: row()}


def test_journal_records_are_numbered_without_a_gap(leader: Leader):
    """A reader detects missing records by the gap."""
    leader.submit(operation("a"), operation("b"))
    leader.submit(operation("c"))
    numbers = [int(fields[b"n"]) for _, fields in leader.client.xrange(KEYS.journal)]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert int(leader.client.hget(KEYS.ledger, "m:journal")) == numbers[-1]


def test_broken_journal_does_not_stop_the_dispatch(leader: Leader):
    leader.client.delete(KEYS.journal)
    leader.client.set(KEYS.journal, "not a stream")
    assert kinds(leader.submit(operation())) == ["done"]
    assert leader.messages() == ["message"]


def test_full_redis_refuses_the_batch_whole(server_bench: RedisBench):
    """There is no message without its record and no record without its message."""
    leader = Leader(server_bench)
    leader.client.config_set("maxmemory", "1")
    try:
        with pytest.raises(StoreRefused, match="maxmemory"):
            leader.submit(operation("a"), operation("b"))
    finally:
        leader.client.config_set("maxmemory", "0")
    assert (leader.messages(), leader.ledger.read(), leader.journal()) == ([], {}, [])
    assert kinds(leader.submit(operation("a"), operation("b"))) == ["done", "done"]


@pytest.mark.parametrize("forbidden", ["lpush", "publish"])
def test_missing_right_in_mid_batch_fails_only_its_own_entry(server_bench: RedisBench, forbidden: str):
    """NOPERM inside a script does not roll back earlier commands."""
    leader = Leader(server_bench)
    server = server_bench.server
    assert server is not None
    leader.client.execute_command("ACL", "SETUSER", "limited", "on", ">pw", "~*", "&*", "+@all", f"-{forbidden}")
    limited = redis.Redis(host="127.0.0.1", port=server.port, username="limited", password="pw")
    dispatcher = atomic_dispatcher(limited, KEYS)
    batch = [
        operation("list", commands=[push()]),
        operation("fanout", commands=[("PUBLISH", "/0.fanout", "message")]),
        operation("none", commands=()),
    ]
    answers = dict(zip(["list", "fanout", "none"], dispatcher.submit(leader.term, batch), strict=True))
    limited.close()
    refused = {"lpush": "list", "publish": "fanout"}[forbidden]
    assert {name for name, answer in answers.items() if answer.kind == "error"} == {refused}
    assert set(leader.ledger.read()) == {"list", "fanout", "none"} - {refused}


def test_ledger_reads_only_the_fields_of_entries(leader: Leader):
    """The hash holds the fields of the cluster too."""
    leader.submit(operation("m:gen"), operation("plain"))
    assert sorted(leader.ledger.read()) == ["m:gen", "plain"]


def test_two_leaders_with_one_term_enqueue_an_occurrence_once(leader: Leader):
    """This cannot happen; the compare-and-set on the row prevents a second message all the same."""
    first = leader.submit(operation(new=row(1, nonce="x")))
    second = leader.submit(operation(new=row(1, nonce="y")))
    assert (kinds(first), kinds(second)) == (["done"], ["moved"])
    assert leader.messages() == ["message"]


@pytest.mark.parametrize("leases_user", ["may ask", "may not ask"])
def test_user_without_info_is_not_taken_for_another_server(shared_redis: RedisServer, leases_user: str) -> None:
    """The connections to lease and broker may have different users."""
    admin: Any = shared_redis.client()
    admin.execute_command("ACL", "SETUSER", "quiet", "on", ">secret", "~*", "&*", "+@all", "-info")
    quiet: Any = shared_redis.client(username="quiet", password="secret")
    for_lease, for_broker = (admin, quiet) if leases_user == "may ask" else (quiet, admin)
    store = RedisLeaseStore(lambda: for_lease, KEYS)
    answer = store.acquire(attempt("one"), None, 0)
    assert isinstance(answer, Acquired)
    dispatcher = atomic_dispatcher(for_broker, KEYS)
    assert [said.kind for said in dispatcher.submit(answer.term, [operation()])] == ["done"]
    assert isinstance(store.renew(answer.term, 2, ""), Renewed)
    admin.execute_command("ACL", "DELUSER", "quiet")


def test_revoked_info_right_is_not_taken_for_another_server(shared_redis: RedisServer) -> None:
    """The next term does not know the server's run id."""
    client = shared_redis.client()
    store = RedisLeaseStore(lambda: client, KEYS)
    first = store.acquire(attempt("one"), None, 0)
    assert isinstance(first, Acquired)
    then = replace(first, previous_run_id=first.term.run_id, term=replace(first.term, run_id=""))
    assert not then.server_changed
    assert replace(then, term=replace(first.term, run_id="another")).server_changed


def test_instant_ahead_of_redis_clock_is_refused(server_bench: RedisBench):
    """A replica whose clock is ahead must not fire early. The leader tells by how much the cluster's time is ahead."""
    leader = Leader(server_bench)
    seconds, _ = leader.client.time()

    def ahead(entry: str, by: float) -> Operation:
        return replace(operation(entry), scheduled_ms=round((seconds + by) * 1000))

    assert kinds(leader.submit(ahead("now", 0.0), ahead("soon", 60.0))) == ["done", "error"]
    assert leader.messages() == ["message"]
    leader.client.hset(KEYS.lease, "offset_ms", "60000")
    assert kinds(leader.submit(ahead("soon", 60.0), ahead("later", 120.0))) == ["done", "error"]
    assert sorted(leader.ledger.read()) == ["now", "soon"]


def test_occurrence_that_is_twice_in_a_batch_is_enqueued_once(leader: Leader):
    """The second operation finds the row that the first has written."""
    assert kinds(leader.submit(operation(), operation())) == ["done", "mine"]
    assert kinds(leader.submit(operation("b"), operation("b", new=row(1)))) == ["done", "moved"]
    assert leader.messages() == ["message"] * 2
    assert leader.ledger.read() == {"a": row(), "b": row()}


def step(number: int, request: str = "r") -> Operation:
    return replace(operation(), row="", request=request, step=number)


def test_request_step_is_done_once_and_moves_no_position(leader: Leader):
    leader.submit(operation())
    leader.client.hset(KEYS.requests, "r", "x")
    assert kinds(leader.submit(step(1))) == ["done"]
    assert kinds(leader.submit(step(1), step(2))) == ["mine", "done"]
    assert kinds(leader.submit(step(1), step(2), term=leader.lead("two"))) == ["mine", "mine"]
    assert leader.messages() == ["message"] * 3
    assert leader.ledger.read() == {"a": row()}


def test_withdrawn_request_is_not_carried_out(leader: Leader):
    assert kinds(leader.submit(step(1))) == ["withdrawn"]
    assert leader.messages() == []


def test_paused_cluster_enqueues_nothing_of_the_schedule(leader: Leader):
    """Verdicts without a message are written, and requests are served."""
    leader.client.hset(KEYS.ledger, "m:paused", "{}")
    leader.client.hset(KEYS.requests, "r", "x")
    silent = operation("b", commands=(), new=row(verdict="skipped"))
    assert kinds(leader.submit(operation(), silent, step(1))) == ["paused", "done", "done"]
    assert leader.messages() == ["message"]
    assert leader.ledger.read() == {"b": row(verdict="skipped")}
