"""Tests of `doctor` for replicas that differ. `tests/integration/cli` runs it on a real cluster."""

import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from ha_beat import events
from ha_beat.leader.due_queue import DueQueue
from ha_beat.leader.pause import PauseState
from ha_beat.leader.requests.report import LeaderReport
from ha_beat.monitoring.doctor.examination import _clocks, _differences, _leader, _records
from ha_beat.reasons import EntryFault, Level, SkipReason, Verdict
from ha_beat.store.journal import VerdictRecord
from ha_beat.testing import SettableClock


def view(**schedules: str) -> Any:
    members = [
        SimpleNamespace(id=name, version="1.0", schedule=schedule, fingerprint="shop")
        for name, schedule in schedules.items()
    ]
    return SimpleNamespace(members=members)


def test_differing_schedules_are_listed_by_replica():
    """A digest alone would not show which machine differs. An unknown schedule is no difference."""
    (found,) = _differences(view(a="1f", b="2e", c="1f"))
    assert found.level == "warn"
    assert "schedule, which is normal only during a deploy: 1f on a, c; 2e on b" in found.text
    assert list(_differences(view(a="1f", b="1f", c=""))) == []


def test_failing_entries_of_the_leader_are_listed_in_words():
    now = datetime(2030, 1, 1, tzinfo=UTC)
    schedule: Any = SimpleNamespace(due_queue=DueQueue(), dispatcher=None, now=lambda: now)
    report: Any = LeaderReport(schedule, PauseState())
    report.note(events.EntryFailed("e", EntryFault.SCHEDULE_RAISES, "ValueError: x"))
    reply = SimpleNamespace(data=json.loads(json.dumps(report.report(None, None).data)))
    cluster: Any = SimpleNamespace(ask=lambda *_, **__: reply)
    led: Any = SimpleNamespace(lease=SimpleNamespace(held=True))
    texts = [found.text for found in _leader(cluster, led, timeout=1.0) if found.subject == "entry"]
    assert texts == ["e: its schedule raises an exception (ValueError: x)"]


@pytest.mark.parametrize(("ahead", "level"), [(0.0, Level.OK), (3.0, Level.WARN)])
def test_slow_check_is_no_difference_of_clocks(ahead, level):
    """Redis reads its time at the start of a slow round trip, long after the first view."""
    clock = SettableClock(datetime(2030, 1, 1, tzinfo=UTC))

    def read():
        server_ms = round((clock.wall() - ahead) * 1000)
        clock.advance(5)
        return SimpleNamespace(server_ms=server_ms, members=[])

    first = read()
    clock.advance(5)
    cluster: Any = SimpleNamespace(clock=clock, members=SimpleNamespace(view=read))
    (found,) = _clocks(cluster, first)
    assert (found.level, f"{ahead:+.2f} s" in found.text) == (level, True)


def test_lost_occurrences_of_unknown_number_count_as_one_each():
    at = datetime(2030, 1, 1, tzinfo=UTC)
    known: Any = {"kind": "occurrence", "by": "beat-0", "data": {}, "ms": 0, "epoch": 1, "verdict": Verdict.SKIPPED}
    records = [
        VerdictRecord(
            id=f"{n}-0", n=n, entry="e", first=at, until=at, count=count, reason=SkipReason.STATE_LOSS, **known
        )
        for n, count in ((1, -1), (2, 1))
    ]
    seen = SimpleNamespace(lease=None, highest_epoch=0, journal_counter=2, gen="", paused="")
    cluster: Any = SimpleNamespace(
        journal=SimpleNamespace(newest=lambda _: records[::-1]), members=SimpleNamespace(view=lambda: seen)
    )
    (lost,) = [found.text for found in _records(cluster, cluster) if found.subject == "state loss"]
    assert lost.startswith("2 occurrences")
