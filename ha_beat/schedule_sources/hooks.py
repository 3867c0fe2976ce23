"""Methods of Celery's scheduler classes that a subclass or a library has replaced.

An error tracker patches ``Scheduler.apply_entry`` to report each run; a multi-tenant project overrides it to send a
message for each tenant. Replaced methods are called as Celery calls them. A scheduler that relies on a method that is
never called is refused at start.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import Any

from celery import Celery
from celery.beat import SchedulingError
from kombu.exceptions import OperationalError

from ha_beat.dispatch.messages.build import Sender, further_id, lent
from ha_beat.errors import ConfigurationError

logger = logging.getLogger("ha_beat")

#: Methods that make the messages of an entry.
_SENDING = ("apply_entry", "apply_async", "send_task")

#: Members that are never used: the ledger replaces the heap, and the dispatcher the connection. The ``tick`` of a class
#: after the mixin is not used either, except if it was patched onto Celery's class.
_UNUSED = ("_ensure_connected", "_when", "adjust", "connection", "maybe_due", "populate_heap", "producer")

_CALLED = "is_due, reserve, schedules_equal, apply_entry, apply_async, send_task, sync and close of the scheduler"


class SchedulerHooks:
    """Replaced methods of one scheduler.

    ``stock`` are the modules, besides this package's, whose methods count as not replaced. ``unused`` are further
    methods that are never called.
    """

    def __init__(self, scheduler: Any, stock: Iterable[str], unused: Iterable[str]) -> None:
        self._scheduler = scheduler
        self._stock = frozenset(stock)
        self._unused = (*_UNUSED, *unused)
        self._tick_failed = False
        #: Whether the scheduler has its own ``is_due``, and, by type of entry, whether entries have their own.
        self._own_is_due = False
        self._entries_own_is_due: dict[type, bool] = {}
        #: Whether the scheduler or the entries of a type have their own way to note a run.
        self._own_reserve: dict[type, bool] = {}

    def detect(self) -> None:
        """Find the replaced methods again. A library may replace them after the scheduler was created."""
        self._own_is_due = self.replaced("is_due")
        self._entries_own_is_due.clear()
        self._own_reserve.clear()

    def replaced(self, name: str) -> bool:
        """True if a method of the scheduler was overridden or patched."""
        return callable(vars(self._scheduler).get(name)) or bool(self._replacement(name, type(self._scheduler).__mro__))

    def replaces_is_due(self, entry: Any) -> bool:
        """True if only ``is_due`` of the scheduler or of the entry can tell whether the entry is due."""
        if self._own_is_due:
            return True
        kind = type(entry)
        if kind not in self._entries_own_is_due:
            self._entries_own_is_due[kind] = bool(self._replacement("is_due", kind.__mro__))
        return self._entries_own_is_due[kind]

    def replaces_reserve(self, entry: Any) -> bool:
        """True if the scheduler or the entry has its own way to note a run."""
        kind = type(entry)
        if kind not in self._own_reserve:
            of_entry = any(self._replacement(name, kind.__mro__) for name in ("__next__", "next"))
            self._own_reserve[kind] = self.replaced("reserve") or of_entry
        return self._own_reserve[kind]

    def refuse_unused(self) -> None:
        """Refuse a class that relies on a method that is never called.

        Raises:
            ConfigurationError: names the method, and the methods that are called.
        """
        kinds = type(self._scheduler).__mro__
        modules = {kind.__module__ for kind in kinds}
        if "django_celery_beat.schedulers" in modules - self._stock:
            raise ConfigurationError(
                f"{kinds[0].__qualname__} inherits from django-celery-beat's scheduler, whose entries write to their "
                f"rows at each check: inherit from ha_beat.django.schedulers.HADatabaseScheduler"
            )
        found = [self._replacement(name, kinds) for name in self._unused]
        found.append("" if self._patches_tick() else self._replacement("tick", self._bases()))
        for name in filter(None, found):
            raise ConfigurationError(
                f"{name} would never be called: the ledger decides when an entry is due, and the dispatcher sends its "
                f"message. Called are {_CALLED}, and is_due and __next__ of the entry. Use these, or another base class"
            )

    def call_patched_tick(self, tick: Callable[[], Any]) -> None:
        """Call a ``tick`` that a library patched onto Celery's class, for example to trace it. It finds no entries."""
        if not self._patches_tick():
            return
        try:
            with lent(self._scheduler, _heap=[], schedules_equal=lambda *_: True):
                tick()
        except Exception:
            if not self._tick_failed:
                logger.exception("A patched tick of Celery's scheduler failed", extra={"action": "patched_tick_failed"})
            self._tick_failed = True

    def _patches_tick(self) -> bool:
        kind = next((kind for kind in self._bases() if "tick" in vars(kind)), object)
        return kind.__module__ in self._stock and bool(self._replacement("tick", [kind]))

    def _bases(self) -> Sequence[type]:
        """Return the classes that come after the mixin."""
        kinds = type(self._scheduler).__mro__
        return kinds[next((n + 1 for n, kind in enumerate(kinds) if kind.__qualname__ == "HAMixin"), 0) :]

    def _replacement(self, name: str, kinds: Sequence[type]) -> str:
        """Return the qualified name of a member that is not stock, or ``""``."""
        for kind in kinds:
            if name not in vars(kind):
                continue
            module = _module_of(vars(kind)[name], kind)
            if not module.startswith("ha_beat."):
                return "" if module in self._stock else f"{kind.__module__}.{kind.__qualname__}.{name}"
        return ""


def _module_of(member: Any, kind: type) -> str:
    """Return the module in which a member was written. A patch may have copied the name of what it replaces."""
    # Not isinstance: a wrapper of wrapt passes for the function that it wraps.
    if type(member) is FunctionType:
        return str(member.__globals__.get("__name__", ""))
    # A property belongs to its class. A callable of another type was assigned to it.
    return kind.__module__ if hasattr(type(member), "__set__") else type(member).__module__


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
        with self._lent(entry, producer, args=args, kwargs=dict(kwargs), options=dict(options)):
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
    def _lent(self, entry: Any, producer: Any, **values: Any) -> Iterator[None]:
        """Give the entry the values of one message, and the scheduler its producer."""
        own = {name: getattr(entry, name) for name in values}
        self._building = True
        try:
            for name, value in values.items():
                setattr(entry, name, value)
            with lent(self._scheduler, producer=producer):
                yield
        finally:
            self._building = False
            for name, value in own.items():
                setattr(entry, name, value)


def _original(exc: Exception) -> Exception:
    """Return the exception that Celery wrapped."""
    wrapped = exc.__context__
    return wrapped if isinstance(exc, SchedulingError) and isinstance(wrapped, Exception) else exc
