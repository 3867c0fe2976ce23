"""Messages that are complete but not sent: their size and their time."""

import json
import tracemalloc
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from ha_beat.dispatch.messages import size
from ha_beat.dispatch.messages.build import OccurrenceProducer, Sender, publish
from ha_beat.dispatch.messages.capture import RedisCommands
from ha_beat.dispatch.messages.deferred import DeferredMessage, DeferredPublish
from ha_beat.dispatch.messages.size import MessageTooLarge


@pytest.mark.parametrize(("options", "timed"), [({}, False), ({"expires": 60}, True), ({"countdown": 5}, True)])
def test_message_with_an_expiry_or_an_eta_is_timed(options: dict[str, int], timed: bool) -> None:
    built = Celery("app", set_as_current=False).amqp.as_task_v2("id", "task", **options)
    expires_queue = ("PEXPIRE", "queue", "1000")
    commands = (("LPUSH", "queue", json.dumps({"headers": built.headers})), expires_queue)
    assert RedisCommands(commands).timed is timed
    assert DeferredMessage((DeferredPublish({"headers": built.headers}),)).timed is timed


class Unknown(str):
    """Text that marshal does not encode."""

    __slots__ = ()


@pytest.mark.parametrize(
    ("args", "options"),
    [
        (("x" * 1000,), {}),
        ((Decimal(1), {"one": ["x" * 1000]}), {}),
        ((Unknown("x" * 1000),), {}),
        ((list(range(1000)),), {}),
        ((), {"headers": {"own": "x" * 1000}}),
    ],
    ids=["text", "within others", "not plain", "many", "header"],
)
def test_large_message_is_refused_before_its_envelope_is_made(
    monkeypatch: pytest.MonkeyPatch, args: tuple[Any, ...], options: dict[str, Any]
) -> None:
    """Its encoding would delay the other entries, and the script would block Redis."""
    app = Celery("app", broker="memory://", set_as_current=False)
    entry: Any = SimpleNamespace(task="large")
    with app.connection_for_write() as connection:
        producer = type("Producer", (OccurrenceProducer, app.amqp.Producer), {})(connection)
        sent: list[Any] = []
        monkeypatch.setattr(producer, "_publish", lambda body, *_, **__: sent.append(body))
        publish(Sender(app), producer, entry, args, {}, options)
        monkeypatch.setattr(size, "LARGEST", 999)
        monkeypatch.setattr(size, "_MANY", 100)
        with pytest.raises(MessageTooLarge):
            publish(Sender(app), producer, entry, args, {}, options)
    assert len(sent) == 1


def within_itself() -> list[Any]:
    found: list[Any] = []
    found.append([found] * 10_000)
    return found


def nested(levels: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(levels):
        found = [found]
    return found


@pytest.mark.parametrize(
    "value",
    [
        within_itself(),
        {"own": [Decimal(1), within_itself()]},
        nested(100_000),
        (number for number in range(3)),
        10**5000,
    ],
    ids=["cycle", "cycle that is not plain", "deep", "generator", "huge number"],
)
def test_size_of_an_unusual_value_is_found_in_little_memory(value: Any) -> None:
    """The encoding fails later, with an error that names the entry."""
    tracemalloc.start()
    try:
        assert not size.is_larger(value, size.LARGEST)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
