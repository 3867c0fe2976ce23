"""Import from other schedulers, from files, keys and rows that they wrote themselves."""

import importlib.util
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.beat import PersistentScheduler
from celery.schedules import schedule
from click.testing import CliRunner, Result

from ha_beat.cli.celery_command import ha_beat
from ha_beat.store.ledger import LedgerRow
from tests.faults.cluster import STOCK_SCHEDULER, BeatCluster
from tests.support.apps.tick_app import beat_schedule
from tests.support.servers import PartMissing, RedisServer, need, wait_for

SPEC = {"hourly": {"every": 3600}, "daily": {"every": 86400}, "new": {"every": 3600}}
NOW = datetime.now(UTC)
LEDGER = "{ha-beat:tick}:ledger"

#: One entry is overdue by half an hour, the other is due in half a day.
LAST = {"hourly": NOW - timedelta(minutes=90), "daily": NOW - timedelta(hours=12)}


@pytest.fixture
def app(redis_server: RedisServer) -> Iterator[Celery]:
    app = Celery("tick", broker=redis_server.url, set_as_current=False)
    app.conf.update(timezone="UTC", beat_scheduler="ha_beat")
    app.conf.beat_schedule = beat_schedule(SPEC)
    yield app
    app.close()


def migrate(app: Celery, *args: str) -> Result:
    return CliRunner().invoke(ha_beat, ["migrate", *args], obj=SimpleNamespace(app=app))


def rows(server: RedisServer) -> dict[str, LedgerRow]:
    ledger: Any = server.client(decode_responses=True).hgetall(LEDGER)
    found = {field[2:]: LedgerRow.parse(raw) for field, raw in ledger.items() if field.startswith("e:")}
    assert None not in found.values()
    return found  # type: ignore[return-value]


def beat_file(app: Celery, folder: Path) -> str:
    """Write the schedule file of a stopped beat, and return its path."""
    path = str(folder / "celerybeat-schedule")
    beat = PersistentScheduler(app=app, schedule_filename=path)
    for name, at in LAST.items():
        beat.schedule[name].last_run_at = at
        beat.schedule[name].total_run_count = 7
    del beat.schedule["new"]
    beat.close()
    return path


def test_celerybeat_file_is_imported(app, redis_server, tmp_path):
    """Entries keep their last run and run count. A new entry gets no row."""
    result = migrate(app, "--from", "celerybeat", "--file", beat_file(app, tmp_path))
    assert result.exit_code == 0, result.output
    found = rows(redis_server)
    assert {name: (found[name].base, found[name].run_count, found[name].verdict) for name in LAST} == {
        name: (at, 7, "armed") for name, at in LAST.items()
    }
    assert "new" not in found


def test_occurrence_missed_during_the_switch_is_enqueued_once(app, redis_server, tmp_path):
    assert migrate(app, "--from", "celerybeat", "--file", beat_file(app, tmp_path)).exit_code == 0
    with BeatCluster(redis_server.url, spec=SPEC, replicas=2, settings={"lease_ttl": 3}) as cluster:
        leader = cluster.wait_for_leader()
        wait_for(lambda: redis_server.admin.llen("celery") == 1, 20, "the overdue occurrence")
        leader.kill()
        cluster.wait_for_leader(other_than=leader)
        wait_for(lambda: "new" in rows(redis_server), 20, "the next leader at work")
    headers = [json.loads(raw)["headers"] for raw in redis_server.client().lrange("celery", 0, -1)]
    assert [each["ha_beat"]["entry"] for each in headers] == ["hourly"]
    assert datetime.fromisoformat(headers[0]["ha_beat"]["scheduled_at"]) == LAST["hourly"] + timedelta(hours=1)
    assert headers[0]["ha_beat"]["run_count"] == 8


@pytest.mark.slow
def test_switch_from_a_running_beat_loses_and_repeats_no_occurrence(app, redis_server):
    """Stop beat, migrate, start ha_beat: each second after the last run has one message."""
    spec, queue = {"second": {"every": 1.0}}, redis_server.client()
    app.conf.beat_schedule = beat_schedule(spec)
    with BeatCluster(redis_server.url, spec=spec, replicas=1, scheduler=STOCK_SCHEDULER) as old:
        wait_for(lambda: queue.llen("celery") >= 3, 40, "the old beat's messages")
        old[0].terminate()
        before = queue.llen("celery")
        done = migrate(app, "--from", "celerybeat", "--file", str(old[0].directory / "schedule"))
        assert done.exit_code == 0, done.output
    stood = rows(redis_server)["second"]
    assert stood.run_count == before
    with BeatCluster(redis_server.url, spec=spec, settings={"misfire": "all"}):
        wait_for(lambda: queue.llen("celery") >= before + 5, 40, "ha_beat's messages")
    headers = [json.loads(raw)["headers"] for raw in queue.lrange("celery", 0, -1)]
    due = sorted(datetime.fromisoformat(each["ha_beat"]["scheduled_at"]) for each in headers if "ha_beat" in each)
    assert len(headers) == before + len(due)
    assert due == [stood.base + timedelta(seconds=number) for number in range(1, len(due) + 1)]


def redbeat_entry(app: Celery, name: str, at: datetime | None) -> None:
    """Write what redbeat writes for an entry that it has dispatched."""
    from redbeat import RedBeatSchedulerEntry
    from redbeat.schedulers import ensure_conf

    ensure_conf(app)
    entry = RedBeatSchedulerEntry(name, "tick", schedule(3600, app=app), app=app)
    entry.save()
    if at is not None:
        entry._next_instance(last_run_at=at)


