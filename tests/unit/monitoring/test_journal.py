"""Records of the journal, and the terms that they show."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from ha_beat.monitoring.status import spans
from ha_beat.monitoring.status.poller import certain_offset
from ha_beat.store.journal import Record, TermRecord, parse
from ha_beat.store.lease import LeaseRecord

AT = datetime(2026, 5, 1, 12, 0, 0, 250_000, tzinfo=UTC)
ENQUEUED = {"verdict": "enqueued", "entry": "2", "at": AT.isoformat(), "id": "x"}


def test_enqueued_record_has_its_lateness():
    record = parse("1-0", 3, json.dumps({**ENQUEUED, "ms": round(AT.timestamp() * 1000) + 40}))
    assert (record.n, record.kind, record.entry, record.first, record.count) == (3, "occurrence", "2", AT, 1)
    assert record.lateness == pytest.approx(0.04, abs=1e-6)
    assert record.until - record.first == timedelta(microseconds=1)


def test_label_of_a_record_is_the_name_of_its_entry():
    """Records of database rows have the primary key as the entry."""
    labels = [parse("1-0", 1, json.dumps({**ENQUEUED, **more})).label for more in ({}, {"name": "clear-sessions"})]
    assert labels == ["2", "clear-sessions"]


def test_record_of_skipped_occurrences_has_their_range():
    span = {"from": AT.isoformat(), "until": (AT + timedelta(hours=1)).isoformat(), "count": -1, "why": "coalesced"}
    record = parse("1-0", 1, json.dumps({"verdict": "skipped", "entry": "e", **span, "ms": 1, "epoch": 1, "by": "x"}))
    assert (record.count, record.reason) == (-1, "coalesced")
    assert (record.first, record.until) == (AT, AT + timedelta(hours=1))


@pytest.mark.parametrize(
    "raw", ["", "null", "[]", "{", '{"verdict": "enqueued", "entry": "e", "at": 7}', '{"kind": "term"}']
)
def test_malformed_record_is_kept_as_unreadable(raw):
    record = parse("1-0", 1, raw)
    assert (type(record), record.kind, record.ms) == (Record, "unreadable", 1)


def test_record_of_an_unknown_kind_is_kept():
    record = parse("1700-0", 1, '{"kind": "weather", "sun": true}')
    assert (record.kind, record.ms, record.data["sun"]) == ("weather", 1700, True)


def change(event: str, epoch: int, ms: int, **more: object) -> TermRecord:
    raw = {"kind": "term", "event": event, "epoch": epoch, "by": f"beat-{epoch}", "ms": ms, **more}
    return parse(f"{ms}-0", 1, json.dumps(raw))


def test_gap_between_terms_starts_at_the_release_or_the_last_sign():
    first, second = spans([change("acquired", 1, 100), change("released", 1, 500), change("acquired", 2, 540)], None)
    assert (first.ended_ms, first.released, second.gap_ms, second.ended_ms) == (500, True, 40, None)
    lost = [change("acquired", 1, 100), change("acquired", 2, 900, previous_epoch=1, left_ms=300)]
    assert [spans(lost, None, seen)[1].gap_ms for seen in ({}, {1: 850}, {1: 950})] == [600, 50, 0]


def test_term_older_than_the_journal_is_shown():
    (only,) = spans([], LeaseRecord("beat-9", 9, state="held", since_ms=77))
    assert (only.epoch, only.began_ms, only.ended_ms) == (9, 77, None)


@pytest.mark.parametrize(
    ("difference", "trip", "offset"),
    [(3.0, 0.0, 3.0), (-3.0, 0.0, -3.0), (5.0, 5.0, 0.0), (5.0, 10.0, 0.0), (8.0, 5.0, 3.0), (-3.0, 5.0, -3.0)],
)
def test_slow_trip_is_no_clock_offset(difference, trip, offset):
    assert certain_offset(difference, trip) == offset
