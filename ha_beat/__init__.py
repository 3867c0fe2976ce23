"""Run any number of `celery beat` replicas at once: one leads and enqueues, the others stand by.

::

    celery -A proj beat -S ha_beat --pidfile=     # on as many machines as you like
    celery -A proj ha-beat status                 # who leads, and how the schedule fares

Settings are ``ha_beat_…`` on the Celery app (``celery -A proj ha-beat settings`` lists them). For a task there is
:func:`occurrence_of`; for a schedule of your own :class:`ha_beat.scheduler.HAMixin`; for django-celery-beat
:mod:`ha_beat.django`; for workers :mod:`ha_beat.guard`; for pagers :mod:`ha_beat.signals`; for tests
:mod:`ha_beat.testing`; what is raised, :mod:`ha_beat.errors`.
"""

from ha_beat.headers import TaskOccurrence, occurrence_of

__all__ = ["TaskOccurrence", "__version__", "occurrence_of"]

__version__ = "0.1.0"
