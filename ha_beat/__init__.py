"""High availability for `celery beat`: of any number of replicas one leads and enqueues, the others stand by.

::

    celery -A proj beat -S ha_beat --pidfile=     # on as many machines as you like
    celery -A proj ha-beat status                 # the leader, the replicas and the state of the schedule

Settings are ``ha_beat_…`` on the Celery app; ``celery -A proj ha-beat settings`` lists them. The public modules are:

- this one: :func:`occurrence_of` tells a task which occurrence it runs for
- :mod:`ha_beat.scheduler`: the scheduler, and :class:`~ha_beat.scheduler.HAMixin` for your own scheduler class
- :mod:`ha_beat.django`: django-celery-beat
- :mod:`ha_beat.sqlalchemy`: sqlalchemy-celery-beat
- :mod:`ha_beat.redbeat`: redbeat
- :mod:`ha_beat.guard`: drops second messages in workers
- :mod:`ha_beat.signals`: signals to your own code
- :mod:`ha_beat.testing`: helpers for tests
"""

from ha_beat.headers import TaskOccurrence, occurrence_of

__all__ = ["TaskOccurrence", "__version__", "occurrence_of"]

__version__ = "0.1.0"
