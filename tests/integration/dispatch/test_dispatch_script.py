"""Dispatch script: it enqueues and records atomically, under one term, once."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis

from ha_beat.dispatch import Answer, FencedOff, Operation
from ha_beat.dispatch.messages.capture import RedisCommands
from ha_beat.errors import StoreRefused
from ha_beat.reasons import AnswerKind, TermEnd
from ha_beat.store import entry_pauses
from ha_beat.store.entry_pauses import EntryPause
from ha_beat.store.lease import Renewed, Term
from ha_beat.store.lease_store import RedisLeaseStore
from ha_beat.store.ledger import Ledger, LedgerRow
from ha_beat.store.scripts import Script
from tests.integration.store.conftest import KEYS, RedisBench
from tests.support.dispatchers import atomic_dispatcher
from tests.support.leases import acquire, attempt, current
from tests.support.servers import RedisServer

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


class Leader:
    """Leader with an atomic dispatcher, and the state that it leaves."""

    def __init__(self, bench: RedisBench) -> None:
        self.client: Any = bench.client
        self.store = bench.store
        self.dispatcher = atomic_dispatcher(bench.client, KEYS)
        self.term = self.lead()

    def lead(self, name: str = "one") -> Term:
        return acquire(self.store, attempt(name)).term

    def submit(self, *operations: Operation, term: Term | None = None) -> list[Answer]:
        return self.dispatcher.submit(term or self.term, operations)

    def kinds(self, *operations: Operation, term: Term | None = None) -> list[str]:
        """Submit a batch and return the kinds of its answers."""
        return [answer.kind for answer in self.submit(*operations, term=term)]

    def messages(self, queue: str = "queue") -> list[str]:
        """Return the queue's messages, oldest first."""
        return [message.decode() for message in reversed(self.client.lrange(queue, 0, -1))]

    def rows(self) -> dict[str, str]:
        return Ledger(lambda: self.client, KEYS).read()

    def journal(self) -> list[str]:
        """Return the entries of the journal's records, except for the changes of leader."""
        records = [json.loads(fields[b"d"]) for _, fields in self.client.xrange(KEYS.journal)]
        return [record["entry"] for record in records if record.get("kind") != "term"]

    def state(self) -> tuple[list[str], list[str], list[str]]:
        """Return the messages, the entries that have a row, and those that the journal names."""
        return self.messages(), sorted(self.rows()), self.journal()


@pytest.fixture
def leader(bench: RedisBench) -> Leader:
    return Leader(bench)


@pytest.fixture
def server_leader(server_bench: RedisBench) -> Leader:
    """Only on servers with their own process."""
    return Leader(server_bench)


def row(minutes: int = 0, **changes: Any) -> str:
    values: dict[str, Any] = {"base": NOON + timedelta(minutes=minutes), "verdict": "enqueued", "rev": minutes + 1}
    return LedgerRow(**{**values, **changes}).encoded()


SKIPPED = row(verdict="skipped")


def push(value: str = "message", queue: str = "queue") -> tuple[str, ...]:
    return ("LPUSH", queue, value)


def operation(
    entry: str = "a", expected: str = "", new: str | None = None, commands: Sequence[tuple[str, ...]] = (push(),)
) -> Operation:
    message = RedisCommands(tuple(commands)) if commands else None
    return Operation(entry, expected, new or row(), (json.dumps({"entry": entry}),), message)


def step(number: int) -> Operation:
    """Return a step of the request ``r``."""
    return replace(operation(), row="", request="r", step=number)


def test_operation_enqueues_records_and_journals(leader: Leader):
    assert leader.kinds(operation(), operation("b", commands=(), new=SKIPPED)) == ["done", "done"]
    assert (leader.messages(), leader.rows(), leader.journal()) == (["message"], {"a": row(), "b": SKIPPED}, ["a", "b"])


def test_repeated_batch_changes_nothing(leader: Leader):
    """The reply was lost, and the leader submits the batch again."""
    assert leader.kinds(operation("a")) == ["done"]
    assert leader.kinds(operation("a"), operation("b")) == ["mine", "done"]
    assert leader.kinds(operation("a"), operation("b")) == ["mine", "mine"]
    assert leader.state() == (["message"] * 2, ["a", "b"], ["a", "b"])


