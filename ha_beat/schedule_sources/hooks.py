"""Methods of Celery's scheduler classes that a subclass or a library has replaced.

A scheduler that relies on a method that is never called is refused at start.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from types import FunctionType
from typing import Any

from ha_beat.dispatch.messages.build import replaced_attributes
from ha_beat.errors import ConfigurationError

logger = logging.getLogger("ha_beat")

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
            with replaced_attributes(self._scheduler, _heap=[], schedules_equal=lambda *_: True):
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
