"""Errors of message building: find the part at fault, which decides what waits and what is recorded.

Building a message runs code of the entry (lazy arguments, ``apply_async``, routers, serializers), which may do I/O, and
declares queues at the broker. The class of an exception does not show which of the two failed: an unreachable lock
server raises the same ``ConnectionError`` as an unreachable broker. A dispatcher therefore notes its own failed I/O,
and probes the broker if that is not conclusive (:meth:`Dispatcher.broker_error`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Protocol

from kombu.exceptions import EncodeError, KombuError, OperationalError, SerializerNotInstalled
from redis.exceptions import RedisError

from ha_beat.dispatch.messages.build import Declined, EntryStoreError, NothingPublished
from ha_beat.dispatch.messages.size import MessageTooLarge
from ha_beat.errors import HaBeatError, StoreError, StoreRefused
from ha_beat.exception_text import exception_line
from ha_beat.reasons import BuildFault, TermEnd
from ha_beat.store.redis_errors import as_store_error

#: Causes of an ``EncodeError`` that come from the message itself. With another cause, such as failed I/O of an object
#: that is encoded, a later attempt may succeed.
_NOT_ENCODABLE = (TypeError, ValueError, OverflowError, RecursionError)

_NO_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})

#: Bytes that a replica must be able to allocate after a ``MemoryError``.
_SPARE_MEMORY = 8_000_000


class MessageFailed(HaBeatError):
    """A message could not be built because of its entry. Other entries are not affected."""

    def __init__(self, fault: BuildFault, detail: str, cause: BaseException) -> None:
        super().__init__(detail)
        self.fault = fault
        self.detail = detail
        self.cause = cause


class ReplicaExhausted(HaBeatError):
    """This process lacks memory or file descriptors: another replica should lead."""

    reason: ClassVar[TermEnd] = TermEnd.REPLICA_EXHAUSTED


class Broker(Protocol):
    """Part of a dispatcher that knows the broker."""

    def broker_error(self, exc: BaseException) -> StoreError | None: ...


@contextmanager
def judged_build_errors(broker: Broker) -> Iterator[None]:
    """Replace every exception of message building by one that names the part at fault.

    Raises:
        StoreError: the broker is at fault, which concerns every entry.
        Declined: the entry's task published nothing.
        MessageFailed: the entry is at fault.
        ReplicaExhausted: this replica is at fault.
        SystemExit, KeyboardInterrupt: the process is asked to end, often by a signal handler.
    """
    try:
        yield
    except (StoreError, Declined, SystemExit, KeyboardInterrupt, GeneratorExit):
        raise
    # Cancellations of asyncio and timeouts of gevent do not derive from Exception.
    except BaseException as exc:
        raise _judged(exc, broker) from exc


def _judged(exc: BaseException, broker: Broker) -> HaBeatError:
    root = _unwrapped(exc)
    if _is_exhausted(root):
        return ReplicaExhausted(exception_line(root))
    if isinstance(root, NothingPublished | MessageTooLarge) or _is_not_encodable(root):
        return MessageFailed(BuildFault.MESSAGE, exception_line(root), root)
    error = broker.broker_error(exc)
    if error is None:
        return MessageFailed(BuildFault.TASK, exception_line(root), root)
    if isinstance(error, StoreRefused) and error.one_key:
        return MessageFailed(BuildFault.DESTINATION, str(error), root)
    return error


def causes(exc: BaseException) -> Iterator[BaseException]:
    """Yield an exception, then those that led to it."""
    seen: set[int] = set()
    found: BaseException | None = exc
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)


def is_io_error(exc: BaseException) -> bool:
    """True if the exception may come from a connection."""
    return any(isinstance(each, RedisError | OSError | KombuError | StoreError) for each in causes(exc))


@contextmanager
def mapped_broker_errors() -> Iterator[None]:
    """Replace errors of kombu, redis-py and the operating system by this package's.

    Raises:
        StoreError: as :func:`as_store_error` returns it.
    """
    try:
        yield
    except (KombuError, RedisError, OSError) as exc:
        root = _unwrapped(exc)
        raise as_store_error(root if isinstance(root, Exception) else exc) from exc


def _unwrapped(exc: BaseException) -> BaseException:
    """Return the exception that was wrapped. kombu reports even an unknown compression as a lost connection."""
    while isinstance(exc, OperationalError | EntryStoreError) and exc.__cause__ is not None:
        exc = exc.__cause__
    return exc


def _is_not_encodable(exc: BaseException) -> bool:
    if isinstance(exc, SerializerNotInstalled):
        return True
    cause = exc.__cause__ or exc.__context__
    return isinstance(exc, EncodeError) and (cause is None or isinstance(cause, _NOT_ENCODABLE))


def _is_exhausted(exc: BaseException) -> bool:
    """True if this process still lacks memory or descriptors now that the entry's code has ended.

    If the entry's code used them up and has freed them, the entry is at fault.
    """
    try:
        for each in causes(exc):
            if isinstance(each, MemoryError):
                bytearray(_SPARE_MEMORY)
            elif isinstance(each, OSError) and each.errno in _NO_DESCRIPTORS:
                os.close(os.open(os.devnull, os.O_RDONLY))
    except (MemoryError, OSError):
        return True
    return False
