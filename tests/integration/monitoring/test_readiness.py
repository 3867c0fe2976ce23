"""Readiness: a replica is ready if it is able to lead."""

from datetime import timedelta

import pytest

from ha_beat import events
from ha_beat.clock import from_micros
from ha_beat.errors import StoreUnavailable
from ha_beat.monitoring.broker_probe import BrokerProbe
from ha_beat.monitoring.service_manager import ServiceManager
from ha_beat.monitoring.status import Snapshot, document, member_record, unattended, why_not_live, why_not_ready
from ha_beat.monitoring.watchdog import Watchdog
from ha_beat.reasons import Duty, DutyFault, HealthReason, Verdict
from ha_beat.store.ledger import LedgerRow
from tests.integration.monitoring.support import Scene


@pytest.fixture
def scene() -> Scene:
    scene = Scene()
    scene.status.snapshot = Snapshot(unreachable="")
    return scene


def watchdog(scene: Scene) -> Watchdog:
    return Watchdog(scene.status, scene.duties, scene.clock, scene.events.append, ServiceManager({}))


def reasons(scene: Scene) -> set[str]:
    return set(why_not_ready(scene.status))


def test_replica_is_ready_once_it_has_schedule_and_broker():
    scene = Scene(schedule_read=False)
    scene.status.snapshot = Snapshot(unreachable="")
    scene.duties.suspend(Duty.REACH_BROKER)
    assert reasons(scene) == {HealthReason.SCHEDULE_UNREAD, HealthReason.BROKER_UNREACHABLE}
    assert why_not_live(scene.status) == {}
    scene.schedule_read = True
    scene.duties.done(Duty.REACH_BROKER)
    assert reasons(scene) == set()


@pytest.mark.parametrize("leads", [False, True])
def test_schedule_may_be_unreadable_for_a_while(scene, leads):
    if leads:
        scene.lead(seconds=1e6)
    scene.duties.done(Duty.READ_SCHEDULE)
    scene.duties.failed(Duty.READ_SCHEDULE, DutyFault.UNREACHABLE, "refused")
    scene.clock.advance(29)
    assert reasons(scene) == set()
    scene.clock.advance(2)
    assert why_not_ready(scene.status) == {HealthReason.SCHEDULE_UNREAD: "no answer (refused)"}


def test_broker_is_unreachable_after_two_failures_in_a_row(scene):
    answers: list[Exception | None] = []

    def check() -> None:
        answer = answers.pop()
        if answer is not None:
            raise answer

    probe = BrokerProbe(check, scene.duties, scene.clock, scene.events.append)
    away = StoreUnavailable("no answer")
    expected = [(None, set()), (away, set()), (away, {HealthReason.BROKER_UNREACHABLE}), (None, set())]
    for answer, problems in expected:
        answers.append(answer)
        probe.turn()
        assert reasons(scene) == problems


@pytest.mark.parametrize("pause", [0.0, 15.0])
def test_leader_that_does_not_take_up_the_schedule_is_not_ready(scene, pause):
    """A pause after a failover of Redis is on purpose."""
    scene.taken_up = False
    scene.lead(seconds=1e6)
    watch = watchdog(scene)
    watch.turn()
    scene.status.memory(events.DispatchHeld(pause))
    while pause > 0:
        watch.turn()
        assert reasons(scene) == set()
        scene.clock.advance(3)
        pause -= 3
    watch.turn()
    scene.clock.advance(4)
    watch.turn()
    assert reasons(scene) == set()
    scene.clock.advance(2)
    watch.turn()
    assert reasons(scene) == {HealthReason.NOT_TAKEN_UP}
    assert HealthReason.NOT_TAKEN_UP in member_record(scene.status).not_ready
    assert "ha_beat_taken_up 0.0" in scene.metrics().text().decode()
    scene.taken_up = True
    watch.turn()
    assert reasons(scene) == set()
    assert member_record(scene.status).taken_up
    assert "ha_beat_taken_up 1.0" in scene.metrics().text().decode()


def test_next_term_that_follows_at_once_has_to_be_taken_up_too(scene):
    """After a loss of Redis' data a replica may lead again before the watchdog looks."""
    scene.lead(epoch=7, seconds=1e6)
    watch = watchdog(scene)
    watch.turn()
    scene.lead(epoch=8, seconds=1e6)
    scene.taken_up = False
    for _ in range(2):
        watch.turn()
        scene.clock.advance(4)
    assert reasons(scene) == {HealthReason.NOT_TAKEN_UP}


def test_hung_main_loop_is_a_late_duty(scene):
    for idle, late in ((16.0, {Duty.MAIN_LOOP}), (0.1, set())):
        scene.election.idle = idle
        watchdog(scene).turn()
        assert set(scene.duties.late()) == late


def row(at_ms: int | None, verdict: Verdict = Verdict.ENQUEUED) -> str:
    at = None if at_ms is None else from_micros(at_ms * 1000)
    return LedgerRow(from_micros(0), verdict, following=at).encoded()


def test_entries_without_a_leaders_queue_are_overdue_by_the_ledger(scene):
    now_ms = scene.status.now_ms()
    rows = {
        "late": row(now_ms - 65_000),
        "later": row(now_ms - 5_000),
        "future": row(now_ms + 5_000),
        "deleted": row(now_ms - 90_000, Verdict.ABSENT),
        "other": row(None),
        "unreadable": "?",
    }
    found = unattended(rows, now_ms)
    assert (found.due, found.overdue(now_ms)) == (2, 65)
    scene.status.snapshot = Snapshot(unreachable="", unattended=found)
    assert scene.status.overdue() == pytest.approx(65, abs=1)
    assert (scene.status.backlog(), document(scene.status)["backlog"]) == (2, 2)
    assert "overdue" in scene.warned()
    assert unattended({}, now_ms).overdue(now_ms + timedelta(days=1) // timedelta(milliseconds=1)) == 0
