"""A missing right concerns one entry of a batch, not the batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import redis

from ha_beat.dispatch import Answer, Operation
from tests.integration.dispatch.test_dispatch_script import Leader, kinds, operation, push, row
from tests.integration.store.conftest import KEYS, RedisBench
from tests.support.dispatchers import atomic_dispatcher


class LimitedLeader(Leader):
    """A leader whose Redis user lacks rights."""

    def allow(self, port: int, *rules: str) -> None:
        self.client.execute_command("ACL", "SETUSER", "limited", "reset", "on", ">pw", *rules)
        self.limited = redis.Redis(host="127.0.0.1", port=port, username="limited", password="pw")

    def submit_limited(self, *operations: Operation) -> list[Answer]:
        return atomic_dispatcher(self.limited, KEYS).submit(self.term, operations)


@pytest.fixture
def limited(server_bench: RedisBench) -> Iterator[LimitedLeader]:
    leader = LimitedLeader(server_bench)
    yield leader
    leader.limited.close()
    leader.client.execute_command("ACL", "DELUSER", "limited")


def test_forbidden_queue_stops_only_its_own_entry(limited: LimitedLeader, server_bench: RedisBench) -> None:
    """Its key is outside of the ACL's patterns, so that TYPE fails too."""
    assert server_bench.server is not None
    limited.allow(server_bench.server.port, "~{ha-beat:*", "~queue", "&*", "+@all")
    answers = limited.submit_limited(operation("a"), operation("b", commands=[push(queue="secret")]), operation("c"))
    assert kinds(answers) == ["done", "error", "done"]
    assert "secret" in answers[1].detail
    assert limited.messages() == ["message", "message"]
    assert sorted(limited.ledger.read()) == ["a", "c"]


def test_forbidden_removal_of_a_row_stops_only_its_own_entry(limited: LimitedLeader, server_bench: RedisBench) -> None:
    """The row of a deleted entry is removed in one batch with other operations."""
    assert server_bench.server is not None
    limited.submit(operation("gone"))
    limited.allow(server_bench.server.port, "~*", "&*", "+@all", "-hdel")
    forgotten = replace(operation("gone", expected=row(), commands=()), row="")
    assert kinds(limited.submit_limited(operation("a"), forgotten, operation("b"))) == ["done", "error", "done"]
    assert sorted(limited.ledger.read()) == ["a", "b", "gone"]


def test_forbidden_journal_counter_does_not_stop_the_dispatch(limited: LimitedLeader, server_bench: RedisBench) -> None:
    """A message that was sent must not be answered as an error."""
    assert server_bench.server is not None
    limited.allow(server_bench.server.port, "~*", "&*", "+@all", "-hincrby")
    assert kinds(limited.submit_limited(operation("a"), operation("b"))) == ["done", "done"]
    assert limited.messages() == ["message", "message"]
    limited.client.hset(KEYS.ledger, "m:journal", "of somebody else")
    assert kinds(limited.submit(operation("c"), operation("d"))) == ["done", "done"]
    assert [record["entry"] for record in limited.journal()] == ["a", "b", "c", "d"]
