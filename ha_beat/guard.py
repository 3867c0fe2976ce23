"""Guard for workers: drops the second message of an occurrence.

If the broker is not the lease's Redis and ``uncertain`` is ``republish``, a message whose delivery is unknown is sent
again. The broker may then have it twice. With this guard the workers run only one of the two. Guard one task::

    from ha_beat.guard import GuardedTask

    @app.task(base=GuardedTask)
    def charge(): ...

or all tasks of an app, whatever their base class::

    from ha_beat.guard import guard

    guard(app)

Each publish of an occurrence has its own id. The first message that a worker receives records its id in the lease's
Redis for ``guard_ttl``. A message of the same occurrence with another id is acknowledged, but its task does not run. It
is logged, counted, and reported by the signal ``message_dropped``. A redelivery of the same message and the task's
retries have the same id and always run.

Workers need the setting ``ha_beat_redis_url`` too. If Redis is unreachable, the task runs and a warning is logged: a
task that may run twice is better than one that does not run.

A worker that imports this module also reports the ends of messages (:mod:`ha_beat.worker.overlap`). For that alone the
setting ``imports = ("ha_beat.guard",)`` of the Celery app is enough.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from celery import Celery, Task
from celery.exceptions import Ignore
from celery.utils.dispatch import Signal

from ha_beat.exception_text import exception_line
from ha_beat.headers import header_in
from ha_beat.store.keys import Keys
from ha_beat.store.scripts import text
from ha_beat.worker import overlap as _overlap  # noqa: F401 -- reports the ends of messages
from ha_beat.worker.link import link_of

__all__ = ["GuardedTask", "guard", "message_dropped"]

logger = logging.getLogger("ha_beat")

message_dropped = Signal(name="message_dropped", providing_args=["task_id", "entry", "scheduled_at"])
"""A second message was dropped. ``sender`` is the task. Sent in the process that received the message."""


class GuardedTask(Task):  # type: ignore[type-arg]
    """Base class of a task whose second messages are dropped."""

    abstract = True

    #: Seconds for which an occurrence's first message is remembered. Choose more than the longest wait in the queue and
    #: more than the task and its retries take.
    guard_ttl: float = 86400.0

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Check the message before the task runs.

        Raises:
            Ignore: another message of the same occurrence has run.
        """
        header = header_in(self.request)
        if header is not None and _is_second(self.app, task_id, header, self.guard_ttl):
            about = {name: str(header.get(name, "")) for name in ("entry", "scheduled_at")}
            values = {**about, "task": self.name, "task_id": task_id}
            logger.warning(
                "Dropped the message of %(entry)s of %(scheduled_at)s (%(task)s[%(task_id)s]): another message of the "
                "same occurrence has run",
                values,
                extra={"action": "message_dropped", **values},
            )
            message_dropped.send(sender=self, task_id=task_id, **about)
            raise Ignore
        super().before_start(task_id, args, kwargs)


def guard(app: Celery) -> None:
    """Guard every task of the app, including tasks that are added later and tasks with another base class."""
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


def _is_second(app: Celery, task_id: str, header: Mapping[str, Any], ttl: float) -> bool:
    """True if another message of the occurrence was received first."""
    if not header.get("publish") or not header.get("cluster"):
        return False  # an occurrence without a publish id has one message
    keys, publish = Keys(str(header["cluster"])), str(header["publish"])
    # An entry with its own task id uses that for each occurrence.
    occurrence = header.get("task_id")
    key = keys.guard(f"{occurrence}:{task_id}" if occurrence else task_id)
    try:
        client: Any = link_of(app).client()
        if client.set(key, publish, nx=True, px=max(1, round(ttl * 1000))):
            return False
        first = client.get(key)
        if first is None or text(first) == publish:  # guard: worker-second-sending
            return False
    except Exception as exc:
        logger.warning(
            "The guard can't check %s in Redis and lets it run: %s",
            task_id,
            exception_line(exc),
            extra={"action": "guard_failed", "task_id": task_id, "detail": exception_line(exc)},
        )
        return False
    try:
        client.incr(keys.dropped)
    except Exception as exc:
        detail = exception_line(exc)
        extra = {"action": "guard_failed", "task_id": task_id, "detail": detail}
        logger.warning("The guard can't count a dropped message: %s", detail, extra=extra)
    return True
