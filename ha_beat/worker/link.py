"""Connection of a worker's process to the lease's Redis."""

from __future__ import annotations

import os
import threading
from weakref import WeakKeyDictionary

from celery import Celery

from ha_beat.celery_app import lease_link, load_settings
from ha_beat.store.connections import Link

#: Link of each app, with the pid of the process that made it: a forked process must not use its parent's link.
_links: WeakKeyDictionary[Celery, tuple[int, Link]] = WeakKeyDictionary()
_guard = threading.Lock()


def free_after_fork(lock: threading.Lock) -> None:
    """Free a lock in forked processes. A pool may fork while another thread holds the lock."""
    os.register_at_fork(after_in_child=lambda: lock.release() if lock.locked() else None)


free_after_fork(_guard)


def link_of(app: Celery) -> Link:
    """Return the link to the lease's Redis of this app in this process."""
    with _guard:
        pid, link = _links.get(app, (0, None))
        if link is None or pid != os.getpid():
            link = lease_link(app, load_settings(app))
            _links[app] = os.getpid(), link
        return link
