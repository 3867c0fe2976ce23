"""When an entry of the settings has to be written to its row."""

from typing import Any

import pytest
from celery import Celery, current_app
from celery.schedules import crontab

from ha_beat.row_store.static_entries import Mark, digest


def test_digest_distinguishes_definitions():
    definition = {"task": "t", "schedule": crontab(minute="5"), "options": {"queue": "q"}}
    assert digest(definition) == digest({**definition, "schedule": crontab(minute="5")})
    assert digest(definition) != digest({**definition, "schedule": crontab(minute="6")})
    assert digest(definition) != digest({**definition, "options": {"queue": "r"}})
    assert digest({"task": "t", "schedule": 5}) != digest({"task": "t", "schedule": 6})


def test_digest_of_a_crontab_depends_on_celerys_time_zone():
    """A crontab without a time zone is written to its row with that of ``CELERY_TIMEZONE``."""
    before: Any = current_app
    before = before._get_current_object()
    digests = []
    try:
        for zone in ("UTC", "UTC", "Europe/Berlin"):
            Celery(zone, timezone=zone).set_current()
            digests.append(digest({"task": "t", "schedule": crontab(minute="0", hour="4")}))
    finally:
        before.set_current()
    assert digests[0] == digests[1] != digests[2]


LAST = Mark("one", 1000, "db")
OTHER_DB = {"database": "another"}


@pytest.mark.parametrize(
    ("last", "change", "has_row", "needed"),
    [
        *((None, {}, has_row, True) for has_row in (True, False)),
        *((LAST, {}, has_row, False) for has_row in (True, False)),
        *((LAST, {"digest": "two"}, has_row, True) for has_row in (True, False)),
        *((LAST, {"digest": "two", "began_ms": 999}, has_row, False) for has_row in (True, False)),
        (LAST, OTHER_DB, True, False),
        (LAST, OTHER_DB, False, True),
        (LAST, {"database": ""}, False, True),
    ],
)
def test_entry_is_written_if_new_or_changed_by_a_later_process(last, change, has_row, needed):
    mark = LAST._replace(**{"began_ms": 2000, **change})
    assert mark.needs_write(last, has_row=has_row) is needed


@pytest.mark.parametrize(
    ("text", "mark"), [("one 1000 db", LAST), ("one 1000", LAST._replace(database="")), ("one", Mark("one", 0, ""))]
)
def test_mark_is_read_as_it_was_written(text, mark):
    """Marks of earlier releases have fewer parts."""
    assert Mark.parse(text) == mark
    assert Mark.parse(str(mark)) == mark


@pytest.mark.parametrize("text", ["", "one", "one x db", "one 1e3", "one -5 db", "one  db two"])
def test_malformed_mark_does_not_prevent_the_start_of_a_term(text):
    """All marks are read together: an error in one would leave all entries and all missing runs unwritten."""
    last = Mark.parse(text)
    assert last.began_ms == 0
    assert Mark("two", 1, "db").needs_write(last, has_row=True)
