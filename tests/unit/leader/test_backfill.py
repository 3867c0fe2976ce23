"""Backfill: only what the journal proves not to have been enqueued is enqueued without force."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ha_beat.leader.requests.backfill import assess_instants
from ha_beat.reasons import BackfillOutcome, SkipReason
from ha_beat.store.journal import VerdictRecord, parse

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
DUE = NOW - timedelta(seconds=60)
RANGE = {"from": DUE.isoformat(), "until": NOW.isoformat(), "count": -1}


def record(verdict: str, **fields: Any) -> VerdictRecord:
    return parse("1-0", 1, json.dumps({"verdict": verdict, "entry": "e", "ms": 1, **fields}))


def skipped(reason: SkipReason) -> VerdictRecord:
    return record("skipped", why=reason, **RANGE)


def outcome(*known: VerdictRecord, force: bool = False) -> BackfillOutcome:
    (found,) = assess_instants([DUE], NOW, known, "request", force=force)
    return found.outcome


@pytest.mark.parametrize("reason", [reason for reason in SkipReason if reason is not SkipReason.STATE_LOSS])
def test_skipped_instant_is_enqueued(reason):
    assert outcome(skipped(reason)) is BackfillOutcome.PLANNED


def test_instant_skipped_after_a_loss_of_state_needs_force():
    """The instant may have been enqueued before the loss."""
    lost = skipped(SkipReason.STATE_LOSS)
    assert outcome(lost) is BackfillOutcome.OUTCOME_UNKNOWN
    assert outcome(lost, skipped(SkipReason.COALESCED)) is BackfillOutcome.OUTCOME_UNKNOWN
    assert outcome(lost, force=True) is BackfillOutcome.PLANNED


def test_enqueued_instant_is_refused_even_with_force():
    assert outcome(record("enqueued", at=DUE.isoformat(), id="task"), force=True) is BackfillOutcome.ALREADY_ENQUEUED


def test_instant_without_a_record_or_with_an_unknown_outcome_needs_force():
    assert outcome() is BackfillOutcome.NOT_IN_JOURNAL
    assert outcome(record("uncertain", at=DUE.isoformat(), id="task")) is BackfillOutcome.OUTCOME_UNKNOWN
