"""ha_beat for sqlalchemy-celery-beat: a highly available schedule in any SQL database.

The scheduler is ``-S ha_beat.sqlalchemy`` on the command line, or
``beat_scheduler = "ha_beat.sqlalchemy.schedulers:HADatabaseScheduler"``.
"""

from importlib.util import find_spec

if find_spec("sqlalchemy_celery_beat") is None:
    raise ModuleNotFoundError(
        "ha_beat.sqlalchemy needs sqlalchemy-celery-beat: install it with pip install 'ha-beat[sqlalchemy]'",
        name="sqlalchemy_celery_beat",
    )
