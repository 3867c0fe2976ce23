"""Part at fault for an error of message building: the entry, its task, the broker or the replica."""

import asyncio
import errno
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from kombu.exceptions import EncodeError, OperationalError, SerializerNotInstalled
from redis import exceptions as redis_errors

from ha_beat.clock import SystemClock
from ha_beat.dispatch.messages import build_errors
from ha_beat.dispatch.messages.build import NothingPublished, Sender, publish
from ha_beat.dispatch.messages.build_errors import MessageFailed, ReplicaExhausted, judged_build_errors
from ha_beat.dispatch.messages.size import MessageTooLarge
from ha_beat.errors import StoreError, StoreRefused, StoreUnavailable
from ha_beat.leader.batches.slow_arguments import SlowArguments
from ha_beat.reasons import BuildFault
from tests.support.entries import scheduled

AWAY = StoreUnavailable("the broker is unreachable")
FULL = StoreRefused("full")
NO_RIGHT = StoreRefused("no right", one_key=True)


ENTRY = SimpleNamespace(task="task")


class Broker:
    """Broker with one failure behind every exception."""

    def __init__(self, failure: StoreError | None = None) -> None:
        self.failure = failure

    def broker_error(self, exc: BaseException) -> StoreError | None:
        return self.failure


def caused(exc: BaseException, cause: BaseException) -> BaseException:
    exc.__cause__ = cause
    return exc


def judged(exc: BaseException, broker: Broker) -> BaseException:
    with pytest.raises(BaseException) as raised, judged_build_errors(broker):
        raise exc
    return raised.value


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


ERRORS_OF_A_TASK = [
    *(OSError("disk"), ConnectionError("lock server"), TimeoutError(), redis_errors.ConnectionError("lock server")),
    *(redis_errors.TimeoutError(), redis.exceptions.LockError("taken"), redis_errors.ResponseError("WRONGTYPE")),
    *(OperationalError("wrapped by kombu"), caused(OperationalError("wrapped by kombu"), KeyError("vacuum"))),
    *(caused(EncodeError("lazy object"), ConnectionError("database")), RuntimeError("no sending today")),
    *(KeyError("queue"), TypeError("takes no argument"), RecursionError(), SoftTimeLimitExceeded()),
    *(asyncio.CancelledError(), MemoryError("free again"), OSError(errno.EMFILE, "free again"), Unprintable()),
]


@pytest.mark.parametrize("exc", ERRORS_OF_A_TASK, ids=lambda exc: type(exc).__name__)
def test_exception_of_the_entrys_code_is_transient_if_the_broker_works(exc: BaseException):
    failed = judged(exc, Broker())
    assert isinstance(failed, MessageFailed)
    assert failed.fault is BuildFault.TASK


@pytest.mark.parametrize(
    "exc",
    [
        EncodeError("cyclic"),
        caused(EncodeError("cyclic"), ValueError("Circular reference detected")),
        caused(EncodeError("object()"), TypeError("Object of type object is not JSON serializable")),
        SerializerNotInstalled("runes"),
        NothingPublished("silent"),
        MessageTooLarge(),
    ],
    ids=repr,
)
def test_message_that_cannot_be_encoded_is_a_permanent_error(exc: BaseException):
    failed = judged(exc, Broker(AWAY))
    assert isinstance(failed, MessageFailed)
    assert failed.fault is BuildFault.MESSAGE


@pytest.mark.parametrize("exc", [OSError("cut"), redis_errors.ConnectionError("cut"), RuntimeError("wrapped")])
@pytest.mark.parametrize("failure", [AWAY, FULL])
def test_failure_of_the_broker_concerns_every_entry(exc: BaseException, failure: StoreError):
    assert judged(exc, Broker(failure)) is failure
    assert judged(failure, Broker()) is failure


def raise_refused(*_: object, **__: object) -> Any:
    """Fail as a read of another cluster fails, in an ``apply_async`` or a lazy argument."""
    raise FULL


def apply() -> None:
    publish(Sender(Celery("app", set_as_current=False)), SimpleNamespace(publishes=0), ENTRY, (), {}, {})


def compute() -> None:
    SlowArguments(raise_refused, SystemClock(), 1.0).take(scheduled("entry"))


@pytest.mark.parametrize("run", [apply, compute])
def test_store_error_of_the_entrys_code_is_its_own(run: Callable[[], None], monkeypatch: pytest.MonkeyPatch):
    """The task is at fault, unless the broker does not answer either."""
    monkeypatch.setattr(Celery, "send_task", raise_refused)
    with pytest.raises(MessageFailed) as failed, judged_build_errors(Broker()):
        run()
    assert (failed.value.fault, failed.value.cause) == (BuildFault.TASK, FULL)
    with pytest.raises(StoreUnavailable) as raised, judged_build_errors(Broker(AWAY)):
        run()
    assert raised.value is AWAY


def test_key_without_a_right_concerns_one_entry():
    failed = judged(redis_errors.NoPermissionError("NOPERM"), Broker(NO_RIGHT))
    assert isinstance(failed, MessageFailed)
    assert (failed.fault, failed.detail) == (BuildFault.DESTINATION, "no right")


def no_more(*_: object) -> None:
    raise OSError(errno.ENFILE, "no file descriptors")


def test_lack_of_memory_or_descriptors_is_the_replicas(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build_errors, "_SPARE_MEMORY", 1 << 60)
    monkeypatch.setattr(os, "open", no_more)
    for exc in (MemoryError(), caused(RuntimeError("wrapped"), MemoryError()), OSError(errno.EMFILE, "too many")):
        assert isinstance(judged(exc, Broker(AWAY)), ReplicaExhausted)


@pytest.mark.parametrize("make", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_request_to_end_the_process_passes(make: Callable[[], BaseException]):
    exc = make()
    assert judged(exc, Broker()) is exc
