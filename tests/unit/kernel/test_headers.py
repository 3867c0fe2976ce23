"""Occurrence of a task, from its request."""

from datetime import UTC, datetime
from types import SimpleNamespace

from celery.app.task import Context
from hypothesis import given
from hypothesis import strategies as st

import ha_beat

INSTANT = "2026-01-01T00:00:00.000000+00:00"
HEADER = {"cluster": "c", "entry": "report", "scheduled_at": INSTANT, "epoch": 7, "run_count": 3}


def test_request_with_the_header_has_its_occurrence():
    """Celery makes the headers of a message attributes of the request."""
    found = ha_beat.occurrence_of(Context({"ha_beat": HEADER}))
    assert (found.entry, found.scheduled_at, found.manual) == ("report", datetime(2026, 1, 1, tzinfo=UTC), False)
    assert found.attributes()["ha_beat.epoch"] == 7
    assert all(isinstance(value, str | int | bool) for value in found.attributes().values())


def test_retry_keeps_the_header():
    assert ha_beat.occurrence_of(SimpleNamespace(headers={"ha_beat": HEADER})) is not None


def test_other_requests_have_no_occurrence():
    assert ha_beat.occurrence_of(Context({})) is None
    assert ha_beat.occurrence_of(None) is None


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda c: st.dictionaries(st.text(), c)))
def test_malformed_header_never_raises(header):
    assert ha_beat.occurrence_of(SimpleNamespace(ha_beat=header)) is None
