"""Celery app whose schedule is in sqlalchemy-celery-beat's tables."""

import os

from celery import Celery

app = Celery("rows", broker=os.environ["BROKER_URL"])
app.conf.update(
    beat_dburi=os.environ["ROWS_URL"],
    beat_schedule={"static": {"task": "tick", "schedule": float(os.environ.get("STATIC_EVERY", "1"))}},
    ha_beat_cluster="rows",
    ha_beat_misfire="all",
    result_expires=None,
    task_default_queue=os.environ.get("QUEUE", "celery"),
    task_ignore_result=True,
    timezone="UTC",
)
