"""The Celery app of the tests' Django project. Its schedule is BEAT_SPEC, JSON: name -> {"every": seconds, ...}."""

import json
import os

from celery import Celery

from tests.support import log_format  # noqa: F401 -- shows actions in the log

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.integration.django.project.settings")

app = Celery("site")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.conf.beat_schedule = {
    name: {"task": "tick", "schedule": line.pop("every"), **line}
    for name, line in json.loads(os.environ.get("BEAT_SPEC") or "{}").items()
}


@app.task(name="tick")
def tick(*args: object, **kwargs: object) -> None:
    """Do nothing. The tests count its messages."""
