"""Reports of workers that the message of an entry has ended."""

import os
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from celery import Celery, signals
from celery.exceptions import Reject, Retry
from celery.worker import state

from ha_beat.store.keys import Keys
from ha_beat.worker import link, overlap
from tests.support.servers import RedisServer, wait_for

KEYS = Keys("shop")
HEADER = {"cluster": "shop", "entry": "report", "scheduled_at": "2030-01-01T12:00:00+00:00", "busy": "the key"}


@pytest.fixture
def app(shared_redis: RedisServer) -> Celery:
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.ha_beat_redis_url = shared_redis.url
    shared_redis.admin.hset(KEYS.busy, "e:report", "1 the key")
    return app


def nothing() -> None: ...


def ended(server: RedisServer) -> bool:
    return not server.admin.hexists(KEYS.busy, "e:report")


@pytest.mark.parametrize(
    ("error", "is_end"),
    [(None, True), (ValueError(), True), (Retry(), False), (Reject(requeue=True), False), (Reject(), True)],
)
def test_run_ends_the_message_unless_it_is_retried_or_requeued(app: Celery, shared_redis: RedisServer, error, is_end):
    @app.task(bind=True)
    def report(self: Any) -> None:
        if error is not None:
            raise error

    report.apply(headers={"ha_beat": HEADER})
    assert ended(shared_redis) is is_end


def test_message_without_the_key_is_not_reported(app: Celery, shared_redis: RedisServer):
    app.task(nothing, name="report").apply(headers={"ha_beat": {**HEADER, "busy": ""}})
    assert not shared_redis.admin.hexists(KEYS.busy, "m:reported")


def test_revoked_rejected_and_killed_messages_have_ended(app: Celery, shared_redis: RedisServer):
    report: Any = app.task(nothing, name="report")
    request = SimpleNamespace(id="id", headers={"ha_beat": HEADER})
    consumer = Mock(app=app)
    signals.task_received.send(sender=consumer, request=request)
    assert shared_redis.admin.hexists(KEYS.busy, "m:reported")
    assert not ended(shared_redis)
    sends: list[Any] = [
        lambda: signals.task_failure.send(sender=report, task_id="id"),
        lambda: signals.task_revoked.send(sender=report, request=request, expired=True),
        lambda: signals.task_rejected.send(sender=consumer, message=request),
        lambda: signals.task_unknown.send(sender=consumer, message=request),
    ]
    for send in sends:
        shared_redis.admin.hset(KEYS.busy, "e:report", "1 the key")
        send()
        assert ended(shared_redis)


def fail_reports(monkeypatch, times: int) -> list[None]:
    """Fail the next reports. Return a list with one item for each that will fail; clear it to stop."""
    monkeypatch.setattr(overlap, "_RETRY", 0.05)
    real, left = overlap._send, [None] * times

    def send(*args: Any) -> None:
        if left:
            left.pop()
            raise ConnectionError("no Redis")
        real(*args)

    monkeypatch.setattr(overlap, "_send", send)
    return left


def test_end_that_redis_did_not_take_is_reported_later(app: Celery, shared_redis: RedisServer, monkeypatch, caplog):
    fail_reports(monkeypatch, 2)
    app.task(nothing, name="report").apply(headers={"ha_beat": HEADER})
    assert [record.action for record in caplog.records if hasattr(record, "action")] == ["end_not_reported"]
    wait_for(lambda: ended(shared_redis), 5, "the report")


def test_end_that_can_never_be_reported_holds_up_no_other(app: Celery, shared_redis: RedisServer, monkeypatch):
    """An entry's name in a header may be a text that Redis does not accept."""
    report: Any = app.task(nothing, name="report")
    down = fail_reports(monkeypatch, 1000)
    for entry in ("\ud800", "report"):
        report.apply(headers={"ha_beat": {**HEADER, "entry": entry}})
    down.clear()
    wait_for(lambda: ended(shared_redis), 5, "the report")


def test_report_is_not_left_to_a_thread_that_is_about_to_end(app: Celery, shared_redis: RedisServer, monkeypatch):
    monkeypatch.setattr(overlap, "_RETRY", 0.05)
    ending = overlap.LateReports()
    monkeypatch.setattr(ending, "is_alive", lambda: True)
    assert not ending._goes_on()
    monkeypatch.setattr(overlap, "_late", ending)
    overlap._report_later(app, ("shop", "report", "the key"))
    wait_for(lambda: ended(shared_redis), 5, "the report")


def test_killed_message_that_the_worker_has_held_for_long_has_ended(
    app: Celery, shared_redis: RedisServer, monkeypatch
):
    monkeypatch.setattr(overlap, "_NEWEST_RECEIVED", 10)
    monkeypatch.setattr(overlap, "_received", OrderedDict())
    monkeypatch.setitem(state.requests, "long", object())
    for name in ("long", *map(str, range(50))):
        request = SimpleNamespace(id=name, headers={"ha_beat": {**HEADER, "busy": f"key of {name}"}})
        shared_redis.admin.hset(KEYS.busy, "e:report", "1 key of long")
        signals.task_received.send(sender=Mock(app=app), request=request)
    assert len(overlap._received) <= 20
    signals.task_failure.send(sender=app.task(nothing, name="report"), task_id="long")
    assert ended(shared_redis)


def test_lock_that_was_held_at_a_fork_does_not_hang_the_child():
    """A pool may fork a process while another thread receives a message."""
    locks = (link._guard, overlap._late_guard)
    with locks[0], locks[1]:
        child = os.fork()
        if child == 0:
            os._exit(0 if all(lock.acquire(timeout=1.0) for lock in locks) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_retry_of_a_task_keeps_the_header(app: Celery):
    @app.task(bind=True, name="again")
    def again(self: Any) -> Any:
        return self.signature_from_request().options["headers"]

    assert again.apply(headers={"ha_beat": HEADER}).get()["ha_beat"]["busy"] == "the key"
