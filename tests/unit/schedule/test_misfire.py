"""Misfire rules: which overdue instants are sent, and which are skipped as a range."""

import random
from datetime import UTC, datetime, timedelta

import pytest

from ha_beat.reasons import MisfirePolicy, SkipReason
from ha_beat.schedule.misfire import Decision, MisfireRules, Skipped, newest_due

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


def decide(rules: MisfireRules, minutes: float, recurrence: EachMinute | None = None) -> Decision:
    recurrence = recurrence or EachMinute()
    return rules.decide(recurrence, newest_due(recurrence, at(0), at(minutes), rules.keep), at(minutes))


def decide_all(rules: MisfireRules, first: datetime, now: datetime) -> list[Decision]:
    decisions: list[Decision] = []
    recurrence, due = EachMinute(), None
    while first <= now:
        due = newest_due(recurrence, first, now, rules.keep, due)
        decision = rules.decide(recurrence, due, now)
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


def test_backlog_is_searched_once_not_at_each_occurrence():
    recurrence, rules, now = EachMinute(), MisfireRules(ALL, limit=1000), at(3900.1)
    due, first = None, at(0)
    for number in range(1000):
        due = newest_due(recurrence, first, now, rules.keep, due)
        decision = rules.decide(recurrence, due, now)
        assert decision.send == at(2901 + number)
        if number == 0:
            searched, recurrence.calls = recurrence.calls, 0
        first = decision.position + timedelta(minutes=1)
    assert searched < 5000
    assert recurrence.calls < 3 * 1000


@pytest.mark.parametrize("keep", [1, 3, 200])
def test_continued_search_finds_what_a_new_one_finds(keep):
    """The clock advances, stands still and is set back while the backlog shrinks and grows."""
    recurrence, due, first, chance = EachMinute(), None, at(0), random.Random(1)
    for now in [at(chance.uniform(0, 400)) for _ in range(100)]:
        due = newest_due(recurrence, first, max(now, first), keep, due)
        assert due == newest_due(recurrence, first, max(now, first), keep)
        first = chance.choice([first, due.oldest, due.oldest + timedelta(minutes=1), due.newest + timedelta(minutes=1)])


@pytest.mark.parametrize("policy", MisfirePolicy)
@pytest.mark.parametrize("countable", [True, False])
def test_year_of_missed_minutes_is_not_stepped_through(policy, countable):
    recurrence = EachMinute(countable)
    year = 365 * 24 * 60
    decision = decide(MisfireRules(policy), year + 0.1, recurrence)
    assert recurrence.calls < 1000
    assert decision.position == at(year - 99 if policy is ALL else year)
    assert decision.skipped.first == at(0)
    span = int((decision.skipped.until - at(0)) / timedelta(minutes=1))
    assert decision.skipped.count == (span if countable else -1)


@pytest.mark.parametrize("countable", [True, False])
def test_all_catches_up_its_limit_when_a_day_was_missed(countable):
    day = 24 * 60
    decision = decide(MisfireRules(ALL), day + 0.1, EachMinute(countable))
    first = at(day - 99)
    skipped = Skipped(at(0), first, day - 99 if countable else -1, SkipReason.MISFIRE_LIMIT)
    assert decision == Decision(first, first, skipped)
    assert sent(decide_all(MisfireRules(ALL), first, at(day + 0.1))) == [at(day - n) for n in reversed(range(100))]
