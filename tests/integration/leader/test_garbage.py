"""Malformed records in the cluster's keys. They must not stop a replica."""

import json
from typing import Any

import pytest

from ha_beat.budget import Pace
from ha_beat.clock import SystemClock
from ha_beat.dispatch.two_phase import ClaimDispatcher
from ha_beat.reasons import RequestKind
from ha_beat.store.cluster_pause import Pause
from ha_beat.store.journal import parse
from ha_beat.store.keys import Keys
from ha_beat.store.lease import Term
from ha_beat.store.membership import Member
from ha_beat.store.request_queue import Reply, Request
from tests.support.brokers import FixedLink
from tests.support.dispatchers import no_marker
from tests.support.servers import RedisServer

#: Python's JSON parser fails with RecursionError.
DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "body", [DEEP, '{"kind": "run", "args": ' + DEEP, "{", "[]", "7", '{"kind": "run", "args": 7}']
)
def test_malformed_request_has_unknown_kind(body):
    """The leader reads the requests between two batches: an exception would stop all dispatch."""
    assert Request.parse("id", f"1 2 0 {body}").kind is RequestKind.UNKNOWN


def test_other_malformed_records_are_recognised():
    assert not Reply.parse(DEEP).ok
    assert Pause.parse(DEEP).since_ms == 0
    assert parse("1-1", 1, DEEP).kind == "unreadable"


@pytest.mark.parametrize(
    "change",
    [
        {"seen_ms": "soon"},
        {"failing": []},
        {"clock_offset_ms": None},
        {"upcoming": 7},
        {"upcoming": [[1]]},
        {"upcoming": [["e", "t", "soon"]]},
        {"not_ready": 7},
        {"not_ready": {"stalled": 7}},
        {"role": 1},
        {"id": "another"},
    ],
    ids=str,
)
def test_malformed_member_is_ignored(change):
    """One malformed record must not hide the cluster."""
    good = json.loads(Member("one", failing={"e": "why"}, not_ready={"stalled": "x"}).encoded())
    assert Member.parse("one", json.dumps(good)) is not None
    found = Member.parse("one", json.dumps({**good, **change}))
    assert found is None or found == Member("one", failing={"e": "why"}, not_ready={"stalled": "x"})
    assert Member.parse("one", DEEP) is None


def test_malformed_claim_does_not_stop_a_leader(shared_redis: RedisServer):
    """Every term begins by reading the open claims."""
    client, keys = shared_redis.client(), Keys("garbage")
    link = FixedLink(client)
    nothing: Any = None
    dispatcher = ClaimDispatcher(nothing, link, keys, 1000, 1.0, lambda _: True, no_marker(), Pace(SystemClock()))
    good = {"entry": "e", "by": "n", "policy": "skip", "ms": 1, "row": "", "before": "", "records": []}
    for number, value in enumerate(["", "open", "open {", "open []", f"open {DEEP}", 'uncertain {"ms": "soon"}']):
        client.hset(keys.claims, f"garbage {number}", value)
    client.hset(keys.claims, "good", f"open {json.dumps(good)}")
    term = Term("one", 1, "n", "g", "r", 0.0)
    assert [claim.key for claim in dispatcher.open_claims(term)] == ["good"]
