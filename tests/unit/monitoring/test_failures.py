"""Every failure shows in the log, in a metric and in the status. Tracebacks are logged once, without secrets."""

import logging
from datetime import UTC, datetime
from typing import Any

import pytest

from ha_beat import events
from ha_beat.monitoring.logs import LogWriter, line_of
from ha_beat.reasons import Duty, DutyFault, EntryFault
from tests.unit.monitoring.scene import Scene
from tests.unit.monitoring.test_wording import EVENTS, LOGGED

#: Warnings about something that works as intended.
NO_PROBLEM = (events.Paused, events.Resumed, events.RequestAnswered, events.BatchDispatched)

#: Problems that the status reads from the journal, the member record, the snapshot or the duties.
FROM_ELSEWHERE = (
    *(events.TermEnded, events.OccurrenceSkipped, events.OccurrenceUncertain),
    *(events.ClockOffset, events.RecordUnreadable, events.DutyLate),
)

PROBLEMS = [event for event in EVENTS if event.problem]


def leading_scene() -> Scene:
    scene = Scene()
    scene.lead()
    return scene


def shown(scene: Scene) -> dict[str, Any]:
    document = scene.document()
    return {name: document[name] for name in ("warnings", "members", "replica")}


def raised(text: str, *, elsewhere: bool = False) -> Exception:
    try:
        if elsewhere:
            raise ConnectionError(text)
        raise ConnectionError(text)
    except ConnectionError as exc:
        return exc


def not_built(entry: str, exc: Exception) -> events.EntryFailed:
    return events.EntryFailed.raised(entry, EntryFault.MESSAGE_NOT_BUILT, exc)


@pytest.mark.parametrize("event", LOGGED, ids=lambda event: type(event).__name__)
def test_event_with_a_line_reaches_the_log_and_warnings_are_problems(event, caplog):
    level, _, _ = line_of(event, "shop")
    assert event.problem == (level >= logging.WARNING and not isinstance(event, NO_PROBLEM))
    for least in (logging.DEBUG, logging.INFO, logging.WARNING):
        with caplog.at_level(least, "ha_beat"):
            assert LogWriter.wants(event) or level < least


def test_events_of_a_dispatch_do_not_wake_the_log_by_default(caplog):
    """At Celery's default level they have no line."""
    enqueued = events.Enqueued("e", "task", "id", datetime.now(UTC), 0.0)
    with caplog.at_level(logging.WARNING, "ha_beat"):
        assert not LogWriter.wants(enqueued)
        assert not LogWriter.wants(events.BatchDispatched(1, 0.1, 0))


@pytest.mark.parametrize("event", PROBLEMS, ids=lambda event: type(event).__name__)
def test_problem_is_counted_and_shown(event):
    scene = leading_scene()
    metrics = scene.metrics()
    name = f'ha_beat_problems_total{{action="{event.action}"}}'
    assert f"{name} 0.0" in metrics.text().decode()
    metrics(event)
    assert f"{name} 1.0" in metrics.text().decode()

    if not isinstance(event, FROM_ELSEWHERE):
        if not isinstance(event, events.EntryFailed):
            # A leader reports failing entries. Only a standby reports that Redis is unreachable.
            scene.election.term = None
        before = shown(scene)
        scene.status.memory(event)
        assert shown(scene) != before


@pytest.mark.parametrize("duty", Duty)
def test_late_duty_is_logged_measured_and_shown(duty):
    scene = leading_scene()
    scene.duties.done(duty)
    scene.clock.advance(3)
    scene.duties.failed(duty, DutyFault.REFUSED, "NOPERM")
    scene.duties.check()
    (late,) = scene.events.of(events.DutyLate)
    assert line_of(late, "shop") is not None
    assert f'ha_beat_duty_late_seconds{{duty="{duty}"}} 3.0' in scene.metrics().text().decode()
    assert [each["duty"] for each in scene.document()["replica"]["late"]] == [duty]
    assert "duty_late" in scene.warned()


def test_traceback_is_logged_once_per_entry_and_error(caplog):
    """The text of the error may differ at each occurrence."""
    write = LogWriter("replica", "shop")
    failures = [("a", "1", False), ("a", "2", False), ("b", "3", False), ("a", "4", True), ("a", "5", False)]
    for entry, text, elsewhere in failures:
        write(not_built(entry, raised(text, elsewhere=elsewhere)))
    assert [bool(record.exc_info) for record in caplog.records] == [True, False, True, True, False]
    assert [vars(record)["detail"][-1] for record in caplog.records] == ["1", "2", "3", "4", "5"]


def test_traceback_has_no_secrets(caplog):
    LogWriter("replica", "shop")(not_built("a", raised("amqp://u:slash/pw@h//")))
    logging.getLogger("ha_beat").error("A turn failed", exc_info=raised("redis://:at@pw@h"))
    assert "Traceback" in caplog.text
    assert "pw" not in caplog.text
