"""Celery app of the demo: three interval entries, and a task that records its runs."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from celery import Celery, Task

CLUSTER = "demo"
REDIS_URL_VARIABLE = "DEMO_REDIS_URL"
RUNS_KEY = "demo:runs"
LEASE_TTL_S = 2.0
INTERVALS_S = {"half-second": 0.5, "second": 1.0, "five-seconds": 5.0}

app = Celery(CLUSTER, broker=os.environ.get(REDIS_URL_VARIABLE, "redis://127.0.0.1:6379/0"))
app.conf.update(
    ha_beat_lease_ttl=LEASE_TTL_S,
    beat_schedule={name: {"task": "demo.note_run", "schedule": seconds} for name, seconds in INTERVALS_S.items()},
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    worker_send_task_events=False,
)


@app.task(bind=True, name="demo.note_run")
def note_run(self: Task[[], None], /) -> None:
    """Record the run and its due instant in the embedded Redis."""
    request: Any = self.request
    occurrence = request.ha_beat
    run = {
        "entry": occurrence["entry"],
        "scheduled_at": occurrence["scheduled_at"],
        "epoch": occurrence["epoch"],
        "id": request.id,
        "worker": request.hostname,
        "ran_us": time.time_ns() // 1000,
    }
    pool: Any = self.app.pool
    with pool.acquire(block=True) as connection:
        connection.default_channel.client.rpush(RUNS_KEY, json.dumps(run))
