"""One bad entry never stops the others: it is named in the log, gets its verdict, and the rest goes on."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Task
from celery.beat import BeatLazyFunc
from celery.schedules import BaseSchedule, schedstate, schedule

from tests.integration.dispatch.conftest import Bench

GOOD = {f"good-{n}": {"task": "good"} for n in range(3)}


def fails() -> None:
    raise RuntimeError("no argument today")


class Raises(Task):  # type: ignore[type-arg]
    def apply_async(self, *args: Any, **options: Any) -> Any:
        raise RuntimeError("no sending today")


class Silent(Task):  # type: ignore[type-arg]
    def apply_async(self, *args: Any, **options: Any) -> Any:
        return None


# what is wrong: (the entry, what the log has to say)
SKIPPED: dict[str, tuple[dict[str, Any], str]] = {
    "unserialisable arguments": ({"task": "good", "args": (object(),)}, "EncodeError"),
    "unknown serializer": ({"task": "good", "options": {"serializer": "runes"}}, "runes"),
    "unknown compression": ({"task": "good", "options": {"compression": "vacuum"}}, "vacuum"),
    "unusable expires": ({"task": "good", "options": {"expires": "soon"}}, "soon"),
    "lazy argument raises": ({"task": "good", "args": (BeatLazyFunc(fails),)}, "no argument today"),
    "apply_async raises": ({"task": "raises"}, "no sending today"),
    "apply_async sends nothing": ({"task": "silent"}, "NothingPublished"),
    "arguments that the task has not": ({"task": "typed", "args": (1, 2, 3)}, "TypeError"),
}


def with_tasks(bench: Bench) -> Bench:
    def typed(one: int) -> None: ...

    bench.app.task(name="raises", base=Raises, shared=False)(nothing)
    bench.app.task(name="silent", base=Silent, shared=False)(nothing)
    bench.app.task(name="typed", shared=False)(typed)
    return bench


def nothing() -> None: ...


def queued(bench: Bench) -> list[str]:
    """The entries whose messages are in the queue, oldest first."""
    raw: Any = bench.server.admin.lrange("celery", 0, -1)
    return [json.loads(message)["headers"]["ha_beat"]["entry"] for message in reversed(raw)]


@pytest.mark.parametrize("what", SKIPPED)
def test_an_entry_that_no_message_can_be_made_of(
    what: str, make_bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture
):
    """Its occurrence is skipped with the reason, in ledger and journal."""
    bad, hint = SKIPPED[what]
    bench = with_tasks(make_bench())
    with caplog.at_level(logging.INFO):
        bench.run_scheduler({"a-bad one": bad, **GOOD})
    assert sorted(queued(bench)) == sorted(GOOD)
    row = bench.ledger()["a-bad one"]
    assert row["verdict"] == "skipped"
    assert hint in row["detail"]
    lines = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR and "a-bad one" in r.getMessage()]
    assert any(hint in line for line in lines), lines


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
def test_an_entry_that_cannot_be_scheduled(
    bad: dict[str, Any], hint: str, make_bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture
):
    """It is left out, and the log says which and why."""
    bench = make_bench()
    with caplog.at_level(logging.INFO):
        bench.run_scheduler({"a-bad one": bad, **GOOD}, settled=len(GOOD))
    assert sorted(queued(bench)) == sorted(GOOD)
    told = [
        record.getMessage() + str(record.exc_info)
        for record in caplog.records
        if record.levelno >= logging.ERROR and "a-bad one" in record.getMessage()
    ]
    assert any(hint in line for line in told), told


def test_a_queue_that_is_no_list_stops_only_its_own_entry(
    make_bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture
):
    """Somebody else's key has the queue's name: kombu reports that as it does a lost connection."""
    bench = make_bench()
    bench.server.admin.set("taken", "not a list")
    with caplog.at_level(logging.INFO):
        bench.run_scheduler({"a-bad one": {"task": "good", "options": {"queue": "taken"}}, **GOOD})
    assert sorted(queued(bench)) == sorted(GOOD)
    row = bench.ledger()["a-bad one"]
    assert (row["verdict"], "WRONGTYPE" in row["detail"]) == ("skipped", True)
    assert any("a-bad one" in record.getMessage() and "taken" in record.getMessage() for record in caplog.records)


def test_what_is_overdue_leaves_in_the_order_of_its_due_time(make_bench: Callable[..., Bench]):
    """Over several batches, however the schedule is ordered."""
    bench = make_bench({"ha_beat_batch_size": 7})
    now = datetime.now(UTC)
    late = {f"late-{n:02}": now - timedelta(hours=1, seconds=(n * 37) % 50 + 1) for n in range(50)}
    bench.run_scheduler({name: {"task": "good", "last_run_at": last} for name, last in late.items()})
    assert queued(bench) == sorted(late, key=late.__getitem__)


def test_a_row_of_newer_software_is_left_alone(make_bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture):
    """A replica that was rolled back does not overwrite what it can't read, and says so."""
    bench = make_bench()
    key = f"{{ha-beat:{bench.app.main}}}:ledger"
    bench.server.admin.hset(key, "e:a-bad one", '{"v":99}')
    bench.run_scheduler({"a-bad one": {"task": "good"}, **GOOD}, settled=len(GOOD))
    assert sorted(queued(bench)) == sorted(GOOD)
    assert bench.server.admin.hget(key, "e:a-bad one") == '{"v":99}'
    assert any("a-bad one" in record.getMessage() for record in caplog.records)