def test_unexpected_row_is_left_alone(leader: Leader):
    """Another leader has dispatched the entry: there is no message, and the answer has the row."""
    leader.submit(operation(new=row(1)))
    batch = [operation(expected="", new=row(2)), operation("b"), operation("c", expected=row(1), new=row(2))]
    moved = [Answer(AnswerKind.MOVED, found) for found in (row(1), "")]
    assert leader.submit(*batch) == [moved[0], Answer(AnswerKind.DONE), moved[1]]
    assert (leader.messages(), leader.rows()) == (["message"] * 2, {"a": row(1), "b": row()})


# --- Terms


@pytest.mark.parametrize("field", ["epoch", "nonce", "gen", "run_id"])
def test_batch_under_another_term_is_refused_whole(server_leader: Leader, field: str):
    other = replace(server_leader.term, **{field: 1 if field == "epoch" else "another"})
    with pytest.raises(FencedOff):
        server_leader.submit(operation("a"), operation("b"), term=other)
    assert server_leader.state() == ([], [], [])


def test_server_that_restarted_with_its_data_refuses_the_batch(redis_server: RedisServer):
    leader = Leader(RedisBench(redis_server.client(decode_responses=False), "redis-server"))
    redis_server.restart()
    assert leader.store.observe().record.nonce == leader.term.nonce
    with pytest.raises(FencedOff) as caught:
        leader.submit(operation())
    assert (caught.value.reason, leader.messages()) == (TermEnd.SERVER_CHANGED, [])


@pytest.mark.parametrize("end", ["takeover", "release"])
def test_leader_enqueues_nothing_after_its_term(leader: Leader, end: str):
    """A signal handler may release the lease while a batch is on its way."""
    old = leader.term
    leader.lead("two") if end == "takeover" else leader.store.release(old, TermEnd.SHUTDOWN)
    with pytest.raises(FencedOff) as caught:
        leader.submit(operation(), term=old)
    assert (caught.value.reason, leader.messages()) == (TermEnd.SUPERSEDED, [])
    assert leader.kinds(operation(), term=leader.lead("three")) == ["done"]


def test_clone_with_the_same_nonce_is_refused_by_epoch(leader: Leader):
    """Two clones of a machine may draw the same nonce."""
    twin = leader.store.acquire(attempt("two", leader.term.nonce), current(leader.store), 0).term
    with pytest.raises(FencedOff):
        leader.submit(operation())
    assert leader.messages() == []
    assert leader.kinds(operation(), term=twin) == ["done"]


@pytest.mark.parametrize("lost", [[KEYS.lease], [KEYS.ledger], [KEYS.lease, KEYS.ledger]])
def test_lost_lease_or_ledger_refuses_the_batch(leader: Leader, lost: list[str]):
    """After FLUSHALL, or if one key was deleted."""
    leader.client.delete(*lost)
    with pytest.raises(FencedOff):
        leader.submit(operation())
    assert (leader.messages(), leader.rows()) == ([], {})


def test_two_leaders_with_one_term_enqueue_an_occurrence_once(leader: Leader):
    """Even in this impossible case, the compare-and-set on the row prevents a second message."""
    assert leader.kinds(operation(new=row(1, nonce="x"))) == ["done"]
    assert leader.kinds(operation(new=row(1, nonce="y"))) == ["moved"]
    assert leader.messages() == ["message"]


# --- Messages and records


def test_queue_key_of_another_type_fails_only_its_own_entry(leader: Leader):
    """A script does not roll back: it must not write the row, and must carry out the other operations."""
    leader.client.set("taken", "not a list")
    answers = leader.submit(operation("a"), operation("b", commands=[push(queue="taken")]), operation("c"))
    assert [answer.kind for answer in answers] == ["done", "error", "done"]
    assert "taken" in answers[1].detail
    assert (sorted(leader.rows()), leader.journal()) == (["a", "c"], ["a", "c"])


def test_message_is_not_sent_if_one_of_its_queues_has_another_type(leader: Leader):
    """The type is checked before anything is written."""
    leader.client.set("taken", "not a list")
    assert leader.kinds(operation(commands=[push(), push(queue="taken")])) == ["error"]
    assert (leader.messages(), leader.rows()) == ([], {})


def test_message_to_several_queues_reaches_all(leader: Leader):
    leader.submit(operation(commands=[push("m", "left"), push("m", "right")]))
    assert (leader.messages("left"), leader.messages("right")) == (["m"], ["m"])


