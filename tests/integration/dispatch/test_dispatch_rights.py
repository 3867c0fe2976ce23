"""A right that lacks in the middle of a batch, or a field of another kind, is one entry's matter, not the batch's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import redis

from ha_beat.dispatch import Answer, Operation
from tests.integration.dispatch.test_dispatch_script import Desk, kinds, operation, push, row
from tests.integration.store.conftest import KEYS, RedisBench
from tests.support.dispatchers import atomic_dispatcher


class LimitedDesk(Desk):
    """A leader whose Redis user has not every right."""

    def allow(self, port: int, *rules: str) -> None:
        self.client.execute_command("ACL", "SETUSER", "limited", "reset", "on", ">pw", *rules)
        self.limited = redis.Redis(host="127.0.0.1", port=port, username="limited", password="pw")

    def submit_limited(self, *operations: Operation) -> list[Answer]:
        return atomic_dispatcher(self.limited, KEYS).submit(self.term, operations)


@pytest.fixture
def limited(server_bench: RedisBench) -> Iterator[LimitedDesk]:
    desk = LimitedDesk(server_bench)
    yield desk
    desk.limited.close()
    desk.client.execute_command("ACL", "DELUSER", "limited")


def test_a_queue_that_the_user_may_not_touch_holds_up_no_other_entry(
    limited: LimitedDesk, server_bench: RedisBench
) -> None:
    """Its key is outside of the patterns of the ACL: not even its type may be asked."""
    assert server_bench.server is not None
    limited.allow(server_bench.server.port, "~{ha-beat:*", "~queue", "&*", "+@all")
    answers = limited.submit_limited(operation("a"), operation("b", commands=[push(queue="secret")]), operation("c"))
    assert kinds(answers) == ["done", "error", "done"]
    assert "secret" in answers[1].detail
    assert limited.messages() == ["message", "message"]
    assert sorted(limited.ledger.read()) == ["a", "c"]


def test_a_row_that_may_not_be_removed_holds_up_no_other_entry(limited: LimitedDesk, server_bench: RedisBench) -> None:
    """An entry gone for days is taken out of the ledger, in one batch with the others."""
    assert server_bench.server is not None
    limited.submit(operation("gone"))
    limited.allow(server_bench.server.port, "~*", "&*", "+@all", "-hdel")
    forgotten = replace(operation("gone", expected=row(), commands=()), row="")
    assert kinds(limited.submit_limited(operation("a"), forgotten, operation("b"))) == ["done", "error", "done"]
    assert sorted(limited.ledger.read()) == ["a", "b", "gone"]


def test_without_the_journals_counter_every_entry_is_dispatched_in_one_go(
    limited: LimitedDesk, server_bench: RedisBench
) -> None:
    """It tells of what has happened: a message that is out must not look refused for its sake."""
    assert server_bench.server is not None
    limited.allow(server_bench.server.port, "~*", "&*", "+@all", "-hincrby")
    assert kinds(limited.submit_limited(operation("a"), operation("b"))) == ["done", "done"]
    assert limited.messages() == ["message", "message"]
    limited.client.hset(KEYS.ledger, "m:journal", "of somebody else")
    assert kinds(limited.submit(operation("c"), operation("d"))) == ["done", "done"]
    assert [record["entry"] for record in limited.journal()] == ["a", "b", "c", "d"]
