"""Every failure shows in the log, in a metric and in the status."""

import logging
from datetime import UTC, datetime
from typing import Any

import pytest

from ha_beat import events
from ha_beat.monitoring.logs import LogWriter, line_of
from ha_beat.monitoring.status import Snapshot, document
from ha_beat.reasons import Duty, DutyFault
from tests.integration.monitoring.support import Scene
from tests.unit.monitoring.test_wording import EVENTS, LOGGED

#: Warnings about something that works as intended.
NO_PROBLEM = (events.Paused, events.Resumed, events.RequestAnswered, events.BatchDispatched)

#: Problems that the status reads from the journal, the member record, the snapshot or the duties.
FROM_ELSEWHERE = (
    *(events.TermEnded, events.OccurrenceSkipped, events.OccurrenceUncertain),
    *(events.ClockOffset, events.RecordUnreadable, events.DutyLate),
)

PROBLEMS = [event for event in EVENTS if event.problem]


def seen_scene() -> Scene:
    scene = Scene()
    scene.status.snapshot = Snapshot(unreachable="")
    scene.lead()
    return scene


def state(scene: Scene) -> dict[str, Any]:
    shown = document(scene.status)
    return {"warnings": shown["warnings"], "members": shown["members"], "replica": shown["replica"]}


@pytest.mark.parametrize("event", LOGGED, ids=lambda event: type(event).__name__)
def test_event_is_a_problem_if_it_is_logged_as_a_warning(event):
    line = line_of(event, "shop")
    assert event.problem == (line[0] >= logging.WARNING and not isinstance(event, NO_PROBLEM))


@pytest.mark.parametrize("event", LOGGED, ids=lambda event: type(event).__name__)
@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO, logging.WARNING])
def test_every_event_with_a_line_reaches_the_log(event, level, caplog):
    with caplog.at_level(level, "ha_beat"):
        assert LogWriter.wants(event) or line_of(event, "shop")[0] < level


def test_events_of_a_dispatch_do_not_wake_the_log_by_default(caplog):
    """At Celery's default level they have no line."""
    enqueued = events.Enqueued("e", "task", "id", datetime.now(UTC), 0.0)
    with caplog.at_level(logging.WARNING, "ha_beat"):
        assert not LogWriter.wants(enqueued)
        assert not LogWriter.wants(events.BatchDispatched(1, 0.1, 0))


@pytest.mark.parametrize("event", PROBLEMS, ids=lambda event: type(event).__name__)
def test_problem_is_counted_and_shown(event):
    scene = seen_scene()
    metrics = scene.metrics()
    name = f'ha_beat_problems_total{{action="{event.action}"}}'
    assert f"{name} 0.0" in metrics.text().decode()
    metrics(event)
    assert f"{name} 1.0" in metrics.text().decode()

    if not isinstance(event, FROM_ELSEWHERE):
        if not isinstance(event, events.EntryFailed):
            # A leader reports failing entries; only a standby reports that Redis is unreachable.
            scene.election.term = None
        before = state(scene)
        scene.status.memory(event)
        assert state(scene) != before


@pytest.mark.parametrize("duty", Duty)
def test_late_duty_is_logged_measured_and_shown(duty):
    scene = seen_scene()
    scene.duties.done(duty)
    scene.clock.advance(3)
    scene.duties.failed(duty, DutyFault.REFUSED, "NOPERM")
    scene.duties.check()
    (late,) = scene.events.of(events.DutyLate)
    assert line_of(late, "shop") is not None
    assert f'ha_beat_duty_late_seconds{{duty="{duty}"}} 3.0' in scene.metrics().text().decode()
    shown = document(scene.status)
    assert [each["duty"] for each in shown["replica"]["late"]] == [duty]
    assert "duty_late" in {warning["code"] for warning in shown["warnings"]}
