"""Tests of the wording of log lines. No other test looks at a sentence of the log."""

import dataclasses
import logging
import re
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

from ha_beat import events, reasons
from ha_beat.monitoring import wording
from ha_beat.monitoring.logs import LogWriter
from ha_beat.monitoring.wording import phrase, phrase_of
from ha_beat.reasons import (
    BackfillOutcome,
    BuildFault,
    Duty,
    DutyFault,
    LeaseAction,
    LeaseOutcome,
    Level,
    MisfirePolicy,
    OverlapPolicy,
    ReplyCode,
    SkipReason,
    TermEnd,
    TermStart,
    UncertainPolicy,
    UncertainReason,
    WarningCode,
)

#: Labels of metrics, values of settings, levels of checks and codes of the status document.
SHOWN_AS_CODES = {BuildFault, LeaseAction, LeaseOutcome, MisfirePolicy, OverlapPolicy, UncertainPolicy}
SHOWN_AS_CODES |= {Level, WarningCode}

DUE = datetime(2026, 3, 1, 3, 30, 0, 250_000, tzinfo=UTC)
REFUSED = "ConnectionError: Error 111 connecting to 127.0.0.1:6379. Connection refused."

_SAMPLES: dict[str, object] = {
    "int": 1,
    "float": 1.0,
    "bool": False,
    "datetime": DUE,
    "datetime | None": DUE,
    "TermStart": TermStart.EXPIRED,
    "TermEnd": TermEnd.STALLED,
    "Duty": Duty.PRESENCE,
    "DutyFault": DutyFault.REFUSED,
    "ReplyCode": ReplyCode.UNCERTAIN,
    "Mapping[str, Any]": {},
}


ROOT = Path(__file__).parents[3]
LOG_LINES = (ROOT / "docs" / "troubleshooting.md").read_text().partition("## Log lines")[2]
INFO_ACTIONS = {"http_serving", "static_entry_deleted", "static_entry_written"}


def sample(kind: type[events.Event]) -> events.Event:
    return kind(**{field.name: _SAMPLES.get(str(field.type), "x") for field in dataclasses.fields(kind)})


_KINDS = {kind.__name__: kind for kind in [*events.Event.__subclasses__(), *events.Problem.__subclasses__()]}
EVENTS = [sample(kind) for name, kind in _KINDS.items() if name != "Problem"]


def logged(event: events.Event, caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    caplog.clear()
    with caplog.at_level(logging.DEBUG, "ha_beat"):
        LogWriter("replica", "shop")(event)
    (record,) = caplog.records
    return record


OVERDUE = events.OccurrenceSkipped("report", DUE, DUE, 1, SkipReason.COALESCED)
SEVERAL = events.OccurrenceSkipped("report", DUE, DUE + timedelta(hours=2), 3, SkipReason.NO_MESSAGE, "KeyError: 'x'")
UNKNOWN = events.OccurrenceUncertain("report", None, "id", UncertainReason.NO_ANSWER, "timeout")


STARTED = events.TermStarted(7, "beat-1", TermStart.EXPIRED)
ENDED = events.TermEnded(7, TermEnd.STEP_DOWN, 90.0)
UNREACHABLE = events.LeaseUnreachable(REFUSED, leading=False)
PAUSED = events.Paused(DUE, "ann@web-1", "", found=False)
AT, LATER = "2026-03-01 03:30:00.250Z", "2026-03-01 05:30:00.250Z"

LINES: list[tuple[events.Event, str]] = [
    (STARTED, "Leading shop in epoch 7: the leader did not renew the lease in time; previous leader: beat-1"),
    (ENDED, "Stopped leading after 90.0 s (epoch 7): a step-down was requested"),
    (OVERDUE, f"Skipped report, due {AT}: overdue; only the newest overdue occurrence runs"),
    (
        SEVERAL,
        f"Skipped report, 3 occurrences due from {AT} until {LATER}: its message could not be built (KeyError: 'x')",
    ),
    (UNREACHABLE, f"The lease in Redis is unreachable ({REFUSED[:-1]}): standing by"),
    (events.LeaseReachable(12.5), "The lease in Redis is reachable again after 12.5 s"),
    (
        PAUSED,
        f"The cluster is paused since {AT} by ann@web-1 (no reason given): run `celery ha-beat resume` to resume it",
    ),
    (
        UNKNOWN,
        "Delivery of report, due at an unknown time, is unknown (task id id): the broker did not answer (timeout)",
    ),
]


@pytest.mark.parametrize(("event", "line"), LINES, ids=[type(event).__name__ for event, _ in LINES])
def test_log_line(event, line, caplog):
    assert logged(event, caplog).getMessage() == line


LOGGED = [event for event in EVENTS if not isinstance(event, events.LeaseAttempted)]


@pytest.mark.parametrize("event", LOGGED, ids=lambda event: type(event).__name__)
def test_record_has_the_action_and_fields_of_its_event(event, caplog):
    record: dict[str, Any] = logged(event, caplog).__dict__
    fields = {field.name for field in dataclasses.fields(event)} - {"exc"}
    assert {name: record[name] for name in fields} == {name: getattr(event, name) for name in fields}
    assert (record["action"], record["cluster"], record["replica"]) == (event.action, "shop", "replica")


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_warning_is_explained_in_the_docs(event, caplog):
    """`docs/troubleshooting.md` has a row with the constant message; an ellipsis stands for each value."""
    with caplog.at_level(logging.WARNING, "ha_beat"):
        LogWriter("replica", "shop")(event)
    rows = re.findall(r"^\| `(.+?)` \|", LOG_LINES, re.MULTILINE)
    for record in caplog.records:
        assert re.sub(r"%(s|\+\.1f)", "…", str(record.msg)).replace("`", "") in rows


def test_warning_that_is_no_event_is_explained_in_the_docs():
    sources = (path.read_text() for path in (ROOT / "ha_beat").rglob("*.py"))
    actions = {action for source in sources for action in re.findall(r'"action": "(\w+)"', source)}
    assert actions - INFO_ACTIONS <= set(re.findall(r"\| `(\w+)` \|", LOG_LINES))


def test_every_enum_has_words_for_each_code_or_is_shown_as_codes():
    enums = {kind for kind in vars(reasons).values() if isinstance(kind, type) and issubclass(kind, StrEnum)}
    assert enums - {StrEnum} - SHOWN_AS_CODES == {*wording._PHRASES, ReplyCode, BackfillOutcome}
    assert [code for kind, words in wording._PHRASES.items() for code in kind if code not in words] == []


def test_equal_values_of_two_enums_have_their_own_words():
    assert phrase(TermEnd.STATE_LOSS) != phrase(SkipReason.STATE_LOSS)
    assert phrase_of(SkipReason, "state_loss") == phrase(SkipReason.STATE_LOSS)


def test_unknown_code_of_a_record_is_shown_unchanged():
    assert phrase_of(SkipReason, "of_a_newer_version") == "of_a_newer_version"
