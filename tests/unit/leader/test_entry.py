"""State of an entry while this replica leads."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from ha_beat.leader.entry import EntryState
from ha_beat.reasons import Verdict
from ha_beat.store.ledger import LedgerRow
from tests.support.entries import scheduled

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def row() -> LedgerRow:
    written = LedgerRow(NOW, Verdict.ARMED, following=NOW, nonce="n", signature="s")
    return replace(written, raw=written.encoded())


def test_resting_entries_share_the_text_of_their_rows():
    """Most of 100,000 entries are armed together and not due for long. The row is parsed once it is needed."""
    one, two = (EntryState(scheduled(name), NOW, row()) for name in ("one", "two"))
    for state in (one, two):
        state.rest()
    assert one._row is two._row
    assert one.row == two.row == row()
    assert one.row is one.row
    assert one.expected == row().raw


@pytest.mark.parametrize("known", [None, replace(row(), raw="")], ids=["no row", "no text"])
def test_row_without_a_text_is_kept(known):
    state = EntryState(scheduled(), NOW, known)
    state.rest()
    assert state.row is known
