"""What the dispatch script promises: enqueue and record are one act, under one term, once."""

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


class Desk:
    """A leader at its dispatcher."""

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
        """Oldest first."""
        return [message.decode() for message in reversed(self.client.lrange(queue, 0, -1))]

    def journal(self) -> list[dict[str, Any]]:
        """What the script was told to write, without the changes of leader."""
        records = [json.loads(fields[b"d"]) for _, fields in self.client.xrange(KEYS.journal)]
        return [record for record in records if record.get("kind") != "term"]


@pytest.fixture
def desk(bench: RedisBench) -> Desk:
    return Desk(bench)


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


def test_an_operation_enqueues_records_and_journals(desk: Desk):
    assert kinds(desk.submit(operation())) == ["done"]
    assert desk.messages() == ["message"]
    assert desk.ledger.read() == {"a": row()}
    assert desk.journal() == [{"entry": "a"}]


def test_the_same_batch_again_changes_nothing(desk: Desk):
    """The reply was lost, and the leader asks again: that is what the answer 'mine' is for."""
    batch = [operation("a"), operation("b")]
    assert kinds(desk.submit(*batch)) == ["done", "done"]
    assert kinds(desk.submit(*batch)) == ["mine", "mine"]
    assert desk.messages() == ["message", "message"]
    assert len(desk.journal()) == 2


def test_a_batch_that_was_carried_out_only_in_part_is_completed(desk: Desk):
    """Whatever cut it short: those done are answered 'mine', the others are done."""
    desk.submit(operation("a"))
    assert kinds(desk.submit(operation("a"), operation("b"))) == ["mine", "done"]
    assert desk.messages() == ["message", "message"]


def test_a_row_that_is_not_as_expected_is_left_alone(desk: Desk):
    """Somebody else has dispatched this entry: no message, and the answer brings the row."""
    desk.submit(operation(new=row(1)))
    answers = desk.submit(operation(expected="", new=row(2)), operation("b"))
    assert answers[0] == Answer(AnswerKind.MOVED, row(1))
    assert answers[1].kind == "done"
    assert desk.ledger.read()["a"] == row(1)
    assert desk.messages() == ["message", "message"]


def test_a_row_that_disappeared_is_not_as_expected_either(desk: Desk):
    answers = desk.submit(operation(expected=row(1), new=row(2)))
    assert answers == [Answer(AnswerKind.MOVED, "")]
    assert desk.messages() == []


@pytest.mark.parametrize(
    "change",
    [{"epoch": 1}, {"nonce": "another"}, {"gen": "another"}, {"run_id": "another"}],
    ids=["epoch", "nonce", "gen", "run_id"],
)
def test_a_term_that_differs_in_anything_is_refused_whole(server_bench: RedisBench, change: dict[str, Any]):
    """Older epochs, forged nonces, another incarnation of the state, another server."""
    desk = Desk(server_bench)
    with pytest.raises(FencedOff):
        desk.submit(operation("a"), operation("b"), term=replace(desk.term, **change))
    assert (desk.messages(), desk.ledger.read(), desk.journal()) == ([], {}, [])


def test_after_a_takeover_the_old_leader_enqueues_nothing_more(desk: Desk):
    """And the new one does."""
    old, new = desk.term, desk.lead("two")
    with pytest.raises(FencedOff) as caught:
        desk.submit(operation(), term=old)
    assert caught.value.reason is TermEnd.SUPERSEDED
    assert kinds(desk.submit(operation(), term=new)) == ["done"]


def test_after_its_own_release_a_leader_enqueues_nothing_more(desk: Desk):
    """A batch that was under way when the signal handler released the lease."""
    desk.store.release(desk.term, TermEnd.SHUTDOWN)
    with pytest.raises(FencedOff) as caught:
        desk.submit(operation())
    assert caught.value.reason is TermEnd.SUPERSEDED
    assert desk.messages() == []


def test_a_machine_that_was_cloned_enqueues_under_no_term_that_is_over(desk: Desk):
    """Its twin has drawn the same nonce, and has taken the lease since: the epoch tells them apart."""
    record = desk.store.observe().record
    assert record is not None
    twin = desk.store.acquire(attempt("two", desk.term.nonce), Expected(record.epoch, record.seq), 0)
    assert isinstance(twin, Acquired)
    with pytest.raises(FencedOff):
        desk.submit(operation())
    assert desk.messages() == []
    assert kinds(desk.submit(operation(), term=twin.term)) == ["done"]


@pytest.mark.parametrize("lost", ["lease", "ledger", "both"])
def test_when_lease_or_ledger_are_gone_nothing_is_enqueued(desk: Desk, lost: str):
    """FLUSHALL, or one key deleted by hand."""
    for key, name in ((KEYS.lease, "lease"), (KEYS.ledger, "ledger")):
        if lost in (name, "both"):
            desk.client.delete(key)
    with pytest.raises(FencedOff):
        desk.submit(operation())
    assert desk.messages() == []
    assert desk.ledger.read() == {}


