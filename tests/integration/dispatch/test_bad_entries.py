"""Bad entries. They must not stop the others."""

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Task
from celery.beat import BeatLazyFunc
from celery.schedules import BaseSchedule, schedstate, schedule

from ha_beat.reasons import EntryFault, SkipReason
from tests.integration.dispatch.conftest import MakeComparison, RedisComparison

GOOD = {f"good-{n}": {"task": "good"} for n in range(3)}


def fails() -> None:
    raise RuntimeError("no argument today")


class Raises(Task):  # type: ignore[type-arg]
    def apply_async(self, *args: Any, **options: Any) -> Any:
        raise RuntimeError("no sending today")


class Silent(Task):  # type: ignore[type-arg]
    def apply_async(self, *args: Any, **options: Any) -> Any:
        return None


# Fault: the entry, and a part of the logged error.
SKIPPED: dict[str, tuple[dict[str, Any], str]] = {
    "unserialisable arguments": ({"task": "good", "args": (object(),)}, "EncodeError"),
    "unknown serializer": ({"task": "good", "options": {"serializer": "runes"}}, "runes"),
    "unknown compression": ({"task": "good", "options": {"compression": "vacuum"}}, "vacuum"),
    "unusable expires": ({"task": "good", "options": {"expires": "soon"}}, "soon"),
    "lazy argument raises": ({"task": "good", "args": (BeatLazyFunc(fails),)}, "no argument today"),
    "apply_async raises": ({"task": "raises"}, "no sending today"),
    "arguments that the task does not have": ({"task": "typed", "args": (1, 2, 3)}, "TypeError"),
}


def nothing() -> None: ...


def typed(one: int) -> None: ...


@pytest.fixture
def comparison(make_comparison: MakeComparison, caplog: pytest.LogCaptureFixture) -> RedisComparison:
    made = make_comparison({"ha_beat_publish_deadline": 1})
    made.app.task(name="raises", base=Raises, shared=False)(nothing)
    made.app.task(name="silent", base=Silent, shared=False)(nothing)
    made.app.task(name="typed", shared=False)(typed)
    caplog.set_level(logging.INFO)
    return made


def errors_of_the_bad_one(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [r for r in caplog.records if r.levelno >= logging.ERROR and vars(r).get("entry") == "a-bad one"]


def detail(record: logging.LogRecord) -> str:
    return f"{vars(record).get('detail', '')} {record.exc_info}"


def test_declining_task_is_skipped_quietly(comparison: RedisComparison, caplog: pytest.LogCaptureFixture):
    """The task returns and publishes nothing, as with celery-singleton while the previous run is queued."""
    comparison.run_scheduler({"a-bad one": {"task": "silent"}, **GOOD})
    assert sorted(comparison.queued()) == sorted(GOOD)
    row = comparison.ledger()["a-bad one"]
    assert (row["verdict"], row["why"]) == ("skipped", SkipReason.DECLINED)
    assert not errors_of_the_bad_one(caplog)


@pytest.mark.parametrize("fault", SKIPPED)
def test_entry_whose_message_cannot_be_built_is_skipped(
    fault: str, comparison: RedisComparison, caplog: pytest.LogCaptureFixture
):
    """The ledger has the reason and the detail."""
    bad, hint = SKIPPED[fault]
    comparison.run_scheduler({"a-bad one": bad, **GOOD})
    assert sorted(comparison.queued()) == sorted(GOOD)
    row = comparison.ledger()["a-bad one"]
    assert row["verdict"] == "skipped"
    assert hint in row["detail"]
    assert any(hint in detail(record) for record in errors_of_the_bad_one(caplog))


class RaisingSchedule(BaseSchedule):
    def is_due(self, last_run_at: datetime) -> schedstate:
        raise RuntimeError("no schedule today")


class RaisesBelow(schedule):
    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        raise RuntimeError("no schedule today")


@pytest.mark.parametrize(
    ("bad", "hint"),
    [
        ({"task": "good", "schedule": RaisingSchedule()}, "no schedule today"),
        ({"task": "good", "schedule": RaisesBelow(60)}, "no schedule today"),
        ({"task": "good", "schedule": timedelta(0)}, "longer than 0 s"),
        ({"task": "good", "schedule": timedelta(-1)}, "longer than 0 s"),
        ({"task": "good", "options": {"ha_beat": {"misfire": "sometimes"}}}, "sometimes"),
        ({"task": "good", "options": {"ha_beat": {"missfire": "once"}}}, "missfire"),
        ({"task": "good", "options": {"ha_beat": {"misfire_grace": "long"}}}, "long"),
        ({"task": "good", "options": {"ha_beat": {"misfire_limit": 0}}}, "misfire_limit"),
        ({"task": "good", "options": {"ha_beat": "all"}}, "ha_beat"),
        ({"task": "good", "colour": "blue"}, "colour"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_entry_that_cannot_be_scheduled_is_left_out(
    bad: dict[str, Any], hint: str, comparison: RedisComparison, caplog: pytest.LogCaptureFixture
):
    comparison.run_scheduler({"a-bad one": bad, **GOOD}, settled=len(GOOD))
    assert sorted(comparison.queued()) == sorted(GOOD)
    assert any(hint in detail(record) for record in errors_of_the_bad_one(caplog))


def test_queue_key_of_another_type_stops_only_its_own_entry(
    comparison: RedisComparison, caplog: pytest.LogCaptureFixture
):
    """kombu reports such a key like a lost connection."""
    comparison.server.admin.set("taken", "not a list")
    comparison.run_scheduler({"a-bad one": {"task": "good", "options": {"queue": "taken"}}, **GOOD})
    assert sorted(comparison.queued()) == sorted(GOOD)
    row = comparison.ledger()["a-bad one"]
    assert (row["verdict"], "WRONGTYPE" in row["detail"]) == ("skipped", True)
    assert any("taken" in detail(record) for record in errors_of_the_bad_one(caplog))


def test_overdue_entries_are_enqueued_in_order_of_due_time(make_comparison: MakeComparison):
    """Over several batches, in any order of the schedule."""
    comparison = make_comparison({"ha_beat_batch_size": 7})
    now = datetime.now(UTC)
    late = {f"late-{n:02}": now - timedelta(hours=1, seconds=(n * 37) % 50 + 1) for n in range(50)}
    comparison.run_scheduler({name: {"task": "good", "last_run_at": last} for name, last in late.items()})
    assert comparison.queued() == sorted(late, key=late.__getitem__)


def test_row_of_a_newer_version_is_left_alone(comparison: RedisComparison, caplog: pytest.LogCaptureFixture):
    """A replica that was rolled back does not overwrite a row that it cannot read, and logs it."""
    ledger = comparison.keys.ledger
    comparison.server.admin.hset(ledger, "e:a-bad one", '{"v":99}')
    comparison.run_scheduler({"a-bad one": {"task": "good"}, **GOOD}, settled=len(GOOD))
    assert sorted(comparison.queued()) == sorted(GOOD)
    assert comparison.server.admin.hget(ledger, "e:a-bad one") == '{"v":99}'
    failed = [vars(record) for record in caplog.records if vars(record).get("action") == "entry_failed"]
    assert {(fields["entry"], fields["reason"]) for fields in failed} == {("a-bad one", EntryFault.ROW_UNREADABLE)}
