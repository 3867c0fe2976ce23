"""Message of an entry, built as Celery's own beat builds it, except for the task id and one header."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import get_ident
from typing import Any

from celery import Celery, Task
from celery.result import denied_join_result
from celery.signals import after_task_publish
from kombu import Producer

from ha_beat.dispatch.messages import size
from ha_beat.dispatch.messages.size import MessageTooLarge
from ha_beat.errors import HaBeatError, StoreError
from ha_beat.exception_text import exception_line

#: Property by which SQS drops the second message of an occurrence.
DEDUPLICATION = "MessageDeduplicationId"


class NothingPublished(HaBeatError):
    """The message went into no queue, or through a producer that does not collect messages."""


class Declined(HaBeatError):
    """The task was applied and published nothing, as some tasks do that are already in a queue."""

    def __init__(self, task: str) -> None:
        super().__init__(f"{task} was applied and published nothing")


class EntryStoreError(HaBeatError):
    """A ``StoreError`` that the entry's own code raised, for example about another cluster. The cause is that error."""


@contextmanager
def entry_code() -> Iterator[None]:
    """Run code of an entry. A ``StoreError`` of any other code concerns the broker.

    Raises:
        EntryStoreError: in place of a ``StoreError``.
        Exception: any other exception of that code.
    """
    try:
        yield
    except StoreError as exc:
        raise EntryStoreError(exception_line(exc)) from exc


class OccurrenceProducer(Producer):  # type: ignore[misc, unused-ignore]
    """Producer of the messages of an occurrence: it counts them, and gives each further one its own task id."""

    #: Number of publishes, including those that reach no queue.
    publishes = 0
    #: Task ids of the messages of one occurrence.
    ids: set[str] | None = None

    def maybe_declare(self, entity: Any, retry: bool = False, **retry_policy: Any) -> Any:
        """Declare a queue or an exchange once. kombu would first bind a copy of it, for each message."""
        client = getattr(getattr(self.channel, "connection", None), "client", None)
        if entity and client and hash(entity) in client.declared_entities:
            return False
        return super().maybe_declare(entity, retry, **retry_policy)

    def _prepare(self, body: Any, *args: Any, **options: Any) -> Any:
        prepared = super()._prepare(body, *args, **options)
        if len(prepared[0]) > size.LARGEST:
            raise MessageTooLarge
        return prepared

    def publish(self, body: Any, *args: Any, **options: Any) -> Any:
        """Publish. A further message of the same occurrence gets its own task id."""
        headers = options.get("headers") or {}
        task_id = headers.get("id")
        if self.ids is not None and task_id is not None:
            number = len(self.ids) + 1
            if task_id in self.ids:
                own = further_id(task_id, number)
                if headers.get("root_id") == task_id:
                    headers["root_id"] = own
                headers["id"] = options["correlation_id"] = task_id = own
            if number > 1 and DEDUPLICATION in options:
                options[DEDUPLICATION] = f"{options[DEDUPLICATION]}:{number}"
            self.ids.add(task_id)
        result = super().publish(body, *args, **options)
        self.publishes += 1
        return result


def further_id(task_id: str, number: int) -> str:
    """Return the task id of a further message of an occurrence, the same on each replica. ``number`` is 2 or more."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{task_id}:{number}"))


def is_timed(headers: Mapping[str, Any] | None) -> bool:
    """True if a message with these headers has an expiry or an ETA."""
    return any((headers or {}).get(name) for name in ("expires", "eta"))


class Sender:
    """Sender of an entry's message through a producer, as plain beat sends it."""

    #: True if methods of the project's own scheduler class send the message.
    hooked = False

    def __init__(self, app: Celery) -> None:
        self.app = app

    def __call__(
        self, entry: Any, producer: Any, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> None:
        """Publish with the task's own ``apply_async`` if the task is registered."""
        name = str(entry.task)
        task = self.app.tasks.get(name)
        # Messages of Celery's own beat have a list.
        values: Any = list(args)
        if task is not None:
            task.apply_async(values, dict(kwargs), producer=producer, **options)
        else:
            self.app.send_task(name, values, dict(kwargs), producer=producer, **options)


def has_own_apply_async(app: Celery, task_name: str) -> bool:
    """True if the task has an ``apply_async`` that is not Celery's, which may reserve something for the message."""
    task = app.tasks.get(task_name)
    return task is not None and type(task).apply_async is not Task.apply_async


def publish(
    send: Sender, producer: Any, entry: Any, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
) -> None:
    """Publish an entry's messages through ``producer``, which collects them.

    Raises:
        Declined: nothing was published.
        MessageTooLarge: the arguments and headers are larger than :data:`~ha_beat.dispatch.messages.size.LARGEST`.
        NothingPublished: something was published, but not through this producer.
        Exception: any exception of the entry's task, the scheduler's hooks, the serializer or signal handlers.
    """
    if size.is_larger((args, kwargs, options.get("headers")), size.LARGEST):
        raise MessageTooLarge
    # The dispatcher retries. A retry by Celery would not know whether the first attempt was accepted.
    options = {**options, "retry": False}
    published, producer.ids = producer.publishes, set()
    watch = send.hooked or has_own_apply_async(send.app, str(entry.task))
    # The result backend need not subscribe to the result: beat does not wait for it.
    with (
        entry_code(),
        denied_join_result(),
        _default_producer(send.app, producer),
        _published_tasks() if watch else nullcontext(()) as elsewhere,
    ):
        send(entry, producer, args, kwargs, options)
    if producer.publishes == published:
        if elsewhere:
            raise NothingPublished(f"applying {entry.task} uses another producer")
        raise Declined(str(entry.task))


def _default_producer(app: Celery, producer: Any) -> AbstractContextManager[None]:
    """Make this the default producer of this thread, since a task's own ``apply_async`` may drop the option."""
    own, thread = app.producer_or_acquire, get_ident()

    def producer_or_acquire(given: Any = None) -> Any:
        return nullcontext(producer) if given is None and get_ident() == thread else own(given)

    return replaced_attributes(app, producer_or_acquire=producer_or_acquire)


@contextmanager
def replaced_attributes(target: Any, **values: Any) -> Iterator[None]:
    """Replace attributes of an object until the block ends."""
    own = vars(target)
    before = {name: own[name] for name in values if name in own}
    own.update(values)
    try:
        yield
    finally:
        for name in values:
            own.pop(name, None)
        own.update(before)


@contextmanager
def _published_tasks() -> Iterator[Sequence[str]]:
    """Collect the names of the tasks that are published, through any producer."""
    names: list[str] = []

    def note(sender: Any = None, **_: Any) -> None:
        names.append(str(sender))

    after_task_publish.connect(note, weak=False)
    try:
        yield names
    finally:
        after_task_publish.disconnect(note)
