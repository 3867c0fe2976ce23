"""Readiness: a replica is ready if it is able to lead."""

import pytest

from ha_beat import events
from ha_beat.clock import from_micros
from ha_beat.errors import StoreUnavailable
from ha_beat.monitoring.broker_probe import BrokerProbe
from ha_beat.monitoring.service_manager import ServiceManager
from ha_beat.monitoring.status import Snapshot, member_record, unattended, why_not_live, why_not_ready
from ha_beat.monitoring.watchdog import Watchdog
from ha_beat.reasons import Duty, DutyFault, HealthReason, Verdict
from ha_beat.store.ledger import LedgerRow
from tests.unit.monitoring.scene import Scene


@pytest.fixture
def scene() -> Scene:
    return Scene()


def watchdog(scene: Scene) -> Watchdog:
    return Watchdog(scene.status, scene.duties, scene.clock, scene.events.append, ServiceManager({}))


def reasons(scene: Scene) -> set[str]:
    return set(why_not_ready(scene.status))


def test_replica_is_ready_once_it_has_schedule_and_broker(scene):
    scene.schedule_read = False
    scene.duties.suspend(Duty.REACH_BROKER)
    assert reasons(scene) == {HealthReason.SCHEDULE_UNREAD, HealthReason.BROKER_UNREACHABLE}
    assert why_not_live(scene.status) == {}
    scene.schedule_read = True
    scene.duties.done(Duty.REACH_BROKER)
    assert reasons(scene) == set()


@pytest.mark.parametrize("leads", [False, True])
def test_schedule_may_be_unreadable_for_half_a_minute(scene, leads):
    if leads:
        scene.lead(seconds=1e6)
    scene.duties.done(Duty.READ_SCHEDULE)
    scene.duties.failed(Duty.READ_SCHEDULE, DutyFault.UNREACHABLE, "refused")
    scene.clock.advance(29)
    assert reasons(scene) == set()
    scene.clock.advance(2)
    assert why_not_ready(scene.status) == {HealthReason.SCHEDULE_UNREAD: "no answer (refused)"}


def test_broker_is_unreachable_after_two_failures_in_a_row(scene):
    answers = []

    def check():
        if (answer := answers.pop()) is not None:
            raise answer

    probe = BrokerProbe(check, scene.duties, scene.clock, scene.events.append)
    away = StoreUnavailable("no answer")
    for answer, problems in [(None, set()), (away, set()), (away, {HealthReason.BROKER_UNREACHABLE}), (None, set())]:
        answers.append(answer)
        probe.turn()
        assert reasons(scene) == problems


@pytest.mark.parametrize("pause", [0.0, 15.0])
def test_leader_that_does_not_load_the_schedule_is_not_ready(scene, pause):
    """A pause after a failover of Redis is on purpose."""
    scene.enqueuer.loaded = False
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
    for loaded, problems in ((False, {HealthReason.NOT_TAKEN_UP}), (True, set())):
        scene.enqueuer.loaded = loaded
        watch.turn()
        assert reasons(scene) == problems
        record = member_record(scene.status)
        assert (record.taken_up, HealthReason.NOT_TAKEN_UP in record.not_ready) == (loaded, not loaded)
        assert f"ha_beat_taken_up {float(loaded)}" in scene.metrics().text().decode()


def test_next_term_must_load_the_schedule_too(scene):
    """After a loss of Redis' data a replica may lead again before the watchdog's next turn."""
    scene.lead(epoch=7, seconds=1e6)
    watch = watchdog(scene)
    watch.turn()
    scene.lead(epoch=8, seconds=1e6)
    scene.enqueuer.loaded = False
    for _ in range(2):
        watch.turn()
        scene.clock.advance(4)
    assert reasons(scene) == {HealthReason.NOT_TAKEN_UP}


def test_hung_main_loop_is_a_late_duty(scene):
    for idle, late in ((16.0, {Duty.MAIN_LOOP}), (0.1, set())):
        scene.election.idle = idle
        watchdog(scene).turn()
        assert set(scene.duties.late()) == late


def test_entries_without_a_leaders_queue_are_overdue_by_the_ledger(scene):
    now_ms = scene.status.now_ms()

    def row(at_ms, verdict=Verdict.ENQUEUED):
        at = None if at_ms is None else from_micros(at_ms * 1000)
        return LedgerRow(from_micros(0), verdict, following=at).encoded()

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
    assert (scene.status.backlog(), scene.document()["backlog"]) == (2, 2)
    assert "overdue" in scene.warned()
    assert unattended({}, now_ms).overdue(now_ms + 86_400_000) == 0