def test_a_queue_that_is_no_list_is_one_entrys_error(desk: Desk):
    """A script does not roll back: the row must not say enqueued, and the others must go on."""
    desk.client.set("taken", "not a list")
    answers = desk.submit(operation("a"), operation("b", commands=[push(queue="taken")]), operation("c"))
    assert kinds(answers) == ["done", "error", "done"]
    assert "taken" in answers[1].detail
    assert sorted(desk.ledger.read()) == ["a", "c"]
    assert [record["entry"] for record in desk.journal()] == ["a", "c"]


def test_when_a_later_queue_of_several_is_no_list_none_gets_the_message(desk: Desk):
    """A topic exchange with two queues: looked at before anything is written."""
    desk.client.set("taken", "not a list")
    answers = desk.submit(operation(commands=[push(), push(queue="taken")]))
    assert kinds(answers) == ["error"]
    assert (desk.messages(), desk.ledger.read()) == ([], {})


def test_a_message_to_several_queues_reaches_all(desk: Desk):
    desk.submit(operation(commands=[push("m", "left"), push("m", "right")]))
    assert (desk.messages("left"), desk.messages("right")) == (["m"], ["m"])


def test_a_verdict_without_message_is_recorded(desk: Desk):
    """Skipped, or armed."""
    assert kinds(desk.submit(operation(commands=(), new=row(verdict="skipped")))) == ["done"]
    assert desk.ledger.read() == {"a": row(verdict="skipped")}


def test_messages_leave_in_the_order_of_the_batch(desk: Desk):
    desk.submit(*(operation(f"e{n}", commands=[push(f"m{n}")]) for n in range(50)))
    assert desk.messages() == [f"m{n}" for n in range(50)]


def test_a_large_batch_fits(desk: Desk):
    """Lua's unpack has a limit of some thousand values."""
    answers = desk.submit(*(operation(f"e{n}") for n in range(1000)))
    assert set(kinds(answers)) == {"done"}
    assert len(desk.ledger.read()) == 1000


def test_names_and_contents_of_any_kind_pass_unchanged(desk: Desk):
    """Unicode, quotes, line ends, empty strings, large numbers."""
    name, content = "entry 'ü' \"\n{}", 'body \x00\x06 " 1760000000000000'
    desk.submit(operation(name, commands=[push(content)]))
    assert desk.messages() == [content]
    assert desk.ledger.read() == {name: row()}


def test_the_journal_numbers_its_records_without_a_gap(desk: Desk):
    """By which a reader sees that it missed some."""
    desk.submit(operation("a"), operation("b"))
    desk.submit(operation("c"))
    numbers = [int(fields[b"n"]) for _, fields in desk.client.xrange(KEYS.journal)]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert int(desk.client.hget(KEYS.ledger, "m:journal")) == numbers[-1]


def test_a_broken_journal_does_not_stop_the_dispatch(desk: Desk):
    """It tells of what happened; the ledger decides."""
    desk.client.delete(KEYS.journal)
    desk.client.set(KEYS.journal, "not a stream")
    assert kinds(desk.submit(operation())) == ["done"]
    assert desk.messages() == ["message"]


def test_a_full_redis_refuses_the_batch_whole(server_bench: RedisBench):
    """OOM: no message without its record, no record without its message; afterwards all is well."""
    desk = Desk(server_bench)
    desk.client.config_set("maxmemory", "1")
    try:
        with pytest.raises(StoreRefused, match="maxmemory"):
            desk.submit(operation("a"), operation("b"))
    finally:
        desk.client.config_set("maxmemory", "0")
    assert (desk.messages(), desk.ledger.read(), desk.journal()) == ([], {}, [])
    assert kinds(desk.submit(operation("a"), operation("b"))) == ["done", "done"]


@pytest.mark.parametrize("forbidden", ["lpush", "publish"])
def test_a_right_that_is_missing_in_mid_batch_is_one_entrys_error(server_bench: RedisBench, forbidden: str):
    """NOPERM inside a script does not roll back what came before it."""
    desk = Desk(server_bench)
    server = server_bench.server
    assert server is not None
    desk.client.execute_command("ACL", "SETUSER", "limited", "on", ">pw", "~*", "&*", "+@all", f"-{forbidden}")
    limited = redis.Redis(host="127.0.0.1", port=server.port, username="limited", password="pw")
    dispatcher = atomic_dispatcher(limited, KEYS)
    batch = [
        operation("list", commands=[push()]),
        operation("fanout", commands=[("PUBLISH", "/0.fanout", "message")]),
        operation("none", commands=()),
    ]
    answers = dict(zip(["list", "fanout", "none"], dispatcher.submit(desk.term, batch), strict=True))
    limited.close()
    refused = {"lpush": "list", "publish": "fanout"}[forbidden]
    assert {name for name, answer in answers.items() if answer.kind == "error"} == {refused}
    assert set(desk.ledger.read()) == {"list", "fanout", "none"} - {refused}


