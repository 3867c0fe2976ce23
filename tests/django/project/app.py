"""The Celery app of the tests' Django project.

BEAT_SPEC (JSON) is its CELERY_BEAT_SCHEDULE, as in `tests.apps.tick_app`.
"""

from __future__ import annotations

import json
import os

from celery import Celery

from tests.apps.tick_app import beat_schedule

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.django.project.settings")

app = Celery("site")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.conf.beat_schedule = beat_schedule(json.loads(os.environ.get("BEAT_SPEC") or "{}"))


@app.task(name="tick")
def tick(*args: object, **kwargs: object) -> None:
    """Do nothing: what counts is that it was enqueued."""
