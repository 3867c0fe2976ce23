"""Builds an entry's message exactly as Celery's own beat does, but for the task id and one header."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from celery import Celery
from celery.result import denied_join_result
from kombu import Producer

from ha_beat.errors import HaBeatError


class NothingPublished(HaBeatError):
    """The task was applied, but no message came of it."""

    def __init__(self, task: str) -> None:
        super().__init__(
            f"applying {task} published nothing: its exchange has no queue bound, or its apply_async goes around the "
            f"producer that it was given"
        )


class DeclaringOnce(Producer):  # type: ignore[misc, unused-ignore]
    """A producer that asks whether a queue is declared before it binds a copy of it; kombu asks after that."""

    def maybe_declare(self, entity: Any, retry: bool = False, **retry_policy: Any) -> Any:
        client = getattr(getattr(self.channel, "connection", None), "client", None)
        if entity and client and hash(entity) in client.declared_entities:
            return False
        return super().maybe_declare(entity, retry, **retry_policy)


def publish(
    app: Celery,
    producer: Any,
    *,
    task_name: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any],
) -> None:
    """Send through ``producer`` as beat would: by the task's own ``apply_async`` where it is registered."""
    # Retries are the dispatcher's: a retry in here would not know whether the first try was accepted.
    options = {**options, "retry": False}
    task = app.tasks.get(task_name)
    # A list, as Celery's own beat makes it: it shows in the message.
    values: Any = list(args)
    # Nobody in beat will wait for the result: don't have the backend subscribe to it.
    with denied_join_result():
        if task is not None:
            task.apply_async(values, dict(kwargs), producer=producer, **options)
        else:
            app.send_task(task_name, values, dict(kwargs), producer=producer, **options)