def test_large_batch_fits_and_keeps_its_order(leader: Leader):
    """Lua's unpack is limited to some thousand values."""
    batch = [operation(f"e{n}", commands=[push(f"m{n}")]) for n in range(1000)]
    assert leader.kinds(*batch) == ["done"] * 1000
    assert leader.messages() == [f"m{n}" for n in range(1000)]
    assert len(leader.rows()) == 1000


def test_names_and_contents_are_passed_unchanged(leader: Leader):
    """Unicode, quotes, line ends, large numbers. One name is like those of the cluster's fields in the same hash."""
    name, content = "entry 'ü' \"\n{}", 'body \x00\x06 " 1760000000000000'
    leader.submit(operation(name, commands=[push(content)]), operation("m:gen"))
    assert (leader.messages(), leader.rows()) == ([content, "message"], {name: row(), "m:gen": row()})


def test_occurrence_that_is_twice_in_a_batch_is_enqueued_once(leader: Leader):
    """The second operation finds the row that the first has written."""
    assert leader.kinds(operation(), operation()) == ["done", "mine"]
    assert leader.kinds(operation("b"), operation("b", new=row(1))) == ["done", "moved"]
    assert (leader.messages(), leader.rows()) == (["message"] * 2, {"a": row(), "b": row()})


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
    assert leader.kinds(operation()) == ["done"]
    assert leader.messages() == ["message"]


def test_full_redis_refuses_the_batch_whole(server_leader: Leader):
    """There is no message without its record and no record without its message."""
    server_leader.client.config_set("maxmemory", "1")
    try:
        with pytest.raises(StoreRefused, match="maxmemory"):
            server_leader.submit(operation("a"), operation("b"))
    finally:
        server_leader.client.config_set("maxmemory", "0")
    assert server_leader.state() == ([], [], [])
    assert server_leader.kinds(operation("a"), operation("b")) == ["done", "done"]


def test_instant_ahead_of_redis_clock_is_refused(server_leader: Leader):
    """A replica whose clock is ahead must not fire early. ``offset_ms`` is by how much the cluster's time is ahead."""
    seconds, _ = server_leader.client.time()

    def ahead(entry: str, by: float) -> Operation:
        return replace(operation(entry), scheduled_ms=round((seconds + by) * 1000))

    assert server_leader.kinds(ahead("now", 0.0), ahead("soon", 60.0)) == ["done", "error"]
    assert server_leader.messages() == ["message"]
    server_leader.client.hset(KEYS.lease, "offset_ms", "60000")
    assert server_leader.kinds(ahead("soon", 60.0), ahead("later", 120.0)) == ["done", "error"]
    assert sorted(server_leader.rows()) == ["now", "soon"]


# --- Requests and pause


def test_request_step_is_done_once_and_moves_no_position(leader: Leader):
    leader.submit(operation())
    leader.client.hset(KEYS.requests, "r", "x")
    assert leader.kinds(step(1)) == ["done"]
    assert leader.kinds(step(1), step(2)) == ["mine", "done"]
    assert leader.kinds(step(1), step(2), term=leader.lead("two")) == ["mine", "mine"]
    assert (leader.messages(), leader.rows()) == (["message"] * 3, {"a": row()})


def test_withdrawn_request_is_not_carried_out(leader: Leader):
    assert leader.kinds(step(1)) == ["withdrawn"]
    assert leader.messages() == []


def test_paused_cluster_enqueues_nothing_of_the_schedule(leader: Leader):
    """Verdicts without a message are written, and requests are served."""
    leader.client.hset(KEYS.ledger, "m:paused", "{}")
    leader.client.hset(KEYS.requests, "r", "x")
    batch = [operation(), operation("b", commands=(), new=SKIPPED), step(1)]
    assert leader.kinds(*batch) == ["paused", "done", "done"]
    assert (leader.messages(), leader.rows()) == (["message"], {"b": SKIPPED})


