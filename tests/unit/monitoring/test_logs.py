"""What a person reads in the log, who has never read these pages."""

from __future__ import annotations

import dataclasses
import logging
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ha_beat import events
from ha_beat.monitoring.logs import LogWriter
from ha_beat.reasons import TermEnd, TermStart, UncertainReason

DUE = datetime(2026, 3, 1, 3, 30, 0, 250_000, tzinfo=UTC)
REFUSED = "ConnectionError: Error 111 connecting to 127.0.0.1:6379. Connection refused."


def worded(event: events.Event, caplog: pytest.LogCaptureFixture) -> str:
    caplog.clear()
    with caplog.at_level(logging.DEBUG, "ha_beat"):
        LogWriter("replica", "shop")(event)
    (record,) = caplog.records
    return record.getMessage()


def test_a_skip_says_of_what_when_and_why(caplog: pytest.LogCaptureFixture) -> None:
    one = events.OccurrenceSkipped("report", DUE, DUE, 1, "coalesced")
    assert worded(one, caplog) == (
        "Skipped report, due 2026-03-01 03:30:00.250Z: coalesced (overdue; only the latest runs)"
    )
    many = events.OccurrenceSkipped("report", DUE, DUE + timedelta(hours=2), 3, "not enqueued within the deadline")
    assert worded(many, caplog) == (
        "Skipped report, 3 occurrences due from 2026-03-01 03:30:00.250Z to before 2026-03-01 05:30:00.250Z: "
        "not enqueued within the deadline"
    )


@pytest.mark.parametrize("reason", ["coalesced", "missed", "misfire_grace", "misfire_limit", "state_loss", "edited"])
def test_each_reason_of_ours_is_explained_where_it_is_told(reason: str, caplog: pytest.LogCaptureFixture) -> None:
    line = worded(events.OccurrenceSkipped("report", DUE, DUE, 1, reason), caplog)
    assert f": {reason} (" in line


def test_an_outage_tells_what_is_away_and_what_becomes_of_this_replica(caplog: pytest.LogCaptureFixture) -> None:
    away = (
        "No access to the lease in Redis: ConnectionError: Error 111 connecting to 127.0.0.1:6379. Connection refused"
    )
    assert worded(events.LeaseUnreachable(REFUSED, leading=False), caplog) == f"{away}; standing by"
    assert worded(events.LeaseUnreachable(REFUSED, leading=True), caplog).startswith(f"{away}; still leading")
    assert worded(events.LeaseReachable(12.5), caplog) == "Access to the lease in Redis is back after 12.5 s"


def test_a_pause_tells_how_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    line = worded(events.Paused(DUE, "ann@web-1", "", found=False), caplog)
    assert "since 2026-03-01 03:30:00.250Z by ann@web-1 (no reason given)" in line
    assert "celery ha-beat resume" in line


def test_a_doubt_without_an_instant_is_told_as_well(caplog: pytest.LogCaptureFixture) -> None:
    line = worded(events.OccurrenceUncertain("report", None, "id", UncertainReason.NO_ANSWER, "timeout"), caplog)
    assert line == "Nobody knows whether report was enqueued (task id id): timeout"
    assert "report of 2026-03-01 03:30:00.250Z" in worded(
        events.OccurrenceUncertain("report", DUE, "id", UncertainReason.UNCONFIRMED), caplog
    )


def _every_warning() -> list[events.Event]:
    """One of each event that a replica warns of."""
    made: list[events.Event] = []
    for kind in {kind.__name__: kind for kind in events.Event.__subclasses__()}.values():
        sample: dict[str, object] = {}
        for field in dataclasses.fields(kind):
            sample[field.name] = _SAMPLES.get(str(field.type), "x")
        made.append(kind(**sample))
    return [*made, events.DispatchFailed(0, "x")]


_SAMPLES: dict[str, object] = {
    "int": 1,
    "float": 1.0,
    "bool": False,
    "datetime": DUE,
    "datetime | None": DUE,
    "TermStart": TermStart.EXPIRED,
    "TermEnd": TermEnd.STALLED,
}


@pytest.mark.parametrize("event", _every_warning(), ids=lambda event: type(event).__name__)
def test_each_warning_is_explained_in_the_docs(event: events.Event, caplog: pytest.LogCaptureFixture) -> None:
    """`docs/troubleshooting.md` has a row that begins as the line does; what varies is an ellipsis there."""
    with caplog.at_level(logging.WARNING, "ha_beat"):
        LogWriter("replica", "shop")(event)
    page = (Path(__file__).parents[3] / "docs" / "troubleshooting.md").read_text()
    rows = re.findall(r"^\| `([^`]+)` \|", page.partition("## What a log line means")[2], re.MULTILINE)
    known = [re.compile(re.escape(row).replace("…", ".*")) for row in rows]
    for record in caplog.records:
        assert any(row.match(record.getMessage()) for row in known), record.getMessage()
