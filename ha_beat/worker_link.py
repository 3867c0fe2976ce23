"""Connection of a worker's process to the lease's Redis."""

from __future__ import annotations

import os
import threading

from celery import Celery

from ha_beat.celery_app import lease_link, load_settings
from ha_beat.store.connections import Link

_links: dict[tuple[int, int], Link] = {}
_guard = threading.Lock()


def free_after_fork(lock: threading.Lock) -> None:
    """Free a lock in forked processes. A pool may fork one while another thread holds the lock."""
    os.register_at_fork(after_in_child=lambda: lock.release() if lock.locked() else None)


free_after_fork(_guard)


def link_of(app: Celery) -> Link:
    """Return the link to the lease's Redis of this app in this process."""
    with _guard:
        key = (os.getpid(), id(app))
        if key not in _links:
            _links[key] = lease_link(app, load_settings(app))
        return _links[key]
