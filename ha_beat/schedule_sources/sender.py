"""Sender of messages through the scheduler's own methods, if a subclass or a library has replaced them.

An error tracker patches ``Scheduler.apply_entry`` to report each run; a multi-tenant project overrides it to send a
message for each tenant. Replaced methods are called as Celery calls them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from celery import Celery
from celery.beat import SchedulingError
from kombu.exceptions import OperationalError

from ha_beat.dispatch.messages.build import Sender, further_id, replaced_attributes
from ha_beat.schedule_sources.hooks import SchedulerHooks

#: Methods that make the messages of an entry.
_SENDING = ("apply_entry", "apply_async", "send_task")


class HookedSender(Sender):
    """Sender that calls the scheduler's methods if one of them was replaced. Otherwise it publishes itself."""

    def __init__(self, app: Celery, scheduler: Any, hooks: SchedulerHooks) -> None:
        super().__init__(app)
        self._scheduler = scheduler
        self._hooks = hooks
        self._through_entry = False
        self._building = False
        self._error: Exception | None = None
        #: Calls of :meth:`apply_async` for this occurrence, its task id, and the id that the entry received last.
        self._calls, self._task_id, self._lent_id = 0, "", ""

    def detect(self) -> None:
        """Find the replaced methods again."""
        self._through_entry = self._hooks.replaced("apply_entry")
        self.hooked = any(self._hooks.replaced(name) for name in _SENDING)

    def __call__(
        self, entry: Any, producer: Any, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> None:
        if not self.hooked:
            super().__call__(entry, producer, args, kwargs, options)
            return
        self._error, published = None, producer.publishes
        self._calls, self._task_id = 0, options["task_id"]
        self._lent_id = self._task_id
        with self._replaced_values(entry, producer, args=args, kwargs=dict(kwargs), options=dict(options)):
            try:
                if self._through_entry:
                    self._scheduler.apply_entry(entry, producer=producer)
                else:
                    self._scheduler.apply_async(entry, producer=producer, advance=False)
            except SchedulingError as exc:
                raise _original(exc) from exc
        self._raise_hidden(some_published=producer.publishes > published)

    def apply_async(self, call: Callable[..., Any], entry: Any, *, advance: bool, **options: Any) -> Any:
        """Call ``call``, the base class's ``apply_async``. While a message is built, the entry is not reserved."""
        if not self._building:
            return call(entry, advance=advance, **options)
        self._calls += 1
        if self._calls > 1 and entry.options.get("task_id") == self._lent_id:
            # Before Celery sends its signals, to which tracers listen.
            self._lent_id = further_id(self._task_id, self._calls)
            entry.options = {**entry.options, "task_id": self._lent_id}
        try:
            return call(entry, advance=False, **options)
        except Exception as exc:
            self._error = _original(exc)
            raise

    def _raise_hidden(self, *, some_published: bool) -> None:
        """Raise the exception that ``apply_entry`` has logged and hidden.

        If only some of the messages could not be built, the others are sent. If the broker failed, none is.
        """
        error = self._error
        if error is not None and (not some_published or isinstance(error, OperationalError | OSError)):
            raise error

    @contextmanager
    def _replaced_values(self, entry: Any, producer: Any, **values: Any) -> Iterator[None]:
        """Give the entry the values of one message, and the scheduler its producer."""
        own = {name: getattr(entry, name) for name in values}
        self._building = True
        try:
            for name, value in values.items():
                setattr(entry, name, value)
            with replaced_attributes(self._scheduler, producer=producer):
                yield
        finally:
            self._building = False
            for name, value in own.items():
                setattr(entry, name, value)


def _original(exc: Exception) -> Exception:
    """Return the exception that Celery wrapped."""
    wrapped = exc.__context__
    return wrapped if isinstance(exc, SchedulingError) and isinstance(wrapped, Exception) else exc
