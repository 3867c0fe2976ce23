"""Messages that are complete but not sent."""

import json

import pytest
from celery import Celery

from ha_beat.dispatch.capture import RedisCommands
from ha_beat.dispatch.publisher import DeferredMessage, DeferredPublish


@pytest.mark.parametrize(("options", "timed"), [({}, False), ({"expires": 60}, True), ({"countdown": 5}, True)])
def test_message_with_an_expiry_or_an_eta_is_timed(options: dict[str, int], timed: bool) -> None:
    built = Celery("app", set_as_current=False).amqp.as_task_v2("id", "task", **options)
    expires_queue = ("PEXPIRE", "queue", "1000")
    commands = (("LPUSH", "queue", json.dumps({"headers": built.headers})), expires_queue)
    assert RedisCommands(commands).timed is timed
    assert DeferredMessage((DeferredPublish({"headers": built.headers}),)).timed is timed