def test_the_ledger_reads_entries_and_not_its_own_fields(desk: Desk):
    """The hash holds the cluster's data too."""
    desk.submit(operation("m:gen"), operation("plain"))
    assert sorted(desk.ledger.read()) == ["m:gen", "plain"]


def test_two_leaders_racing_with_one_term_count_each_occurrence_once(desk: Desk):
    """Which can't be, and yet: the compare-and-set on the row alone keeps S1."""
    first = desk.submit(operation(new=row(1, nonce="x")))
    second = desk.submit(operation(new=row(1, nonce="y")))
    assert (kinds(first), kinds(second)) == (["done"], ["moved"])
    assert desk.messages() == ["message"]


@pytest.mark.parametrize("leases_user", ["may ask", "may not ask"])
def test_two_users_of_one_server_of_whom_one_may_not_ask_which_it_is(
    shared_redis: RedisServer, leases_user: str
) -> None:
    """The lease's connection and the broker's have other rights: that is not another server."""
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


def test_a_right_taken_away_does_not_look_like_another_server(shared_redis: RedisServer) -> None:
    """The next term does not know the server; nor can it ask what a new one would be asked."""
    client = shared_redis.client()
    store = RedisLeaseStore(lambda: client, KEYS)
    first = store.acquire(attempt("one"), None, 0)
    assert isinstance(first, Acquired)
    then = replace(first, previous_run_id=first.term.run_id, term=replace(first.term, run_id=""))
    assert not then.server_changed
    assert replace(then, term=replace(first.term, run_id="another")).server_changed


def test_an_instant_ahead_of_redis_clock_is_refused(server_bench: RedisBench):
    """A replica whose clock is ahead must not fire early. By how much the cluster's time is ahead, the leader tells."""
    desk = Desk(server_bench)
    seconds, _ = desk.client.time()

    def ahead(entry: str, by: float) -> Operation:
        return replace(operation(entry), scheduled_ms=round((seconds + by) * 1000))

    assert kinds(desk.submit(ahead("now", 0.0), ahead("soon", 60.0))) == ["done", "error"]
    assert desk.messages() == ["message"]
    desk.client.hset(KEYS.lease, "offset_ms", "60000")
    assert kinds(desk.submit(ahead("soon", 60.0), ahead("later", 120.0))) == ["done", "error"]
    assert sorted(desk.ledger.read()) == ["now", "soon"]


def test_an_occurrence_that_stands_twice_in_a_batch_is_enqueued_once(desk: Desk):
    """The second finds the row that the first has written."""
    assert kinds(desk.submit(operation(), operation())) == ["done", "mine"]
    assert kinds(desk.submit(operation("b"), operation("b", new=row(1)))) == ["done", "moved"]
    assert desk.messages() == ["message"] * 2
    assert desk.ledger.read() == {"a": row(), "b": row()}


def step(number: int, request: str = "r") -> Operation:
    return replace(operation(), row="", request=request, step=number)


def test_a_step_of_a_request_is_done_once_and_moves_no_position(desk: Desk):
    """A manual run, asked for once, whatever becomes of the replies to whoever carries it out."""
    desk.submit(operation())
    desk.client.hset(KEYS.requests, "r", "x")
    assert kinds(desk.submit(step(1))) == ["done"]
    assert kinds(desk.submit(step(1), step(2))) == ["mine", "done"]
    assert kinds(desk.submit(step(1), step(2), term=desk.lead("two"))) == ["mine", "mine"]
    assert desk.messages() == ["message"] * 3
    assert desk.ledger.read() == {"a": row()}


def test_a_request_that_was_taken_back_is_not_carried_out(desk: Desk):
    """However late the batch arrives."""
    assert kinds(desk.submit(step(1))) == ["withdrawn"]
    assert desk.messages() == []


def test_while_paused_nothing_is_enqueued_by_schedule(desk: Desk):
    """Whatever the leader knew when it sent the batch. Verdicts without a message are written, and requests served."""
    desk.client.hset(KEYS.ledger, "m:paused", "{}")
    desk.client.hset(KEYS.requests, "r", "x")
    silent = operation("b", commands=(), new=row(verdict="skipped"))
    assert kinds(desk.submit(operation(), silent, step(1))) == ["paused", "done", "done"]
    assert desk.messages() == ["message"]
    assert desk.ledger.read() == {"b": row(verdict="skipped")}
