"""Encoding of the ledger's rows."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ha_beat.clock import from_micros, to_micros
from ha_beat.store.ledger import LedgerRow, RawRow, position_in

instants = st.integers(0, to_micros(datetime(9000, 1, 1, tzinfo=UTC))).map(
    lambda micros: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)
)
rows = st.builds(
    LedgerRow,
    base=instants,
    verdict=st.sampled_from(["armed", "enqueued", "skipped", "uncertain", "claimed"]),
    scheduled_at=st.none() | instants,
    rev=st.integers(0, 2**53),
    dispatched_ms=st.integers(0, 2**47),
    epoch=st.integers(0, 2**53),
    nonce=st.text(),
    run_count=st.integers(0, 2**53),
    reason=st.text(),
    task_id=st.text(),
    signature=st.text(),
)


@given(instants)
def test_instant_is_equal_after_conversion_to_an_integer(instant: datetime):
    """Floats would round the microseconds."""
    assert from_micros(to_micros(instant)) == instant


@given(rows)
def test_row_is_equal_after_encoding_and_parsing(row: LedgerRow):
    """The raw text is equal too: the compare-and-set is on it."""
    read = LedgerRow.parse(row.encoded())
    assert read.encoded() == read.raw == row.encoded()
    for name in ("base", "scheduled_at", "verdict", "reason"):
        assert getattr(read, name) == getattr(row, name)


def row_text(**changes: Any) -> str:
    row = json.loads(LedgerRow(base=datetime(2030, 1, 1, tzinfo=UTC), verdict="enqueued").encoded())
    return json.dumps({**row, **changes})


WRONG = [{"v": 2}, {"v": 99}, {"base": "soon"}, {"base": 10**30}, {"v": "1"}, {"rev": "x"}, {"count": None}, {"ms": []}]


@pytest.mark.parametrize(
    "raw",
    [*(row_text(**fields) for fields in WRONG), "", "{", "null", "[]", "7", row_text(why="X").replace("X", "\ufffd")],
)
def test_unreadable_text_is_no_row(raw: str):
    """A row of a newer version or a corrupt one must neither be replaced nor end the replica."""
    assert LedgerRow.parse(raw) is None


def test_unknown_fields_of_the_same_version_are_ignored():
    assert LedgerRow.parse(row_text(colour="blue")).base == datetime(2030, 1, 1, tzinfo=UTC)


def test_time_zone_does_not_change_the_stored_instant():
    here = datetime(2030, 1, 1, 12, tzinfo=UTC)
    assert to_micros(here) == to_micros(here.astimezone(ZoneInfo("Asia/Tokyo"))) == to_micros(here + timedelta(0))


def test_row_that_was_read_is_parsed_once():
    """A takeover parses each row several times."""
    raw = RawRow(LedgerRow(base=datetime(2026, 1, 1, tzinfo=UTC), verdict="armed").encoded())
    row = LedgerRow.parse(raw)
    assert row == LedgerRow.parse(str(raw))
    assert LedgerRow.parse(raw) is row
    assert LedgerRow.parse(RawRow("{")) is None


@given(rows, st.booleans())
def test_position_is_that_of_the_parsed_row_unless_it_is_a_claim(row: LedgerRow, parsed: bool):
    raw = RawRow(row.encoded())
    if parsed:
        LedgerRow.parse(raw)
    assert position_in(raw) == (None if row.verdict == "claimed" else row.base)


@pytest.mark.parametrize(
    "raw",
    [
        *(row_text(**fields) for fields in ({"v": 2}, {"v": "1"}, {"base": "soon"}, {"base": 10**30})),
        *(row_text(verdict=verdict) for verdict in ("sent", [], None)),
        *("", "{", "null", "[]", "7", row_text(why="X").replace("X", "\ufffd")),
    ],
)
def test_row_that_proves_no_position_has_none(raw: str):
    assert position_in(raw) is None
    assert LedgerRow.parse(raw) is None
