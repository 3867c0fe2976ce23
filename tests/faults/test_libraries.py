"""Libraries that hook into beat and into tasks, during an outage of the broker: plain beat beside ha_beat."""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import redis

from ha_beat.reasons import SkipReason, Verdict
from ha_beat.store.journal import Journal, VerdictRecord
from ha_beat.store.keys import Keys
from tests.support.servers import RabbitMQ, RedisServer, ServerProcess, need, wait_for

for module in (
    "celery_once",
    "celery_singleton",
    "opentelemetry.instrumentation.celery",
    "opentelemetry.sdk.trace",
    "sentry_sdk",
    "sqlalchemy_celery_beat",
    "tenant_schemas_celery",
):
    pytest.importorskip(module)

APP = """
import json, os, time
from datetime import datetime, timedelta, timezone

import redis
import sentry_sdk
from celery import Celery
from celery.signals import before_task_publish
from celery_once import QueueOnce
from celery_singleton import Singleton
from opentelemetry import trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from sentry_sdk.integrations.celery import CeleryIntegration
from sentry_sdk.transport import Transport

import django_tenants.utils

name, keeper_url, part = os.environ["APP"], os.environ["KEEPER"], os.environ.get("PART", "tasks")
keeper = redis.Redis.from_url(keeper_url)


def note(kind, what=""):
    keeper.rpush(name, json.dumps([kind, what, time.time()]))


class Checkins(Transport):
    def capture_envelope(self, envelope):
        for item in envelope.items:
            if item.type == "check_in":
                note("checkin " + item.payload.json["status"], item.payload.json["monitor_slug"])


class Spans(SpanExporter):
    def export(self, spans):
        for span in spans:
            if span.name.endswith(".monitored"):
                note("span " + span.kind.name)
        return SpanExportResult.SUCCESS


sentry_sdk.init(
    dsn="http://key@127.0.0.1:1/1", transport=Checkins, integrations=[CeleryIntegration(monitor_beat_tasks=True)]
)
trace.set_tracer_provider(TracerProvider())
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(Spans()))
CeleryInstrumentor().instrument()

app = Celery(name, broker=os.environ["BROKER"])
# Each of these is due once, 10 to 50 s after the start.
yesterday = datetime.fromtimestamp(float(os.environ["START"]) - 86_400, timezone.utc)
last_runs = {f"m{number}": yesterday + timedelta(seconds=number) for number in range(10, 50)}
schedules = {
    "tasks": {
        "singleton": {"task": f"{name}.singleton", "schedule": 0.5},
        "once": {"task": f"{name}.once", "schedule": 0.5},
        **{
            entry: {"task": f"{name}.monitored", "schedule": 86_400.0, "last_run_at": last, "args": (entry,)}
            for entry, last in last_runs.items()
        },
    },
    "tenants": {"tenant": {"task": f"{name}.tenant", "schedule": 1.0}},
    "rows": {"row": {"task": f"{name}.row", "schedule": 1.0}},
}
app.conf.update(
    beat_dburi=f"sqlite:///{name}.db",
    beat_schedule=schedules[part],
    broker_connection_max_retries=None,
    broker_connection_retry_on_startup=True,
    ha_beat_cluster=f"{name}-{part}",
    ha_beat_lease_ttl=3,
    ha_beat_misfire="once" if part == "tasks" else "all",
    ha_beat_redis_url=os.environ.get("LEASE"),
    ONCE={"backend": "celery_once.backends.Redis", "settings": {"url": keeper_url, "default_timeout": 3600}},
    result_expires=None,
    singleton_backend_url=keeper_url,
    task_default_queue=name,
    task_ignore_result=True,
    timezone="UTC",
    worker_cancel_long_running_tasks_on_connection_loss=False,
)


@app.task(base=Singleton, name=f"{name}.singleton")
def singleton():
    note("singleton")


@app.task(base=QueueOnce, once={"graceful": True}, name=f"{name}.once")
def once():
    note("once")


@app.task(name=f"{name}.monitored")
def monitored(entry):
    note("monitored", entry)


@before_task_publish.connect
def name_tenant(headers=None, **_):
    headers["tenant"] = django_tenants.utils.current


@app.task(name=f"{name}.tenant", bind=True)
def tenant(self):
    note("tenant " + self.request.tenant)


@app.task(name=f"{name}.row")
def row():
    note("row")
"""

