"""Recipe of a message: all values that it is built from. The same recipe gives the same message at any time.

A message has no recipe, and must not be built ahead, if code of the project takes part in it (signal handlers, routers,
an own ``apply_async``, lazy arguments, a patched Celery), if it depends on the time (an expiry, a countdown), or if its
entry holds objects that other code may change.
"""

from __future__ import annotations

import marshal
from collections.abc import Mapping
from inspect import getattr_static
from types import FunctionType, MethodType
from typing import Any

from celery import Celery, Task, signals
from celery.app.routes import MapRoute
from kombu import Producer

from ha_beat.dispatch.messages.build import Sender

#: Serializers that write the same for the same values.
_SERIALIZERS = frozenset({None, "json", "pickle", "yaml", "msgpack"})

#: Options that count from the time at which the message is built.
_TIMED = frozenset({"expires", "countdown", "eta"})

#: Methods of a task that Celery calls to build a message, and attributes of the task that Celery reads.
_TASK_METHODS = ("apply_async", "shadow_name", "_get_exec_options", "_get_app")
_TASK_OPTIONS = (
    *("queue", "routing_key", "exchange", "priority", "serializer", "delivery_mode", "compression", "expires"),
    *("time_limit", "soft_time_limit", "ignore_result", "typing"),
)

#: Version of marshal that encodes equal values of the same types equally, whatever refers to them.
_MARSHAL = 2

#: Values of the app and the task, and values of the entry.
Recipe = tuple[bytes, bytes]


class Recipes:
    """Reader of recipes. Call :meth:`refresh` before each group of entries: it reads the app and forgets the tasks."""

    def __init__(self, send: Sender) -> None:
        self._send = send
        self._of_app: tuple[Any, ...] | None = None
        self._of_tasks: dict[str, bytes | None] = {}
        #: Tasks whose attributes were found to be plain values.
        self._plain_tasks: dict[str, Any] = {}
        #: Router and queues as last read, and how many times one of them was replaced.
        self._routing: tuple[Any, dict[str, Any]] = None, {}
        self._reroutings = 0

    def refresh(self) -> None:
        """Read the values that all messages have in common."""
        self._of_tasks.clear()
        self._of_app = None
        try:
            if not self._send.hooked and (found := _of_app(self._send.app)) is not None:
                self._of_app = *found, self._rerouted(self._send.app.amqp)
        except Exception:
            # The error is reported when a message is built.
            return

    def of(self, entry: Any) -> Recipe | None:
        """Return the recipe of an entry's message; ``None`` if it must not be built ahead. Never raises."""
        if self._of_app is None:
            return None
        try:
            return self._read(entry)
        except Exception:
            # The entry has values that are not plain, or lacks an attribute.
            return None

    def _rerouted(self, amqp: Any) -> int:
        """Return how many times the router or a queue was replaced. A queue that Celery has added does not count."""
        (router, queues), self._routing = self._routing, (amqp.router, dict(amqp.queues))
        now = self._routing[1]
        if router is not amqp.router or any(now.get(name) is not queue for name, queue in queues.items()):
            self._reroutings += 1
        return self._reroutings

    def _read(self, entry: Any) -> Recipe | None:
        name, options = entry.task, entry.options
        if options and (not _TIMED.isdisjoint(options) or options.get("serializer") not in _SERIALIZERS):
            return None
        try:
            of_task = self._of_tasks[name]
        except KeyError:
            of_task = self._of_tasks[name] = self._read_task(name)
        return None if of_task is None else (of_task, marshal.dumps((entry.args, entry.kwargs, options), _MARSHAL))

    def _read_task(self, name: str) -> bytes | None:
        task, values = self._send.app.tasks.get(name), tuple[Any, ...]()
        if task is not None:
            if not _are_stock(task, *_TASK_METHODS):
                return None
            if self._plain_tasks.get(name) is not task and not _is_plain_task(task):
                return None
            self._plain_tasks[name] = task
            values = tuple(getattr(task, option, None) for option in _TASK_OPTIONS)
            if task.expires is not None or task.serializer not in _SERIALIZERS:
                return None
        return marshal.dumps((name, values, self._of_app), _MARSHAL)


def _of_app(app: Celery) -> tuple[Any, ...] | None:
    conf, amqp = app.conf, app.amqp
    router: Any = amqp.router
    observed = (signals.before_task_publish, signals.after_task_publish, signals.task_sent)
    if (
        any(signal.receivers for signal in observed)
        or conf.task_always_eager
        or conf.task_send_sent_event
        or conf.task_serializer not in _SERIALIZERS
        or not _are_stock(Task, "apply_async")
        or not _are_stock(app, "send_task")
        or not _are_stock(amqp, "create_task_message", "send_task_message")
        or not _are_stock(router, "route", "lookup_route", "expand_destination", "query_router")
        or not _are_stock(app.backend, "on_task_call")
        or not _are_stock(Producer, "publish", "_publish", "_prepare")
        or not all(map(_is_plain_route, router.routes))
    ):
        return None
    return conf.task_serializer, conf.task_compression, conf.task_default_queue


def _is_plain_task(task: Any) -> bool:
    """True if the task's class computes no attribute of the message."""
    return getattr(task, "_dump_pydantic_arguments", None) is None and not any(
        hasattr(getattr_static(task, option, None), "__get__") for option in _TASK_OPTIONS
    )


def _are_stock(owner: Any, *names: str) -> bool:
    """True if Celery or kombu defines these methods.

    A patch may copy the name and the attributes of the method that it replaces, but not its type and its globals.
    """
    for name in names:
        function = getattr(owner, name)
        if type(function) is MethodType:
            function = function.__func__
        if type(function) is not FunctionType:
            return False
        if str(function.__globals__.get("__name__")).partition(".")[0] not in {"celery", "kombu"}:
            return False
    return True


def _is_plain_route(route: Any) -> bool:
    """True for a table of routes, whose result depends only on the task's name."""
    kind: type = type(route)
    if kind is not MapRoute:
        return False
    targets = [*route.map.values(), *route.patterns.values()]
    return all(target.get("serializer") in _SERIALIZERS for target in targets if isinstance(target, Mapping))
