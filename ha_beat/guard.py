"""For workers: a second message of the same occurrence is dropped.

Where the broker is not the lease's Redis and ``uncertain`` is ``republish``, a message whose fate nobody knows is sent
again, so that the broker may have it twice. With this guard the workers run one of the two. One task::

    from ha_beat.guard import GuardedTask

    @app.task(base=GuardedTask)
    def charge(): ...

or all tasks of an app, whatever their base class, once the app exists::

    from ha_beat.guard import guard

    guard(app)

Each sending of an occurrence bears a mark of its own. The first message of an occurrence that a worker takes up records
its mark in the lease's Redis, for ``guard_ttl``; a message of the same occurrence with another mark is dropped: it is
acknowledged, its task does not run, a line is logged, the signal ``message_dropped`` is sent, and the number under the
key ``{ha-beat:<cluster>}:dropped`` grows by one. A redelivery of the same message and the retries of its task bear the
same mark, and always run. So do messages that ha_beat did not send, or sent as one act with their record: those can't
be there twice.

The guard needs ``ha_beat_redis_url`` among the workers' settings too. Where Redis can't be asked the message runs, and
a warning is logged: a task that might have run twice is preferred to one that did not run.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from typing import Any

from celery import Celery, Task
from celery.exceptions import Ignore
from celery.utils.dispatch import Signal

from ha_beat.celery_app import lease_link, load_settings
from ha_beat.headers import HEADER
from ha_beat.store.connections import Link
from ha_beat.store.keys import Keys
from ha_beat.store.scripts import text

logger = logging.getLogger("ha_beat")

message_dropped = Signal(name="message_dropped", providing_args=["task_id", "entry", "scheduled_at"])
"""A second message of an occurrence was dropped. ``sender`` is the task. Sent in the process that would have run it."""


class GuardedTask(Task):  # type: ignore[type-arg]
    """Base class of a task whose second messages are dropped: those of an occurrence that was sent again."""

    abstract = True

    #: For how many seconds an occurrence is remembered after its first message was taken up. Longer than a message may
    #: wait in its queue, and than a task and its retries last.
    guard_ttl: float = 86400.0

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Let the message pass.

        Raises:
            Ignore: another sending of the same occurrence was taken up before.
        """
        header = _header_of(self.request)
        if header is not None and _is_second(self.app, task_id, header, self.guard_ttl):
            entry, scheduled_at = str(header.get("entry", "")), str(header.get("scheduled_at", ""))
            logger.warning(
                "Dropped the message of %s of %s (%s[%s]): another message of the same occurrence has run",
                entry,
                scheduled_at,
                self.name,
                task_id,
                extra={
                    "action": "message_dropped",
                    "entry": entry,
                    "scheduled_at": scheduled_at,
                    "task": self.name,
                    "task_id": task_id,
                },
            )
            message_dropped.send(sender=self, task_id=task_id, entry=entry, scheduled_at=scheduled_at)
            raise Ignore
        super().before_start(task_id, args, kwargs)


def guard(app: Celery) -> None:
    """Guard every task of the app: those there are, those to come, and those with a base class of their own."""
    anything: Any = app
    if not issubclass(anything.Task, GuardedTask):
        anything.Task = type("GuardedTask", (GuardedTask, anything.Task), {"abstract": True, "__module__": __name__})
    if anything.finalized:
        _guard_all(app)
    else:
        anything.on_after_finalize.connect(_guard_all)


def _guard_all(sender: Any, **_: Any) -> None:
    for task in sender.tasks.values():
        own: type = type(task)
        if not issubclass(own, GuardedTask):
            members = {"__module__": own.__module__, "__doc__": own.__doc__}
            task.__class__ = type(own.__name__, (GuardedTask, own), members)


def _header_of(request: Any) -> Mapping[str, Any] | None:
    """Of a message that claims its place: the others bear no mark."""
    for found in (getattr(request, HEADER, None), (getattr(request, "headers", None) or {}).get(HEADER)):
        if isinstance(found, Mapping) and found.get("publish") and found.get("cluster"):
            return found
    return None


_links: dict[tuple[int, int], Link] = {}
_links_guard = threading.Lock()


def _link(app: Celery) -> Link:
    """One for each app in each process."""
    with _links_guard:
        key = (os.getpid(), id(app))
        if key not in _links:
            _links[key] = lease_link(app, load_settings(app))
        return _links[key]


def _is_second(app: Celery, task_id: str, header: Mapping[str, Any], ttl: float) -> bool:
    """Whether another sending of the occurrence was taken up before this one."""
    keys, mark = Keys(str(header["cluster"])), str(header["publish"])
    key = keys.guard(task_id)
    try:
        client: Any = _link(app).client()
        if client.set(key, mark, nx=True, px=max(1, round(ttl * 1000))):
            return False
        taken_up = client.get(key)
        if taken_up is None or text(taken_up) == mark:  # guard: worker-second-sending
            return False
    except Exception as exc:
        logger.warning(
            "The guard can't check %s in Redis and lets it run: %s: %s",
            task_id,
            type(exc).__name__,
            exc,
            extra={"action": "guard_failed", "task_id": task_id, "detail": str(exc)},
        )
        return False
    try:
        client.incr(keys.dropped)
    except Exception as exc:
        extra = {"action": "guard_failed", "task_id": task_id, "detail": str(exc)}
        logger.warning("The guard can't count a dropped message: %s", exc, extra=extra)
    return True
