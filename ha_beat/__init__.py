"""Run any number of `celery beat` replicas at once: one leads and enqueues, the others stand by."""

from ha_beat.task_request import TaskOccurrence, occurrence_of

__all__ = ["TaskOccurrence", "__version__", "occurrence_of"]

__version__ = "0.1.0"
