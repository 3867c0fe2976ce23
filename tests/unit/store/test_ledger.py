"""The ledger's rows: what is written is read back, and what is not understood is left alone."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ha_beat.clock import from_micros, to_micros
from ha_beat.store.ledger import LedgerRow, RawRow

instants = st.integers(0, to_micros(datetime(9999, 1, 1, tzinfo=UTC))).map(
    lambda micros: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)
)
rows = st.builds(
    LedgerRow,
    base=instants,
    verdict=st.sampled_from(["armed", "enqueued", "skipped", "uncertain", "claimed"]),
    scheduled_at=st.none() | instants,
    rev=st.integers(0, 2**53),
    dispatched_ms=st.integers(0, 2**53),
    epoch=st.integers(0, 2**53),
    nonce=st.text(),
    run_count=st.integers(0, 2**53),
    reason=st.text(),
    task_id=st.text(),
    signature=st.text(),
)


@given(instants)
def test_an_instant_survives_its_way_through_an_integer(instant: datetime):
    """To the microsecond, which floats would round."""
    assert from_micros(to_micros(instant)) == instant


@given(rows)
def test_a_row_is_read_back_as_it_was_written(row: LedgerRow):
    """And written again the same: the compare-and-set is on the raw text."""
    read = LedgerRow.parse(row.encoded())
    assert read is not None
    assert read.encoded() == row.encoded()
    assert (read.base, read.scheduled_at, read.verdict, read.reason) == (
        row.base,
        row.scheduled_at,
        row.verdict,
        row.reason,
    )
    assert read.raw == row.encoded()


def a_row(**changes: Any) -> str:
    row = json.loads(LedgerRow(base=datetime(2030, 1, 1, tzinfo=UTC), verdict="enqueued").encoded())
    return json.dumps({**row, **changes})


@pytest.mark.parametrize(
    "raw",
    [
        a_row(v=2),
        a_row(v=99),
        a_row(base="soon"),
        a_row(base=10**30),
        a_row(v="1"),
        a_row(rev="x"),
        a_row(count=None),
        a_row(ms=[]),
        "",
        "{",
        "null",
        "[]",
        "7",
        a_row(why="X").replace("X", "\ufffd"),
    ],
)
def test_what_is_not_understood_is_no_row(raw: str):
    """Of a newer version or broken: it must neither be replaced nor end the replica."""
    assert LedgerRow.parse(raw) is None


def test_fields_that_a_later_release_adds_do_not_hide_the_row():
    """Unknown fields of the same version are ignored."""
    read = LedgerRow.parse(a_row(colour="blue"))
    assert read is not None
    assert read.base == datetime(2030, 1, 1, tzinfo=UTC)


def test_time_zones_do_not_matter():
    """A row names an instant."""
    here = datetime(2030, 1, 1, 12, tzinfo=UTC)
    there = here.astimezone(ZoneInfo("Asia/Tokyo"))
    assert to_micros(here) == to_micros(there) == to_micros(here + timedelta(0))


def test_a_row_that_was_read_is_parsed_but_once():
    """A takeover asks of each row whether state was lost, and where it stands."""
    raw = RawRow(LedgerRow(base=datetime(2026, 1, 1, tzinfo=UTC), verdict="armed").encoded())
    row = LedgerRow.parse(raw)

    assert row == LedgerRow.parse(str(raw))
    assert LedgerRow.parse(raw) is row
    assert LedgerRow.parse(RawRow("{")) is None
