"""ha_beat for redbeat: a highly available schedule in the keys that redbeat keeps in Redis.

The scheduler is ``-S ha_beat.redbeat`` on the command line, or
``beat_scheduler = "ha_beat.redbeat.schedulers:HARedBeatScheduler"``.
"""

from importlib.util import find_spec

if find_spec("redbeat") is None:
    raise ModuleNotFoundError(
        "ha_beat.redbeat needs celery-redbeat: install it with pip install 'ha-beat[redbeat]'", name="redbeat"
    )
