"""Schedulers whose ticks are taken by the test."""

from collections.abc import Iterator
from contextlib import contextmanager

from ha_beat.scheduler import HAMixin


def leads(scheduler: HAMixin) -> bool:
    """Take a tick, and return whether the scheduler leads."""
    scheduler.tick()
    return scheduler._loop.leads


@contextmanager
def closing(*schedulers: HAMixin) -> Iterator[None]:
    """Close schedulers twice at the end, as Celery does."""
    try:
        yield
    finally:
        for scheduler in (*schedulers, *schedulers):
            scheduler.close()
