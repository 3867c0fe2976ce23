"""Run any number of `celery beat` replicas at once: one leads and enqueues, the others stand by."""

__version__ = "0.1.0"
