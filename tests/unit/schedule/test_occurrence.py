"""What becomes of missed occurrences, and what an occurrence is called."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta, timezone

import pytest

from ha_beat.schedule.occurrence import COUNT_CAP, Due, Misfire, MisfirePolicy, Occurrence, Skipped

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


def at(minutes: float) -> datetime:
    return NOON + timedelta(minutes=minutes)


class EachMinute:
    """Counts how often it was asked."""

    def __init__(self, countable: bool = True) -> None:
        self.asked = 0
        self.countable = countable

    def next_after(self, instant: datetime) -> datetime:
        self.asked += 1
        return instant + timedelta(minutes=1)

    def newest(self, known: datetime, now: datetime) -> tuple[datetime, int]:
        count = (now - known) // timedelta(minutes=1)
        return known + timedelta(minutes=count), count if self.countable else -1


def settle_all(rules: Misfire, first: datetime, now: datetime) -> list[Due]:
    """Call after call, until nothing is due."""
    settled = []
    while first <= now:
        due = rules.settle(EachMinute(), first, now)
        settled.append(due)
        first = due.position + timedelta(minutes=1)
    return settled


def sent(settled: list[Due]) -> list[datetime]:
    return [due.send for due in settled if due.send is not None]


@pytest.mark.parametrize("policy", ["once", "skip", "all"])
def test_what_is_due_now_is_sent_under_every_policy(policy: MisfirePolicy):
    """A change of leader makes an occurrence some seconds late: that is no misfire."""
    assert Misfire(policy).settle(EachMinute(), at(0), at(0.15)) == Due(at(0), at(0))


def test_once_sends_the_newest_and_names_the_rest():
    """Celery's one catch-up run; the others get a verdict as a range that ends before what is sent."""
    due = Misfire("once").settle(EachMinute(), at(0), at(5.5))
    assert due == Due(at(5), at(5), Skipped(at(0), at(5), 5, "coalesced"))


def test_once_within_the_grace_only():
    """Too late for all: none is sent, and the range says why."""
    rules = Misfire("once", grace=20)
    assert rules.settle(EachMinute(), at(0), at(5.2)) == Due(at(5), at(5), Skipped(at(0), at(5), 5, "coalesced"))
    assert rules.settle(EachMinute(), at(0), at(5.5)) == Due(None, at(5), Skipped(at(0), at(6), 6, "misfire_grace"))


def test_skip_sends_only_what_is_not_missed():
    """And a missed single one is a range of one."""
    rules = Misfire("skip", usual_lateness=11)
    assert rules.settle(EachMinute(), at(0), at(5.5)) == Due(None, at(5), Skipped(at(0), at(6), 6, "missed"))
    assert rules.settle(EachMinute(), at(0), at(0.5)) == Due(None, at(0), Skipped(at(0), at(1), 1, "missed"))
    assert rules.settle(EachMinute(), at(0), at(5.1)) == Due(at(5), at(5), Skipped(at(0), at(5), 5, "missed"))


def test_all_sends_each_oldest_first():
    settled = settle_all(Misfire("all"), at(0), at(5.5))
    assert settled == [Due(at(n), at(n)) for n in range(6)]


def test_all_has_a_limit_and_names_what_is_beyond_it():
    settled = settle_all(Misfire("all", limit=3), at(0), at(5.5))
    assert settled[0].skipped == Skipped(at(0), at(3), 3, "misfire_limit")
    assert sent(settled) == [at(3), at(4), at(5)]


def test_all_within_the_grace():
    settled = settle_all(Misfire("all", grace=150), at(0), at(5.5))
    assert settled[0].skipped == Skipped(at(0), at(3), 3, "misfire_grace")
    assert sent(settled) == [at(3), at(4), at(5)]


@pytest.mark.parametrize("policy", ["once", "skip", "all"])
@pytest.mark.parametrize("grace", [None, 0.0, 90.0, 1e9])
@pytest.mark.parametrize("minutes", [0, 0.15, 1, 7.3, 40])
def test_every_instant_gets_exactly_one_verdict(policy: MisfirePolicy, grace: float | None, minutes: float):
    """Sent or in exactly one range: none left out, none twice."""
    settled = settle_all(Misfire(policy, grace=grace, limit=5), at(0), at(minutes))
    verdicts = sent(settled)
    for due in settled:
        if due.skipped is not None:
            span = int((due.skipped.until - due.skipped.first) / timedelta(minutes=1))
            assert due.skipped.count == span
            verdicts += [due.skipped.first + timedelta(minutes=n) for n in range(span)]
    assert sorted(verdicts) == [at(n) for n in range(int(minutes) + 1)]


@pytest.mark.parametrize("policy", ["once", "skip", "all"])
@pytest.mark.parametrize("countable", [True, False])
def test_a_year_of_minutes_is_cheap(policy: MisfirePolicy, countable: bool):
    """Half a million instants are not stepped through; the newest is right and the count is right or unknown."""
    instants = EachMinute(countable)
    year = 365 * 24 * 60
    due = Misfire(policy).settle(instants, at(0), at(year + 0.1))
    assert instants.asked < 2 * COUNT_CAP
    assert due.position == at(year - 99 if policy == "all" else year)
    assert due.skipped is not None
    assert due.skipped.first == at(0)
    wanted = due.skipped.until - at(0)
    assert due.skipped.count == (int(wanted / timedelta(minutes=1)) if countable else -1)


@pytest.mark.parametrize("countable", [True, False])
def test_all_catches_up_its_limit_however_many_were_missed(countable: bool):
    """A day of minutes, missed: the newest hundred run, and not the very newest alone."""
    day = 24 * 60
    instants = EachMinute(countable)
    due = Misfire("all").settle(instants, at(0), at(day + 0.1))
    wanted = at(day - 99)
    assert due == Due(wanted, wanted, Skipped(at(0), wanted, day - 99 if countable else -1, "misfire_limit"))
    assert sent(settle_all(Misfire("all"), wanted, at(day + 0.1))) == [at(day - n) for n in reversed(range(100))]


@pytest.mark.parametrize("grace", [float("inf"), 1e300])
def test_a_grace_without_end_is_none(grace: float):
    due = Misfire("once", grace=grace).settle(EachMinute(), at(0), at(5.5))
    assert due.send == at(5)


def test_an_occurrence_has_one_task_id_for_whoever_enqueues_it():
    """And another for each cluster, entry and instant. It is a promise to those who store it: it must not change."""
    occurrence = Occurrence("report", NOON)
    assert occurrence.task_id("shop") == Occurrence("report", datetime(2030, 1, 1, 12, tzinfo=UTC)).task_id("shop")
    assert occurrence.task_id("shop") == "67d41eec-99fe-57d9-a53b-c011bf76d0d5"
    ids = {
        occurrence.task_id("shop"),
        occurrence.task_id("shop2"),
        Occurrence("report2", NOON).task_id("shop"),
        Occurrence("report", at(1)).task_id("shop"),
        Occurrence("report", NOON + timedelta(microseconds=1)).task_id("shop"),
    }
    assert len(ids) == 5
    assert all(uuid.UUID(one).version == 5 for one in ids)


def test_an_instant_is_spelled_in_one_way():
    """With and without microseconds."""
    assert Occurrence("e", NOON).instant == "2030-01-01T12:00:00.000000+00:00"
    assert Occurrence("e", NOON + timedelta(microseconds=5)).instant == "2030-01-01T12:00:00.000005+00:00"
    elsewhere = NOON.astimezone(timezone(timedelta(hours=2))).astimezone(UTC)
    assert Occurrence("e", elsewhere).task_id("c") == Occurrence("e", NOON).task_id("c")
