"""Checker of the invariants, on a real journal."""

import json
from typing import Any

from ha_beat.monitoring.invariants import InvariantChecker
from ha_beat.reasons import Invariant
from ha_beat.store.journal import Journal
from ha_beat.store.keys import Keys
from ha_beat.store.membership import Members
from tests.support.events import EventLog
from tests.support.servers import RedisServer


def test_second_message_in_a_real_journal_is_found(shared_redis: RedisServer):
    """Each record is read once; the first look reads the newest ones."""
    client, keys = shared_redis.admin, Keys("c")
    said = EventLog()
    checker = InvariantChecker(Members(lambda: client, keys), Journal(lambda: client, keys), said.append)

    def write(n: int, **data: Any) -> None:
        client.hset(keys.ledger, mapping={"m:gen": "g", "m:journal": n, "m:epoch": 5})
        client.xadd(keys.journal, {"n": n, "d": json.dumps(data)})

    occurrence = {"verdict": "enqueued", "entry": "e", "at": "2026-01-01T00:00:00.000000+00:00", "id": "t"}
    write(1, **occurrence, epoch=5, by="a")
    assert checker.check() == ()
    assert checker.check() == ()
    write(2, **occurrence, epoch=5, by="b")
    assert [b.rule for b in checker.check()] == [Invariant.TWO_VERDICTS]
    checker.check()
    assert len(said) == 1