def test_paused_entry_is_not_enqueued_and_holds_up_no_other(leader: Leader):
    pauses = {entry: EntryPause(entry, 1, until_ms=until) for entry, until in (("a", 0), ("b", 5))}
    pauses["\ud800"] = EntryPause("", 1, reason="\udcff")
    leader.client.hset(KEYS.ledger, entry_pauses.FIELD, entry_pauses.encoded(pauses))
    leader.client.hset(KEYS.requests, "r", "x")
    answers = leader.submit(operation(), operation("b"), operation("c"), step(1))
    assert [(answer.kind, answer.detail) for answer in answers] == [("paused", "entry"), *[("done", "")] * 3]
    for entry, damaged in zip("efgh", ("[", '"e"', "[1]", '{"h": 1}'), strict=True):
        leader.client.hset(KEYS.ledger, entry_pauses.FIELD, damaged)
        assert leader.kinds(operation(entry)) == ["done"]


# --- Overlap

ENDED = Script("ended")


def next_of(minutes: int, **changes: Any) -> Operation:
    """Return the occurrence of a minute, which waits for that of the minute before to end."""
    following = operation(expected=row(minutes - 1) if minutes else "", new=row(minutes))
    return replace(following, **{"task_id": f"task {minutes}", "busy_ms": 60_000, "overlaps": False, **changes})


def end(leader: Leader, key: str, entry: str = "a") -> None:
    ENDED(leader.client, [KEYS.busy], [entry, key])


def test_entry_is_busy_until_its_message_has_ended(leader: Leader):
    """A batch that is repeated after a lost reply has the same answer."""
    assert leader.kinds(next_of(0)) == leader.kinds(next_of(0), operation("b"))[1:] == ["done"]
    assert leader.kinds(next_of(0)) == ["mine"]
    assert leader.submit(next_of(1)) == [Answer(AnswerKind.OVERLAP, "unreported")]
    end(leader, "task of another occurrence")
    assert leader.submit(next_of(1)) == [Answer(AnswerKind.OVERLAP)]
    assert leader.kinds(replace(next_of(1), message=None)) == ["done"]
    assert leader.kinds(next_of(2)) == ["overlap"]
    end(leader, "task 0")
    assert leader.kinds(next_of(2)) == ["done"]
    assert len(leader.messages()) == 3


def test_message_that_never_ended_keeps_its_entry_busy_for_the_timeout(leader: Leader):
    leader.submit(next_of(0))
    leader.client.hset(KEYS.busy, "e:a", f"{round(time.time() * 1000) - 30_000} task 0")
    assert leader.kinds(next_of(1)) == ["overlap"]
    assert leader.kinds(next_of(1, busy_ms=20_000)) == ["done"]


@pytest.mark.parametrize(("age", "detail"), [(50, ""), (70, "unreported")])
def test_workers_that_no_longer_report_are_noticed_after_the_timeout(leader: Leader, age: int, detail: str):
    leader.submit(next_of(0))
    leader.client.hset(KEYS.busy, "m:reported", round((time.time() - age) * 1000))
    assert leader.submit(next_of(1)) == [Answer(AnswerKind.OVERLAP, detail)]


def test_message_is_not_kept_from_being_sent_by_itself(leader: Leader):
    """A claimed occurrence is sent again, or was taken back."""
    leader.submit(next_of(0))
    assert leader.kinds(next_of(1, task_id="task 0")) == ["done"]


@pytest.mark.parametrize("order", [["task 0", "r:1"], ["r:1", "task 0"]])
def test_request_is_sent_at_once_and_its_entry_waits_for_both_messages(leader: Leader, order: list[str]):
    leader.client.hset(KEYS.requests, "r", "x")
    leader.submit(next_of(0))
    assert leader.kinds(replace(step(1), busy_ms=60_000)) == ["done"]
    for key in order:
        assert leader.kinds(next_of(1)) == ["overlap"]
        end(leader, key)
    assert leader.kinds(next_of(1)) == ["done"]


def test_messages_that_keep_an_entry_busy_are_bounded(leader: Leader):
    leader.client.hset(KEYS.requests, "r", "x")
    leader.submit(*(replace(step(number), busy_ms=60_000) for number in range(1, 121)))
    assert len(leader.client.hget(KEYS.busy, "e:a").splitlines()) == 100


def test_damaged_record_of_a_busy_entry_stops_nothing(leader: Leader):
    leader.client.hset(KEYS.busy, "e:a", "x")
    assert leader.kinds(next_of(0)) == ["done"]
    leader.client.delete(KEYS.busy)
    leader.client.set(KEYS.busy, "x")
    assert leader.kinds(next_of(1)) == ["done"]
    assert len(leader.messages()) == 2


# --- Missing rights

Limit = Callable[..., Leader]