#: Functions of django-tenants that the scheduler of tenant-schemas-celery calls. They need no PostgreSQL.
TENANTS = """
from contextlib import contextmanager
from types import SimpleNamespace

current = "public"


class Rows(list):
    def all(self):
        return self

    def exclude(self, schema_name):
        return Rows(each for each in self if each != schema_name)

    def values_list(self, *_, flat):
        return self


def get_tenant_model():
    return SimpleNamespace(objects=Rows(["public", "north", "south"]))


def get_public_schema_name():
    return "public"


@contextmanager
def schema_context(schema):
    global current
    before, current = current, schema
    try:
        yield
    finally:
        current = before
"""

SCHEDULERS = """
from tenant_schemas_celery.scheduler import TenantAwareScheduler

from ha_beat.scheduler import HAMixin


class Tenants(HAMixin, TenantAwareScheduler):
    pass
"""

#: Scheduler of plain beat and of ours, for each part of the schedule.
BEATS = {
    "tasks": ("celery.beat:PersistentScheduler", "ha_beat"),
    "tenants": ("tenant_schemas_celery.scheduler:TenantAwareScheduler", "schedulers:Tenants"),
    "rows": ("sqlalchemy_celery_beat.schedulers:DatabaseScheduler", "ha_beat.sqlalchemy"),
}

#: Number of entries that are due once.
DUE_ONCE = 40

SECOND = timedelta(seconds=1)

LOCKING = ("singleton", "once")
#: Entries that miss nothing with ``misfire="all"``.
COMPLETE = ("tenant north", "tenant south", "row")


class Run:
    """Plain beats ("stock") and those of ha_beat ("ours") on one broker, each with a worker."""

    def __init__(self, folder: Path, broker: RedisServer | RabbitMQ, keeper: RedisServer, lease: str | None) -> None:
        self.folder, self.keeper = folder, keeper
        self.stack = ExitStack()
        self.lease_url = lease or broker.url
        self.env = {**os.environ, "BROKER": broker.url, "KEEPER": keeper.url, "START": str(time.time())}
        self.lease = {"LEASE": lease} if lease else {}
        (folder / "suites.py").write_text(APP)
        (folder / "schedulers.py").write_text(SCHEDULERS)
        (folder / "django_tenants").mkdir()
        (folder / "django_tenants" / "utils.py").write_text(TENANTS)
        for name in ("stock", "ours"):
            bare = ("--without-mingle", "--without-gossip", "--without-heartbeat")
            self.start(name, "tasks", "worker", "-P", "solo", *bare, "-n", f"{name}@h")
        for part, (stock, ours) in BEATS.items():
            self.start("stock", part, "beat", "-S", stock, "-s", str(folder / "schedule"), "--pidfile=")
            for _ in range(2 if part == "tasks" else 1):
                self.start("ours", part, "beat", "-S", ours, "--pidfile=")

    def start(self, name: str, part: str, *arguments: str) -> None:
        env = {**self.env, "APP": name, "PART": part, **(self.lease if name == "ours" else {})}
        command = [sys.executable, "-m", "celery", "-A", "suites", *arguments, "-l", "INFO"]
        process = ServerProcess(command, self.folder / f"{name}-{arguments[0]}-{part}.log", cwd=self.folder, env=env)
        self.stack.callback(process.kill)

    def notes(self, name: str) -> list[tuple[str, str, float]]:
        raw: Any = self.keeper.admin.lrange(name, 0, -1)
        return [tuple(json.loads(each)) for each in raw]

    def counts(self, name: str, since: float = 0.0) -> Counter[str]:
        """Return how often each kind of event happened since a time."""
        return Counter(kind for kind, _, at in self.notes(name) if at >= since)

    def verdicts(self, part: str) -> list[VerdictRecord]:
        """Return the journal's verdicts for a part of our schedule."""
        keys, client = Keys(f"ours-{part}"), redis.Redis.from_url(self.lease_url)
        return [each for each in Journal(lambda: client, keys).between() if isinstance(each, VerdictRecord)]

    def checkins(self, name: str, status: str) -> list[str]:
        """Return the entries of all check-ins with this status."""
        return [entry for kind, entry, _ in self.notes(name) if kind == f"checkin {status}"]

    def have_ended(self) -> bool:
        """True if each of our entries that was sent has checked in, and all but one at most have ended."""
        sent = DUE_ONCE - sum(in_doubt(each) and each.entry.startswith("m") for each in self.verdicts("tasks"))
        ended = len(set(self.checkins("ours", "ok")))
        return len(set(self.checkins("ours", "in_progress"))) >= sent <= ended + 1

    def wait_for_runs(self, name: str, since: float) -> None:
        wait_for(lambda: all(self.counts(name, since)[kind] > 3 for kind in LOCKING + COMPLETE), 60, f"runs of {name}")

    def wait_for_free_locks(self, name: str) -> None:
        """Wait until the tasks with a lock have just run. A message in doubt would keep its lock for ever."""
        before = self.counts(name)
        wait_for(lambda: all(self.counts(name)[kind] > before[kind] for kind in LOCKING), 30, f"runs of {name}")


