"""Message of an entry, built as Celery's own beat builds it, except for the task id and one header."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from celery import Celery
from celery.result import denied_join_result
from kombu import Producer

from ha_beat.errors import HaBeatError


class NothingPublished(HaBeatError):
    """The task was applied and published no message."""

    def __init__(self, task: str) -> None:
        super().__init__(
            f"applying {task} published nothing: its exchange has no queue bound, or its apply_async does not use the "
            f"producer that it is given"
        )


class DeclaringOnce(Producer):  # type: ignore[misc, unused-ignore]
    """Producer that skips declared queues before it binds a copy of them; kombu checks only afterwards."""

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
    """Publish through ``producer`` as beat does: with the task's own ``apply_async`` if the task is registered."""
    # The dispatcher retries: a retry here would not know whether the first attempt was accepted.
    options = {**options, "retry": False}
    task = app.tasks.get(task_name)
    # A list, as in the messages of Celery's own beat.
    values: Any = list(args)
    # beat does not wait for the result, so the backend need not subscribe to it.
    with denied_join_result():
        if task is not None:
            task.apply_async(values, dict(kwargs), producer=producer, **options)
        else:
            app.send_task(task_name, values, dict(kwargs), producer=producer, **options)
