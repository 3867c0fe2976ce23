"""Settings of the example with a counted schedule, which the environment selects."""

import os

from example.settings import *  # noqa: F403

SCHEDULES = {
    "first": {"every-second": {"task": "counted_tasks.count", "schedule": 1.0, "args": ("every-second",)}},
    "second": {
        "every-second": {"task": "counted_tasks.count", "schedule": 1.0, "args": ("every-second",)},
        "every-two-seconds": {"task": "counted_tasks.count", "schedule": 2.0, "args": ("every-two-seconds",)},
    },
}
CELERY_BEAT_SCHEDULE = SCHEDULES[os.environ["COUNTED_SCHEDULE"]]
CELERY_IMPORTS = ("counted_tasks",)
