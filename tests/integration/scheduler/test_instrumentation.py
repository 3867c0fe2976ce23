"""Sentry's cron monitors and OpenTelemetry's spans, with plain beat and with ha_beat."""

import os
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.servers import RedisServer, ServerProcess, wait_for

for module in ("sentry_sdk", "opentelemetry.instrumentation.celery", "opentelemetry.sdk.trace"):
    pytest.importorskip(module)

APP = """
import os
from datetime import datetime, timedelta, timezone

import sentry_sdk
from celery import Celery
from opentelemetry import trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from sentry_sdk.integrations.celery import CeleryIntegration
from sentry_sdk.transport import Transport


def note(line):
    with open("seen", "a") as file:
        file.write(line + "\\n")


class Checkins(Transport):
    def capture_envelope(self, envelope):
        for item in envelope.items:
            if item.type == "check_in":
                note("checkin " + item.payload.json["status"])


class Spans(SpanExporter):
    def export(self, spans):
        for span in spans:
            note(f"span {span.name} {span.kind.name}")
        return SpanExportResult.SUCCESS


sentry_sdk.init(
    dsn="http://key@127.0.0.1:1/1", transport=Checkins, integrations=[CeleryIntegration(monitor_beat_tasks=True)]
)
trace.set_tracer_provider(TracerProvider())
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(Spans()))
CeleryInstrumentor().instrument()

app = Celery("watched", broker=os.environ["BROKER"])
overdue = datetime.now(timezone.utc) - timedelta(minutes=18)
app.conf.beat_schedule = {"report": {"task": "report", "schedule": 600.0, "last_run_at": overdue}}


@app.task(name="report")
def report():
    return 1
"""


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["celery.beat:Scheduler", "ha_beat"])
def test_run_is_reported_by_sentry_and_opentelemetry(tmp_path: Path, redis_server: RedisServer, scheduler: str):
    """Sentry patches ``Scheduler.apply_entry``, OpenTelemetry listens to Celery's signals."""
    (tmp_path / "watched.py").write_text(APP)
    env = {**os.environ, "BROKER": redis_server.url}
    seen = tmp_path / "seen"

    def lines() -> list[str]:
        return sorted(seen.read_text().splitlines()) if seen.exists() else []

    with ExitStack() as stack:
        for arguments in (["worker", "-P", "solo"], ["beat", "-S", scheduler, "--pidfile="]):
            command = [sys.executable, "-m", "celery", "-A", "watched", *arguments, "-l", "INFO"]
            process = ServerProcess(command, tmp_path / f"{arguments[0]}.log", cwd=tmp_path, env=env)
            stack.callback(process.kill)
        wait_for(lambda: len(lines()) >= 4, 40, "check-ins and spans")
    assert lines() == [
        "checkin in_progress",
        "checkin ok",
        "span apply_async/report PRODUCER",
        "span run/report CONSUMER",
    ]