def need_module(name: str) -> None:
    def find() -> ModuleSpec:
        if (spec := importlib.util.find_spec(name)) is None:
            raise PartMissing(f"this test needs {name}")
        return spec

    need(find)


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
def test_redbeat_keys_are_imported(app, redis_server, zone):
    """Time zone and key prefix are respected; an entry that is not in beat_schedule is named."""
    need_module("redbeat")
    app.conf.update(timezone=zone, redbeat_redis_url=redis_server.url, redbeat_key_prefix="mine:")
    redbeat_entry(app, "hourly", LAST["hourly"].astimezone(app.timezone))
    redbeat_entry(app, "daily", None)
    redbeat_entry(app, "made-by-code", LAST["daily"])
    result = migrate(app, "--from", "redbeat")
    assert (result.exit_code, "made-by-code" in result.output) == (0, True), result.output
    found = rows(redis_server)
    assert set(found) == {"hourly", "daily"}
    assert (found["hourly"].base, found["hourly"].run_count) == (LAST["hourly"], 1)
    # It has not run: redbeat counts from its creation.
    assert NOW - timedelta(seconds=1) <= found["daily"].base


def test_dry_run_writes_nothing(app, redis_server, tmp_path):
    assert migrate(app, "--from", "celerybeat", "--file", beat_file(app, tmp_path), "--dry-run").exit_code == 0
    assert redis_server.client().keys("{ha-beat*") == []


def test_existing_row_is_replaced_only_by_force_and_a_later_run(app, redis_server, tmp_path):
    """A row that moved back would repeat occurrences."""
    args = ["--from", "celerybeat", "--file", beat_file(app, tmp_path)]
    migrate(app, *args)
    before = rows(redis_server)
    client: Any = redis_server.client()
    for name, shift in (("hourly", -5), ("daily", 5)):
        moved = LedgerRow(base=before[name].base + timedelta(minutes=shift), verdict="enqueued", run_count=9)
        client.hset(LEDGER, f"e:{name}", moved.encoded())
    moved_rows = rows(redis_server)
    assert migrate(app, *args).exit_code == 0
    assert rows(redis_server) == moved_rows
    assert migrate(app, *args, "--force").exit_code == 0
    assert rows(redis_server)["daily"] == moved_rows["daily"]
    assert rows(redis_server)["hourly"].base == LAST["hourly"]


def test_migrate_is_refused_while_there_is_a_leader(app, redis_server, tmp_path):
    path = beat_file(app, tmp_path)
    spec = {"other": {"every": 3600}}
    with BeatCluster(redis_server.url, spec=spec, replicas=1, settings={"lease_ttl": 3}) as cluster:
        leader = cluster.wait_for_leader()
        wait_for(lambda: "other" in rows(redis_server), 20, "its first work")
        result = migrate(app, "--from", "celerybeat", "--file", path)
        assert (result.exit_code, leader.name in result.output) == (1, True)
        assert not set(rows(redis_server)) & set(LAST)


def test_invalid_schedule_file_is_refused_in_one_line(app, tmp_path):
    (tmp_path / "other").write_text("no shelf")
    for name in ("nothing", "other"):
        result = migrate(app, "--from", "celerybeat", "--file", str(tmp_path / name))
        assert (result.exit_code, len(result.output.splitlines())) == (2, 1)


def test_missing_redbeat_keys_are_an_error(app):
    """A wrong prefix must not look like a finished import."""
    result = migrate(app, "--from", "redbeat", "--redbeat-prefix", "elsewhere:")
    assert (result.exit_code, "elsewhere:" in result.output, "redis://" in result.output) == (1, True, True)


@pytest.mark.parametrize(
    "scheduler",
    ["django.schedulers:HADatabaseScheduler", "sqlalchemy", "redbeat", "redbeat.schedulers:HARedBeatScheduler"],
)
def test_schedule_in_a_store_needs_no_import(app, scheduler):
    app.conf.beat_scheduler = f"ha_beat.{scheduler}"
    assert migrate(app, "--from", "redbeat").exit_code == 2


def test_rows_of_sqlalchemy_celery_beat_are_imported(app, redis_server, tmp_path):
    need_module("sqlalchemy_celery_beat")
    from sqlalchemy import create_engine
    from sqlalchemy.orm import Session
    from sqlalchemy_celery_beat.models import IntervalSchedule, ModelBase, PeriodicTask

    app.conf.beat_dburi = f"sqlite:///{tmp_path}/rows.db"
    engine = create_engine(app.conf.beat_dburi, execution_options={"schema_translate_map": {"celery_schema": None}})
    ModelBase.metadata.create_all(engine)
    with Session(engine) as session:
        hour = IntervalSchedule(every=1, period="hours")
        session.add(hour)
        session.flush()
        for name, at in LAST.items():
            fields = {"name": name, "task": "tick", "last_run_at": at, "total_run_count": 7, "enabled": True}
            session.add(PeriodicTask(schedule_model=hour, **fields))
        session.commit()
    engine.dispose()
    result = migrate(app, "--from", "sqlalchemy")
    assert result.exit_code == 0, result.output
    found = {name: (row.base, row.run_count) for name, row in rows(redis_server).items()}
    assert found == {name: (at, 7) for name, at in LAST.items()}