def in_doubt(record: VerdictRecord) -> bool:
    """True if the broker may or may not have taken the message when it stopped."""
    return record.verdict is Verdict.UNCERTAIN or record.reason == SkipReason.STATE_LOSS


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["redis", "rabbitmq"])
def test_libraries_work_on_after_an_outage_of_the_broker(tmp_path: Path, redis_server: RedisServer, kind: str):
    """A message that could not be sent leaves no lock to the next one, and no check-in or tenant is lost.

    Occurrences that are due just when the broker stops may be in doubt, and are not sent again.
    """
    make: Callable[[], Any] = RabbitMQ if kind == "rabbitmq" else partial(RedisServer, appendonly=True)
    with need(make) as broker:
        run = Run(tmp_path, broker, redis_server, redis_server.url if kind == "rabbitmq" else None)
        with run.stack:
            run.wait_for_runs("stock", 0.0)
            run.wait_for_runs("ours", 0.0)
            run.wait_for_free_locks("ours")
            ready = time.time()
            broker.stop()
            time.sleep(12)
            broker.start()
            # After the restart a leader waits for a lease's ttl before it dispatches.
            settled = time.time() + 5
            run.wait_for_runs("ours", settled)
            # Our worker may have reconnected later than the other one.
            running = time.time()
            time.sleep(10)
            # The worker may lose one message that it holds when the broker stops.
            wait_for(run.have_ended, 60, "check-ins")
            verdicts = {part: run.verdicts(part) for part in BEATS}
            whole, after = (tuple(run.counts(n, since) for n in ("stock", "ours")) for since in (ready, running))
    for each in LOCKING:
        assert after[1][each] >= max(after[0][each] / 2, 1), after
    for each in COMPLETE:
        assert whole[1][each] >= whole[0][each], whole
    ended = len(set(run.checkins("ours", "ok")))
    assert run.counts("ours")["span PRODUCER"] == len(run.checkins("ours", "in_progress"))
    assert run.counts("ours")["span CONSUMER"] >= ended
    for records in verdicts.values():
        enqueued = [(record.entry, record.first) for record in records if record.verdict is Verdict.ENQUEUED]
        assert len(set(enqueued)) == len(enqueued) > 0
    once = [record for record in verdicts["tasks"] if record.entry.startswith("m")]
    assert len({record.entry for record in once}) == DUE_ONCE
    assert len(set(run.checkins("stock", "ok"))) <= ended + 1 + sum(map(in_doubt, once))
    for part in ("tenants", "rows"):
        instants = {record.first + number * SECOND for record in verdicts[part] for number in range(record.count)}
        assert {later - earlier for earlier, later in pairwise(sorted(instants))} == {SECOND}, part
    for record in (*once, *verdicts["tenants"], *verdicts["rows"]):
        # A busy replica may notice the stop late, but long before the end of the outage.
        doubted = in_doubt(record) and record.first.timestamp() + record.count - 1 < ready + 6
        assert record.verdict is Verdict.ENQUEUED or doubted, record