@pytest.fixture
def limit(server_bench: RedisBench, server_leader: Leader):
    """Return a function that limits the leader's user to ACL rules."""
    clients = []

    def make(*rules: str) -> Leader:
        server_leader.client.execute_command("ACL", "SETUSER", "limited", "reset", "on", ">pw", "+@all", *rules)
        clients.append(redis.Redis(port=server_bench.server.port, username="limited", password="pw"))
        server_leader.dispatcher = atomic_dispatcher(clients[0], KEYS)
        return server_leader

    yield make
    clients[0].close()
    server_leader.client.execute_command("ACL", "DELUSER", "limited")


@pytest.mark.parametrize("forbidden", ["lpush", "publish"])
def test_missing_right_in_mid_batch_fails_only_its_own_entry(limit: Limit, forbidden: str):
    """NOPERM inside a script does not roll back earlier commands."""
    leader = limit("~*", "&*", f"-{forbidden}")
    fanout = operation("publish", commands=[("PUBLISH", "/0.fanout", "message")])
    batch = [operation("lpush"), fanout, operation("none", commands=())]
    assert leader.kinds(*batch) == ["error" if item.entry == forbidden else "done" for item in batch]
    assert set(leader.rows()) == {"lpush", "publish", "none"} - {forbidden}


def test_forbidden_queue_stops_only_its_own_entry(limit: Limit):
    """Its key is outside of the ACL's patterns, so that TYPE fails too."""
    leader = limit("~{ha-beat:*", "~queue", "&*")
    answers = leader.submit(operation("a"), operation("b", commands=[push(queue="secret")]), operation("c"))
    assert [answer.kind for answer in answers] == ["done", "error", "done"]
    assert "secret" in answers[1].detail
    assert (leader.messages(), sorted(leader.rows())) == (["message"] * 2, ["a", "c"])


def test_forbidden_removal_of_a_row_stops_only_its_own_entry(server_leader: Leader, limit: Limit):
    """The row of a deleted entry is removed in one batch with other operations."""
    server_leader.submit(operation("gone"))
    removal = replace(operation("gone", expected=row(), commands=()), row="")
    assert limit("~*", "&*", "-hdel").kinds(operation("a"), removal, operation("b")) == ["done", "error", "done"]
    assert sorted(server_leader.rows()) == ["a", "b", "gone"]


@pytest.mark.parametrize("broken", ["forbidden", "not a number"])
def test_broken_journal_counter_does_not_stop_the_dispatch(server_leader: Leader, limit: Limit, broken: str):
    """A message that was sent must not be answered as an error."""
    leader = limit("~*", "&*", "-hincrby") if broken == "forbidden" else limit("~*", "&*")
    if broken == "not a number":
        server_leader.client.hset(KEYS.ledger, "m:journal", "text")
    assert leader.kinds(operation("a"), operation("b")) == ["done", "done"]
    assert (leader.messages(), leader.journal()) == (["message"] * 2, ["a", "b"])


@pytest.mark.parametrize("info_denied_to", ["lease", "broker"])
def test_user_without_info_is_not_taken_for_another_server(shared_redis: RedisServer, info_denied_to: str):
    """The connections to lease and broker may have different users."""
    admin: Any = shared_redis.client()
    admin.execute_command("ACL", "SETUSER", "quiet", "on", ">secret", "~*", "&*", "+@all", "-info")
    quiet: Any = shared_redis.client(username="quiet", password="secret")
    for_lease, for_broker = (admin, quiet) if info_denied_to == "broker" else (quiet, admin)
    store = RedisLeaseStore(lambda: for_lease, KEYS)
    term = acquire(store).term
    assert atomic_dispatcher(for_broker, KEYS).submit(term, [operation()]) == [Answer(AnswerKind.DONE)]
    assert isinstance(store.renew(term, 2, ""), Renewed)
    admin.execute_command("ACL", "DELUSER", "quiet")


def test_revoked_info_right_is_not_taken_for_another_server(shared_redis: RedisServer):
    """The next term does not know the server's run id."""
    client = shared_redis.client()
    first = acquire(RedisLeaseStore(lambda: client, KEYS))
    then = replace(first, previous_run_id=first.term.run_id, term=replace(first.term, run_id=""))
    assert not then.server_changed
    assert replace(then, term=replace(first.term, run_id="another")).server_changed
