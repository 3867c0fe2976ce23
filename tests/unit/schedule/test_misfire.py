"""Misfire rules: which overdue instants are sent, and which are skipped as a range."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ha_beat.reasons import MisfirePolicy, SkipReason
from ha_beat.schedule.misfire import COUNT_CAP, Decision, MisfireRules, Skipped

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)

ONCE, SKIP, ALL = MisfirePolicy.ONCE, MisfirePolicy.SKIP, MisfirePolicy.ALL


def at(minutes: float) -> datetime:
    return NOON + timedelta(minutes=minutes)


class EachMinute:
    """Recurrence each minute that counts its calls."""

    def __init__(self, countable: bool = True) -> None:
        self.calls = 0
        self.countable = countable

    def next_after(self, instant: datetime) -> datetime:
        self.calls += 1
        return instant + timedelta(minutes=1)

    def newest(self, known: datetime, now: datetime) -> tuple[datetime, int]:
        count = (now - known) // timedelta(minutes=1)
        return known + timedelta(minutes=count), count if self.countable else -1


def decide(rules: MisfireRules, minutes: float) -> Decision:
    return rules.decide(EachMinute(), at(0), at(minutes))


def decide_all(rules: MisfireRules, first: datetime, now: datetime) -> list[Decision]:
    decisions = []
    while first <= now:
        decision = rules.decide(EachMinute(), first, now)
        decisions.append(decision)
        first = decision.position + timedelta(minutes=1)
    return decisions


def sent(decisions: list[Decision]) -> list[datetime]:
    return [decision.send for decision in decisions if decision.send is not None]


@pytest.mark.parametrize("policy", MisfirePolicy)
def test_instant_late_by_a_change_of_leader_is_sent_under_each_policy(policy):
    assert decide(MisfireRules(policy), 0.15) == Decision(at(0), at(0))


@pytest.mark.parametrize(
    ("rules", "minutes", "send", "skipped"),
    [
        (MisfireRules(ONCE), 5.5, 5, (5, SkipReason.COALESCED)),
        (MisfireRules(ONCE, grace=20), 5.2, 5, (5, SkipReason.COALESCED)),
        (MisfireRules(ONCE, grace=20), 5.5, None, (6, SkipReason.MISFIRE_GRACE)),
        (MisfireRules(ONCE, grace=float("inf")), 5.5, 5, (5, SkipReason.COALESCED)),
        (MisfireRules(ONCE, grace=1e300), 5.5, 5, (5, SkipReason.COALESCED)),
        (MisfireRules(SKIP), 5.5, None, (6, SkipReason.MISSED)),
        (MisfireRules(SKIP), 0.5, None, (1, SkipReason.MISSED)),
        (MisfireRules(SKIP), 5.1, 5, (5, SkipReason.MISSED)),
    ],
)
def test_once_and_skip_send_at_most_the_newest_instant(rules, minutes, send, skipped):
    """The skipped range ends before the instant that is sent."""
    count, reason = skipped
    decision = decide(rules, minutes)
    assert decision.send == (None if send is None else at(send))
    assert decision.position == at(int(minutes))
    assert decision.skipped == Skipped(at(0), at(count), count, reason)


@pytest.mark.parametrize(
    ("rules", "skipped", "expected"),
    [
        (MisfireRules(ALL), None, range(6)),
        (MisfireRules(ALL, limit=3), Skipped(at(0), at(3), 3, SkipReason.MISFIRE_LIMIT), range(3, 6)),
        (MisfireRules(ALL, grace=150), Skipped(at(0), at(3), 3, SkipReason.MISFIRE_GRACE), range(3, 6)),
    ],
)
def test_all_sends_each_instant_within_limit_and_grace_oldest_first(rules, skipped, expected):
    decisions = decide_all(rules, at(0), at(5.5))
    assert decisions[0].skipped == skipped
    assert sent(decisions) == [at(n) for n in expected]


@pytest.mark.parametrize("policy", MisfirePolicy)
@pytest.mark.parametrize("grace", [None, 0.0, 90.0, 1e9])
@pytest.mark.parametrize("minutes", [0, 0.15, 1, 7.3, 40])
def test_each_instant_gets_exactly_one_verdict(policy, grace, minutes):
    decisions = decide_all(MisfireRules(policy, grace=grace, limit=5), at(0), at(minutes))
    verdicts = sent(decisions)
    for decision in decisions:
        if decision.skipped is not None:
            span = int((decision.skipped.until - decision.skipped.first) / timedelta(minutes=1))
            assert decision.skipped.count == span
            verdicts += [decision.skipped.first + timedelta(minutes=n) for n in range(span)]
    assert sorted(verdicts) == [at(n) for n in range(int(minutes) + 1)]


@pytest.mark.parametrize("policy", MisfirePolicy)
@pytest.mark.parametrize("countable", [True, False])
def test_year_of_missed_minutes_is_not_stepped_through(policy, countable):
    recurrence = EachMinute(countable)
    year = 365 * 24 * 60
    decision = MisfireRules(policy).decide(recurrence, at(0), at(year + 0.1))
    assert recurrence.calls < 2 * COUNT_CAP
    assert decision.position == at(year - 99 if policy is ALL else year)
    assert decision.skipped.first == at(0)
    span = int((decision.skipped.until - at(0)) / timedelta(minutes=1))
    assert decision.skipped.count == (span if countable else -1)


@pytest.mark.parametrize("countable", [True, False])
def test_all_catches_up_its_limit_when_a_day_was_missed(countable):
    day = 24 * 60
    decision = MisfireRules(ALL).decide(EachMinute(countable), at(0), at(day + 0.1))
    first = at(day - 99)
    skipped = Skipped(at(0), first, day - 99 if countable else -1, SkipReason.MISFIRE_LIMIT)
    assert decision == Decision(first, first, skipped)
    assert sent(decide_all(MisfireRules(ALL), first, at(day + 0.1))) == [at(day - n) for n in reversed(range(100))]
