"""Malformed records in the cluster's keys."""

import json

import pytest

from ha_beat.reasons import RequestKind
from ha_beat.store import entry_pauses
from ha_beat.store.cluster_pause import Pause
from ha_beat.store.entry_pauses import EntryPause
from ha_beat.store.journal import parse
from ha_beat.store.membership import Member
from ha_beat.store.request_queue import Reply, Request

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


@pytest.mark.parametrize("raw", ['{"e": {}}', '{"e": 1}', '{"e": {"until_ms": 0}}', '{"e": {"since_ms": -1}}'])
def test_malformed_pause_of_an_entry_is_a_pause(raw):
    assert entry_pauses.parse(raw)["e"].in_force


def test_malformed_field_has_no_pauses_of_entries():
    assert [entry_pauses.parse(raw) for raw in ("", "[", "[1]", "1")] == [{}] * 4
    pauses = {"e": EntryPause("e", 1), "f": EntryPause("f", 1, until_ms=2)}
    assert entry_pauses.parse(entry_pauses.encoded(pauses)) == pauses
