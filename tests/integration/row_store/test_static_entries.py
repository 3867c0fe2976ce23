"""Contract of each store: changed entries of the settings are written to rows, and no edit is overwritten."""

from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import Mock

import pytest
from celery.schedules import crontab

from ha_beat import events
from ha_beat.row_store.static_entries import Mark, write_changed
from tests.integration.django.conftest import _migrated_sqlite, postgres_site, site  # noqa: F401 -- fixtures
from tests.integration.row_store.replica import Replica


class Settings:
    """Entries of the settings, written as the leader writes them."""

    def __init__(self, rows: Any) -> None:
        self.store = rows.store()
        self.marks: dict[str, Mark] = {}
        self.failed: list[events.Event] = []

    def write(self, **entries: Any) -> set[str]:
        definitions = {name: {"task": "tick", **entry} for name, entry in entries.items()}
        written = write_changed(definitions, self.marks, self.store, 1000, self.failed.append)
        self.marks |= written
        return set(written)


@pytest.fixture
def settings(rows: Any) -> Settings:
    return Settings(rows)


def test_static_entry_is_written_once_and_an_edit_or_deletion_is_kept(rows, settings, monkeypatch):
    entry = {"schedule": 0.5, "options": {"queue": "q", "ha_beat": {"misfire": "all"}}}
    cron = {"schedule": crontab(minute="5"), "options": {"expires": timedelta(seconds=2.5)}}
    assert settings.write(entry=entry, cron=cron) == {"entry", "cron"}
    replica = Replica(rows, leads=False)
    assert replica.entry("entry").options["ha_beat"] == {"misfire": "all"}
    assert replica.entry("entry").schedule.run_every == timedelta(seconds=0.5)
    assert rows.column("cron", "expire_seconds") == 3
    rows.save("entry", queue="edited")
    rows.delete("cron")
    assert settings.write(entry=entry, cron=cron) == set()
    assert rows.column("entry", "queue") == "edited"
    with monkeypatch.context() as new:
        # A new database lacks all entries.
        present = settings.store.static.present
        new.setattr(type(settings.store.static), "present", lambda _, names: ("new", present(names)[1]))
        assert settings.write(entry=entry, cron=cron) == {"cron"}
    assert settings.write(entry={**entry, "args": [1]}, cron={**cron, "kwargs": {"a": 1}}) == {"entry", "cron"}
    assert (rows.column("entry", "queue"), rows.column("cron", "kwargs")) == ("q", '{"a": 1}')


def test_static_entry_that_no_row_holds_is_left_out(settings):
    assert settings.write(bad={"schedule": "never"}, good={"schedule": 5.0}) == {"good"}
    [failed] = settings.failed
    assert failed.entry == "bad"


def test_options_that_no_row_can_hold_are_named(rows, settings, caplog):
    kept = {"queue": "q", "priority": 3, "headers": {"a": 1}}
    at = datetime(2030, 1, 1, tzinfo=UTC)
    with caplog.at_level("WARNING", "ha_beat"):
        settings.write(
            seconds={"schedule": 5.0, "options": {**kept, "expires": timedelta(seconds=2.5), "time_limit": 9}},
            instant={"schedule": 5.0, "options": {**kept, "expires": at}},
        )
    columns = [rows.column("seconds", name) for name in ("queue", "priority", "expire_seconds", "expires")]
    assert columns == ["q", 3, 3, None]
    assert rows.column("instant", "expires") in {at, at.replace(tzinfo=None)}
    [dropped] = [record for record in caplog.records if getattr(record, "action", "") == "static_options_dropped"]
    assert (dropped.entry, dropped.options) == ("seconds", ["time_limit"])


def test_error_of_the_database_is_raised_for_a_retry(settings, monkeypatch):
    monkeypatch.setattr(type(settings.store.static), "write", Mock(side_effect=OSError))
    with pytest.raises(OSError):
        settings.write(good={"schedule": 5.0})
    assert settings.failed == []
