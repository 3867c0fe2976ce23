"""State machine of a claim: which message is sent, and what is written for each outcome."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from ha_beat.dispatch import Answer, OpenClaim, Operation
from ha_beat.dispatch.claims.claim import Claim, ClaimState, Resolution, new_claim
from ha_beat.dispatch.claims.rows import uncertain_record
from ha_beat.dispatch.claims.store import parse_claim
from ha_beat.dispatch.claims.updates import Update, resolving_updates, take_back_updates, uncertain_update
from ha_beat.reasons import AnswerKind, PublishOutcome, UncertainPolicy, UncertainReason, Verdict
from ha_beat.store.ledger import LedgerRow
from tests.support.dispatchers import push
from tests.support.leases import term

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
TERM = term()
DONE, MINE, MOVED = Answer(AnswerKind.DONE), Answer(AnswerKind.MINE), Answer(AnswerKind.MOVED, "other row")
SKIP, REPUBLISH = UncertainPolicy.SKIP, UncertainPolicy.REPUBLISH
ACCEPTED, REFUSED, UNSENT, UNKNOWN = PublishOutcome


def row(verdict: Verdict = Verdict.ENQUEUED) -> str:
    return LedgerRow(base=NOON, verdict=verdict, scheduled_at=NOON, task_id="id").encoded()


def operation(policy: UncertainPolicy = SKIP, expected: str = "", new: str | None = None) -> Operation:
    record = json.dumps({"verdict": "enqueued", "entry": "entry", "ms": 5})
    new = row() if new is None else new
    return Operation("entry", expected, new, (record,), push(), task_id="id", uncertain=policy)


def new(policy: UncertainPolicy = SKIP, *, replaces_open: bool = False, with_row: bool = True) -> Claim:
    expected = row(Verdict.CLAIMED) if replaces_open else ""
    return new_claim(TERM, operation(policy, expected, None if with_row else ""))


def begun(writes: int) -> Claim:
    """Return a claim that was written this many times without a reply."""
    claim = new()
    for _ in range(writes - 1):
        claim = claim.write_repeated()
    return claim


def opened(claim: Claim) -> Claim:
    return claim.write_answered(DONE)


def published(claim: Claim, outcome: PublishOutcome, detail: str = "why") -> Claim:
    if outcome is UNSENT:
        return opened(claim).publish_abandoned(detail)
    return opened(claim).publish_begun().published(outcome, detail)


def update_for(claim: Claim) -> Update:
    (update,) = resolving_updates([claim])
    return update


# --- Writing the claim


def test_claimed_row_is_the_final_row_with_another_verdict():
    assert new().row == row(Verdict.CLAIMED)


@pytest.mark.parametrize(("answer", "is_open"), [(DONE, (1, 2)), (MINE, (2,)), (MOVED, ())])
@pytest.mark.parametrize("writes", [1, 2])
def test_existing_claim_is_ours_only_after_a_lost_reply(writes: int, answer: Answer, is_open: tuple[int, ...]):
    """``is_open``: the number of writes after which the claim is open."""
    claim = begun(writes).write_answered(answer)
    assert claim.state is (ClaimState.OPEN if writes in is_open else ClaimState.ANSWERED)
    assert claim.answer == (None if writes in is_open else answer)


def test_claim_is_written_until_the_store_has_answered():
    assert [claim.must_be_written for claim in (begun(1), begun(2), opened(new()))] == [True, True, False]


# --- Publishing


def test_interrupted_publish_is_unknown_and_not_repeated():
    claim = opened(new()).publish_begun().publish_begun()
    assert (claim.state, claim.outcome) == (ClaimState.PUBLISHED, UNKNOWN)
    assert claim.reason is UncertainReason.INTERRUPTED


def test_message_that_may_be_on_its_way_is_not_abandoned():
    claim = opened(new()).publish_begun()
    assert claim.publish_abandoned("stopped") is claim


@pytest.mark.parametrize("writes", [1, 2])
def test_message_whose_claim_is_unanswered_can_be_abandoned(writes: int):
    assert begun(writes).publish_abandoned("stopped").outcome is UNSENT


EVENTS: list[Callable[[Claim], Claim]] = [
    Claim.write_repeated,
    lambda claim: claim.write_answered(DONE),
    Claim.publish_begun,
    lambda claim: claim.published(REFUSED),
    lambda claim: claim.publish_abandoned("later"),
]


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("outcome", PublishOutcome)
def test_published_claim_ignores_all_events_but_its_resolution(
    event: Callable[[Claim], Claim], outcome: PublishOutcome
):
    """A signal handler may resolve a claim while the main loop is about to write or send it."""
    claim = published(new(), outcome)
    assert event(claim) is claim
    answered = claim.resolved()
    assert event(answered) is answered
    assert answered.resolved() is answered


# --- Resolution


@pytest.mark.parametrize(
    ("outcome", "policy", "replaces_open", "resolution", "kind"),
    [
        (ACCEPTED, SKIP, False, Resolution.CONFIRM, AnswerKind.PARTIAL),
        (ACCEPTED, REPUBLISH, True, Resolution.CONFIRM, AnswerKind.PARTIAL),
        (REFUSED, SKIP, False, Resolution.TAKE_BACK, AnswerKind.ERROR),
        (REFUSED, REPUBLISH, False, Resolution.TAKE_BACK, AnswerKind.ERROR),
        (REFUSED, SKIP, True, Resolution.RECORD_UNCERTAIN, AnswerKind.UNCERTAIN),
        (REFUSED, REPUBLISH, True, Resolution.KEEP_OPEN, AnswerKind.AGAIN),
        (UNSENT, SKIP, False, Resolution.TAKE_BACK, AnswerKind.UNSENT),
        (UNSENT, REPUBLISH, True, Resolution.KEEP_OPEN, AnswerKind.AGAIN),
        (UNKNOWN, SKIP, False, Resolution.RECORD_UNCERTAIN, AnswerKind.UNCERTAIN),
        (UNKNOWN, REPUBLISH, False, Resolution.KEEP_OPEN, AnswerKind.AGAIN),
    ],
)
def test_outcome_decides_the_resolution(
    outcome: PublishOutcome, policy: UncertainPolicy, replaces_open: bool, resolution: Resolution, kind: AnswerKind
):
    claim = published(new(policy, replaces_open=replaces_open), outcome)
    assert (claim.resolution, claim.resolved().answer.kind) == (resolution, kind)


def test_claim_that_replaces_that_of_another_occurrence_is_taken_back():
    following = replace(operation(expected=row(Verdict.CLAIMED)), task_id="id of the next")
    assert published(new_claim(TERM, following), UNSENT).resolution is Resolution.TAKE_BACK


def test_step_of_a_request_is_never_kept_open():
    """A step has no row from which a later leader would send it again."""
    claim = published(new(REPUBLISH, with_row=False), UNKNOWN)
    assert claim.resolution is Resolution.RECORD_UNCERTAIN
    assert claim.resolved().answer == Answer(AnswerKind.UNCERTAIN, "why")


# --- What is written


def test_confirmation_replaces_the_row_that_another_leader_writes():
    claim = published(new(), ACCEPTED)
    _, _, found = parse_claim(claim.key, f"open {claim.json}")
    update, row = uncertain_update(found)
    assert update.row in update_for(claim).replaces
    assert row.reason is UncertainReason.UNCONFIRMED


def test_unknown_outcome_is_recorded_with_code_and_detail():
    update = update_for(published(new(), UNKNOWN, "d" * 1000))
    stored = LedgerRow.parse(update.row)
    assert (stored.verdict, stored.reason, len(stored.detail)) == (Verdict.UNCERTAIN, UncertainReason.NO_ANSWER, 300)
    record = json.loads(update.records[0])
    assert (record["verdict"], record["why"], len(record["detail"])) == ("uncertain", "no_answer", 300)


def test_record_of_a_skip_is_left_unchanged():
    skipped = json.dumps({"verdict": "skipped", "why": "missed"})
    assert json.loads(uncertain_record(skipped)) == json.loads(skipped)


# --- Stored claims


def test_stored_claim_is_read_back():
    claim = new(REPUBLISH)
    state, written_ms, found = parse_claim(claim.key, f"open {claim.json}")
    assert (state, written_ms) == ("open", 5)
    assert (found.entry, found.nonce, found.policy, found.row) == ("entry", TERM.nonce, REPUBLISH, claim.row)


@pytest.mark.parametrize("value", ["", "open", "open {", "open []", 'open {"policy": "other"}'])
def test_malformed_claim_is_an_error(value: str):
    with pytest.raises((ValueError, KeyError, TypeError)):
        parse_claim("key", value)


def test_step_of_a_request_has_its_own_key():
    assert operation().key == "id"
    assert replace(operation(), request="request", step=3).key == "request:3"


@pytest.mark.parametrize(("place", "verdicts"), [(0, ["skipped"]), (1, []), (2, ["skipped"] * 2)])
def test_unsent_claims_of_one_entry_are_undone_or_skipped(place: int, verdicts: list[str]):
    """The second replaced the first. The entry's row belongs to the first, the second or a later occurrence."""
    rows = [LedgerRow(base=NOON, verdict=Verdict.CLAIMED, rev=rev).encoded() for rev in (1, 2, 3)]
    records = operation().records
    first, second = (
        OpenClaim(f"id {rev}", "{}", "entry", "nonce", SKIP, rows[rev], records, rows[rev - 1] if rev else "", True)
        for rev in (0, 1)
    )
    updates = take_back_updates([first, second], {"entry": rows[place]})
    assert [update.key for update in updates] == ["id 1", "id 0"]
    assert [json.loads(record)["verdict"] for update in updates for record in update.records] == verdicts
